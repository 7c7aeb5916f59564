"""The experiment: one YAML file, checked as a whole before anything starts. An unknown key is an error."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, field_validator

from energy.carbon.grid import constant as grid_constant
from energy.carbon.grid import intensity as grid_intensity
from energy.factors import Factor
from energy.factors import accelerator as known_accelerator
from model.config import LlamaConfig, RopeKind, RopeScaling
from orchestrator.spec import sense
from orchestrator.spec.budget import BudgetSpec, Money
from orchestrator.spec.named import OrName, with_names_looked_up
from orchestrator.spec.quantities import DURATION, Count, DurationS, IntensityGPerKwh, Number, PowerW, Whole, quantity
from orchestrator.spec.section import Section

Positive = Annotated[Count, Field(gt=0)]
Beta = Annotated[Number, Field(ge=0, lt=1)]


def _an_accelerator(name: str) -> str:
    known_accelerator(name)
    return name


def _place_of_a_grid(name: str) -> str:
    """A place or a preset; a figure needs a source, and `intensity` is where it has one."""
    if grid_constant(name) is not None:
        raise ValueError(f"expected a place such as FR; {name!r} is a figure: write intensity, with intensity_source")
    grid_intensity(name)
    return name


def _auto_or_switch(value: Any) -> Any:
    """One fault for a value that is neither, where pydantic has one for each."""
    if value != "auto" and not isinstance(value, bool):
        raise ValueError(f"expected auto, true or false, got {value!r}")
    return value


def _auto_or_duration(value: Any) -> Any:
    """One fault for a value that is neither."""
    if value == "auto":
        return value
    duration_s = quantity(value, DURATION, "10 min, or auto")
    if duration_s <= 0:
        raise ValueError(f"expected auto, or a time above 0 such as 10 min, got {value!r}")
    return duration_s


def _off_is_a_word(value: Any) -> Any:
    """YAML reads off as false."""
    return "off" if value is False else value


# What to do before the first step: look at every node of the cluster (`hoofprint doctor --cluster`), or not.
Preflight = Annotated[
    Literal["off", "warn", "stop"],
    BeforeValidator(_off_is_a_word, json_schema_input_type=Literal["off", "warn", "stop", False]),
]
Deadline = Annotated[Literal["auto"] | Annotated[DurationS, Field(gt=0)], BeforeValidator(_auto_or_duration)]


class RopeScalingSpec(Section):
    """Rotary frequencies slowed for longer sequences. `linear` knows `factor` only, `llama3` all four."""

    kind: RopeKind
    factor: Annotated[Number, Field(gt=0)]
    low_freq_factor: Annotated[Number, Field(gt=0)] = 1.0
    high_freq_factor: Annotated[Number, Field(gt=0)] = 4.0
    original_length: Positive = 8192

    rules = (sense.rope_scaling,)

    @property
    def scaling(self) -> RopeScaling:
        return RopeScaling(**self.model_dump())


class ModelSpec(Section):
    """The LLaMA architecture. `ffn_hidden` defaults to 2/3 of 4 dim, rounded up to a multiple of 256.

    `init_from`: a folder of `hoofprint import`, or a run, whose weights the training starts from.
    """

    dim: Positive
    n_layers: Positive
    n_heads: Positive
    n_kv_heads: Positive | None = None  # fewer than n_heads is grouped-query attention
    ffn_hidden: Positive | None = None
    norm_eps: Annotated[Number, Field(gt=0)] = 1e-5
    sequence_length: Positive = 2048
    rope_theta: Annotated[Number, Field(gt=0)] = 1e4
    rope_scaling: RopeScalingSpec | None = None
    tie_embeddings: bool = False
    vocab_size: Positive | None = None  # rows of the embedding; default: as many as the tokenizer has pieces
    init_from: Path | None = None

    rules = (sense.heads_divide_dim, sense.kv_heads_divide_heads)


class TokenizerSpec(Section):
    """`path` loads a `tokenizer.model` (SentencePiece's, Llama 3's) or a `tokenizer.json`; without, one is trained."""

    vocab_size: Annotated[Count, Field(ge=300)] = 32000
    path: Path | None = None


class SourceEntry(Section):
    """One text source of the mixture. `min_bytes` belongs to python-stdlib only."""

    name: str
    kind: Literal["text-folder", "jsonl", "parquet", "python-stdlib"]
    proportion: Annotated[Number, Field(gt=0, le=1)]
    path: Path | None = None
    text_key: str = "text"
    min_bytes: Positive | None = None

    rules = (sense.path_where_needed, sense.min_bytes_where_understood)


class DataSpec(Section):
    """Where the text comes from, and what part is held out for the validation loss."""

    sources: Annotated[list[SourceEntry], Field(min_length=1)]
    tokenizer: TokenizerSpec = TokenizerSpec()
    document_masking: bool = False  # no token attends to another document of its sequence; positions begin anew
    validation_fraction: Annotated[Number, Field(gt=0, lt=0.5)] = 0.01
    cache: Path = Path(".cache/hoofprint")

    rules = (sense.proportions_add_up, sense.names_differ)


class TrainingSpec(Section):
    """Optimisation as in the LLaMA paper, section 2.3. `tokens` is the whole training, `batch_tokens` one step."""

    tokens: Positive
    batch_tokens: Positive
    micro_batch_sequences: Positive = 8
    peak_lr: Annotated[Number, Field(gt=0)]
    min_lr_fraction: Annotated[Number, Field(ge=0, le=1)] = 0.1
    warmup_steps: Annotated[Count, Field(ge=0)] = 2000
    betas: tuple[Beta, Beta] = (0.9, 0.95)
    weight_decay: Annotated[Number, Field(ge=0)] = 0.1
    gradient_clip: Annotated[Number, Field(gt=0)] = 1.0
    # What is computed in; weights at rest and their moments are float32. auto: bfloat16 on GPUs. float8: the products
    # of blocks, and bfloat16 the rest; needs the extra `hoofprint[float8]`.
    dtype: Literal["auto", "float32", "bfloat16", "float8"] = "auto"
    # What blocks keep for the backward: everything, the outputs of linear layers and attention, or their input only;
    # auto: the fastest that fits the devices.
    activation_checkpointing: Literal["auto", "none", "selective", "full"] = "auto"
    # torch.compile each block; auto: on GPUs
    compile: Annotated[Literal["auto"] | bool, BeforeValidator(_auto_or_switch)] = "auto"
    # Gradients of a step's micro-batches are summed on each worker and reduced once, or cut at once to save memory;
    # auto: once where they fit.
    gradient_reduction: Literal["auto", "once_per_step", "each_micro_batch"] = "auto"
    # Weights that workers share are gathered for each forward and backward of a block, or once a step, and kept; auto:
    # once on the CPU, where nothing is computed beside a gather.
    weight_gathering: Literal["auto", "once_per_step", "each_use"] = "auto"
    # The attention kernel. flex and varlen are for document_masking, flash and cudnn for whole sequences.
    attention: Literal["auto", "flash", "cudnn", "efficient", "math", "flex", "varlen"] = "auto"
    evaluate_every_steps: Positive = 500
    evaluation_sequences: Positive = 64
    checkpoint_every_steps: Positive = 500
    # A step whose loss or gradient is not finite: ends the run, or its gradient is thrown away on all workers.
    nonfinite_loss: Literal["stop", "skip"] = "stop"


class CheckpointSpec(Section):
    """How checkpoints are written, and which are kept: the last ones, those of every so many steps, or all.

    `asynchronous`: the training goes on while one is written, from a copy in main memory.
    """

    asynchronous: bool = True
    keep_last: Annotated[Whole, Field(ge=2)] | None = None  # two: the one before is needed where the newest is damaged
    keep_every_steps: Positive | None = None  # these stay, however old
    # where each is copied to, s3://bucket/folder or file:///folder; a run that resumes fetches from there what it lacks
    copy_to: Annotated[str, Field(pattern=r"^[a-z0-9]+://\S+$")] | None = None

    rules = (sense.keeping_some_needs_a_last, sense.copies_keep_no_secrets)


class ClusterSpec(Section):
    """How many workers (one per GPU where there are GPUs), and where. No address starts a local Ray.

    The workers form a grid: `replicas` of groups that shard the model (1: all workers shard it), and in each of them
    groups of `tensor_parallel` workers that share a batch and compute each block together.
    """

    workers: Positive = 1
    # The fewest to begin and to go on with; default: as many as `workers`. Where neither device nor accelerator is
    # named, a run begins on the GPUs that there are, and goes on with no fewer than it began with.
    min_workers: Positive | None = None
    replicas: Positive = 1
    tensor_parallel: Positive = 1
    gpus_per_node: Positive = 8
    # Where the cluster has more room than workers: on as few nodes as there can be, or on as many.
    placement: Literal["pack", "spread"] = "pack"
    # auto: GPUs where there are some. A run goes on with the kind that it began with, also when it is resumed.
    device: Literal["auto", "cpu", "cuda"] = "auto"
    accelerator: Annotated[str, AfterValidator(_an_accelerator)] | None = None
    address: str | None = None
    # A cluster that is joined is reserved for this run: its idle nodes and GPUs are the run's too, as in a local Ray.
    exclusive: bool = False
    gpu_hour_price: Money | None = None  # what a GPU-hour costs, as in 2.50 EUR
    # Restarts after a lost worker, hang or node, before the run ends; a new checkpoint starts the count again.
    max_failures: Annotated[Whole, Field(ge=0)] = 3
    # How long a step may take before it counts as hung; auto: ten times what steps take, and at least five minutes.
    step_deadline: Deadline = "auto"
    # Measures every node before the first step, which takes half a minute: names the slow ones, or also stops.
    preflight: Preflight = "off"

    rules = (sense.workers_form_a_grid, sense.fewest_workers)


class FactorRange(Section):
    """The least and the greatest that a factor may be, and who says so. It goes into the intervals of a footprint."""

    low: Annotated[Number, Field(ge=0)]
    high: Annotated[Number, Field(ge=0)]
    source: Annotated[str, Field(min_length=1)]


def with_range(factor: Factor, declared: FactorRange | None) -> Factor:
    """A factor with the range that a spec declares for it, in place of its source's own."""
    if declared is None or factor.value is None:
        return factor
    note = "; ".join(filter(None, (factor.note, f"range: {declared.source}")))
    return replace(factor, low=declared.low, high=declared.high, note=note)


class EnergySpec(Section):
    """Accounting assumptions. What is not declared stays missing in the record: nothing is guessed.

    Those that the factor tables hold may be named, as in `pue: google fleet 2024` or `water_intensity: FR`.
    """

    sample_interval: Annotated[DurationS, Field(ge=0.05, le=60)] = 1.0
    pue: Annotated[Number, Field(ge=1, le=5), OrName()] | None = None
    pue_source: str | None = None
    pue_range: FactorRange | None = None  # where the source gives none, or another is meant than its own
    intensity: Annotated[IntensityGPerKwh, Field(ge=0)] | None = None
    intensity_source: str | None = None
    intensity_range: FactorRange | None = None  # g CO2eq/kWh, around `intensity` or that of `grid`
    # a place (FR, US-CA, us-west-2) or a preset, looked up in the factor tables
    grid: Annotated[str, AfterValidator(_place_of_a_grid)] | None = None
    grid_series: Path | None = None  # a CSV or JSON file of intensities by the hour (UTC)
    grid_zone: str | None = None  # a zone of Electricity Maps, asked after the run; the token is in the environment
    # by contracts, beside the grid's; without any, a residual mix
    intensity_market: Annotated[IntensityGPerKwh, Field(ge=0), OrName()] | None = None
    intensity_market_source: str | None = None
    # share lost between power station and site
    transmission_loss: Annotated[Number, Field(ge=0, lt=1), OrName()] | None = None
    transmission_loss_source: str | None = None
    wue: Annotated[Number, Field(ge=0), OrName()] | None = None  # litres on site per IT kWh
    wue_source: str | None = None
    # litres at power stations per facility kWh
    water_intensity: Annotated[Number, Field(ge=0), OrName()] | None = None
    water_intensity_source: str | None = None
    embodied_convention: Literal["calendar", "busy-hour"] = "calendar"
    device_rated_power: Annotated[PowerW, Field(gt=0)] | None = None
    device_rated_power_source: str | None = None
    node_baseline: Annotated[PowerW, Field(gt=0)] | None = None  # fans, network, storage of a node: nothing reads them
    node_baseline_source: str | None = None
    # the same by kind of node: {"gpu-*": 700 W, "*": 90 W}, of the patterns of names the first that fits
    node_baselines: Annotated[dict[str, Annotated[PowerW, Field(gt=0)]], Field(min_length=1)] | None = None
    node_baselines_source: str | None = None
    node_power_command: str | None = None  # prints a node's whole power, such as `ipmitool dcmi power reading`
    node_power_file: Path | None = None
    budget: BudgetSpec = BudgetSpec()

    @property
    def intensity_factor(self) -> Factor | None:
        """The grid's declared intensity in g/kWh, by place or as a constant; None where nothing is declared."""
        if self.grid is not None:
            return with_range(grid_intensity(self.grid), self.intensity_range)
        if self.intensity is None:
            return None
        constant = Factor("intensity_g_per_kwh", self.intensity, "g CO2eq/kWh", str(self.intensity_source))
        return with_range(constant, self.intensity_range)

    rules = (sense.each_is_told_once, sense.figures_have_sources, sense.ranges_hold_their_figures)

    @classmethod
    def resolved(cls, given: Any) -> Any:
        return with_names_looked_up(given)

    @field_validator("grid", mode="before")
    @classmethod
    def _norway_is_a_place(cls, place: Any) -> Any:
        if isinstance(place, bool):
            raise ValueError("YAML reads NO as false: quote it, 'NO'")
        return place


class Experiment(Section):
    """A whole experiment, as read from one YAML file."""

    spec_version: Literal[1]
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    purpose: Literal["final", "development", "evaluation"] = "final"  # what a project's total books the run under
    seed: Annotated[Whole, Field(ge=0, lt=2**53)] = 1
    model: ModelSpec
    data: DataSpec
    training: TrainingSpec
    checkpoint: CheckpointSpec = CheckpointSpec()
    cluster: ClusterSpec = ClusterSpec()
    energy: EnergySpec = EnergySpec()

    rules = (
        sense.weights_bring_their_tokenizer,
        sense.batch_is_whole_sequences,
        sense.tokens_fill_a_batch,
        sense.a_cpu_can_do_it,
        sense.float8_goes_with_the_grid,
        sense.tensor_parallel_divides_the_model,
        sense.batch_divides_over_ranks,
        sense.attention_fits_the_data,
        sense.budgets_can_be_counted,
    )

    @property
    def batch_sequences(self) -> int:
        return self.training.batch_tokens // self.model.sequence_length

    @property
    def total_steps(self) -> int:
        """Steps of the whole training; the last partial batch is not trained."""
        return self.training.tokens // self.training.batch_tokens

    @property
    def planned_tokens(self) -> int:
        """What is trained of `training.tokens`: whole batches."""
        return self.total_steps * self.training.batch_tokens

    @property
    def doubts(self) -> list[str]:
        """What can be trained and is hardly meant: said before the start, and no fault."""
        found = []
        steps, warmup = self.total_steps, self.training.warmup_steps
        if warmup >= steps:
            found.append(
                f"training.warmup_steps {warmup:,} is not less than the {steps:,} steps of the training: the learning "
                "rate only rises, and peak_lr is hardly reached, or never"
            )
        left = self.training.tokens - self.planned_tokens
        if left > self.training.tokens / 100:
            found.append(
                f"training.tokens {self.training.tokens:,} is not a whole number of batches: the last {left:,} are not "
                f"trained; training.tokens={self.planned_tokens} says what is"
            )
        tokenizer = self.data.tokenizer
        if tokenizer.path is not None and tokenizer.vocab_size != TokenizerSpec().vocab_size:
            found.append(
                f"data.tokenizer.vocab_size {tokenizer.vocab_size:,} is of one that is trained, and not used: "
                f"{tokenizer.path} is there already"
            )
        return found

    def llama_config(self, vocab_size: int | None = None) -> LlamaConfig:
        """The model; `vocab_size` is the tokenizer's. ValueError where the model has no row for one of its pieces."""
        model = self.model
        if model.vocab_size is not None and vocab_size is not None and model.vocab_size < vocab_size:
            raise ValueError(f"model.vocab_size {model.vocab_size} is less than the tokenizer's {vocab_size} pieces")
        given = {key: getattr(model, key) for key in ("n_kv_heads", "ffn_hidden") if getattr(model, key) is not None}
        return LlamaConfig(
            dim=model.dim,
            n_layers=model.n_layers,
            n_heads=model.n_heads,
            **given,
            vocab_size=model.vocab_size or vocab_size or self.data.tokenizer.vocab_size,
            norm_eps=model.norm_eps,
            sequence_length=model.sequence_length,
            rope_theta=model.rope_theta,
            rope_scaling=None if model.rope_scaling is None else model.rope_scaling.scaling,
            tie_embeddings=model.tie_embeddings,
        )

"""The experiment: one YAML file, checked as a whole before anything starts. An unknown key is an error."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator

from energy.factors import Factor
from energy.factors import accelerator as known_accelerator
from energy.grid import intensity as grid_intensity
from model.config import LlamaConfig, RopeKind, RopeScaling, default_ffn_hidden
from orchestrator.named import OrName, with_names_looked_up
from orchestrator.quantities import Count, DurationS, IntensityGPerKwh, Number, PowerW

Positive = Annotated[Count, Field(gt=0)]
Beta = Annotated[Number, Field(ge=0, lt=1)]


def _known_to(look_up: Callable[[str], object]) -> AfterValidator:
    """Text that a look-up in the factor tables knows; its message names what is near."""

    def look(name: str) -> str:
        look_up(name)
        return name

    return AfterValidator(look)


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class RopeScalingSpec(Strict):
    """Rotary frequencies slowed for longer sequences. `linear` knows `factor` only, `llama3` all four."""

    kind: RopeKind
    factor: Annotated[Number, Field(gt=0)]
    low_freq_factor: Annotated[Number, Field(gt=0)] = 1.0
    high_freq_factor: Annotated[Number, Field(gt=0)] = 4.0
    original_length: Positive = 8192

    @model_validator(mode="after")
    def _high_is_above_low(self) -> "RopeScalingSpec":
        RopeScaling(**self.model_dump())  # checks itself
        return self

    @property
    def scaling(self) -> RopeScaling:
        return RopeScaling(**self.model_dump())


class ModelSpec(Strict):
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

    @model_validator(mode="after")
    def _heads_divide_dim(self) -> "ModelSpec":
        if self.dim % self.n_heads or (self.dim // self.n_heads) % 2:
            raise ValueError(
                f"n_heads {self.n_heads} does not divide dim {self.dim} into heads of even size (rotary pairs)"
            )
        if self.n_kv_heads is not None and self.n_heads % self.n_kv_heads:
            raise ValueError(f"n_kv_heads {self.n_kv_heads} does not divide n_heads {self.n_heads}")
        return self


class TokenizerSpec(Strict):
    """`path` loads a SentencePiece `tokenizer.model`; without it one is trained on the data."""

    vocab_size: Annotated[Count, Field(ge=300)] = 32000
    path: Path | None = None


class SourceEntry(Strict):
    """One text source of the mixture. `min_bytes` belongs to python-stdlib only."""

    name: str
    kind: Literal["text-folder", "jsonl", "parquet", "python-stdlib"]
    proportion: Annotated[Number, Field(gt=0, le=1)]
    path: Path | None = None
    text_key: str = "text"
    min_bytes: Positive | None = None

    @model_validator(mode="after")
    def _path_where_needed(self) -> "SourceEntry":
        if (self.path is None) != (self.kind == "python-stdlib"):
            raise ValueError(f"kind {self.kind} needs {'no path' if self.path else 'a path to a file or folder'}")
        if self.min_bytes is not None and self.kind != "python-stdlib":
            raise ValueError("min_bytes is understood for kind python-stdlib only")
        return self


class DataSpec(Strict):
    """Where the text comes from, and what part is held out for the validation loss."""

    sources: Annotated[list[SourceEntry], Field(min_length=1)]
    tokenizer: TokenizerSpec = TokenizerSpec()
    document_masking: bool = False  # no token attends to another document of its sequence; positions begin anew
    validation_fraction: Annotated[Number, Field(gt=0, lt=0.5)] = 0.01
    cache: Path = Path(".cache/hoofprint")

    @field_validator("sources")
    @classmethod
    def _proportions_add_up(cls, sources: list[SourceEntry]) -> list[SourceEntry]:
        total = sum(source.proportion for source in sources)
        if abs(total - 1) > 1e-6:
            raise ValueError(f"the proportions of the sources add up to {total:.6g}, expected 1")
        if len({source.name for source in sources}) < len(sources):
            raise ValueError("two sources have the same name")
        return sources


class TrainingSpec(Strict):
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
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    # What blocks keep for the backward: everything, the outputs of linear layers and attention, or their input only;
    # auto: the fastest that fits the devices.
    activation_checkpointing: Literal["auto", "none", "selective", "full"] = "auto"
    compile: Literal["auto"] | bool = "auto"  # torch.compile each block; auto: on GPUs
    # Gradients of a step's micro-batches are summed on each worker and reduced once, or cut at once to save memory;
    # auto: once where they fit.
    gradient_reduction: Literal["auto", "once_per_step", "each_micro_batch"] = "auto"
    # The attention kernel. flex and varlen are for document_masking, flash and cudnn for whole sequences.
    attention: Literal["auto", "flash", "cudnn", "efficient", "math", "flex", "varlen"] = "auto"
    evaluate_every_steps: Positive = 500
    evaluation_sequences: Positive = 64
    checkpoint_every_steps: Positive = 500


class ClusterSpec(Strict):
    """How many workers (one per GPU where there are GPUs), and where. No address starts a local Ray.

    The workers form a grid: `replicas` of groups that shard the model (1: all workers shard it), and in each of them
    groups of `tensor_parallel` workers that share a batch and compute each block together.
    """

    workers: Positive = 1
    replicas: Positive = 1
    tensor_parallel: Positive = 1
    gpus_per_node: Positive = 8
    device: Literal["auto", "cpu", "cuda"] = "auto"
    accelerator: Annotated[str, _known_to(known_accelerator)] | None = None
    address: str | None = None

    @model_validator(mode="after")
    def _workers_form_a_grid(self) -> "ClusterSpec":
        group = self.replicas * self.tensor_parallel
        if self.workers % group:
            raise ValueError(
                f"workers {self.workers} do not divide into replicas {self.replicas} x tensor_parallel "
                f"{self.tensor_parallel}; nearest: {max(1, self.workers // group) * group}"
            )
        return self


SOURCED = (
    "pue",
    "intensity",
    "intensity_market",
    "transmission_loss",
    "wue",
    "water_intensity",
    "device_rated_power",
    "node_baseline",
)
TOLD_BY_ONE_OF = {
    "the power of a node": ("node_baseline", "node_power_command", "node_power_file"),
    "the grid's intensity": ("grid", "intensity"),
    "the grid's intensity by the hour": ("grid_series", "grid_zone"),
}


class EnergySpec(Strict):
    """Accounting assumptions. What is not declared stays missing in the record: nothing is guessed.

    Those that the factor tables hold may be named, as in `pue: google fleet 2024` or `water_intensity: FR`.
    """

    sample_interval: Annotated[DurationS, Field(ge=0.05, le=60)] = 1.0
    pue: Annotated[Number, Field(ge=1, le=5), OrName()] | None = None
    pue_source: str | None = None
    intensity: Annotated[IntensityGPerKwh, Field(ge=0)] | None = None
    intensity_source: str | None = None
    # a place (FR, US-CA, us-west-2) or a preset, looked up in the factor tables
    grid: Annotated[str, _known_to(grid_intensity)] | None = None
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
    node_power_command: str | None = None  # prints a node's whole power, such as `ipmitool dcmi power reading`
    node_power_file: Path | None = None

    @property
    def intensity_factor(self) -> Factor | None:
        """The grid's declared intensity in g/kWh, by place or as a constant; None where nothing is declared."""
        if self.grid is not None:
            return grid_intensity(self.grid)
        if self.intensity is None:
            return None
        return Factor("intensity_g_per_kwh", self.intensity, "g CO2eq/kWh", str(self.intensity_source))

    @model_validator(mode="before")
    @classmethod
    def _names_are_looked_up(cls, given: Any) -> Any:
        return with_names_looked_up(given)

    @field_validator("grid", mode="before")
    @classmethod
    def _norway_is_a_place(cls, place: Any) -> Any:
        if isinstance(place, bool):
            raise ValueError("YAML reads NO as false: quote it, 'NO'")
        return place

    @model_validator(mode="after")
    def _each_is_told_once(self) -> "EnergySpec":
        for what, keys in TOLD_BY_ONE_OF.items():
            given = [key for key in keys if getattr(self, key) is not None]
            if len(given) > 1:
                raise ValueError(f"{' and '.join(given)} all tell {what}: give one of them")
        return self

    @model_validator(mode="after")
    def _figures_have_sources(self) -> "EnergySpec":
        for key in SOURCED:
            if getattr(self, key) is not None and not getattr(self, f"{key}_source"):
                raise ValueError(f"{key} is given without {key}_source: say where the figure comes from")
        return self


class Experiment(Strict):
    """A whole experiment, as read from one YAML file."""

    spec_version: Literal[1]
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    purpose: Literal["final", "development", "evaluation"] = "final"  # what a project's total books the run under
    seed: Annotated[int, Field(ge=0)] = 1
    model: ModelSpec
    data: DataSpec
    training: TrainingSpec
    cluster: ClusterSpec = ClusterSpec()
    energy: EnergySpec = EnergySpec()

    @field_validator("data")
    @classmethod
    def _weights_bring_their_tokenizer(cls, data: DataSpec, info: ValidationInfo) -> DataSpec:
        model = info.data.get("model")
        if model is not None and model.init_from is not None and data.tokenizer.path is None:
            raise ValueError(
                "model.init_from needs tokenizer.path: trained weights mean nothing under a tokenizer that is made for "
                "this text"
            )
        return data

    @field_validator("training")
    @classmethod
    def _batch_is_whole_sequences(cls, training: TrainingSpec, info: ValidationInfo) -> TrainingSpec:
        model = info.data.get("model")
        if model is None:
            return training
        length = model.sequence_length
        if training.batch_tokens % length:
            below = training.batch_tokens // length * length
            near = f"{below or length} or {below + length}"
            raise ValueError(
                f"batch_tokens {training.batch_tokens} is not a whole number of sequences of {length}; nearest: {near}"
            )
        if training.tokens < training.batch_tokens:
            raise ValueError(f"tokens {training.tokens} is less than one batch of {training.batch_tokens}")
        return training

    @field_validator("cluster")
    @classmethod
    def _batch_divides_over_ranks(cls, cluster: ClusterSpec, info: ValidationInfo) -> ClusterSpec:
        model, training = info.data.get("model"), info.data.get("training")
        if model is None or training is None:
            return cluster
        tensor = cluster.tensor_parallel
        for knob in ("n_heads", "n_kv_heads", "ffn_hidden", "sequence_length"):
            size = getattr(model, knob) or (default_ffn_hidden(model.dim) if knob == "ffn_hidden" else tensor)
            if size % tensor:
                raise ValueError(f"tensor_parallel {tensor} does not divide model.{knob} {size}")
        sequences, ranks = training.batch_tokens // model.sequence_length, cluster.workers // tensor
        if sequences % ranks:
            below = sequences // ranks * ranks
            near = f"{below or ranks} or {below + ranks}"
            raise ValueError(f"batch of {sequences} sequences does not divide over {ranks} ranks; nearest: {near}")
        return cluster

    @field_validator("training")
    @classmethod
    def _attention_fits_the_data(cls, training: TrainingSpec, info: ValidationInfo) -> TrainingSpec:
        data = info.data.get("data")
        if data is None:
            return training
        if training.attention in ("flex", "varlen") and not data.document_masking:
            raise ValueError(f"attention {training.attention} is for documents: set data.document_masking, or auto")
        if training.attention in ("flash", "cudnn") and data.document_masking:
            raise ValueError(
                f"attention {training.attention} takes no mask of documents; expected auto, varlen, flex, "
                "efficient or math"
            )
        return training

    @property
    def batch_sequences(self) -> int:
        return self.training.batch_tokens // self.model.sequence_length

    @property
    def total_steps(self) -> int:
        """Steps of the whole training; the last partial batch is not trained."""
        return self.training.tokens // self.training.batch_tokens

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

"""The experiment: one YAML file, checked as a whole before anything starts. An unknown key is an error."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator

from energy.factors import Factor
from energy.factors import accelerator as known_accelerator
from energy.grid import intensity as grid_intensity
from model.config import LlamaConfig
from orchestrator.quantities import Count, DurationS, IntensityGPerKwh, Number, PowerW

Positive = Annotated[Count, Field(gt=0)]
Beta = Annotated[Number, Field(ge=0, lt=1)]


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ModelSpec(Strict):
    """The LLaMA architecture. `ffn_hidden` defaults to 2/3 of 4 dim, rounded up to a multiple of 256."""

    dim: Positive
    n_layers: Positive
    n_heads: Positive
    ffn_hidden: Positive | None = None
    norm_eps: Annotated[Number, Field(gt=0)] = 1e-5
    sequence_length: Positive = 2048

    @model_validator(mode="after")
    def _heads_divide_dim(self) -> "ModelSpec":
        if self.dim % self.n_heads or (self.dim // self.n_heads) % 2:
            raise ValueError(
                f"n_heads {self.n_heads} does not divide dim {self.dim} into heads of even size (rotary pairs)"
            )
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
    evaluate_every_steps: Positive = 500
    evaluation_sequences: Positive = 64
    checkpoint_every_steps: Positive = 500


class ClusterSpec(Strict):
    """How many workers (one per GPU where there are GPUs), and where. No address starts a local Ray."""

    workers: Positive = 1
    gpus_per_node: Positive = 8
    device: Literal["auto", "cpu", "cuda"] = "auto"
    accelerator: str | None = None
    address: str | None = None

    @field_validator("accelerator")
    @classmethod
    def _accelerator_is_known(cls, name: str | None) -> str | None:
        if name is not None:
            known_accelerator(name)  # its message names the near ones
        return name


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


class EnergySpec(Strict):
    """Accounting assumptions. What is not declared stays missing in the record: nothing is guessed."""

    sample_interval: Annotated[DurationS, Field(ge=0.05, le=60)] = 1.0
    pue: Annotated[Number, Field(ge=1, le=5)] | None = None
    pue_source: str | None = None
    intensity: Annotated[IntensityGPerKwh, Field(ge=0)] | None = None
    intensity_source: str | None = None
    grid: str | None = None  # a place (FR, US-CA, aws us-west-2) or a preset, looked up in the factor tables
    grid_series: Path | None = None  # a CSV or JSON file of intensities by the hour (UTC)
    grid_zone: str | None = None  # a zone of Electricity Maps, asked after the run; the token is in the environment
    intensity_market: Annotated[IntensityGPerKwh, Field(ge=0)] | None = None  # by contracts, beside the grid's
    intensity_market_source: str | None = None
    transmission_loss: Annotated[Number, Field(ge=0, lt=1)] | None = None  # share lost between power station and site
    transmission_loss_source: str | None = None
    wue: Annotated[Number, Field(ge=0)] | None = None  # litres on site per IT kWh
    wue_source: str | None = None
    water_intensity: Annotated[Number, Field(ge=0)] | None = None  # litres at power stations per facility kWh
    water_intensity_source: str | None = None
    embodied_convention: Literal["calendar", "busy-hour"] = "calendar"
    device_rated_power: Annotated[PowerW, Field(gt=0)] | None = None
    device_rated_power_source: str | None = None
    node_baseline: Annotated[PowerW, Field(gt=0)] | None = None  # fans, network, storage of a node: nothing reads them
    node_baseline_source: str | None = None
    node_power_command: str | None = None  # prints a node's whole power, such as `ipmitool dcmi power reading`
    node_power_file: Path | None = None

    @model_validator(mode="after")
    def _node_power_has_one_source(self) -> "EnergySpec":
        given = [k for k in ("node_baseline", "node_power_command", "node_power_file") if getattr(self, k) is not None]
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)} tell the same power of a node: give one of them")
        return self

    @property
    def intensity_factor(self) -> Factor | None:
        """The grid's declared intensity in g/kWh, by place or as a constant; None where nothing is declared."""
        if self.grid is not None:
            return grid_intensity(self.grid)
        if self.intensity is None:
            return None
        return Factor("intensity_g_per_kwh", self.intensity, "g CO2eq/kWh", str(self.intensity_source))

    @field_validator("grid", mode="before")
    @classmethod
    def _norway_is_a_place(cls, place: Any) -> Any:
        if isinstance(place, bool):
            raise ValueError("YAML reads NO as false: quote it, 'NO'")
        return place

    @field_validator("grid")
    @classmethod
    def _grid_is_known(cls, place: str | None) -> str | None:
        if place is not None:
            grid_intensity(place)  # its message names the near ones
        return place

    @model_validator(mode="after")
    def _one_intensity(self) -> "EnergySpec":
        if self.grid is not None and self.intensity is not None:
            raise ValueError("grid and intensity both tell the grid's intensity: give one of them")
        if self.grid_series is not None and self.grid_zone is not None:
            raise ValueError("grid_series and grid_zone both tell the intensity by the hour: give one of them")
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
        sequences = training.batch_tokens // model.sequence_length
        if sequences % cluster.workers:
            below = sequences // cluster.workers * cluster.workers
            near = f"{below or cluster.workers} or {below + cluster.workers}"
            raise ValueError(
                f"batch of {sequences} sequences does not divide over {cluster.workers} ranks; nearest: {near}"
            )
        return cluster

    @property
    def batch_sequences(self) -> int:
        return self.training.batch_tokens // self.model.sequence_length

    @property
    def total_steps(self) -> int:
        """Steps of the whole training; the last partial batch is not trained."""
        return self.training.tokens // self.training.batch_tokens

    def llama_config(self, vocab_size: int | None = None) -> LlamaConfig:
        return LlamaConfig(
            dim=self.model.dim,
            n_layers=self.model.n_layers,
            n_heads=self.model.n_heads,
            **({} if self.model.ffn_hidden is None else {"ffn_hidden": self.model.ffn_hidden}),
            vocab_size=vocab_size or self.data.tokenizer.vocab_size,
            norm_eps=self.model.norm_eps,
            sequence_length=self.model.sequence_length,
        )

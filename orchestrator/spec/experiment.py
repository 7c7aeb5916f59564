"""The experiment: one YAML file, checked as a whole before anything starts. An unknown key is an error."""

from typing import Annotated, Literal

from pydantic import Field

from model.config import LlamaConfig
from orchestrator.spec import sense
from orchestrator.spec.cluster_spec import ClusterSpec
from orchestrator.spec.data_spec import DataSpec, TokenizerSpec
from orchestrator.spec.energy_spec import EnergySpec
from orchestrator.spec.model_spec import ModelSpec
from orchestrator.spec.quantities import Whole
from orchestrator.spec.section import Section
from orchestrator.spec.training_spec import CheckpointSpec, TrainingSpec


class Experiment(Section):
    """A whole experiment, as read from one YAML file."""

    spec_version: Literal[1] = Field(description="Of this format")
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")] = Field(
        description="Of the experiment; its runs have the time after it"
    )
    purpose: Literal["final", "development", "evaluation"] = Field(
        default="final", description="What a project's total books the run under"
    )
    seed: Annotated[Whole, Field(ge=0, lt=2**53)] = Field(default=1, description="Of weights and order of the data")
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
        sense.attention_can_compute_it,
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

"""The model of a plan: the spec's, with a row for each piece of the tokenizer that it names."""

from functools import lru_cache
from pathlib import Path

from model.config import LlamaConfig
from orchestrator.spec.experiment import Experiment


def planned_config(
    experiment: Experiment, warnings: list[str], vocab_size: int | None = None, *, reads: bool = True
) -> LlamaConfig:
    """vocab_size: the tokenizer's, where it is known already. A tokenizer file that cannot be read, or by `reads` must
    not, is a warning: a plan is made on other machines than the training, too."""
    tokenizer = experiment.data.tokenizer
    if vocab_size is None and experiment.model.vocab_size is None and tokenizer.path is not None:
        try:
            if not reads:
                raise ValueError("that is done for an experiment's own file only")
            if not tokenizer.path.is_file():  # a pipe, a device: reading would not end
                raise ValueError(f"{tokenizer.path} is not a file")
            vocab_size = _pieces(tokenizer.path, tokenizer.path.stat().st_mtime_ns)
        except (OSError, ValueError) as error:
            warnings.append(
                f"the tokenizer could not be read ({error}): the model is planned with {tokenizer.vocab_size:,} rows; "
                "model.vocab_size says how many it has"
            )
    return experiment.llama_config(vocab_size)


@lru_cache(maxsize=8)
def _pieces(path: Path, mtime_ns: int) -> int:
    """Of a tokenizer file as it was written at `mtime_ns`: a sweep asks for each of its plans."""
    from orchestrator.data.tokenizer import Tokenizer

    return Tokenizer.load(path).vocab_size

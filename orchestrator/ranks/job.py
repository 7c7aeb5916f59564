"""What a rank is told. Apart from the rank, so that its driver need not import PyTorch."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Job:
    """What a rank must know; plain values, so that it travels to any worker process."""

    run_dir: str
    corpus_dir: str
    experiment: dict
    started_unix_s: float
    initial_weights: str | None = None  # a checkpoint to start from, instead of weights drawn by the seed
    profile_steps: int = 0  # how many steps rank 0 records

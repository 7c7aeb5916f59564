"""One rank of the training: builds the model, the data stream and the step, and hands them to the loop.

It needs a process group and a job, and no launcher: Ray Train, torchrun and pytest all start it the same way.
"""

import json
import time
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from model.attention import backend_in_use, sdpa_backends
from model.init import init_weights
from model.optim import clip_gradients, lr_at, make_optimizer, set_lr
from model.packing import Packing, form_of, pack
from model.parallelize import loss_scale, make_mesh, parallelize, set_gradient_sync
from model.sharding import Layout, sharding_plan
from model.transformer import Llama
from orchestrator import checkpoint
from orchestrator.corpus import source_specs
from orchestrator.data.shards import open_corpus
from orchestrator.data.stream import TokenStream
from orchestrator.loop import Schedule, StepResult, train
from orchestrator.metrics import COMPILE, MetricsFile
from orchestrator.plan.choices import choose
from orchestrator.profiling import StepProfiler
from orchestrator.spec import Experiment

SHARDING_FILE = Path("logs") / "sharding.txt"  # in the run folder: what lies where
STOP_FILE = "stop"  # in the run folder: asks the trainer to checkpoint and end at the next step


@dataclass(frozen=True)
class Job:
    """What a rank must know; plain values, so that it travels to any worker process."""

    run_dir: str
    corpus_dir: str
    experiment: dict
    started_unix_s: float
    initial_weights: str | None = None  # a checkpoint to start from, instead of weights drawn by the seed
    profile_steps: int = 0  # how many steps rank 0 records


def next_attempt(run_dir: Path) -> int:
    """The driver's attempt, or one more than the last one that rank 0 left marks of, whichever is later."""
    path, run_file = run_dir / "metrics" / "rank-0.jsonl", run_dir / "run.json"
    # An attempt that failed before its first mark counts too; without a driver (torchrun, pytest) there is no run.json.
    driver = len(json.loads(run_file.read_text(encoding="utf-8"))["attempts"]) if run_file.exists() else 0
    last = 0
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            last = max(last, json.loads(line)["attempt"])
        except (json.JSONDecodeError, KeyError, TypeError):
            continue  # a line torn by a kill says nothing about the attempt that its neighbours do not
    return max(last + 1, driver)


class Rank:
    """Model, optimiser and data of one rank, and the step over them."""

    def __init__(self, job: Job):
        self.spec = Experiment.model_validate(job.experiment)
        self.run_dir = Path(job.run_dir)
        self.initial_weights = job.initial_weights
        self.rank, self.world = dist.get_rank(), dist.get_world_size()
        cuda = torch.cuda.is_available() and self.spec.cluster.device != "cpu"
        self.device = torch.device("cuda", torch.cuda.current_device()) if cuda else torch.device("cpu")
        corpus = open_corpus(job.corpus_dir, source_specs(self.spec))
        config = self.spec.llama_config(corpus.tokenizer.vocab_size)
        self.stream = TokenStream(corpus, None, config.sequence_length, self.spec.seed)
        self.bos_id = corpus.tokenizer.bos_id
        cluster = self.spec.cluster
        self.layout = Layout.of(self.world, replicas=cluster.replicas, tensor=cluster.tensor_parallel)
        self.choices = choose(self.spec, config, self.world, self.device.type, _smallest_gb(self.device))
        self.dtype = torch.bfloat16 if self.choices.dtype == "bfloat16" else torch.float32
        with torch.device("meta"):
            model = Llama(config)
        # On the CPU a gather is not computed beside anything: another one ahead would only take memory.
        plan = sharding_plan(model, self.layout, prefetch=1 if cuda else 0)
        self.model = parallelize(
            model,
            make_mesh(self.device.type, self.layout),
            plan=plan,
            param_dtype=self.dtype,
            checkpointing=self.choices.activation_checkpointing,
            compile=self.choices.compile,
        )
        if self.rank == 0:
            (self.run_dir / SHARDING_FILE).parent.mkdir(parents=True, exist_ok=True)
            (self.run_dir / SHARDING_FILE).write_text(plan.table(), encoding="utf-8")
        self.model.to_empty(device=self.device)
        init_weights(self.model, self.spec.seed)
        training = self.spec.training
        self.optimizer = make_optimizer(
            self.model, lr=training.peak_lr, betas=training.betas, weight_decay=training.weight_decay
        )
        self.progress: dict[str, Any] = {"step": 0, "data": self.stream.state()}
        self.state = checkpoint.TrainState(self.model, self.optimizer, self.progress)
        self.evaluation_compiles = self.choices.compile  # a forward pass without gradients is compiled by itself

    def resume(self) -> int:
        """Loads the newest complete checkpoint, else the initial weights, if any; the step to do next, from 1."""
        newest = checkpoint.newest_complete(self.run_dir / "checkpoints")
        if newest is not None:
            checkpoint.load(self.state, newest)
            if self.progress["data"]["seed"] != self.spec.seed:
                raise ValueError(f"{newest} was trained with data seed {self.progress['data']['seed']}")
        elif self.initial_weights is not None:
            checkpoint.load_weights(self.model, self.model.config, Path(self.initial_weights))
        return self.progress["step"] + 1

    def step(self, step: int) -> StepResult:
        training, spec = self.spec.training, self.spec
        ranks = self.layout.data_ranks
        per_rank = spec.batch_sequences // ranks
        first = (step - 1) * spec.batch_sequences + self.layout.data_rank(self.rank) * per_rank
        waiting_since_s = time.time()
        batch = self.stream.batch(first, per_rank)
        data_wait_s = time.time() - waiting_since_s
        lr = lr_at(
            step - 1,
            peak_lr=training.peak_lr,
            warmup_steps=training.warmup_steps,
            total_steps=spec.total_steps,
            final_fraction=training.min_lr_fraction,
        )
        set_lr(self.optimizer, lr)
        total = torch.zeros((), device=self.device)
        size = training.micro_batch_sequences
        each_micro_batch = self.choices.gradient_reduction == "each_micro_batch"
        for start in range(0, per_rank, size):
            set_gradient_sync(self.model, start + size >= per_rank, each_micro_batch)
            loss_sum = self._loss_sum(batch[start : start + size])
            (loss_sum * loss_scale(ranks, training.batch_tokens)).backward()
            total += loss_sum.detach()
        norm = clip_gradients(self.model.parameters(), training.gradient_clip)
        self.optimizer.step()
        self.optimizer.zero_grad()
        stop = self.rank == 0 and (self.run_dir / STOP_FILE).exists()
        shared = torch.stack([total, torch.tensor(float(stop), device=self.device)])
        dist.all_reduce(shared)
        loss, stop_votes = (shared / torch.tensor([training.batch_tokens, 1.0], device=self.device)).tolist()
        if not np.isfinite(loss):
            raise FloatingPointError(f"the loss at step {step} is {loss}: lower training.peak_lr or inspect the data")
        return StepResult(loss, float(norm), lr, stop_votes > 0, data_wait_s)

    def evaluate(self, recorder: MetricsFile) -> float:
        """Mean negative log-likelihood of the held-out sequences, in nats per token."""
        wanted = self.spec.training.evaluation_sequences
        batch = np.concatenate(list(self.stream.validation_batches(self.stream.sequence_length, wanted)))
        size, mine_of = -(-len(batch) // self.layout.data_ranks), self.layout.data_rank(self.rank)
        # FSDP's gathers are collectives: every rank runs as many forward passes, and the surplus counts 0.
        rows = np.arange(mine_of * size, (mine_of + 1) * size)
        valid = rows < len(batch)
        shared = torch.zeros(2, device=self.device)
        step = self.spec.training.micro_batch_sequences
        with torch.no_grad():
            for start in range(0, size, step):
                mine, counted = rows[start : start + step] % len(batch), valid[start : start + step]
                chunk = batch[mine].copy()
                chunk[~counted, 1:] = -100
                began_s = time.time()
                shared[0] += self._loss_sum(chunk)
                if self.evaluation_compiles:
                    self.evaluation_compiles = False
                    recorder.within(COMPILE, began_s, time.time())
                # Of a tensor-parallel group, each rank has the loss of its own positions.
                shared[1] += int(counted.sum()) * (chunk.shape[1] - 1) / self.layout.tensor
        dist.all_reduce(shared)
        return (shared[0] / shared[1]).item()

    def save(self, step: int) -> None:
        self.progress["step"] = step
        self.stream.position = step * self.spec.batch_sequences
        self.progress["data"] = self.stream.state()
        checkpoint.save(self.state, self.run_dir / "checkpoints", step)

    def in_use(self) -> dict[str, Any]:
        """What this run computes with, for whoever reads about it later."""
        batch = min(self.spec.training.micro_batch_sequences, self.spec.batch_sequences // self.layout.data_ranks)
        example = torch.zeros(batch, self.stream.sequence_length, dtype=torch.int64)
        packing, like = self._packing(example), torch.empty(0, dtype=self.dtype, device=self.device)
        attention = backend_in_use(
            self.model.config,
            batch,
            packing.mask if packing else None,
            self.spec.training.attention,
            like,
            self.layout.tensor,
        )
        return {**self.choices.as_dict(), "attention": attention, "layout": asdict(self.layout)}

    def _packing(self, inputs: torch.Tensor) -> Packing | None:
        if not self.spec.data.document_masking:
            return None
        form = form_of(self.spec.training.attention, self.device, self.dtype)
        return pack(inputs, self.bos_id, form, self.device, self.dtype)

    def _loss_sum(self, batch: np.ndarray) -> torch.Tensor:
        """The summed loss of the sequences; under tensor parallelism, of this rank's positions in them."""
        tokens = torch.from_numpy(np.ascontiguousarray(batch, dtype=np.int64))
        packing = self._packing(tokens[:, :-1])
        tokens = tokens.to(self.device)
        with sdpa_backends(self.spec.training.attention, self.device):
            return self.model(tokens[:, :-1].clamp_min(0), tokens[:, 1:], packing=packing)


def _smallest_gb(device: torch.device) -> float | None:
    """GB of the rank's GPU that has least, so that every rank decides the same; None on the CPU. A collective."""
    if device.type != "cuda":
        return None
    total = torch.tensor(float(torch.cuda.get_device_properties(device).total_memory), device=device)
    dist.all_reduce(total, dist.ReduceOp.MIN)
    return total.item() / 1e9


def run_rank(job: Job) -> bool:
    """Trains this rank's share of the job to its end; True when all planned tokens were trained."""
    rank = Rank(job)
    attempt = [next_attempt(rank.run_dir)]
    dist.broadcast_object_list(attempt)
    recorder = MetricsFile(
        rank.run_dir / "metrics" / f"rank-{rank.rank}.jsonl",
        attempt[0],
        rank.rank,
        rank.spec.training.batch_tokens,
        job.started_unix_s,
        rank.choices.compile,
    )
    if rank.device.type == "cuda":
        uuids: list[Any] = [None] * rank.world
        dist.all_gather_object(uuids, f"GPU-{torch.cuda.get_device_properties(rank.device).uuid}")
        recorder.devices(uuids)
    recorder.choices(rank.in_use())
    profiled = job.profile_steps if rank.rank == 0 else 0
    step = StepProfiler(rank.step, rank.run_dir, profiled, rank.device) if profiled else rank.step
    try:
        training = rank.spec.training
        schedule = Schedule(rank.spec.total_steps, training.evaluate_every_steps, training.checkpoint_every_steps)
        return train(schedule, rank.resume(), step, partial(rank.evaluate, recorder), rank.save, recorder)
    finally:
        if isinstance(step, StepProfiler):
            step.finish()
        recorder.close()

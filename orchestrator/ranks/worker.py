"""One rank of the training: builds the model, the data stream and the step, and hands them to the loop.

It needs a process group and a job, and no launcher: Ray Train, torchrun and pytest all start it the same way.
"""

import os
import socket
import time
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from energy.factors import match_accelerator
from energy.runs import RESIZE_FILE, STOP_FILE, RunFolder
from model.attention import backend_in_use, sdpa_backends
from model.float8 import to_float8
from model.init import init_weights
from model.optim import clip_gradients, lr_at, make_optimizer, set_lr
from model.packing import Packing, form_of, pack
from model.parallelize import loss_scale, make_mesh, parallelize, set_gradient_sync
from model.sharding import Layout, sharding_plan
from model.transformer import Llama
from orchestrator.checkpoints import state as checkpoint
from orchestrator.checkpoints.choice import Choice
from orchestrator.checkpoints.courier import Courier
from orchestrator.checkpoints.writer import CheckpointWriter
from orchestrator.data.prepare import source_specs
from orchestrator.data.shards import open_corpus
from orchestrator.data.stream import TokenStream
from orchestrator.plan.choices import choose
from orchestrator.ranks.job import Job
from orchestrator.ranks.loop import Schedule, Skipped, StepResult, train
from orchestrator.ranks.metrics import COMPILE, MetricsFile
from orchestrator.ranks.profiling import StepProfiler
from orchestrator.ranks.watchdog import Watchdog
from orchestrator.spec.experiment import Experiment

SHARDING_FILE = Path("logs") / "sharding.txt"  # in the run folder: what lies where
SKIPS_IN_A_ROW = 10  # so many steps without a finite loss are no bad batch: the model is lost


def next_attempt(run_dir: Path) -> int:
    """The driver's attempt, or one more than the last one that rank 0 left marks of, whichever is later."""
    folder = RunFolder(run_dir)
    # An attempt that failed before its first mark counts too; without a driver (torchrun, pytest) there is no run.json.
    driver = len(folder.read_run()["attempts"]) if (run_dir / "run.json").exists() else 0
    last = max((int(event["attempt"]) for event in folder.events() if "attempt" in event), default=0)
    return max(last + 1, driver)


def created_unix_s(run_dir: Path) -> float | None:
    """When the run was created, in unix s: what tells it from another one of its name. None without a driver."""
    folder = RunFolder(run_dir)
    return folder.read_run().get("created_unix_s") if folder.run_file.exists() else None


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
        self.dtype = torch.float32 if self.choices.dtype == "float32" else torch.bfloat16
        with torch.device("meta"):
            model = Llama(config)
        if self.choices.dtype == "float8":
            to_float8(model)
        # On the CPU a gather is not computed beside anything: another one ahead would only take memory.
        plan = sharding_plan(model, self.layout, prefetch=1 if cuda else 0)
        self.gather_once = self.choices.weight_gathering == "once_per_step"
        self.model = parallelize(
            model,
            make_mesh(self.device.type, self.layout),
            plan=plan,
            param_dtype=self.dtype,
            checkpointing=self.choices.activation_checkpointing,
            compile=self.choices.compile,
            gather_once=self.gather_once,
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
        # Only rank 0 writes a manifest, and looks whose the copies are.
        self.created_unix_s = created_unix_s(self.run_dir) if self.rank == 0 else None
        keep = self.spec.checkpoint
        self.copies = None
        if keep.copy_to is not None:
            self.copies = Courier(keep.copy_to, self.run_dir.name)
        self.writer = CheckpointWriter(
            self.run_dir / "checkpoints",
            asynchronous=keep.asynchronous,
            on_gpu=cuda,
            keep_last=keep.keep_last,
            keep_every_steps=keep.keep_every_steps,
            copies=self.copies,
            run_created_unix_s=self.created_unix_s,
        )
        self.last_finite = ""  # for who must find out what went wrong
        self.skips_in_a_row = 0
        self.warn: Callable[[str], None] = print
        self.unanswered = False  # the run's folder did not answer; said once

    def resume(self, recorder: "WatchedMetrics", fresh: bool) -> int:
        """Loads the newest whole checkpoint, else the initial weights, if any; the step to do next, from 1. fresh: of a
        run's first attempt, which has none."""
        folder = self.run_dir / "checkpoints"
        choice = Choice(
            folder,
            recorder.warning,
            self.copies,
            group=self.writer.group,
            beat=recorder.beat,
            fresh=fresh,
            run_created_unix_s=self.created_unix_s,
        )
        newest = choice.newest_whole()
        if newest is not None:
            checkpoint.load(self.state, newest)
            if self.progress["data"]["seed"] != self.spec.seed:
                raise ValueError(f"{newest} was trained with data seed {self.progress['data']['seed']}")
        elif self.initial_weights is not None:
            checkpoint.load_weights(self.model, self.model.config, Path(self.initial_weights))
        recorder.resumed(self.progress["step"])
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
            set_gradient_sync(self.model, start + size >= per_rank, each_micro_batch, self.gather_once)
            # The backward too: checkpointing computes attention again there, and must find the same back end.
            with sdpa_backends(training.attention, self.device):
                loss_sum = self._loss_sum(batch[start : start + size])
                (loss_sum * loss_scale(ranks, training.batch_tokens)).backward()
            total += loss_sum.detach()
        norm = clip_gradients(self.model.parameters(), training.gradient_clip)
        if training.nonfinite_loss == "stop":
            self.optimizer.step()  # before anybody waits for the loss; nothing of a loss that is not finite is saved
        stop = self.rank == 0 and self._asked_to_end()
        votes = torch.tensor([float(stop), float(self.writer.failed)], device=self.device)
        shared = torch.cat([total.reshape(1), votes])
        dist.all_reduce(shared)
        loss, stop_votes, failed_votes = shared.tolist()
        loss, grad_norm = loss / training.batch_tokens, float(norm)
        skipped = self._judge(step, loss, grad_norm)
        if training.nonfinite_loss == "skip" and skipped is None:
            self.optimizer.step()
        self.optimizer.zero_grad()
        if failed_votes:
            self.writer.finish()
        return StepResult(loss, grad_norm, lr, stop_votes > 0, data_wait_s, skipped)

    def _asked_to_end(self) -> bool:
        """Whether `stop` or `resize` lies in the run's folder; one that does not answer now asks for nothing."""
        try:
            return any((self.run_dir / name).exists() for name in (STOP_FILE, RESIZE_FILE))
        except OSError as refusal:
            if not self.unanswered:
                self.unanswered = True
                why = refusal.strerror or refusal
                self.warn(f"whether the run is to stop cannot be seen ({why}): each step looks again")
            return False

    def _judge(self, step: int, loss: float, grad_norm: float) -> Skipped | None:
        """None of a step that may count; by the spec's policy, FloatingPointError or what is skipped of another."""
        if np.isfinite(loss) and np.isfinite(grad_norm):
            self.last_finite = f"; the last finite loss was {loss:.4f}, at step {step}"
            self.skips_in_a_row = 0
            return None
        wrong = f"the gradient's norm is {grad_norm}" if np.isfinite(loss) else f"the loss is {loss}"
        first, last = (step - 1) * self.spec.batch_sequences, step * self.spec.batch_sequences - 1
        self.skips_in_a_row += 1
        if self.spec.training.nonfinite_loss == "stop":
            raise FloatingPointError(
                f"at step {step} {wrong}{self.last_finite}: lower training.peak_lr, inspect sequences {first:,} to "
                f"{last:,} of the data, or set training.nonfinite_loss to skip"
            )
        if self.skips_in_a_row >= SKIPS_IN_A_ROW:
            raise FloatingPointError(
                f"at step {step} {wrong}, as in the {SKIPS_IN_A_ROW - 1} steps before, which were skipped"
                f"{self.last_finite}: go on from an earlier checkpoint, with a lower training.peak_lr"
            )
        return Skipped(wrong, first, last)

    def evaluate(self, recorder: "WatchedMetrics") -> float:
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
                recorder.beat()
                shared[0] += self._loss_sum(chunk)
                if self.evaluation_compiles:
                    self.evaluation_compiles = False
                    recorder.within(COMPILE, began_s, time.time())
                # Of a tensor-parallel group, each rank has an equal share of the loss.
                shared[1] += int(counted.sum()) * (chunk.shape[1] - 1) / self.layout.tensor
        dist.all_reduce(shared)
        return (shared[0] / shared[1]).item()

    def save(self, step: int) -> None:
        self.progress["step"] = step
        self.stream.position = step * self.spec.batch_sequences
        self.progress["data"] = self.stream.state()
        self.writer.save(self.state, step)

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
            self.choices.compile,
        )
        return {**self.choices.as_dict(), "attention": attention, "layout": asdict(self.layout)}

    def _packing(self, inputs: torch.Tensor) -> Packing | None:
        if not self.spec.data.document_masking:
            return None
        form = form_of(self.spec.training.attention, self.device, self.dtype)
        return pack(inputs, self.bos_id, form, self.device, self.dtype)

    def _loss_sum(self, batch: np.ndarray) -> torch.Tensor:
        """The summed loss of the sequences; under tensor parallelism, an equal share of it on each rank."""
        tokens = torch.from_numpy(np.ascontiguousarray(batch, dtype=np.int64))
        packing = self._packing(tokens[:, :-1])
        tokens = tokens.to(self.device)
        with sdpa_backends(self.spec.training.attention, self.device):
            return self.model(tokens[:, :-1].clamp_min(0), tokens[:, 1:], packing=packing)


def _smallest_gb(device: torch.device) -> float | None:
    """GB of the rank's GPU that has least, so that every rank decides the same; None on the CPU. A collective.

    A known GPU has no more than is in its name, though the driver may show more ("80 GB" are 85e9 bytes): the plan
    goes by the name.
    """
    if device.type != "cuda":
        return None
    properties = torch.cuda.get_device_properties(device)
    known = match_accelerator(properties.name)
    named_gb = None if known is None else known.memory_gb
    least = torch.tensor(min(named_gb or torch.inf, properties.total_memory / 1e9), device=device, dtype=torch.float64)
    dist.all_reduce(least, dist.ReduceOp.MIN)
    return least.item()


class WatchedMetrics(MetricsFile):
    """The recorder of a rank, which also tells its watchdog what the rank is at, and what checkpoints have cost."""

    watchdog: Watchdog
    writer: CheckpointWriter

    def phase(self, name: str, step: int) -> None:
        self.watchdog.enter(name, step)
        super().phase(name, step)
        for each in self.writer.written():
            self.checkpoint(each)

    def beat(self) -> None:
        self.watchdog.beat()


def run_rank(job: Job) -> bool:
    """Trains this rank's share of the job to its end; True when all planned tokens were trained."""
    run_dir, attempt = Path(job.run_dir), [next_attempt(Path(job.run_dir))]
    dist.broadcast_object_list(attempt)
    deadline = job.experiment["cluster"]["step_deadline"]
    watchdog = Watchdog(run_dir, attempt[0], dist.get_rank(), None if deadline == "auto" else deadline)
    rank = Rank(job)
    if rank.copies is not None and rank.rank == 0 and attempt[0] == 1:
        # Later a storage that is away costs copies and not the run, which the loss of a worker must not change.
        rank.copies.require_writable()
    recorder = WatchedMetrics(
        RunFolder(run_dir).metrics_file(rank.rank),
        attempt[0],
        rank.rank,
        rank.spec.training.batch_tokens,
        job.started_unix_s,
        rank.choices.compile,
    )
    recorder.watchdog, recorder.writer = watchdog, rank.writer
    rank.writer.beat, rank.warn = recorder.beat, recorder.warning
    recorder.process(socket.gethostname(), os.getpid())
    if rank.device.type == "cuda":
        uuids: list[Any] = [None] * rank.world
        dist.all_gather_object(uuids, f"GPU-{torch.cuda.get_device_properties(rank.device).uuid}")
        recorder.devices(uuids)
    recorder.choices(rank.in_use())
    profiled = job.profile_steps if rank.rank == 0 else 0
    step = StepProfiler(rank.step, rank.run_dir, profiled, rank.device, rank.warn) if profiled else rank.step
    well = False
    try:
        training = rank.spec.training
        schedule = Schedule(rank.spec.total_steps, training.evaluate_every_steps, training.checkpoint_every_steps)
        begin = rank.resume(recorder, fresh=attempt[0] == 1)
        complete = train(schedule, begin, step, partial(rank.evaluate, recorder), rank.save, recorder)
        rank.writer.finish()
        for each in rank.writer.written():
            recorder.checkpoint(each)
        well = True
        return complete
    finally:
        rank.writer.give_up()
        if rank.copies is not None:
            rank.copies.close()
        if isinstance(step, StepProfiler):
            step.finish()
        watchdog.close(well)
        recorder.close()

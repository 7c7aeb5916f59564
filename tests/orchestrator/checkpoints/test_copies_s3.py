"""Copies of checkpoints on S3, in a server that speaks S3 and checks keys (moto), through pyarrow as on AWS itself."""

import os
import shutil
import signal
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch.multiprocessing as mp
from s3_server import BUCKET, REGION, S3, s3_server
from tiny import STEPS, losses, plain_rank, train, write_spec

from energy.runs import RunFolder
from orchestrator.checkpoints import courier, saved
from orchestrator.checkpoints.writer import CheckpointWriter


@pytest.fixture
def s3(tmp_path: Path) -> Iterator[S3]:
    with s3_server(tmp_path / "s3.log") as server:
        yield server


def rank_with(environment: dict[str, str], rank: int, world: int, port: int, job: Any) -> None:
    os.environ.pop("AWS_ENDPOINT_URL", None)
    os.environ.update(environment | {"AWS_EC2_METADATA_DISABLED": "true"})
    plain_rank(rank, world, port, job)


def rank_whose_server_gets(
    number: int, server: int, environment: dict[str, str], rank: int, world: int, port: int, job: Any
) -> None:
    save = CheckpointWriter.save

    def and_signal(self: CheckpointWriter, state: Any, step: int) -> None:
        if step == STEPS:
            self.finish()
            os.kill(server, number)
        save(self, state, step)

    CheckpointWriter.save = and_signal  # type: ignore[method-assign]
    impatient_rank(60.0 if number == signal.SIGKILL else 2.0, environment, rank, world, port, job)


def impatient_rank(silent_s: float, environment: dict[str, str], rank: int, world: int, port: int, job: Any) -> None:
    courier.SILENT_S = silent_s
    rank_with(environment, rank, world, port, job)


def warnings(run: RunFolder, attempt: int = 1) -> list[str]:
    return [each["said"] for each in run.events() if each.get("event") == "warning" and each["attempt"] == attempt]


@pytest.mark.parametrize("by_environment", [False, True], ids=["endpoint in the URI", "endpoint in the environment"])
def test_a_run_goes_on_from_its_copies_on_s3(tmp_path: Path, s3: S3, by_environment: bool) -> None:
    spec, environment, uri = write_spec(tmp_path), s3.environment(), s3.uri
    if by_environment:
        environment |= {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{s3.port}", "AWS_DEFAULT_REGION": REGION}
        uri = f"s3://{BUCKET}/llama"
    options = [f"checkpoint.copy_to={uri}", "checkpoint.keep_last=2"]
    run = train(spec, tmp_path / "run", world=2, overrides=options, rank=partial(rank_with, environment))
    whole = losses(run)
    here = run.path / "checkpoints"
    assert s3.names() == sorted(
        f"llama/run/checkpoints/{checkpoint}/{file.name}"
        for checkpoint in ("step-00000016", "step-00000020")  # and not step-00000008: pruned
        for file in (here / checkpoint).iterdir()
    )
    newest = f"llama/run/checkpoints/step-00000020/{saved.MANIFEST}"
    s3.client.delete_object(Bucket=BUCKET, Key=newest)  # as if the copy had been cut short
    shutil.rmtree(here)
    again = train(spec, run.path, world=2, overrides=options, rank=partial(rank_with, environment))
    assert warnings(again, 2) == [f"the checkpoint step-00000016 was fetched from its copy in {uri}"]
    assert [step["step"] for step in again.steps() if step["attempt"] == 2] == [17, 18, 19, 20]
    assert losses(again) == whole
    assert newest in s3.names()
    for file in run.path.rglob("*"):  # nowhere does a run keep the key with which it wrote
        assert not file.is_file() or s3.secret.encode() not in file.read_bytes(), file


@pytest.mark.parametrize(
    ("number", "said"),
    [(signal.SIGKILL, "NETWORK_CONNECTION"), (signal.SIGSTOP, "has not answered for 2 s and was given up")],
    ids=["dies", "falls silent"],
)
def test_a_server_that_fails_costs_the_copies_and_not_the_training(
    tmp_path: Path, s3: S3, number: int, said: str
) -> None:
    spec, there = write_spec(tmp_path), [f"checkpoint.copy_to={s3.uri}"]
    rank = partial(rank_whose_server_gets, number, s3.process.pid, s3.environment())
    run = train(spec, tmp_path / "run", overrides=there, rank=rank)
    here, alone = run.path / "checkpoints", losses(train(spec, tmp_path / "alone"))
    assert losses(run) == alone
    [told] = warnings(run)
    assert told.startswith(f"the checkpoint of step {STEPS} was not copied: ") and said in told
    assert [saved.step_of(path) for path in saved.complete(here)] == [20, 16, 8]
    copied = [event["step"] for event in run.events() if event.get("event") == "checkpoint" and "copied_s" in event]
    assert copied == [8, 16]
    if number == signal.SIGKILL:
        return
    # Still silent when the run goes on: from what lies here it can.
    shutil.rmtree(here / "step-00000020")
    rank = partial(impatient_rank, 2.0, s3.environment())
    again = train(spec, run.path, overrides=there, rank=rank)
    assert losses(again) == alone
    looked, told = warnings(again, 2)
    assert looked.startswith(f"copies of checkpoints in {s3.uri} are not looked at: ") and said in looked
    assert told.startswith("the checkpoint of step 20 was not copied: ") and "is not asked yet again" in told
    # But from nothing it does not begin anew while there may be copies.
    shutil.rmtree(here)
    with pytest.raises(mp.ProcessRaisedException, match="there is no checkpoint in .* is not known .* given up"):
        train(spec, run.path, overrides=there, rank=rank)

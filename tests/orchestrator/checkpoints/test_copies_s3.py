"""Copies of checkpoints on S3, in a server that speaks S3 and checks keys (moto), through pyarrow as on AWS itself."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import boto3
import pytest
import torch.multiprocessing as mp
from tiny import STEPS, losses, plain_rank, train, write_spec

from energy.runs import RunFolder
from orchestrator.checkpoints import saved
from orchestrator.checkpoints.writer import CheckpointWriter

# Its port on the first line; from then on every request is checked against the keys that it gave out itself.
SERVER = """
import sys, threading
from moto.server import ThreadedMotoServer
server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
server.start()
print(server.get_host_and_port()[1], flush=True)
threading.Event().wait()
"""
BUCKET, REGION = "checkpoints", "eu-west-1"
ALL_OF_S3 = {"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": "s3:*", "Resource": "*"}]}


@dataclass(frozen=True)
class S3:
    process: subprocess.Popen[bytes]
    port: int
    key: str
    secret: str

    @property
    def client(self) -> Any:
        return _client(self.port, "s3", self.key, self.secret)

    @property
    def uri(self) -> str:
        return f"s3://{BUCKET}/llama?endpoint_override=127.0.0.1:{self.port}&scheme=http&region={REGION}"

    def environment(self, **changes: str) -> dict[str, str]:
        return {"AWS_ACCESS_KEY_ID": self.key, "AWS_SECRET_ACCESS_KEY": self.secret} | changes

    def names(self) -> list[str]:
        listed = self.client.list_objects_v2(Bucket=BUCKET).get("Contents", [])
        return sorted(entry["Key"] for entry in listed if entry["Size"])


def _client(port: int, service: str, key: str, secret: str) -> Any:
    return boto3.client(
        service,
        endpoint_url=f"http://127.0.0.1:{port}",
        region_name=REGION,
        aws_access_key_id=key,
        aws_secret_access_key=secret,
    )


@pytest.fixture
def s3(tmp_path: Path) -> Iterator[S3]:
    with (tmp_path / "s3.log").open("wb") as log:
        process = subprocess.Popen([sys.executable, "-c", SERVER], stdout=subprocess.PIPE, stderr=log)
    try:
        assert process.stdout is not None
        port = int(process.stdout.readline())
        iam = _client(port, "iam", "nobody", "nothing")
        iam.create_user(UserName="hoofprint")
        iam.put_user_policy(UserName="hoofprint", PolicyName="s3", PolicyDocument=json.dumps(ALL_OF_S3))
        given = iam.create_access_key(UserName="hoofprint")["AccessKey"]
        found = S3(process, port, given["AccessKeyId"], given["SecretAccessKey"])
        place = {"LocationConstraint": REGION}
        found.client.create_bucket(Bucket=BUCKET, CreateBucketConfiguration=place)
        _require_keys(port)
        yield found
    finally:
        process.kill()
        process.wait()


def _require_keys(port: int) -> None:
    from urllib.request import Request, urlopen

    head = {"Content-Type": "text/plain"}
    urlopen(Request(f"http://127.0.0.1:{port}/moto-api/reset-auth", b"0", head, method="POST"), timeout=30).close()


def rank_with(environment: dict[str, str], rank: int, world: int, port: int, job: Any) -> None:
    os.environ.pop("AWS_ENDPOINT_URL", None)
    os.environ.update(environment | {"AWS_EC2_METADATA_DISABLED": "true"})
    plain_rank(rank, world, port, job)


def rank_whose_server_dies(
    server: int, environment: dict[str, str], rank: int, world: int, port: int, job: Any
) -> None:
    save = CheckpointWriter.save

    def and_kill(self: CheckpointWriter, state: Any, step: int) -> None:
        if step == STEPS:
            self.finish()
            os.kill(server, signal.SIGKILL)
        save(self, state, step)

    CheckpointWriter.save = and_kill  # type: ignore[method-assign]
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
    ("change", "environment", "said"),
    [
        (lambda uri: uri.replace(BUCKET, "nowhere"), {}, "Bucket 'nowhere' not found.*; make the bucket first"),
        (None, {"AWS_SECRET_ACCESS_KEY": "wrong"}, "ACCESS_DENIED.*; give the ranks a key that may write there"),
        (lambda uri: uri + "&colour=red", {}, "Unexpected query parameter in S3 URI: 'colour'"),
    ],
    ids=["no such bucket", "a wrong key", "a misspelt option"],
)
def test_what_s3_refuses_is_told_before_the_training(
    tmp_path: Path, s3: S3, change: Callable[[str], str] | None, environment: dict[str, str], said: str
) -> None:
    uri = change(s3.uri) if change else s3.uri
    rank = partial(rank_with, s3.environment(**environment))
    with pytest.raises(mp.ProcessRaisedException, match=f"ValueError: checkpoint.copy_to s3://.*{said}") as raised:
        train(write_spec(tmp_path), tmp_path / "run", overrides=[f"checkpoint.copy_to={uri}"], rank=rank)
    assert not RunFolder(tmp_path / "run").steps() and s3.names() == []
    assert s3.secret not in str(raised.value)


def test_a_server_that_dies_costs_the_copies_and_not_the_training(tmp_path: Path, s3: S3) -> None:
    spec, there = write_spec(tmp_path), [f"checkpoint.copy_to={s3.uri}"]
    rank = partial(rank_whose_server_dies, s3.process.pid, s3.environment())
    run = train(spec, tmp_path / "run", overrides=there, rank=rank)
    assert s3.process.wait(timeout=60) == -signal.SIGKILL
    assert losses(run) == losses(train(spec, tmp_path / "alone"))
    [told] = warnings(run)
    assert told.startswith(f"the checkpoint of step {STEPS} was not copied: ") and "NETWORK_CONNECTION" in told
    assert [saved.step_of(path) for path in saved.complete(run.path / "checkpoints")] == [20, 16, 8]
    copied = [event["step"] for event in run.events() if event.get("event") == "checkpoint" and "copied_s" in event]
    assert copied == [8, 16]

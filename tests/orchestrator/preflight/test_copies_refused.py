"""A storage of copies that cannot be written is told by the driver, before a corpus is built or Ray is started."""

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from s3_server import BUCKET, S3, s3_server
from tiny import write_spec

from orchestrator.preflight.before_run import before_preparing
from orchestrator.spec.experiment import Experiment
from orchestrator.spec.file import BadInput, load_experiment


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3]:
    with s3_server(tmp_path_factory.mktemp("s3") / "s3.log") as server:
        yield server


def copying_to(folder: Path, uri: str, *more: str) -> Experiment:
    return load_experiment(write_spec(folder), [f"checkpoint.copy_to={uri}", *more])


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for key in [key for key in os.environ if key.startswith(("AWS_", "RAY_"))]:
        monkeypatch.delenv(key)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")


def test_what_can_be_written_is_asked_once_and_left_empty(
    tmp_path: Path, s3: S3, monkeypatch: pytest.MonkeyPatch
) -> None:
    before_preparing(copying_to(tmp_path, (tmp_path / "there").as_uri()), "run")
    assert [path.name for path in (tmp_path / "there").rglob("*")] == ["run", "checkpoints"]
    for key, value in s3.environment().items():
        monkeypatch.setenv(key, value)
    before_preparing(copying_to(tmp_path, s3.uri), "run")
    assert s3.names() == []


@pytest.mark.parametrize(
    ("change", "secret", "said"),
    [
        (("checkpoints", "nowhere"), "", "Bucket 'nowhere' not found.*; make the bucket first"),
        (("", ""), "wrong", "ACCESS_DENIED.*; give the ranks a key that may write there"),
        (("&scheme", "&colour=red&scheme"), "", "Unexpected query parameter in S3 URI: 'colour'"),
    ],
    ids=["no such bucket", "a wrong key", "a misspelt option"],
)
def test_what_s3_refuses(
    tmp_path: Path, s3: S3, change: tuple[str, str], secret: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for key, value in s3.environment(AWS_SECRET_ACCESS_KEY=secret or s3.secret).items():
        monkeypatch.setenv(key, value)
    with pytest.raises(BadInput, match=f"^checkpoint.copy_to s3://.*{said}.*nothing was started$") as raised:
        before_preparing(copying_to(tmp_path, s3.uri.replace(*change)), "run")
    assert s3.names() == [] and s3.secret not in str(raised.value)


@pytest.mark.parametrize(
    ("uri", "said"),
    [
        ("ftp://host/folder", "Unrecognized filesystem type in URI: ftp://.*; pyarrow reaches file:///FOLDER, s3://"),
        ("mock://a/b", "Unrecognized filesystem type"),  # of pyarrow's own tests: nothing would be kept
        ("file://folder/below", "a local folder has three slashes"),
    ],
)
def test_a_kind_of_storage_that_is_not_there(tmp_path: Path, uri: str, said: str) -> None:
    with pytest.raises(BadInput, match=said):
        before_preparing(copying_to(tmp_path, uri), "run")


def test_of_a_cluster_only_what_no_node_could_write_is_refused_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:6379")
    before_preparing(copying_to(tmp_path, "file:///proc/folder"), "run")
    with pytest.raises(BadInput, match="Unrecognized filesystem type"):
        before_preparing(copying_to(tmp_path, "ftp://host/folder"), "run")


def test_a_storage_that_never_answers_holds_nothing_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "a")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "b")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        uri = f"s3://{BUCKET}/a?endpoint_override=127.0.0.1:{silent.getsockname()[1]}&scheme=http&region=eu-west-1"
        with pytest.raises(BadInput, match="does not answer within 2 s"):
            before_preparing(copying_to(tmp_path, uri), "run", limit_s=2)


def test_the_command_says_so_and_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    uri, runs = (tmp_path / "file" / "below").as_uri(), tmp_path / "runs"
    options = ["--runs", str(runs), "--set", f"checkpoint.copy_to={uri}"]
    command = [sys.executable, "-m", "orchestrator", "run", str(write_spec(tmp_path)), *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2 and done.stdout == ""
    assert f"checkpoint.copy_to {uri} cannot be written: " in done.stderr and "Not a directory" in done.stderr
    assert "name a folder that the ranks may write; nothing was started" in done.stderr
    assert not runs.exists() and not (tmp_path / "cache").exists()

"""What copies checkpoints gives a silent storage up, waits for a slow one, and leaves no process behind."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path

import psutil
import pytest

from orchestrator.checkpoints import copies, courier, saved
from orchestrator.checkpoints.copies import Copies
from orchestrator.checkpoints.courier import Courier


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    folder = tmp_path / "here" / "step-00000008"
    folder.mkdir(parents=True)
    (folder / "__0_0.distcp").write_bytes(os.urandom(100_000))
    (folder / ".metadata").write_bytes(b"m")
    saved.write_manifest(folder, saved.digests(folder, ["__0_0.distcp", ".metadata"]), 7.0)
    return folder


@pytest.fixture
def to() -> Iterator[Callable[[str], Courier]]:
    made: list[Courier] = []

    def courier_to(uri: str) -> Courier:
        made.append(Courier(uri, "run"))
        return made[-1]

    yield courier_to
    for each in made:
        each.close()


def test_it_does_what_copies_do(tmp_path: Path, checkpoint: Path, to: Callable[[str], Courier]) -> None:
    there = tmp_path / "there"
    own = to(there.as_uri())
    own.require_writable()
    assert own.names() == []
    files = sorted(path.name for path in checkpoint.iterdir())
    own.put(checkpoint, [*(name for name in files if name != saved.MANIFEST), saved.MANIFEST])
    assert own.names() == Copies(there.as_uri(), "run").names() == ["step-00000008"]
    assert [own.of_others(own.names(), run) for run in (7.0, 8.0)] == [[], ["step-00000008"]]
    manifest = there / "run" / "checkpoints" / "step-00000008" / saved.MANIFEST
    for of_nobody in ("{", "[]", '{"files": {}}'):  # damaged, or of an earlier version
        told = manifest.read_text()
        manifest.write_text(of_nobody)
        assert own.of_others(own.names(), 8.0) == []
        manifest.write_text(told)
    manifest.unlink()
    assert own.of_others(["step-00000008"], 8.0) == []  # what cannot be read hides no other copy
    manifest.write_text(told)
    back = tmp_path / "back"
    back.mkdir()
    beats: list[bool] = []
    own.fetch("step-00000008", back, 0, 1, lambda: beats.append(True))
    assert beats  # who fetches for half an hour is no rank that hangs
    assert saved.digests(back, files) == saved.digests(checkpoint, files)
    with pytest.raises(FileNotFoundError, match="No such file"):
        own.put(checkpoint, ["nothing"])
    assert own.names() == ["step-00000008"]  # a refusal is an answer: it goes on
    (there / "run" / "checkpoints" / "step-00000004").mkdir()  # of a copy that failed
    own.prune(7, 0, None)
    assert own.names() == ["step-00000008"] and not (there / "run" / "checkpoints" / "step-00000004").exists()
    own.prune(8, 0, None)
    assert own.names() == []


@pytest.mark.parametrize(
    ("uri", "said"), [("ftp://host/a", "Unrecognized filesystem type"), ("file:///proc/a", "cannot be written")]
)
def test_what_is_no_storage_is_told_in_the_same_words(uri: str, said: str, to: Callable[[str], Courier]) -> None:
    with pytest.raises(ValueError, match=f"^checkpoint.copy_to {uri}.*{said}"):
        to(uri).require_writable()


def test_a_storage_that_cannot_be_opened_any_more_refuses(checkpoint: Path, to: Callable[[str], Courier]) -> None:
    """Opening hdfs connects, and opening an s3 without a region asks for it: in an outage that is no wrong URI, and a
    rank that raised anything else than OSError would leave the others waiting."""
    own = to("hdfs://127.0.0.1:1/a")
    with pytest.raises(OSError, match="^checkpoint.copy_to hdfs://127.0.0.1:1/a: "):
        own.put(checkpoint, ["__0_0.distcp"])
    with pytest.raises(OSError, match="^checkpoint.copy_to hdfs://127.0.0.1:1/a: "):
        own.names()
    with pytest.raises(ValueError, match="^checkpoint.copy_to hdfs://127.0.0.1:1/a: "):
        own.require_writable()


def test_a_storage_that_is_silent_is_given_up_and_left_alone_for_a_while(
    checkpoint: Path, to: Callable[[str], Courier], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that takes connections and never answers, which pyarrow itself waits for over three minutes."""
    monkeypatch.setattr(courier, "SILENT_S", 3.0)
    for key in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(key, "x")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        endpoint = f"127.0.0.1:{silent.getsockname()[1]}"
        own = to(f"s3://b/a?endpoint_override={endpoint}&scheme=http&region=eu-west-1")
        with pytest.raises(TimeoutError, match=r"s3://b/a\?.* has not answered for 3 s and was given up"):
            own.put(checkpoint, ["__0_0.distcp"])
        silent.accept()[0].close()  # it had been asked
        assert children() == []
        with pytest.raises(OSError, match="fell silent .* ago and is not asked yet again"):
            own.names()
        assert children() == []
        monkeypatch.setattr(courier, "AGAIN_S", 0.0)
        own._command[-2] = checkpoint.parent.as_uri()  # as if it answered again
        assert own.names() == []


def children() -> list[psutil.Process]:
    return [child for child in psutil.Process().children() if courier.__name__ in child.cmdline()]


def said_by(script: str, to: Callable[[str], Courier]) -> Courier:
    """One whose child runs this script."""
    own = to("file:///nowhere")
    own._command = [sys.executable, "-c", f"import json, sys, time; asked = sys.stdin.readline()\n{script}"]
    return own


def test_one_that_goes_on_slowly_is_waited_for(to: Callable[[str], Courier], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(courier, "SILENT_S", 1.0)
    script = """
for _ in range(10):
    time.sleep(0.2)
    print('{"beat": true}', flush=True)
print(json.dumps({"did": [json.loads(asked)[0]]}), flush=True)
time.sleep(600)
"""
    assert said_by(script, to).names() == ["names"]


def test_a_child_that_is_gone_is_told_and_replaced(tmp_path: Path, to: Callable[[str], Courier]) -> None:
    own = said_by("sys.exit(9)", to)
    with pytest.raises(OSError, match="the process that copies to file:///nowhere ended .exit code 9."):
        own.names()
    own = to(tmp_path.as_uri())
    assert own.names() == []
    [child] = children()
    child.kill()
    child.wait()
    with pytest.raises(OSError, match="the process that copies to .* ended"):
        own.names()
    assert own.names() == []


def test_it_ends_with_its_rank_and_not_with_what_is_sent_to_all(tmp_path: Path) -> None:
    script = """
import os, signal, sys
from orchestrator.checkpoints.courier import Courier
own = Courier(sys.argv[1], "run")
while True:
    own.names()
    print(own._child.pid, flush=True)
    sys.stdin.readline()
"""
    rank = subprocess.Popen(
        [sys.executable, "-c", script, tmp_path.as_uri()], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert rank.stdin is not None and rank.stdout is not None
    child = psutil.Process(int(rank.stdout.readline()))
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        child.send_signal(number)
        rank.stdin.write(b"\n")
        rank.stdin.flush()
        assert int(rank.stdout.readline()) == child.pid  # it still answers
    rank.kill()
    rank.wait()
    psutil.wait_procs([child], timeout=60)
    assert not child.is_running()


def test_of_a_large_file_no_more_is_on_its_way_than_a_few_pieces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(copies, "PIECE_BYTES", 10)
    monkeypatch.setattr(copies, "PIECES_IN_FLIGHT", 3)
    done: list[str] = []

    class Target:
        def write(self, piece: bytes) -> None:
            done.append(f"write {len(piece)}")

        def flush(self) -> None:
            done.append("flush")

    Copies(tmp_path.as_uri(), "run", beat=lambda: done.append("beat"))._pour(BytesIO(bytes(65)), Target())
    three = ["write 10", "beat", "write 10", "beat", "write 10", "flush", "beat"]
    assert done == [*three, *three, "write 5", "beat"]

"""Copies of checkpoints on any storage that pyarrow reaches: S3, Google Cloud Storage, HDFS, another file system.

Each rank copies the files that it wrote. The manifest is copied last: without it there is no copy.

The key of a storage is never in its URI, which the spec and the record show to all who read them: pyarrow takes it from
the environment of the ranks (AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY of S3) or from the machine's own role. An
S3 other than AWS's is named in the URI, ?endpoint_override=HOST:PORT&scheme=http, or by AWS_ENDPOINT_URL.
"""

import re
import textwrap
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pyarrow.fs import FileSelector, FileSystem, FileType

from orchestrator.checkpoints.saved import MANIFEST, outdated, run_told, step_of

PIECE_BYTES = 8 * 2**20
# S3's writes return at once and go on in the background: without a flush now and then a file that is read faster than
# the network takes it would lie in memory as a whole, and nobody would know how far it is.
PIECES_IN_FLIGHT = 8
READERS = 16  # of manifests at the same time: of a far storage each is a wait
PROBE = ".probe"
LONGEST_REFUSAL = 300  # characters; Hadoop names every folder in which it looked for Java
NO_SUCH_KIND = "Unrecognized filesystem type"
# What a storage says, and what its user can do about it.
_WHAT_NEXT = (
    (
        NO_SUCH_KIND,
        "pyarrow reaches file:///FOLDER, s3://BUCKET/FOLDER, gs://BUCKET/FOLDER, hdfs://HOST:PORT/FOLDER and "
        "abfs://CONTAINER@ACCOUNT.dfs.core.windows.net/FOLDER",
    ),
    (r"Unsupported hostname", "a local folder has three slashes: file:///FOLDER"),
    (r"libjvm|libhdfs", "hdfs needs Java and Hadoop's libhdfs where ranks run (JAVA_HOME, ARROW_LIBHDFS_DIR)"),
    (r"Azure.*[Cc]redential", "give the ranks AZURE_TENANT_ID, AZURE_CLIENT_ID and AZURE_CLIENT_SECRET"),
    (
        r"Permission denied|Read-only file system|Not a directory|No such file|Cannot create directory",
        "name a folder that the ranks may write",
    ),
    (r"Bucket '.*' not found", "make the bucket first, or correct its name"),
    (
        r"ACCESS_DENIED|INVALID_ACCESS_KEY_ID|INVALID_SIGNATURE|SIGNATURE_DOES_NOT_MATCH|FORBIDDEN|credentials",
        "give the ranks a key that may write there, by AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY in the environment "
        "of `hoofprint run`, of `ray start` on each node, or of `hoofprint submit --env`",
    ),
    (
        r"NETWORK_CONNECTION|resolve host|connect to",
        "nothing answers there: name an S3 other than AWS's by ?endpoint_override=HOST:PORT&scheme=http behind the "
        "URI, or by AWS_ENDPOINT_URL",
    ),
)


class Copies:
    """The copies of one run's checkpoints under `uri`, such as s3://bucket/folder?region=eu-west-1.

    Whatever the storage refuses is an OSError, as with a file. beat(): called whenever a piece has gone through.
    """

    def __init__(self, uri: str, run_id: str, beat: Callable[[], None] = lambda: None):
        self.uri, self._beat = uri, beat
        try:
            self._storage, path = _open(uri)
        except OSError as refusal:
            raise ValueError(f"checkpoint.copy_to {uri}: {with_advice(refusal)}") from None
        self._root = "/".join([path.rstrip("/"), run_id, "checkpoints"])

    def require_writable(self) -> None:
        """ValueError where nothing can be written: before the training, and not after its first hours."""
        try:
            self.leave(PROBE, b"hoofprint")
            self.take_away(PROBE)
        except OSError as refusal:
            raise ValueError(f"checkpoint.copy_to {self.uri} cannot be written: {with_advice(refusal)}") from None

    def leave(self, name: str, words: bytes) -> None:
        """Writes a small file beside the copies, for another process to find."""
        with _refusals():
            self._storage.create_dir(self._root, recursive=True)
            with self._storage.open_output_stream(f"{self._root}/{name}") as file:
                file.write(words)

    def finds(self, name: str, words: bytes) -> bool:
        """Whether that file is there, with these words."""
        try:
            with _refusals(), self._storage.open_input_stream(f"{self._root}/{name}") as file:
                return bool(file.read() == words)
        except FileNotFoundError:
            return False

    def take_away(self, name: str) -> None:
        with _refusals():
            self._storage.delete_file(f"{self._root}/{name}")

    def put(self, checkpoint: Path, names: Iterable[str]) -> None:
        """Copies files of a checkpoint, in this order."""
        folder, storage = f"{self._root}/{checkpoint.name}", self._storage
        with _refusals():
            storage.create_dir(folder, recursive=True)
            self._beat()
            for name in names:
                with (checkpoint / name).open("rb") as file, storage.open_output_stream(f"{folder}/{name}") as copy:
                    self._pour(file, copy)
                self._beat()

    def names(self) -> list[str]:
        """The copied checkpoints, `step-N`, the newest first."""
        return self._whole_and_not()[0]

    def of_others(self, names: Sequence[str], run_created_unix_s: float) -> list[str]:
        """Of copied checkpoints, those whose manifests say that a run created at another time wrote them."""
        with ThreadPoolExecutor(READERS) as readers:
            runs = list(readers.map(self._run_of, names))
        return [name for name, run in zip(names, runs, strict=True) if run not in (None, run_created_unix_s)]

    def _run_of(self, name: str) -> float | None:
        try:
            with _refusals(), self._storage.open_input_stream(f"{self._root}/{name}/{MANIFEST}") as file:
                return run_told(file.read())
        except OSError:  # of one copy: whoever fetches it says so, and takes another
            return None
        finally:
            self._beat()

    def _whole_and_not(self) -> tuple[list[str], list[str]]:
        with _refusals():
            found = self._storage.get_file_info(FileSelector(self._root, allow_not_found=True))
            folders = [entry.base_name for entry in found if entry.type == FileType.Directory]
            steps = [name for name in folders if name.startswith("step-")]
            steps.sort(key=lambda name: step_of(Path(name)), reverse=True)
            files = [f"{self._root}/{name}/{MANIFEST}" for name in steps]
            manifests = self._storage.get_file_info(files) if files else []
        whole = [name for name, file in zip(steps, manifests, strict=True) if file.type == FileType.File]
        return whole, [name for name in steps if name not in whole]

    def fetch(self, name: str, folder: Path, part: int, parts: int) -> None:
        """Copies the files of a checkpoint into `folder`; of `parts` readers, each its own. The first also takes the
        manifest."""
        source = f"{self._root}/{name}"
        with _refusals():
            files = [e.base_name for e in self._storage.get_file_info(FileSelector(source)) if e.type == FileType.File]
            data = sorted(file for file in files if file != MANIFEST)
            for file in [*data[part::parts], *([MANIFEST] if part == 0 else [])]:
                with self._storage.open_input_stream(f"{source}/{file}") as copy, (folder / file).open("wb") as target:
                    self._pour(copy, target)

    def _pour(self, source: Any, target: Any) -> None:
        """Copies one open file into another; returns before the last pieces are through, which closing it waits for."""
        pieces = 0
        while piece := source.read(PIECE_BYTES):
            target.write(piece)
            pieces += 1
            if pieces % PIECES_IN_FLIGHT == 0:
                target.flush()
            self._beat()

    def prune(self, newest: int, keep_last: int | None, keep_every_steps: int | None) -> None:
        """Deletes the copies of checkpoints that are not to be kept, their manifests first, and what is left of copies
        that failed, now that there is the one of step `newest`."""
        whole, rest = self._whole_and_not()
        for name in outdated(whole, newest, keep_last, keep_every_steps):
            with _refusals():
                self._storage.delete_file(f"{self._root}/{name}/{MANIFEST}")
                self._storage.delete_dir(f"{self._root}/{name}")
            self._beat()
        for name in rest:
            with _refusals():
                self._storage.delete_dir(f"{self._root}/{name}")
            self._beat()


def require_kind(uri: str) -> None:
    """ValueError where pyarrow knows no storage of this kind; the storage itself is not asked."""
    try:
        _open(uri.partition("://")[0] + "://")
    except OSError as refusal:  # of a kind that it knows: that this one names no bucket
        if NO_SUCH_KIND in str(refusal):
            raise ValueError(f"checkpoint.copy_to {uri}: {with_advice(refusal)}") from None


def _open(uri: str) -> tuple[FileSystem, str]:
    if uri.startswith("mock:"):  # pyarrow's own, for its tests: what is written there is nowhere
        raise OSError(f"{NO_SUCH_KIND} in URI: {uri}")
    with _refusals():
        storage, path = FileSystem.from_uri(uri)
        return storage, path


@contextmanager
def _refusals() -> Iterator[None]:
    """Whatever a storage raises is an OSError: S3's is one, Azure's an ArrowException, others' of their library."""
    try:
        yield
    except OSError:
        raise
    except Exception as error:
        raise OSError(str(error) or repr(error)) from error


def with_advice(refusal: OSError) -> str:
    """What a storage said, and what its user can do about it where that is known."""
    said = refusal.strerror or str(refusal)
    advice = next((f"; {what}" for pattern, what in _WHAT_NEXT if re.search(pattern, said)), "")
    return f"{textwrap.shorten(said, LONGEST_REFUSAL, placeholder=' ...')}{advice}"

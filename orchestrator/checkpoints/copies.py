"""Copies of checkpoints on any storage that pyarrow reaches: S3, Google Cloud Storage, HDFS, another file system.

Each rank copies the files that it wrote. The manifest is copied last: without it there is no copy.

The key of a storage is never in its URI, which the spec and the record show to all who read them: pyarrow takes it from
the environment of the ranks (AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY of S3) or from the machine's own role. An
S3 other than AWS's is named in the URI, ?endpoint_override=HOST:PORT&scheme=http, or by AWS_ENDPOINT_URL.
"""

import re
import shutil
from collections.abc import Iterable
from pathlib import Path

from pyarrow import ArrowInvalid
from pyarrow.fs import FileSelector, FileSystem, FileType

from orchestrator.checkpoints.saved import MANIFEST, outdated, step_of

PIECE_BYTES = 8 * 2**20
PROBE = ".probe"
# What S3 says, and what its user can do about it.
_WHAT_NEXT = (
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

    Whatever the storage refuses is an OSError, as with a file.
    """

    def __init__(self, uri: str, run_id: str):
        self.uri = uri
        try:
            self._storage, path = FileSystem.from_uri(uri)
        except ArrowInvalid as error:
            raise ValueError(f"checkpoint.copy_to {uri}: {error}") from None
        self._root = "/".join([path.rstrip("/"), run_id, "checkpoints"])

    def require_writable(self) -> None:
        """ValueError where nothing can be written: before the training, and not after its first hours."""
        try:
            self._storage.create_dir(self._root, recursive=True)
            with self._storage.open_output_stream(f"{self._root}/{PROBE}") as probe:
                probe.write(b"hoofprint")
            self._storage.delete_file(f"{self._root}/{PROBE}")
        except OSError as refusal:
            advice = next((f"; {said}" for pattern, said in _WHAT_NEXT if re.search(pattern, str(refusal))), "")
            raise ValueError(f"checkpoint.copy_to {self.uri} cannot be written: {refusal}{advice}") from None

    def put(self, checkpoint: Path, names: Iterable[str]) -> None:
        """Copies files of a checkpoint, in this order."""
        folder = f"{self._root}/{checkpoint.name}"
        self._storage.create_dir(folder, recursive=True)
        for name in names:
            with (checkpoint / name).open("rb") as file, self._storage.open_output_stream(f"{folder}/{name}") as copy:
                shutil.copyfileobj(file, copy, PIECE_BYTES)

    def names(self) -> list[str]:
        """The copied checkpoints, `step-N`, the newest first."""
        found = self._storage.get_file_info(FileSelector(self._root, allow_not_found=True))
        folders = [entry.base_name for entry in found if entry.type == FileType.Directory]
        steps = [name for name in folders if name.startswith("step-")]
        manifests = self._storage.get_file_info([f"{self._root}/{name}/{MANIFEST}" for name in steps]) if steps else []
        whole = [name for name, file in zip(steps, manifests, strict=True) if file.type == FileType.File]
        return sorted(whole, key=lambda name: step_of(Path(name)), reverse=True)

    def fetch(self, name: str, folder: Path, part: int, parts: int) -> None:
        """Copies the files of a checkpoint into `folder`; of `parts` readers, each its own. The first also takes the
        manifest."""
        source = f"{self._root}/{name}"
        files = self._storage.get_file_info(FileSelector(source))
        data = sorted(entry.base_name for entry in files if entry.type == FileType.File and entry.base_name != MANIFEST)
        for file in [*data[part::parts], *([MANIFEST] if part == 0 else [])]:
            with self._storage.open_input_stream(f"{source}/{file}") as copy, (folder / file).open("wb") as target:
                shutil.copyfileobj(copy, target, PIECE_BYTES)

    def prune(self, keep_last: int | None, keep_every_steps: int | None) -> None:
        """Deletes the copies of checkpoints that are not to be kept, their manifests first."""
        for name in outdated(self.names(), keep_last, keep_every_steps):
            self._storage.delete_file(f"{self._root}/{name}/{MANIFEST}")
            self._storage.delete_dir(f"{self._root}/{name}")

"""Where training text comes from: documents of a source, always in the same (sorted) order."""

from __future__ import annotations

import json
import os
import sysconfig
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

KINDS = ("text-folder", "jsonl", "parquet", "python-stdlib")
DEFAULT_STDLIB_MIN_BYTES = 20_000_000


@dataclass(frozen=True)
class SourceSpec:
    """One source of documents.

    path: a folder for text-folder; a file or a folder of files for jsonl and parquet; None for python-stdlib.
    proportion: weight of the source in the training stream, relative to the other sources (> 0).
    text_key: the field (jsonl) or column (parquet) that holds the text.
    min_bytes: python-stdlib only; installed packages are added to the standard library until it is reached.
    max_bytes: stop before the document that would bring the source above this many bytes of UTF-8 text.
    """

    name: str
    kind: str
    path: str | None = None
    proportion: float = 1.0
    text_key: str = "text"
    min_bytes: int | None = None
    max_bytes: int | None = None

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"source {self.name!r}: unknown kind {self.kind!r}, expected one of {', '.join(KINDS)}")
        if not 0 < self.proportion < float("inf"):
            raise ValueError(f"source {self.name!r}: proportion must be a positive number, got {self.proportion}")
        if (self.path is None) != (self.kind == "python-stdlib"):
            wanted = "takes no path" if self.kind == "python-stdlib" else "needs a path"
            raise ValueError(f"source {self.name!r}: kind {self.kind} {wanted}, got {self.path!r}")
        if self.min_bytes is not None and self.kind != "python-stdlib":
            raise ValueError(f"source {self.name!r}: min_bytes applies to python-stdlib only, not {self.kind}")
        for option in ("min_bytes", "max_bytes"):
            value = getattr(self, option)
            if value is not None and value <= 0:
                raise ValueError(f"source {self.name!r}: {option} must be positive, got {value}")


def files(spec: SourceSpec) -> list[Path]:
    """The files of a source in reading order; ValueError where there is none."""
    if spec.kind == "python-stdlib":
        return _python_files(spec.min_bytes or DEFAULT_STDLIB_MIN_BYTES)
    assert spec.path is not None
    root = Path(spec.path)
    suffix = {"jsonl": ".jsonl", "parquet": ".parquet"}.get(spec.kind)
    if not root.exists():
        raise ValueError(f"source {spec.name!r}: {root} does not exist, expected {_expected(spec.kind)}")
    if root.is_file():
        if suffix is None:
            raise ValueError(f"source {spec.name!r}: {root} is a file, expected {_expected(spec.kind)}")
        return [root]
    found = _sorted_files(root, suffix or "")
    if not found:
        others = _sorted_files(root, "")
        holds = f"has no {suffix} file, only others such as {others[0].name}" if others else "is empty"
        raise ValueError(f"source {spec.name!r}: {root} {holds}, expected {_expected(spec.kind)}")
    return found


def documents(spec: SourceSpec, skipped: list[str] | None = None) -> Iterator[str]:
    """Yield the documents of a source in sorted order.

    What cannot be a document is named in `skipped` (path and reason): files that are not UTF-8, empty texts.
    ValueError, naming the file, the line and what was expected, for a broken jsonl line or a missing parquet
    column, and for a source without a single document.
    """
    skipped = [] if skipped is None else skipped
    read = {"jsonl": _jsonl_texts, "parquet": _parquet_texts}.get(spec.kind, _file_text)
    total_bytes = yielded = 0
    for path in files(spec):
        for where, text in read(path, spec.text_key, skipped):
            if not text:
                skipped.append(f"{where}: empty")
                continue
            if spec.max_bytes is not None:
                total_bytes += len(text.encode())
                if total_bytes > spec.max_bytes:
                    if not yielded:
                        raise ValueError(
                            f"{where}: the first document of source {spec.name!r} has {total_bytes} bytes, "
                            f"above max_bytes={spec.max_bytes}; raise max_bytes"
                        )
                    return
            yielded += 1
            yield text
    if not yielded:
        raise ValueError(
            f"source {spec.name!r}: no document with text, expected {_expected(spec.kind)}"
            + (f"; skipped {len(skipped)}: {'; '.join(skipped[:3])}" if skipped else "")
        )


def batches(texts: Iterator[str], characters: int) -> Iterator[list[str]]:
    """Group texts into lists of at least so many characters (the last may have fewer)."""
    batch: list[str] = []
    size = 0
    for text in texts:
        batch.append(text)
        size += len(text)
        if size >= characters:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _file_text(path: Path, _key: str, skipped: list[str]) -> Iterator[tuple[str, str]]:
    try:
        # Bytes rather than read_text, which would turn CRLF into LF.
        yield str(path), path.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        skipped.append(f"{path}: not UTF-8 at byte {error.start}")


def _jsonl_texts(path: Path, key: str, _skipped: list[str]) -> Iterator[tuple[str, str]]:
    expected = f'expected a JSON object with a string field "{key}"'
    with path.open("rb") as stream:
        for number, line in enumerate(stream, 1):
            where = f"{path}, line {number}"
            if not line.strip():
                continue
            try:
                record = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise ValueError(f"{where}: {expected}, got unreadable JSON ({error})") from error
            if not isinstance(record, dict) or not isinstance(record.get(key), str):
                raise ValueError(f"{where}: {expected}, got {line[:60].decode(errors='replace').strip()}")
            yield where, _well_formed(record[key], where)


def _parquet_texts(path: Path, key: str, _skipped: list[str]) -> Iterator[tuple[str, str]]:
    row = 0
    with _damage_named(path):
        for value in _parquet_values(path, key):
            row += 1
            where = f"{path}, row {row}"
            if value is not None and not isinstance(value, str):
                raise ValueError(f"{where}: expected text in column {key!r}, got {type(value).__name__}")
            yield where, value or ""


def _parquet_values(path: Path, key: str) -> Iterator[object]:
    import pyarrow.parquet as parquet

    with parquet.ParquetFile(path) as table:
        columns = table.schema_arrow.names
        if key not in columns:
            raise ValueError(f"{path}: expected a text column {key!r}, found {', '.join(columns)}")
        for batch in table.iter_batches(batch_size=1024, columns=[key]):
            yield from batch.column(0).to_pylist()


@contextmanager
def _damage_named(path: Path) -> Iterator[None]:
    """ValueError with the file's name for what pyarrow says of a damaged one, in errors of several kinds without it."""
    import pyarrow as arrow

    try:
        yield
    except (arrow.ArrowException, OSError, UnicodeDecodeError) as error:
        if isinstance(error, OSError) and error.errno is not None:  # of the disk, which is no fault of the file
            raise
        said = str(error).strip()
        raise ValueError(f"{path}: expected a parquet file, got another or a damaged one ({said})") from error


def _well_formed(text: str, where: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{where}: expected Unicode text, got an unpaired surrogate at character {error.start}"
        ) from error
    return text


def _sorted_files(root: Path, suffix: str, excluded: frozenset[str] = frozenset()) -> list[Path]:
    """Files below root, ordered by relative path; hidden files and folders are no part of a corpus.

    A folder counts once: at its own place, else at the first link to it. A link back to what holds root is no part.
    """
    found: list[Path] = []
    seen = {_identity(above) for above in root.resolve().parents}
    left = [root]
    for start in left:  # linked folders join the end
        for folder, names, leaves in os.walk(start):
            if _identity(Path(folder)) in seen:
                names.clear()
                continue
            seen.add(_identity(Path(folder)))
            names[:] = sorted(name for name in names if not name.startswith(".") and name not in excluded)
            left += [path for name in names if (path := Path(folder, name)).is_symlink()]
            found += [Path(folder, leaf) for leaf in leaves if leaf.endswith(suffix) and not leaf.startswith(".")]
    return sorted((path for path in found if path.is_file()), key=lambda path: path.relative_to(root).parts)


def _identity(folder: Path) -> tuple[int, int]:
    at = folder.stat()
    return at.st_dev, at.st_ino


def _python_files(min_bytes: int) -> list[Path]:
    """The standard library, whole, then installed packages in sorted order until min_bytes."""
    packages = frozenset({"site-packages", "dist-packages"})
    chosen = _sorted_files(Path(sysconfig.get_path("stdlib")), ".py", packages)
    total = sum(path.stat().st_size for path in chosen)
    for path in _sorted_files(Path(sysconfig.get_path("purelib")), ".py"):
        if total >= min_bytes:
            break
        chosen.append(path)
        total += path.stat().st_size
    return chosen


def _expected(kind: str) -> str:
    if kind == "text-folder":
        return "a folder with UTF-8 text files"
    return f"a .{kind} file or a folder of them" if kind != "python-stdlib" else "Python sources"

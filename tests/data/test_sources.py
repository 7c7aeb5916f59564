"""Documents come in one order; what is missing or broken is named."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from orchestrator.data.sources import SourceSpec, documents, files


def test_text_folder_is_sorted_exact_and_reports_what_it_skips(tmp_path):
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "two.txt").write_bytes(b"two\r\n")
    (tmp_path / "a.txt").write_text("one")
    (tmp_path / "bad.txt").write_bytes(b"\xff\xfe")
    (tmp_path / "c.txt").touch()
    skipped: list[str] = []
    assert list(documents(SourceSpec("t", "text-folder", str(tmp_path)), skipped)) == ["one", "two\r\n"]
    assert [("bad.txt" in s, "c.txt" in s) for s in skipped] == [(True, False), (False, True)]


def test_linked_folders_are_read_once(tmp_path):
    root = tmp_path / "corpus"
    for name in ("corpus/real/one.txt", "elsewhere/deep/two.txt", "beside/three.txt"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text(name)
    for link, target in (("a", "real"), ("z", "../elsewhere"), ("y", "../elsewhere/deep"), ("up", ".."), ("on", ".")):
        (root / link).symlink_to(root / target, target_is_directory=True)
    (tmp_path / "elsewhere" / "back").symlink_to(root, target_is_directory=True)
    found = files(SourceSpec("t", "text-folder", str(root)))
    assert [str(path.relative_to(root)) for path in found] == ["real/one.txt", "y/two.txt"]


def test_missing_and_empty_folders_are_named(tmp_path):
    for kind in ("text-folder", "jsonl", "parquet"):
        with pytest.raises(ValueError, match="nowhere does not exist"):
            list(documents(SourceSpec("t", kind, str(tmp_path / "nowhere"))))
        with pytest.raises(ValueError, match="is empty"):
            list(documents(SourceSpec("t", kind, str(tmp_path))))
    (tmp_path / "bad.txt").write_bytes(b"\xff")
    with pytest.raises(ValueError, match="no document.*bad.txt: not UTF-8"):
        list(documents(SourceSpec("t", "text-folder", str(tmp_path))))


def test_jsonl(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text("\n".join(json.dumps({"body": f"text {i}"}) for i in range(3)) + "\n\n")
    assert list(documents(SourceSpec("j", "jsonl", str(path), text_key="body"))) == [
        "text 0",
        "text 1",
        "text 2",
    ]


@pytest.mark.parametrize(
    "line", [b"{", b"[1]", b'{"text": 3}', b'{"other": "x"}', b"\xff", b'{"text": "\\ud800"}', b"[" * 100_000]
)
def test_a_broken_jsonl_line_is_named(tmp_path, line):
    path = tmp_path / "x.jsonl"
    path.write_bytes(b'{"text": "fine"}\n' + line + b"\n")
    with pytest.raises(ValueError, match=r"x\.jsonl, line 2: expected"):
        list(documents(SourceSpec("j", "jsonl", str(path))))


def test_parquet(tmp_path):
    path = tmp_path / "x.parquet"
    pq.write_table(pa.table({"text": ["one", None, "two"], "n": [1, 2, 3]}), path)
    skipped: list[str] = []
    assert list(documents(SourceSpec("p", "parquet", str(tmp_path)), skipped)) == ["one", "two"]
    assert len(skipped) == 1 and "row 2" in skipped[0]
    with pytest.raises(ValueError, match="column 'body', found text, n"):
        list(documents(SourceSpec("p", "parquet", str(path), text_key="body")))
    with pytest.raises(ValueError, match="row 1: expected text"):
        list(documents(SourceSpec("p", "parquet", str(path), text_key="n")))


def test_a_damaged_parquet_file_is_named_however_it_is_damaged(tmp_path):
    path = tmp_path / "x.parquet"
    pq.write_table(pa.table({"text": [f"text {i} " * 20 for i in range(5000)]}), path)
    whole = path.read_bytes()
    third = len(whole) // 3
    inverted = bytes(byte ^ 255 for byte in whole[third : third + 200])
    for content in (
        b"",
        b"not parquet",
        whole[: 2 * third],
        whole[:third] + inverted + whole[third + 200 :],
        whole[:4] + bytes(500) + whole[-4:],
    ):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="x.parquet: expected a parquet file"):
            list(documents(SourceSpec("p", "parquet", str(path))))


def test_a_folder_of_other_files_is_not_called_empty(tmp_path):
    (tmp_path / "a.jsonl.gz").touch()
    with pytest.raises(ValueError, match="has no .jsonl file, only others such as a.jsonl.gz"):
        list(documents(SourceSpec("t", "jsonl", str(tmp_path))))


def test_python_stdlib_is_topped_up_with_packages_and_capped():
    library = files(SourceSpec("py", "python-stdlib", min_bytes=1))
    assert not any("site-packages" in path.parts for path in library)
    size = sum(path.stat().st_size for path in library)
    more = files(SourceSpec("py", "python-stdlib", min_bytes=size + 100_000))
    assert more[: len(library)] == library
    assert sum(path.stat().st_size for path in more[:-1]) < size + 100_000
    texts = list(documents(SourceSpec("py", "python-stdlib", max_bytes=300_000)))
    assert 0 < sum(len(text.encode()) for text in texts) <= 300_000


@pytest.mark.parametrize(
    "options",
    [
        {"kind": "csv", "path": "x"},
        {"kind": "jsonl"},
        {"kind": "python-stdlib", "path": "x"},
        {"kind": "jsonl", "path": "x", "min_bytes": 5},
        {"kind": "jsonl", "path": "x", "proportion": 0.0},
        {"kind": "jsonl", "path": "x", "proportion": float("nan")},
        {"kind": "jsonl", "path": "x", "max_bytes": 0},
    ],
)
def test_bad_specs_are_refused(options):
    with pytest.raises(ValueError, match="source 's'"):
        SourceSpec("s", **options)

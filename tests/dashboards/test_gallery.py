"""The gallery is whole: a picture for each entry and no other, small, asking nobody for anything; a true terminal."""

import re
import sys
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"
sys.path.insert(0, str(DOCS))

import terminal  # noqa: E402
from gallery import page_of, shown  # noqa: E402

PICTURES = [picture for section in shown().values() for picture in section]
ELSEWHERE = re.compile(r"(?:href|src)=\"(?!#)(?!images/)|url\((?!#)|@import|@font-face")


def test_each_picture_is_there_and_no_other_and_the_page_shows_them() -> None:
    files = [picture.file for picture in PICTURES]
    assert sorted(files) == sorted(path.name for path in (DOCS / "images").iterdir())
    assert page_of() == (DOCS / "README.md").read_text(encoding="utf-8"), "make gallery"
    assert all("simulated" in picture.file for picture in PICTURES if "sim-" in picture.command + picture.address)


def test_pictures_are_small_and_offline() -> None:
    sizes = {path.name: path.stat().st_size for path in (DOCS / "images").iterdir()}
    assert {name for name, size in sizes.items() if size > 200_000} == set()
    assert sum(sizes.values()) < 3_000_000
    for path in (DOCS / "images").glob("*.svg"):
        assert not ELSEWHERE.search(path.read_text(encoding="utf-8")), path.name


def test_the_sample_says_nothing_of_where_it_was_made() -> None:
    texts = [path for path in (DOCS / "sample").rglob("*") if path.suffix in (".json", ".jsonl", ".yaml", ".ansi")]
    assert len(texts) > 10
    for path in texts:
        assert not re.search(r"/(work|tmp|home|root|Users)/", path.read_text(encoding="utf-8")), path


def test_a_screen_holds_what_was_drawn_over_last() -> None:
    screen = terminal.Screen()
    screen.feed("kept\r\none\r\ntwo\r\x1b[2K\x1b[1A\x1b[2K")
    screen.feed("\x1b[31mred\x1b[0m\r\nnew")
    assert screen.text() == "kept\n\x1b[31mred\x1b[0m\nnew"


@pytest.mark.parametrize("cut", range(1, 12))
def test_characters_and_codes_may_be_cut_anywhere(cut: int) -> None:
    data = "a\x1b[31mé–".encode()
    screen, rest = terminal.Screen(), b""
    for part in (data[:cut], data[cut:]):
        rest += part
        whole = terminal.whole_part(rest)
        screen.feed(rest[:whole].decode("utf-8"))
        rest = rest[whole:]
    assert rest == b"" and screen.text() == "a\x1b[31mé–"


def test_a_command_runs_on_a_terminal_of_that_width(tmp_path: Path) -> None:
    script = "import os, sys; print(os.get_terminal_size().columns, sys.stdout.isatty()); sys.exit(3)"
    screen, code = terminal.record([sys.executable, "-c", script], 97, tmp_path, {})
    assert (screen.text(), code) == ("97 True", 3)
    picture = terminal.svg("python", "x" * 90 + "END", 80, "t")
    lines = re.findall(r"<text[^>]*>([^<]*)</text>", picture)
    assert any("END" in line for line in lines), "wrapped as a terminal does, not cut"

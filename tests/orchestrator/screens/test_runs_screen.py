"""`hoofprint runs` and `compare` on a terminal: tables that fit it, and in a pipe every name and figure whole."""

from __future__ import annotations

import fcntl
import os
import pty
import struct
import subprocess
import sys
import termios
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from record_fakes import START, make_run
from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from energy.records.record import write_record
from energy.records.total import Entry, project_total, roll_up
from energy.runs import RunFolder
from orchestrator.screens import runs as screen

NAMES = ("llama-7b-with-a-name-that-is-much-too-long-1", "llama-7b-with-a-name-that-is-much-too-long-2", "kurz",
         "研究-模型-的-名字-是-很-长-的-一-个-名-字-3")  # fmt: skip


def entries(count: int = 0) -> list[Entry]:
    named = [*NAMES, *(f"run-{number:05d}" for number in range(count))]
    return [
        Entry(name, Path(name), ("failed", "completed")[place % 2], "development", START + place, START + place + 1,
              tokens=1.4e12, loss=2.125, gpu_hours=1_022_362.0, energy_it_kwh=1.2345e12, energy_facility_kwh=2.5e12,
              carbon_tco2eq=1.2345e-9 if place else 123_456.0, has_record=True)
        for place, name in enumerate(named)
    ]  # fmt: skip


def drawn(width: int, found: list[Entry]) -> list[str]:
    console = Console(file=StringIO(), width=width, force_terminal=True, color_system="truecolor", highlight=False)
    total = roll_up(found, {"energy_it_kwh": 3.0})
    sums = screen.total_columns(total)
    screen.print_table(screen.run_columns(found), console)
    screen.print_table(sums, console, last_is_total=True)
    screen.print_notes(screen.total_notes(total, sums, screen.NAME_WHOLE), console)
    assert isinstance(console.file, StringIO)
    return console.file.getvalue().splitlines()


@pytest.mark.parametrize("width", [60, 80, 120, 200])
def test_it_fits_the_terminal_and_keeps_the_ends_of_names(width: int) -> None:
    found = entries()
    coloured = drawn(width, found)
    lines = [Text.from_ansi(line).plain.rstrip() for line in coloured]
    assert max(cell_len(line) for line in lines) <= width
    rows = [line for line in lines if "failed" in line or "completed" in line]
    for entry in found:
        assert sum(entry.name[-4:] in line for line in rows) == 1, "runs of one experiment are told apart"
    assert any("\x1b[31mfailed" in line for line in coloured)
    if width == 200:
        heads = ["name", "purpose", "status", "tokens", "loss", "IT", "energy", "carbon", "GPU-hours", "when"]
        assert lines[0].split() == heads and all(name in "\n".join(lines) for name in NAMES)
        assert "no room" not in "\n".join(lines)
    if width == 60:
        assert "no room for tokens, loss" in "\n".join(lines), "what was left out is said"
    total = next(line for line in coloured if "total" in Text.from_ansi(line).plain.split()[:1])
    assert "\x1b[1m" in total and any(line.startswith("metered twice") for line in lines)
    assert "no embodied figure" in " ".join(" ".join(lines).split())


def test_of_thousands_the_columns_stand_under_each_other() -> None:
    lines = [Text.from_ansi(line).plain for line in drawn(100, entries(screen.AT_A_TIME + 5))]
    rows = [line for line in lines if "2025-06-15" in line]
    assert len(rows) == screen.AT_A_TIME + 5 + len(NAMES)
    assert len({line.index("2025-06-15") + cell_len(line) - len(line) for line in rows}) == 1
    assert sum(line.startswith("name ") for line in lines) == 1


def on_a_terminal(columns: int, *command: Any) -> str:
    """What a command shows on a real terminal, colours taken out."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 50, columns, 0, 0))
    clean = {key: value for key, value in os.environ.items() if key not in ("COLUMNS", "LINES", "NO_COLOR")}
    process = subprocess.Popen(
        [sys.executable, "-m", "orchestrator", *map(str, command)],
        stdin=slave, stdout=slave, stderr=slave, env=clean | {"TERM": "xterm-256color", "LC_ALL": "C.UTF-8"},
    )  # fmt: skip
    os.close(slave)
    shown = b""
    try:
        while chunk := os.read(master, 65536):
            shown += chunk
    except OSError:  # the program has closed it
        pass
    finally:
        os.close(master)
    assert process.wait(60) == 0, shown.decode()
    assert b"\x1b[" in shown
    return Text.from_ansi(shown.decode().replace("\r\n", "\n")).plain


def test_the_commands_draw_tables_on_a_terminal_and_lines_in_a_pipe(tmp_path: Path) -> None:
    names = ["a-run-with-a-rather-long-name-20261126-1", "a-run-with-a-rather-long-name-20261126-2", "c", "d"]
    for number, name in enumerate(names):
        run: RunFolder = make_run(tmp_path / name, start=START + 1000 * number)
        (run.path / "experiment.yaml").write_text(f"name: small\nseed: {number}\nmodel:\n  size: tiny\n")
        write_record(run)
    listed = on_a_terminal(72, "runs", "--total", "--runs", tmp_path)
    assert max(map(len, listed.splitlines())) <= 72
    assert "IT energy" in listed and "no room for" in listed and "missing  no embodied figure" in listed
    compared = on_a_terminal(60, "compare", *names, "--runs", tmp_path)
    assert max(map(len, compared.splitlines())) <= 60
    assert compared.count("set otherwise") == 3, "in each block, under the runs that it has"
    assert compared.count("seed") == 3 and "in the specs:" not in compared
    piped = subprocess.run(
        [sys.executable, "-m", "orchestrator", "runs", "--total", "--runs", tmp_path],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    found, total = project_total(tmp_path)
    sums = screen.total_columns(total)
    assert piped.splitlines() == [*screen.plain(screen.run_columns(found.entries)), "", *screen.plain(sums),
                                  *screen.plain_notes(screen.total_notes(total, sums))]  # fmt: skip
    assert piped.startswith("name ") and all(name in piped for name in names) and "GPU-hours" in piped
    assert "\npurpose   runs  GPU-hours  IT Wh  facility Wh  g CO2eq  embodied g\n" in piped

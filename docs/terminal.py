"""A command on a terminal of a given width, and its screen as an SVG picture."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import termios
import time
from collections.abc import Callable, Mapping, Sequence
from io import StringIO
from pathlib import Path

from rich.console import CONSOLE_SVG_FORMAT, Console
from rich.text import Text

ROWS = 60
_CODE = re.compile(r"\x1b\[([0-9;?]*)([A-Za-z])|(\r)|(\n)")
# Rich's own frame, without the web font that it would ask the network for.
_FORMAT = re.sub(r"@font-face \{\{.*?\}\}\s*", "", CONSOLE_SVG_FORMAT, flags=re.DOTALL).replace(
    "Fira Code", "DejaVu Sans Mono, Menlo, Consolas"
)


class Screen:
    """What stands on a terminal after some output: lines that a program drew over are as it left them.

    Knows what our commands and rich send: colours, a line up, an erased line.
    """

    def __init__(self) -> None:
        self.lines, self.row = [""], 0

    def feed(self, text: str) -> None:
        at = 0
        for found in _CODE.finditer(text):
            self.lines[self.row] += text[at : found.start()]
            at = found.end()
            count, code, _, newline = found.groups()
            if code == "m":
                self.lines[self.row] += found.group()
            elif code == "A":
                self.row = max(0, self.row - int(count or 1))
            elif code == "K":
                self.lines[self.row] = ""
            elif newline:
                self.row += 1
                self.lines += [""] * (self.row + 1 - len(self.lines))
        self.lines[self.row] += text[at:]

    def text(self) -> str:
        return "\n".join(self.lines).rstrip()


def record(
    command: Sequence[str],
    columns: int,
    folder: Path,
    environment: Mapping[str, str],
    look: Callable[[Screen], None] | None = None,
    limit_s: float = 240.0,
) -> tuple[Screen, int]:
    """(the screen after the command has ended, its exit code); look: is shown the screen whenever it has changed.

    TimeoutError after limit_s.
    """
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, columns, 0, 0))
    clean = {key: value for key, value in environment.items() if key not in ("COLUMNS", "LINES", "NO_COLOR")}
    clean |= {"TERM": "xterm-256color", "COLORTERM": "truecolor", "LC_ALL": "C.UTF-8"}
    process = subprocess.Popen(
        command, cwd=folder, env=clean, stdin=slave, stdout=slave, stderr=slave, start_new_session=True
    )
    os.close(slave)
    screen, rest, until = Screen(), b"", time.monotonic() + limit_s
    try:
        while True:
            if time.monotonic() > until:
                process.kill()
                raise TimeoutError(f"{' '.join(command)} took more than {limit_s:.0f} s")
            if not select.select([master], [], [], 0.5)[0]:
                continue
            try:
                chunk = os.read(master, 65536)
            except OSError:  # the last one who had the terminal open has closed it
                break
            if not chunk:
                break
            rest += chunk
            whole = rest[: whole_part(rest)]
            screen.feed(whole.decode("utf-8", errors="replace"))
            rest = rest[len(whole) :]
            if look is not None:
                look(screen)
    finally:
        os.close(master)
    return screen, process.wait()


def whole_part(data: bytes) -> int:
    """Up to where the data holds whole characters and control sequences."""
    cut = re.search(rb"(\x1b(\[[0-9;?]*)?|[\xc0-\xff][\x80-\xbf]{0,2})$", data)
    if cut is None or cut.group()[:1] == b"\x1b":
        return len(data) if cut is None else cut.start()
    first = cut.group()[0]
    wanted = 2 if first < 0xE0 else 3 if first < 0xF0 else 4
    return len(data) if len(cut.group()) >= wanted else cut.start()


def svg(command: str, shown: str, columns: int, name: str) -> str:
    """A picture of a terminal: the command as it is typed, and what it showed (text with ANSI colours)."""
    console = Console(record=True, width=columns, file=StringIO(), force_terminal=True, color_system="truecolor",
                      legacy_windows=False)  # fmt: skip
    typed = Text.assemble(("$ ", "bold green"), (command, "bold"))
    console.print(typed, soft_wrap=False)
    for line in shown.splitlines():
        whole = Text.from_ansi(line)
        for part in whole.divide(range(columns, len(whole), columns)):  # as a terminal wraps
            console.print(part, soft_wrap=True, highlight=False)
    return console.export_svg(title="", code_format=_FORMAT, unique_id=name)

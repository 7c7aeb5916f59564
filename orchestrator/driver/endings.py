"""How a run's failure is told: the cause in one line, and what to do next."""

import re
import shlex
from collections.abc import Sequence
from pathlib import Path

from orchestrator.checkpoints.saved import newest_complete

# What the other ranks say when one of them is gone: true, and never the cause.
_ECHOES = re.compile(
    r"connection (closed|reset|refused)|gloo|NCCL|broken pipe|socket timeout|Dist(Network|Store)Error", re.IGNORECASE
)
_ERROR_LINE = re.compile(r"^(?:[A-Za-z_][\w.]*\.)?(\w*(?:Error|Exception|NotSaved|Interrupt|Exit)): (.*)$")
_ERRNO = re.compile(r"^\[Errno \d+\] ")
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_FULL = ("No space left on device", "Disk quota exceeded", "File too large")


def cause(error: BaseException) -> str:
    """The innermost failure of the rank that failed first, in one line; the rest is in logs/ray.log."""
    failures = getattr(error, "worker_failures", None) or {}
    told = [last_line(str(failures[rank])) or repr(failures[rank]) for rank in sorted(failures)]
    told = told or [last_line(str(error)) or repr(error)]
    return next((line for line in told if not is_echo(line)), told[0])


def is_echo(line: str) -> bool:
    """Whether a rank only says that another one is gone."""
    return bool(_ECHOES.search(line))


def advice(error: str, run: Path, spec: Path | None, more: Sequence[str] = ()) -> list[str]:
    """What to do about a run that did not end well, one thing a line; `more` goes into the command."""
    newest = newest_complete(run / "checkpoints")
    lines = []
    if any(words in error for words in _FULL):
        size = sum(file.stat().st_size for file in newest.iterdir()) if newest else 0
        lines.append(f"free space under {run}" + (f": a checkpoint takes {size / 1e6:,.0f} MB" if size >= 1e6 else ""))
    command = shlex.join(["hoofprint", "run", str(spec or "SPEC"), "--resume", str(run), *more])
    if newest:
        lines.append(f"go on from step {int(newest.name.removeprefix('step-'))}: {command}")
    else:
        lines.append(f"there is no whole checkpoint yet; train from the start: {command}")
    return lines


def last_line(text: str) -> str:
    """The line of a traceback or a log that says what went wrong; "" of an empty text."""
    lines = [line.strip() for line in _COLOUR.sub("", text).splitlines() if line.strip()]
    if not lines:
        return ""
    for line in reversed(lines):
        match = _ERROR_LINE.match(line)
        if match:
            said = _ERRNO.sub("", match[2])
            # These say all there is to say; of another kind of error the name is half of the message.
            plain = match[1] in ("OSError", "ValueError", "BadInput", "CheckpointNotSaved", "FloatingPointError")
            return said if plain and said else f"{match[1]}: {said}"
    return _ERRNO.sub("", lines[-1])

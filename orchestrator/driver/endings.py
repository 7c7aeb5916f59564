"""How a run's failure is told: the cause in one line, and what to do next."""

import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from orchestrator.checkpoints.saved import newest_complete

# What the other ranks say when one of them is gone: true, and never the cause.
_ECHOES = re.compile(
    r"connection (closed|reset|refused)|gloo|NCCL|broken pipe|socket timeout|Dist(Network|Store)Error", re.IGNORECASE
)
_ERROR_LINE = re.compile(r"^(?:[A-Za-z_][\w.]*\.)?(\w*(?:Error|Exception|NotSaved|Interrupt|Exit)): (.*)$")
_ERRNO = re.compile(r"^\[Errno \d+\] ")
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
# These say all there is to say, unless it is a bare value; of another kind of error the name is half of the message.
_PLAIN = ("PreflightFailed", "OSError", "ValueError", "BadInput", "CheckpointNotSaved", "FloatingPointError")
_FULL = ("No space left on device", "Disk quota exceeded", "File too large")
# What orchestrator.driver.launch says where there is no Ray, and what may help.
_NO_RAY = (
    ("Ray did not start", "`ray stop` ends what an earlier Ray left; its files go to RAY_TMPDIR (/tmp) and /dev/shm"),
    ("could not be joined", "see whether it runs: ray status --address HOST:PORT; without an address Ray starts here"),
    ("the head of the Ray cluster", "start the cluster again (a node without its head ends too), or have a new one"),
)
# What orchestrator.checkpoints.choice says where a start ends in the same way until somebody has done what it says, and
# where a later one may do better.
_STUCK = re.compile("checkpoints of another run of this name|every checkpoint in .* is damaged")
_LATER = re.compile("no checkpoint of .* could be read whole|whether there are copies in .* is not known")
_NO_MEMORY = re.compile(r"out of memory|OutOfMemoryError|can't allocate memory|low on memory", re.IGNORECASE)
_KILLED = re.compile(r"process(es)? of ranks? .* (was|were) killed")


def cause(error: BaseException) -> str:
    """The innermost failure of the rank that failed first, in one line; the rest is in logs/ray.log."""
    failures = getattr(error, "worker_failures", None) or {}
    told = [_said_by(failures[rank]) for rank in sorted(failures)] or [_said_by(error)]
    return next((line for line in told if not is_echo(line)), told[0])


def _said_by(error: Any) -> str:
    """An error, or its text with a traceback, in one line."""
    said = last_line(str(error))
    if not said:
        return repr(error)
    if not isinstance(error, BaseException) or "\n" in str(error).strip():
        return said
    plain = isinstance(error, OSError) or type(error).__name__ in (*_PLAIN, "RuntimeError", "TrainingLost")
    return said if plain and " " in said else f"{type(error).__name__}: {said}"


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
    lines += [said for words, said in _NO_RAY if words in error]
    sparing = _sparing(run)
    if _NO_MEMORY.search(error):
        more = [*more, *sparing]
        first = "below it goes on with less memory a step; " if sparing else ""
        lines.append(f"{first}of more workers each holds less of the model; `hoofprint plan` says what it takes")
    elif _KILLED.search(error):
        less = f": then go on with {shlex.join(sparing)}" if sparing else ""
        lines.append(f"`dmesg` on that machine names it if the kernel killed it for want of memory{less}")
    if _STUCK.search(error):
        return lines
    command = shlex.join(["hoofprint", "run", str(spec or "SPEC"), "--resume", str(run), *more])
    if _LATER.search(error):
        lines.append(f"try again: {command}")
    elif newest:
        lines.append(f"go on from step {int(newest.name.removeprefix('step-'))}: {command}")
    elif (_spec_of(run).get("checkpoint") or {}).get("copy_to"):
        lines.append(f"there is no whole checkpoint here; go on from its newest copy, or from the start: {command}")
    else:
        lines.append(f"there is no whole checkpoint yet; train from the start: {command}")
    return lines


def _spec_of(run: Path) -> dict[str, Any]:
    """What its experiment.yaml has; {} where it cannot be read."""
    import yaml

    try:
        spec = yaml.safe_load((run / "experiment.yaml").read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError):
        return {}
    return spec if isinstance(spec, dict) else {}


def _sparing(run: Path) -> list[str]:
    """Options with which a run computes the same in less memory, as far as there are any left."""
    try:
        training = _spec_of(run)["training"]
        micro, kept = training["micro_batch_sequences"], training["activation_checkpointing"]
    except (KeyError, TypeError):
        return []
    fewer = micro // 2 if micro % 2 == 0 else 1
    wanted = {"micro_batch_sequences": (micro, fewer), "activation_checkpointing": (kept, "full")}
    settings = [f"training.{key}={new}" for key, (old, new) in wanted.items() if new != old]
    return [part for setting in settings for part in ("--set", setting)]


def last_line(text: str) -> str:
    """The line of a traceback or a log that says what went wrong; "" of an empty text."""
    lines = [line.strip() for line in _COLOUR.sub("", text).splitlines() if line.strip()]
    if not lines:
        return ""
    for line in reversed(lines):
        match = _ERROR_LINE.match(line)
        if match:
            said = _ERRNO.sub("", match[2])
            return said if match[1] in _PLAIN and " " in said else f"{match[1]}: {said}"
    return _ERRNO.sub("", lines[-1])

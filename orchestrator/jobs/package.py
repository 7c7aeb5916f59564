"""What travels to the cluster with a submitted job: the code, the spec, and local data as long as it is small.

The code is laid out as an installed wheel is (packages and their `dist-info`), and becomes the job's working directory,
which Ray puts before everything that is installed on the nodes. So a cluster needs only what hoofprint depends on.
"""

import shlex
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path, PurePosixPath
from typing import Any

from orchestrator.driver.revision import SHIPPED, code_revision
from orchestrator.jobs.inside import STOP_WAIT, STOP_WAIT_S
from orchestrator.spec.experiment import Experiment
from orchestrator.spec.file import NOTHING, BadInput

ROOMS = ("orchestrator", "model", "energy", "dashboards")
TRAVELS_BYTES = 100_000_000  # every node fetches it from Ray's head, which refuses more than 500 MiB
# Of Ray's settings for our runs (orchestrator.driver.launch) those that its processes on the cluster read, which do not
# inherit them from the driver.
RAY_SETTINGS = {
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}


def local_data(experiment: Experiment) -> tuple[list[Path], list[Path]]:
    """(what travels, what must be on the cluster): the relative and the absolute paths that the spec names.

    BadInput for a relative path that is not there, that leads out of this folder, or with which it is too much.
    """
    named = [
        *((f"data.sources.{i}.path", source.path) for i, source in enumerate(experiment.data.sources)),
        ("data.tokenizer.path", experiment.data.tokenizer.path),
        ("model.init_from", experiment.model.init_from),
        ("energy.grid_series", experiment.energy.grid_series),
    ]
    travels, there, faults = [], [], []
    for key, path in named:
        if path is None:
            continue
        if path.is_absolute():
            there.append(path)
        elif not path.exists():
            faults.append(f"{key}: no such file or folder: {path} (seen from {Path.cwd()})")
        elif not path.parts:
            faults.append(f"{key}: {path} is this whole folder, which does not travel: name what is needed in it")
        elif ".." in path.parts:
            faults.append(f"{key}: {path} leads out of this folder, so it cannot travel: give an absolute path")
        elif path.parts[0] in ROOMS:
            faults.append(f"{key}: {path} has the name of a package of ours: rename its first folder")
        else:
            travels.append(path)
    size = sum(file.stat().st_size for path in set(travels) for file in _files(path))
    if size > TRAVELS_BYTES:
        faults.append(
            f"{', '.join(map(str, travels))}: {size / 1e6:,.0f} MB is too much to travel with a job (up to "
            f"{TRAVELS_BYTES / 1e6:,.0f} MB): put it on storage that every node reaches, and give its absolute path"
        )
    if faults:
        raise BadInput("\n".join([*faults, NOTHING]))
    return travels, there


def _files(path: Path) -> Iterator[Path]:
    return (each for each in path.rglob("*") if each.is_file()) if path.is_dir() else iter((path,))


@contextmanager
def working_directory(spec: Path, travels: Sequence[Path]) -> Iterator[Path]:
    """A folder with all that travels, for as long as Ray needs to upload it; the spec lies in it under its own name."""
    with tempfile.TemporaryDirectory(prefix="hoofprint-job-") as name:
        folder = Path(name)
        above = Path(__file__).resolve().parents[2]
        for room in ROOMS:
            shutil.copytree(above / room, folder / room, ignore=shutil.ignore_patterns("__pycache__", "*.pyc"))
        told = metadata.distribution("hoofprint")
        about = folder / f"hoofprint-{told.version}.dist-info"
        about.mkdir()
        # An installed wheel has METADATA; of a checkout that setuptools linked to, the same text is in PKG-INFO.
        text = told.read_text("METADATA") or told.read_text("PKG-INFO")
        assert text is not None
        (about / "METADATA").write_text(text, encoding="utf-8")
        shutil.copy(spec, folder / spec.name)
        for path in travels:
            target = folder / path
            if path.is_dir():
                shutil.copytree(path, target, dirs_exist_ok=True)
            else:
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(path, target)
        yield folder


def command(
    spec: Path, experiment: Experiment, overrides: Sequence[str], runs_dir: PurePosixPath, run: str, resume: bool
) -> str:
    """What the job runs, in its working directory on the cluster."""
    given = list(overrides)
    if experiment.cluster.address is not None:
        given.append("cluster.address=null")  # the job's own cluster is meant
    if not experiment.data.cache.is_absolute():
        given.append(f"data.cache={runs_dir / '.corpus'}")
    name = ["--resume", str(runs_dir / run)] if resume else ["--name", run]
    sets = [word for each in given for word in ("--set", each)]
    words = ["python", "-m", "orchestrator.jobs.start", "run", spec.name, "--runs", str(runs_dir), *name, *sets]
    return f"exec {shlex.join(words)}"  # in the shell's place, so that a stop reaches the driver and nobody else


def runtime_env(folder: Path, install: bool, variables: Mapping[str, str]) -> dict[str, Any]:
    """Ray's runtime environment of the job. install: Ray installs what hoofprint depends on, with pip on each node."""
    ours = RAY_SETTINGS | {STOP_WAIT: str(STOP_WAIT_S)}
    if (revision := code_revision()) is not None:
        ours[SHIPPED] = revision
    env: dict[str, Any] = {"working_dir": str(folder), "env_vars": ours | dict(variables)}
    return env | ({"pip": requirements()} if install else {})


def requirements() -> list[str]:
    """What hoofprint depends on, without Ray: the cluster's own must stay."""
    from packaging.requirements import Requirement

    wanted = [Requirement(text) for text in metadata.requires("hoofprint") or []]
    return [str(each) for each in wanted if each.marker is None and each.name != "ray"]

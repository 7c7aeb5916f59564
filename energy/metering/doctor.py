"""What of this machine can be metered, what cannot and why, and what to do about it. Looks; changes nothing."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import shutil
import socket
import tempfile
import time
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from energy import factors
from energy.factors import table_versions
from energy.metering.readers import boot_id
from energy.sensors import POWERCAP, host, nvml, rapl, visible
from energy.sensors.patience import Asked, within

OK, MODELLED, MISSING, BROKEN = "ok", "modelled", "missing", "broken"
LOOK_UP_S = 15.0  # codecarbon looks at the machine for so long at most
NVML_S, GPU_S = 60.0, 5.0  # a driver may take so long to be loaded, and a GPU to answer
HUNG = "nvidia-smi will hang too; dmesg names the fault (Xid); reset the GPU or restart the node"
TABLES = tuple(table_versions())
PACKAGES = {"ray": "ray", "torch": "torch", "codecarbon": "codecarbon", "pynvml": "nvidia-ml-py"}


@dataclass(frozen=True)
class Check:
    """One line: what was looked at, its state (ok, modelled, missing, broken), what was found, and what to do."""

    section: str
    name: str
    state: str
    found: str
    todo: str = ""
    details: dict[str, Any] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def examine(runs_dir: str | os.PathLike[str] = "runs", powercap: Path = POWERCAP) -> list[Check]:
    """Every check of this machine, GPUs first. Never raises for what it finds; takes a second or two."""
    return [
        *gpus(),
        *cpu_and_memory(powercap),
        *machine(Path(runs_dir)),
        *packages(),
        *factor_tables(),
    ]


def is_broken(checks: list[Check]) -> bool:
    """Whether something is wrong with the installation, not merely absent from the machine."""
    return any(check.state == BROKEN for check in checks)


def gpus() -> list[Check]:
    """NVML, each GPU that it shows, and which of them CUDA_VISIBLE_DEVICES leaves."""
    section = "GPU"
    try:
        import pynvml
    except ImportError:
        return [Check(section, "NVML", BROKEN, "the package nvidia-ml-py is not installed", "pip install nvidia-ml-py")]
    try:
        about, handles, chosen, warnings = within(NVML_S, _look_up)
    except pynvml.NVMLError as error:
        todo = "where there is an NVIDIA GPU, make nvidia-smi work first; in a container: --gpus all"
        return [Check(section, "NVML", MISSING, f"{error}: no GPU is metered", todo)]
    except TimeoutError:
        return [Check(section, "NVML", MISSING, f"no answer in {NVML_S:g} s: no GPU is metered", HUNG)]
    checks = [Check(section, "NVML", OK, f"{about}, {len(handles)} GPU{'s' if len(handles) != 1 else ''}")]
    lost = [text for text in warnings if text.startswith("GPU ")]  # the others are of CUDA_VISIBLE_DEVICES
    checks += [Check(section, "lost", MISSING, text, "nvidia-smi names the fault") for text in lost]
    asked = [
        Asked(partial(_gpu, section, str(index), uuid, handle, chosen))
        for index, (uuid, handle) in enumerate(handles.items())
    ]
    until_s = time.monotonic() + GPU_S
    for index, (uuid, one) in enumerate(zip(handles, asked, strict=True)):
        try:
            checks.append(one.answer(until_s))
        except TimeoutError:
            found = f"no answer in {GPU_S:g} s: it is missing from what is metered\n{uuid}"
            checks.append(Check(section, str(index), MISSING, found, HUNG))
    checks.append(_visible(section, chosen, handles, [text for text in warnings if text not in lost]))
    return checks


def _look_up() -> tuple[str, dict[str, Any], dict[str, dict[str, float]], list[str]]:
    """(library and driver, handle of each GPU by UUID, those that are visible and their MIG instances, warnings)."""
    import pynvml

    pynvml.nvmlInit()
    handles, warnings = nvml.handles_of_node()
    chosen = visible.choose("visible", handles, warnings)
    about = f"{pynvml.nvmlSystemGetNVMLVersion()}, driver {pynvml.nvmlSystemGetDriverVersion()}"
    return about, handles, chosen, warnings


def _gpu(section: str, name: str, uuid: str, handle: Any, chosen: dict[str, Any]) -> Check:
    import pynvml

    def ask(call: str, *arguments: Any) -> Any:
        """The answer, or None where the GPU or its driver does not have it."""
        try:
            return getattr(pynvml, call)(handle, *arguments)
        except (pynvml.NVMLError, AttributeError):
            return None

    counter = ask("nvmlDeviceGetTotalEnergyConsumption") is not None
    power = ask("nvmlDeviceGetPowerUsage") is not None
    fields = [value for value in ask("nvmlDeviceGetFieldValues", list(nvml.FIELDS)) or [] if value.nvmlReturn == 0]
    limit_mw, mig = ask("nvmlDeviceGetEnforcedPowerLimit"), ask("nvmlDeviceGetMigMode")
    details = {
        "uuid": uuid,
        "name": str(ask("nvmlDeviceGetName") or "unknown GPU"),
        "energy_counter": counter,
        "power": power,
        "field_values": len(fields),
        "power_limit_w": None if limit_mw is None else limit_mw / 1000,
        "mig": None if mig is None else bool(mig[0]),
        "metered": uuid in chosen,
    }
    limit = "power limit not told" if limit_mw is None else f"limit {limit_mw / 1000:g} W"
    how = "counter" if counter else "power" if power else "no reading"
    fast = ", fields" if fields else ""  # one call for all; else the older single calls stand in
    found = (
        f"{details['name']}, {limit}, {'no MIG' if mig is None else 'MIG on' if mig[0] else 'MIG off'}, "
        f"{'metered' if uuid in chosen else 'hidden by CUDA_VISIBLE_DEVICES'}\n{uuid}: {how}{fast}"
    )
    todo = ""
    if not counter and power:
        todo = "its power is integrated, which is less exact; NVIDIA counts energy since Volta"
    elif not counter:
        todo = "nvidia-smi -q -d POWER names the fault"
    return Check(section, name, OK if counter or power else MISSING, found, todo, details)


def _visible(section: str, chosen: dict[str, Any], handles: dict[str, Any], warnings: list[str]) -> Check:
    name, text = "visible", os.environ.get("CUDA_VISIBLE_DEVICES")
    said = "CUDA_VISIBLE_DEVICES is not set" if text is None else f"CUDA_VISIBLE_DEVICES={text!r}"
    found = f"{said}: {len(chosen)} of {len(handles)} metered"
    if warnings:
        return Check(section, name, MISSING, found, "; ".join(warnings))
    shares = "; ".join(visible.share_text(uuid, instances) for uuid, instances in chosen.items() if instances)
    return Check(section, name, MODELLED if shares else OK, found, shares)


def cpu_and_memory(powercap: Path = POWERCAP) -> list[Check]:
    """RAPL's zones, and the models that stand in for what has none."""
    sensors, warnings = rapl.find("node", powercap)
    checks = [Check("CPU", str(s.describe()["name"]), OK, "energy counter, readable") for s in sensors]
    for text in warnings:
        why, _, todo = text.partition(": ")
        checks.append(Check("CPU", "RAPL", MISSING, why, todo))
    missing = {"cpu", "dram"} - {sensor.describe()["kind"] for sensor in sensors}
    models, _ = host.find("node", missing)
    give_up_s = time.monotonic() + LOOK_UP_S
    for model in models:
        while (reading := model.read()).pending and time.monotonic() < give_up_s:
            time.sleep(0.01)
        about = model.describe()
        name = "CPU" if about["kind"] == "cpu" else "memory"
        if reading.pending or reading.error is not None:
            todo = "without it this part of the node is not in the total"
            checks.append(Check("CPU", name, MISSING, reading.error or "gave no answer", todo))
        else:
            basis = str(about["name"]).replace(" (model: ", ": ").removesuffix(")")
            checks.append(Check("CPU", name, MODELLED, basis.removeprefix("memory: ")))
    return checks


def machine(runs_dir: Path) -> list[Check]:
    """Boot and clocks, and whether runs can be written."""
    section, boot = "machine", boot_id()
    checks = [
        Check(section, "boot", OK, f"{boot}; up {time.monotonic() / 3600:.1f} h")
        if boot
        else Check(
            section,
            "boot",
            MISSING,
            "/proc/sys/kernel/random/boot_id is not readable",
            "after a crash of the meter the gap's energy is not known",
        ),
        Check(section, "node", OK, f"{socket.gethostname()}, {os.cpu_count()} CPUs"),
    ]
    place = runs_dir.absolute()
    while not place.exists() and place != place.parent:
        place = place.parent
    try:
        with tempfile.TemporaryFile(dir=place):
            free_gb = shutil.disk_usage(place).free / 1e9
        checks.append(Check(section, "runs", OK, f"{runs_dir} can be written, {free_gb:,.0f} GB free"))
    except OSError as error:
        todo = "give another folder with --runs"
        checks.append(Check(section, "runs", MISSING, f"{runs_dir} cannot be written ({error.strerror})", todo))
    return checks


def packages() -> list[Check]:
    """The packages that training and metering need, found but not imported."""
    checks = []
    for module, distribution in PACKAGES.items():
        if importlib.util.find_spec(module) is None:
            checks.append(Check("software", module, BROKEN, "not installed", f"pip install {distribution}"))
            continue
        try:
            version = importlib.metadata.version(distribution)
        except importlib.metadata.PackageNotFoundError:
            version = "version not known"
        checks.append(Check("software", module, OK, version))
    return checks


def factor_tables() -> list[Check]:
    """The tables of figures from elsewhere: there, and not empty."""
    checks, rows = [], 0
    for table in TABLES:
        try:
            rows += (found := len(factors.read_table(table)))
            fault = "" if found else "it is empty"
        except (OSError, ValueError) as error:
            fault = str(error)
        if fault:
            checks.append(Check("factors", table, BROKEN, fault, "install hoofprint again"))
    if not checks:
        checks.append(Check("factors", "tables", OK, f"{len(TABLES)} tables, {rows} rows"))
    return checks

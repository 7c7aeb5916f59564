import logging
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from energy_fakes import FakeSensor, meter_fake, reading

from energy.accounting.account import account_run
from energy.metering.meter import Meter
from energy.runs import RunFolder
from energy.sensors import Reading, discover, host, rapl

# Sensors without delay: what is tested here is arithmetic that can be done by hand.
EXACT = "counter_period=0 update=0 window=0"
GPU_A = f"gpu uuid=GPU-a trace=square low=100 high=400 period=2 {EXACT}\n"
GPU_B = f"gpu uuid=GPU-b trace=square low=100 high=400 period=2 counter=0 {EXACT}\n"


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return RunFolder(tmp_path / "run")


def square_j(low_w: float, high_w: float, period_s: float, t: float) -> float:
    """The stand-in's energy since zero, by its own definition."""
    whole, rest = divmod(t, period_s)
    half = period_s / 2
    return whole * half * (low_w + high_w) + high_w * min(rest, half) + low_w * max(0.0, rest - half)


def test_counter_and_integrated_power_meet_the_known_truth(run: RunFolder, meter_gpus: Callable[..., str]) -> None:
    warned = meter_gpus(run.ledger_file("n1"), GPU_A + GPU_B, 0.37, 30.37, 0.1)
    truth_j = square_j(100, 400, 2, 30.37) - square_j(100, 400, 2, 0.37)
    by_uuid = {device.uuid: device for device in account_run(run).devices}
    assert by_uuid["GPU-a"].energy_j == pytest.approx(truth_j, rel=1e-4)
    assert by_uuid["GPU-b"].energy_j == pytest.approx(truth_j, rel=0.03)
    assert (by_uuid["GPU-a"].method, by_uuid["GPU-b"].method) == ("counter", "integrated")
    assert (by_uuid["GPU-a"].boundary, by_uuid["GPU-a"].node) == ("gpu", "n1")
    assert "GPU-b has no energy counter" in warned


def test_a_counter_that_is_reset_while_metered(run: RunFolder, meter_gpus: Callable[..., str]) -> None:
    meter_gpus(run.ledger_file("n1"), f"gpu uuid=GPU-a power=200 reset=10.05 {EXACT}\n", 0, 20, 0.5)
    account = account_run(run)
    assert account.energy_j == pytest.approx(4000, rel=0.03)
    assert any("new epoch" in warning for warning in account.warnings)


def test_a_lost_gpu_is_named_missing(run: RunFolder, meter_gpus: Callable[..., str]) -> None:
    meter_gpus(run.ledger_file("n1"), GPU_A + f"gpu uuid=GPU-c power=200 lost=5 {EXACT}\n", 0, 10, 0.5)
    account = account_run(run)
    lost = next(device for device in account.devices if device.uuid == "GPU-c")
    # It was lost between the readings at 4.5 and 5.0: held to the middle, with as much doubt.
    assert lost.energy_j == pytest.approx(950) and lost.doubt_j == pytest.approx(50)
    assert lost.gap_s == pytest.approx(5.5)
    assert any("GPU-c" in w and "could not be read for 5.5 s" in w and "GPU is lost" in w for w in account.warnings)
    assert not any("GPU-a" in warning for warning in account.warnings)


def test_a_crash_and_a_restart_book_the_gap(run: RunFolder, meter_gpus: Callable[..., str]) -> None:
    gpu = f"gpu uuid=GPU-a power=200 {EXACT}\n"
    meter_gpus(run.ledger_file("n1"), gpu, 0, 4, 0.5, attempt=1, stop=False)
    with open(run.ledger_file("n1"), "ab") as file:
        file.write(b'1234abcd {"kind":"rea')
    meter_gpus(run.ledger_file("n1"), gpu, 10, 14, 0.5, attempt=2)
    account = account_run(run)
    assert account.energy_j == pytest.approx(2800)
    assert account.phases["gap"]["energy_j"] == pytest.approx(1200)
    assert len(account.damaged) == 1


def test_without_nvml_there_is_a_warning_and_no_gpu(nvml_env: Callable[[str], dict[str, str]], tmp_path: Path) -> None:
    code = "from energy.sensors import nvml; sensors, warnings = nvml.find('n1'); assert not sensors; print(warnings)"
    environment = nvml_env(GPU_A) | {"NVML_SIM": str(tmp_path / "missing")}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert "no GPU is measured" in done.stdout


def zone(tree: Path, name: str, label: str, energy_uj: int, range_uj: int = 10**12) -> Path:
    folder = tree / name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "name").write_text(label + "\n")
    (folder / "energy_uj").write_text(f"{energy_uj}\n")
    (folder / "max_energy_range_uj").write_text(f"{range_uj}\n")
    return folder


def test_rapl_reads_packages_and_memory_once_and_unwraps(tmp_path: Path) -> None:
    package = zone(tmp_path, "intel-rapl:0", "package-0", 900_000)
    zone(tmp_path, "intel-rapl:0:0", "core", 1)
    zone(tmp_path, "intel-rapl:0:1", "dram", 5)
    zone(tmp_path, "intel-rapl-mmio:0", "package-0", 900_000)
    zone(tmp_path, "intel-rapl:1", "psys", 1)
    sensors, warnings = rapl.find("n1", tmp_path)
    assert [s.describe()["uuid"] for s in sensors] == ["cpu-package-0@n1", "dram-0@n1"] and warnings == []
    counters = []
    for raw_mj in (9e8, 1e8, 9.5e8, 0.5e8):
        (package / "energy_uj").write_text(f"{raw_mj * 1e3:.0f}")
        counters.append(sensors[0].read().energy_mj)
    assert counters == [9e8, 11e8, 19.5e8, 20.5e8]
    zone(tmp_path, "intel-rapl:0", "package-0", 0, range_uj=0)  # as of a virtual machine
    sensors, warnings = rapl.find("n1", tmp_path)
    assert [s.describe()["uuid"] for s in sensors] == ["dram-0@n1"] and "no counter" in warnings[0]


@pytest.mark.parametrize(
    ("stalls", "away_s", "known_j"), [(1, 200.0, 24_000), (1, 300.0, 4_000), (2, 200.0, 44_000), (2, 300.0, 4_000)]
)
def test_rapl_that_may_have_wrapped_twice_leaves_that_time_unknown(
    run: RunFolder, tmp_path: Path, stalls: int, away_s: float, known_j: float
) -> None:
    """A package of 100 W whose meter stood still: its counter wraps within 262 s at most power, and only once here."""
    package, now, range_uj = zone(tmp_path, "intel-rapl:0", "package-0", 0, 262_143_000_000), [0.0], 262_143_000_000
    sensor = rapl.RaplSensor(package, "cpu-package-0@n1", "RAPL", "cpu", "n1", clock=lambda: now[0])
    meter = Meter(
        run.ledger_file("n1"), sensors=[sensor], discover_sensors=False, interval_s=1.0, clock=lambda: (now[0], now[0])
    )
    between = [20 + away_s * stall for stall in range(1, stalls)]
    for now[0] in [*map(float, range(21)), *between, *(20 + stalls * away_s + n for n in range(21))]:
        (package / "energy_uj").write_text(str((250_000_000_000 + round(now[0] * 100e6)) % range_uj))
        meter.sample(last=now[0] == 40 + stalls * away_s)
    account = account_run(run)
    assert account.energy_j == pytest.approx(known_j)
    unknown = sum("that interval is unknown" in text for text in account.warnings)
    assert unknown == (stalls if known_j == 4_000 else 0)
    told = f"the energy of {stalls * away_s:.1f} s is unknown and not in the total"
    assert any(told in text for text in account.warnings) == (unknown > 0)


def test_a_gap_after_a_counter_that_may_have_wrapped_is_what_it_grew(run: RunFolder, tmp_path: Path) -> None:
    range_uj = 262_143_000_000
    package, now = zone(tmp_path, "intel-rapl:0", "package-0", 0, range_uj), [0.0]

    class Package(rapl.RaplSensor):
        def read(self) -> Reading:
            now[0] = next(moments)
            (package / "energy_uj").write_text(str((250_000_000_000 + round(now[0] * 100e6)) % range_uj))
            return super().read()

    for times in ([*range(21), *range(320, 326)], range(425, 431)):  # stood still for 300 s, was dead for 100 s
        moments = iter(map(float, times))
        sensor = Package(package, "cpu-package-0@n1", "RAPL", "cpu", "n1", clock=lambda: now[0])
        meter_fake(run, [sensor], [float(t) for t in times], stop=times[-1] == 430)
    account = account_run(run)
    assert account.phases["gap"]["energy_j"] == pytest.approx(10_000)
    assert account.energy_j == pytest.approx(2_000 + 500 + 10_000 + 500)


def test_rapl_that_may_not_be_read_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    zone(tmp_path, "intel-rapl:0", "package-0", 1)
    real = Path.read_text

    def read_text(self: Path, *args: str, **kwargs: str) -> str:
        if self.name == "energy_uj":
            raise PermissionError(13, "Permission denied")
        return real(self, *args, **kwargs)

    monkeypatch.setattr(Path, "read_text", read_text)
    sensors, warnings = rapl.find("n1", tmp_path)
    assert sensors == [] and "chmod a+r" in warnings[0]
    assert "does not exist" in rapl.find("n1", tmp_path / "none")[1][0]


def test_the_host_model_is_marked_and_does_not_log(capfd: pytest.CaptureFixture[str]) -> None:
    sensors, _ = host.find("n1", {"cpu", "dram"})
    assert [s.describe()["uuid"] for s in sensors] == ["cpu@n1", "dram@n1"]
    assert {s.describe()["method"] for s in sensors} == {"modelled"}
    warnings = []
    for sensor in sensors:
        while sensor.read().pending:  # codecarbon looks at the machine on a thread
            time.sleep(0.01)
        assert (sensor.read().power_w or 0) > 0
        about, news = sensor.news()
        assert "model:" in about["name"] and sensor.news() is None
        warnings += news
    assert sum("not measured" in warning for warning in warnings) == 2
    assert "codecarbon" not in capfd.readouterr().err
    with host._LOOK_UP:  # another test's look-up may be under way
        handlers = logging.getLogger("codecarbon").handlers
        assert not [handler for handler in handlers if type(handler).__module__ == host.__name__]


def test_the_host_model_is_codecarbons_own_without_its_pandas() -> None:
    code = """
import sys, time
from energy.sensors import host
[sensor], _ = host.find("n1", {"cpu"})
while sensor.read().pending:
    time.sleep(0.01)
assert sensor.read().power_w > 0 and sensor.own_cpu_s()[0] > 0
assert "pandas" not in sys.modules
from codecarbon.core.cpu import TDP
theirs, own = TDP(), host._tdp_table()
print(theirs.model in sensor.describe()["name"])
from codecarbon.input import DataSource
for model in ("Intel(R) Xeon(R) Platinum 8259CL CPU @ 2.50GHz", "AMD EPYC 7763 64-Core Processor"):
    found = theirs._get_matching_cpu(model, {"Name": list(own)})
    assert float(own[found]) == theirs._get_cpu_power_from_registry(model)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().endswith("True")


def test_discovery_never_raises(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: object) -> None:
        raise RuntimeError("broken driver")

    for source in ("nvml", "rapl", "host"):
        monkeypatch.setattr(f"energy.sensors.{source}.find", broken)
    sensors, warnings = discover("n1", powercap=tmp_path)
    assert sensors == [] and len(warnings) == 3


def test_the_meter_thread_reads_and_stops_twice(run: RunFolder) -> None:
    sensor = FakeSensor("GPU-1", [reading(energy_j=float(n)) for n in range(10**5)])
    meter = Meter(run.ledger_file("n1"), interval_s=0.01, sensors=[sensor], discover_sensors=False)
    with meter:
        meter.mark(2)
    meter.stop()
    meter.sample()
    account = account_run(run)
    assert account.devices[0].samples >= 2
    assert [attempt["attempt"] for attempt in account.attempts] == [1, 2]
    with pytest.raises(ValueError, match="interval_s"):
        Meter(run.ledger_file("n1"), interval_s=0)

"""measure, doctor and readings as another program sees them."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from build import NoCompiler, build

from energy.metering import doctor

ROOT = Path(__file__).parents[3]

HOOFPRINT = [sys.executable, "-c", "from orchestrator.cli import main; main()"]
GPUS = (
    "gpu uuid=GPU-11111111-1111-1111-1111-111111111111 power=200\n"
    "gpu uuid=GPU-22222222-2222-2222-2222-222222222222 power=300 counter=0\n"
)
MIG = "MIG-11111111-2222-3333-4444-555555555555"
SCRAPE = """
import sys, time, urllib.request
while "hoofprint_device_energy_joules_total" not in (text := urllib.request.urlopen(sys.argv[1]).read().decode()):
    time.sleep(0.05)
print(text)
"""
Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="session")
def nvml_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    try:
        return build(tmp_path_factory.mktemp("nvml"))
    except NoCompiler as error:
        pytest.skip(str(error))


@pytest.fixture
def environment(nvml_library: Path, tmp_path: Path) -> dict[str, str]:
    """Two simulated GPUs, one without a counter, and a terminal of 80 columns."""
    config = tmp_path / "gpus.txt"
    config.write_text(GPUS)
    simulated = {"LD_LIBRARY_PATH": str(nvml_library), "NVML_SIM": str(config), "NVML_SIM_EPOCH": str(int(time.time()))}
    return {**os.environ, **simulated, "PYTHONPATH": str(ROOT), "COLUMNS": "80"}


@pytest.fixture
def hoofprint(environment: dict[str, str], tmp_path: Path) -> Run:
    def run(*arguments: str, **more: Any) -> subprocess.CompletedProcess[str]:
        command = [*HOOFPRINT, *arguments]
        return subprocess.run(
            command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=180, **more
        )

    return run


def test_measure_prints_one_document_of_stable_keys(hoofprint: Run, tmp_path: Path) -> None:
    factors = "--pue 1.5 --pue-source meter --intensity-g-per-kwh 400 --intensity-source grid".split()
    done = hoofprint("measure", "--name", "m", "--json", *factors, "--", "sh", "-c", "echo said; sleep 1; exit 5")
    assert done.returncode == 5
    result = json.loads(done.stdout)
    contract = "run_id duration_s exit_code devices energy_it_kwh energy_facility_kwh carbon_tco2eq warnings".split()
    assert result.keys() >= set(contract)
    for device in result["devices"]:
        assert device.keys() >= {"uuid", "name", "energy_j", "method", "boundary", "samples", "gap_s"}
    assert [d["method"] for d in result["devices"][:2]] == ["counter", "integrated"]
    assert result["devices"][0]["energy_j"] == pytest.approx(200 * result["duration_s"], rel=0.03)
    assert (result["run_id"], result["exit_code"], result["boundary"]) == ("m", 5, "node")
    it_kwh = result["energy_it_kwh"]
    assert it_kwh * 3.6e6 == pytest.approx(sum(d["energy_j"] or 0.0 for d in result["devices"]))
    assert result["energy_facility_kwh"] == pytest.approx(1.5 * it_kwh)
    assert result["carbon_tco2eq"] == pytest.approx(1.5 * it_kwh * 400 / 1e6)
    assert result["low"]["energy_it_kwh"] < it_kwh < result["high"]["energy_it_kwh"]
    assert sum(result[f"share_{kind}"] for kind in ("measured", "modelled", "assumed")) == pytest.approx(1)
    assert "said\n" in done.stderr  # the command's own stdout
    run = tmp_path / "runs" / "m"
    record = json.loads((run / "footprint.json").read_text())
    assert record["energy"]["pue"] == 1.5 and record["carbon"]["source"] == "grid"
    assert record["run"]["status"] == "failed" and "exit code 5" in record["run"]["error"]
    assert "<html" in (run / "report.html").read_text()


def test_measure_takes_a_named_pue_with_its_source_and_range(hoofprint: Run, tmp_path: Path) -> None:
    done = hoofprint("measure", "--name", "m", "--json", "--pue", "AWS fleet 2025", "--grid", "FR", "--", "sleep", "1")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    shown = " ".join(done.stderr.split())
    assert "PUE 1.14, 1.06 to 1.46 (world, 2025; Amazon Sustainability Report 2025)" in shown
    record = json.loads((tmp_path / "runs" / "m" / "footprint.json").read_text())
    pue = next(each for each in record["assumptions"] if each["key"] == "pue")
    assert (pue["value"], pue["low"], pue["high"]) == (1.14, 1.06, 1.46) and "Amazon" in pue["source"]
    assert record["uncertainty"]["factors_with_range"] == ["pue"]
    # Wider than the energy's own, and most of all above: there the regions lie furthest from the fleet's mean.
    for document in (result, as_measured(record)):
        ratio = {
            (side, key): document[side][key] / document[key]
            for side in ("low", "high")
            for key in ("energy_it_kwh", "energy_facility_kwh", "carbon_tco2eq")
        }
        assert ratio["high", "energy_facility_kwh"] > ratio["high", "energy_it_kwh"] + 0.1
        assert ratio["high", "carbon_tco2eq"] == pytest.approx(ratio["high", "energy_facility_kwh"])


def test_measure_takes_no_figure_in_place_of_a_place(hoofprint: Run) -> None:
    done = hoofprint("measure", "--grid", "38 g/kWh", "--", "true")
    assert done.returncode == 2 and "--intensity-g-per-kwh, with its source" in " ".join(done.stderr.split())


def as_measured(record: dict[str, Any]) -> dict[str, Any]:
    """A record's totals and intervals, as `measure --json` has them."""
    totals = record["energy"] | record["carbon"]
    return totals | {
        side: {key: told[side] for key, told in record["uncertainty"].items() if isinstance(told, dict)}
        for side in ("low", "high")
    }


def test_measure_keeps_the_streams_and_fits_a_terminal(hoofprint: Run) -> None:
    done = hoofprint("measure", "cat", "-", input="from stdin\n")
    assert done.returncode == 0 and done.stdout == "from stdin\n"
    assert max(map(len, done.stderr.splitlines())) <= 80
    for text in ("GPU-11111111", "GPU-22222222", "total", "measured", "boundary", "report.html", "integrated"):
        assert text in done.stderr
    assert re.search(r"carbon +not known: it needs --pue", done.stderr)


@pytest.mark.parametrize(
    ("script", "end"), [("exit 255", "exit code 255"), ("kill -15 $$", "ended by SIGTERM, exit code 143")]
)
def test_the_end_is_said_once(hoofprint: Run, script: str, end: str) -> None:
    done = hoofprint("measure", "--name", "m", "--", "sh", "-c", script)
    assert re.search(rf"^m  .*s, {end}$", done.stderr, re.MULTILINE)


def test_quiet_says_nothing(hoofprint: Run, tmp_path: Path) -> None:
    done = hoofprint("measure", "-q", "--name", "m", "--", "sh", "-c", "kill -9 $$")
    assert (done.returncode, done.stdout, done.stderr) == (137, "", "")
    assert (tmp_path / "runs" / "m" / "report.html").exists()


def test_bad_input_is_said_before_the_command_starts(hoofprint: Run, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "runs" / "taken").mkdir(parents=True)
    touch = ["--", "touch", "ran"]
    for arguments, expected in (
        (["--runs", "file", *touch], "file"),
        (["--name", "taken", *touch], "exists"),
        (["--pue", "1.2", *touch], "--pue-source"),
        (["--pue", "aws flee", *touch], "aws fleet 2025"),
        (["--pue", "aws fleet 2025", "--pue-source", "me", *touch], "leave --pue-source out"),
        (["--pue", "nan", "--pue-source", "me", *touch], "finite number"),
        (["--gpus", "GPU-3", *touch], "hoofprint doctor"),
        (["--gpus", " ,", *touch], "--gpus is empty"),
        (["--interval-s", "0", *touch], "--interval-s"),
        (["--prometheus", "0.0.0.0:x", *touch], "'x' is not a valid integer"),
        (["--prometheus", "203.0.113.9:0", *touch], "on 203.0.113.9 cannot be had"),
        ([], "Missing argument"),
    ):
        done = hoofprint("measure", *arguments)
        assert done.returncode == 2 and expected in done.stderr and "Traceback" not in done.stderr
    for command, code in (("no-such-command", 127), ("./file", 126)):
        done = hoofprint("measure", "--", command)
        assert done.returncode == code and command.removeprefix("./") in done.stderr
    assert not (tmp_path / "ran").exists()
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["taken"]


def test_a_reader_that_has_gone_changes_nothing(environment: dict[str, str], tmp_path: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    command = [*HOOFPRINT, "measure", "--name", "m", "--json", "--", "sh", "-c", "exit 9"]
    done = subprocess.run(command, env=environment, cwd=tmp_path, stdout=writing, stderr=writing, timeout=120)
    os.close(writing)
    assert done.returncode == 9 and (tmp_path / "runs" / "m" / "report.html").exists()


def test_the_endpoint_serves_while_the_command_runs(hoofprint: Run) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    url = f"http://127.0.0.1:{port}/metrics"
    done = hoofprint("measure", "--name", "m", "--prometheus", port, "--", sys.executable, "-c", SCRAPE, url)
    assert done.returncode == 0 and url in done.stderr
    other = f"http://127.0.0.2:{port}/metrics"  # another address of this machine, as the one that a cluster knows is
    command = ["--", sys.executable, "-c", SCRAPE, other]
    assert hoofprint("measure", "--prometheus", f"127.0.0.2:{port}", *command).returncode == 0
    assert re.search(r'hoofprint_device_energy_joules_total\{.*run="m".*uuid="GPU-1', done.stdout)


def test_kill_9_leaves_a_run_that_can_be_reported(environment: dict[str, str], hoofprint: Run, tmp_path: Path) -> None:
    command = [*HOOFPRINT, "measure", "--name", "m", "--interval-s", "0.1", "--", "sh", "-c", "echo $$; exec sleep 600"]
    process = subprocess.Popen(
        command, env=environment, cwd=tmp_path, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    assert process.stdout is not None
    metered, run = int(process.stdout.readline()), tmp_path / "runs" / "m"
    try:
        assert json.loads((run / "run.json").read_text())["status"] == "running"
        (raw,) = run.glob("energy/*.raw")
        size = raw.stat().st_size
        while raw.stat().st_size < 4 * size:
            time.sleep(0.05)
        process.kill()
        process.wait(timeout=30)
        os.kill(metered, 0)  # the command goes on without its meter
    finally:
        os.kill(metered, signal.SIGKILL)
    done = hoofprint("report", str(run), "--json")
    assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout)
    gpu = next(d for d in record["energy"]["devices"] if d["uuid"].startswith("GPU-1"))
    assert record["run"]["status"] == "lost" and gpu["energy_j"] > 0 and gpu["method"] == "counter"


def test_a_run_at_work_is_not_taken_for_lost(environment: dict[str, str], hoofprint: Run, tmp_path: Path) -> None:
    command = [*HOOFPRINT, "measure", "-q", "--name", "m", "--", "sh", "-c", "echo ready; read line"]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    process = subprocess.Popen(command, env=environment, cwd=tmp_path, text=True, **pipes)
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    assert hoofprint("report", "runs/m").returncode == 0
    assert json.loads((tmp_path / "runs" / "m" / "run.json").read_text())["status"] == "running"
    process.communicate("\n", timeout=120)
    assert json.loads((tmp_path / "runs" / "m" / "run.json").read_text())["status"] == "completed"


def test_a_killed_command_is_reported_without_the_advice_for_trainings(
    environment: dict[str, str], hoofprint: Run, tmp_path: Path
) -> None:
    command = [*HOOFPRINT, "measure", "-q", "--name", "m", "--", "sh", "-c", "echo ready; sleep 1"]
    process = subprocess.Popen(command, env=environment, cwd=tmp_path, text=True, stdout=subprocess.PIPE)
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    process.kill()
    process.communicate()
    done = hoofprint("report", "runs/m")
    assert done.returncode == 0 and "the run was lost" in done.stderr and "--resume" not in done.stderr


def test_readings_as_csv_and_parquet(hoofprint: Run, tmp_path: Path) -> None:
    assert hoofprint("measure", "-q", "--name", "m", "--interval-s", "0.1", "--", "sleep", "1").returncode == 0
    done = hoofprint("readings", "runs/m")
    assert done.returncode == 0
    assert hoofprint("readings", "runs/m", "-o", "all.csv").returncode == 0
    assert (tmp_path / "all.csv").read_text() == done.stdout
    assert hoofprint("readings", "runs/m", "-o", "all.parquet").returncode == 0
    table, flat = pd.read_parquet(tmp_path / "all.parquet"), pd.read_csv(tmp_path / "all.csv")
    assert list(table.columns) == list(flat.columns) and len(table) == len(flat)
    gpu = table[table.uuid.str.startswith("GPU-1")]
    assert len(gpu) > 3 and gpu.energy_j.is_monotonic_increasing and gpu.energy_j.iloc[-1] > 100
    assert hoofprint("readings", "runs/m", "--minutes", "-o", "few.csv").returncode == 0
    assert 0 < len(pd.read_csv(tmp_path / "few.csv")) < len(flat)
    assert sorted(path.name for path in tmp_path.glob("*.*")) == ["all.csv", "all.parquet", "few.csv", "gpus.txt"]
    for arguments, expected in (
        (["runs/m", "-o", "all.txt"], ".parquet"),
        (["runs/m", "-o", "nowhere/all.csv"], "there is no folder"),
        (["runs"], "no ledger"),
    ):
        done = hoofprint("readings", *arguments)
        assert done.returncode == 2 and expected in done.stderr


def test_doctor_names_every_gpu_and_which_are_metered(
    environment: dict[str, str], hoofprint: Run, tmp_path: Path
) -> None:
    environment["CUDA_VISIBLE_DEVICES"] = "GPU-2222"
    done = hoofprint("doctor", "--json")
    assert done.returncode == 0
    checks = json.loads(done.stdout)["checks"]
    gpus = {c["details"]["uuid"][:8]: c["details"] for c in checks if c["details"].get("uuid")}
    assert gpus["GPU-1111"]["energy_counter"] and not gpus["GPU-1111"]["metered"]
    assert not gpus["GPU-2222"]["energy_counter"] and gpus["GPU-2222"]["metered"]
    assert gpus["GPU-1111"]["power_limit_w"] == 400 and gpus["GPU-1111"]["mig"] is False
    assert {c["name"]: c for c in checks}["visible"]["found"].endswith("1 of 2 metered")
    assert {c["section"] for c in checks} == {"GPU", "CPU", "machine", "software", "factors"}
    screen = hoofprint("doctor")
    assert screen.returncode == 0 and max(map(len, screen.stdout.splitlines())) <= 80
    environment |= {"CUDA_VISIBLE_DEVICES": MIG}
    (tmp_path / "gpus.txt").write_text(f"gpu uuid=GPU-mute hang=0\ngpu uuid=GPU-split mig={MIG}:3:42:20000\n")
    done = hoofprint("doctor", "--json")
    checks = {c["name"]: c for c in json.loads(done.stdout)["checks"] if c["section"] == "GPU"}
    assert done.returncode == 0 and {n: c["state"] for n, c in checks.items()} == {
        "NVML": "ok", "0": "missing", "1": "ok", "visible": "modelled",
    }  # fmt: skip
    assert "no answer in 5 s" in checks["0"]["found"] and "43%" in checks["visible"]["todo"]
    environment["NVML_SIM"] = str(tmp_path / "none")
    assert "no GPU is metered" in hoofprint("doctor").stdout


def test_doctor_tells_absent_from_broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    runs = doctor.machine(tmp_path / "file" / "runs")[-1]
    assert (runs.state, "--runs" in runs.todo) == ("missing", True)
    assert not doctor.is_broken([runs, *doctor.factor_tables(), *doctor.packages()])
    monkeypatch.setattr(doctor, "TABLES", (*doctor.TABLES, "no_such_table"))
    monkeypatch.setattr(doctor, "PACKAGES", {"no_such_package": "no-such"})
    assert [c.name for c in doctor.factor_tables()] == ["no_such_table"] and doctor.is_broken(doctor.factor_tables())
    assert doctor.is_broken(doctor.packages())


def test_ray_gets_the_same_names_and_only_growth(monkeypatch: pytest.MonkeyPatch) -> None:
    from energy.metering import prometheus
    from orchestrator.cluster import ray_metrics

    told: dict[str, list[tuple[float, str]]] = {}

    class Metric:
        def __init__(self, name: str, description: str, tag_keys: tuple[str, ...]):
            assert description and set(tag_keys) <= set(prometheus.LABELS)
            self.name, self.tag_keys = name, tag_keys

        def set(self, value: float, tags: dict[str, str]) -> None:
            assert set(tags) == set(self.tag_keys)
            told.setdefault(self.name, []).append((value, tags.get("uuid", tags["run"])))

    class Counter(Metric):
        def inc(self, value: float, tags: dict[str, str]) -> None:
            assert value > 0  # Ray raises for none
            self.set(value, tags)

    monkeypatch.setattr(ray_metrics, "Counter", Counter)
    monkeypatch.setattr(ray_metrics, "Gauge", Metric)
    metrics = ray_metrics.RayMetrics("n1", "run-1")
    fixed = {"name": "A", "node": "n1", "kind": "gpu", "method": "counter", "boundary": "gpu"}
    for energy_j, power_w, missing in ((10.0, 50.0, None), (25.0, 70.0, None), (25.0, None, "lost")):
        metrics.publish([fixed | {"uuid": "G", "energy_j": energy_j, "power_w": power_w, "missing": missing}])
    metrics.publish([], {"overhead": {"cpu_s": 0.5, "readings": 3}, "warnings": ["one"]})
    assert told == {
        "hoofprint_device_energy_joules": [(10.0, "G"), (15.0, "G")],
        "hoofprint_device_power_watts": [(50.0, "G"), (70.0, "G")],
        "hoofprint_device_missing": [(0.0, "G"), (0.0, "G"), (1.0, "G")],
        "hoofprint_meter_cpu_seconds": [(0.5, "run-1")],
        "hoofprint_meter_readings": [(3, "run-1")],
        "hoofprint_meter_warnings": [(1.0, "run-1")],
    }

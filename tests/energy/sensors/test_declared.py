"""What a node uses beyond its counters: as declared, or by its management controller."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from energy import Meter
from energy.accounting.account import account_run
from energy.runs import RunFolder
from energy.sensors import Reading
from energy.sensors.command import output_of
from energy.sensors.declared import NodePowerSensor, node_sensors, parse_watts

DCMI = """
    Instantaneous power reading:                   220 Watts
    Minimum during sampling period:                 18 Watts
    Maximum during sampling period:                466 Watts
    Average power reading over sample period:      219 Watts
"""


@pytest.mark.parametrize(
    ("text", "watts"),
    [
        ("344\n", 344),
        ("344.5 W", 344.5),
        ("1.2 kW", 1200),
        (DCMI, 220),
        ('{"PowerControl": [\n {"PowerCapacityWatts": 800,\n  "PowerConsumedWatts": 344}]}', 344),
        ('{"PowerConsumedWatts": 344, "PowerMetrics": {"AverageConsumedWatts": 319}}', 344),
        ("Pwr Consumption  | 392 Watts | ok", 392),
        ("Current 1 | 0.40 Amps | ok\nPower Supply 1 | Present\nPwr Consumption | 140 Watts | ok", 140),
    ],
)
def test_answers_of_controllers(text: str, watts: float) -> None:
    assert parse_watts(text) == watts


@pytest.mark.parametrize(
    "text",
    [
        "",
        "no sensor",
        "42 degrees C",
        "-5 W",
        "1,234 W",
        '{"PowerControl": [{"PowerConsumedWatts": null, "PowerCapacityWatts": 800}]}',
        DCMI.replace("220 Watts", "disabled"),  # its extremes are not its power
    ],
)
def test_no_watts_is_said(text: str) -> None:
    with pytest.raises(ValueError, match="no watts in"):
        parse_watts(text)


def settled(sensor: NodePowerSensor) -> Reading:
    while (reading := sensor.read()).pending:
        time.sleep(0.01)
    return reading


def test_a_command_and_a_file(tmp_path: Path) -> None:
    command = f"{sys.executable} -c 'print(\"power: 512 W\")'"
    assert settled(NodePowerSensor("n1", command=command)).power_w == 512
    file = tmp_path / "power"
    file.write_text("77 W\n")
    assert settled(NodePowerSensor("n1", file=file)).power_w == 77
    failing = settled(NodePowerSensor("n1", command=f"{sys.executable} -c 'raise SystemExit(3)'"))
    assert failing.power_w is None and "exit status 3" in (failing.error or "")
    endless = settled(NodePowerSensor("n1", command=f"{sys.executable} -c 'while True: print(1234567 * \"9\")'"))
    assert "printed more than 1 MB" in (endless.error or "")
    with pytest.raises(ValueError, match="either a command or a file"):
        NodePowerSensor("n1")
    with pytest.raises(ValueError, match="at least 0"):
        node_sensors("n1", baseline_w=-1)


def test_a_controller_that_hangs_leaves_no_process_behind(tmp_path: Path) -> None:
    told, deadline_s = tmp_path / "pid", time.monotonic() + 30
    with pytest.raises(subprocess.TimeoutExpired):
        output_of(["sh", "-c", f"sleep 60 & echo $! > {told}; wait"], 0.5)
    while at_work(int(told.read_text())):  # killed, and gone in a moment; else after the minute that it sleeps
        time.sleep(0.02)
        assert time.monotonic() < deadline_s


def at_work(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.parametrize(("node", "power_w"), [("gpu-7", 700), ("login", 90), ("GPU-7", 90)])
def test_kinds_of_nodes_have_baselines_of_their_own(node: str, power_w: float) -> None:
    [sensor] = node_sensors(node, baselines_w={"gpu-*": 700, "*": 90}, baseline_source="data sheet")
    assert sensor.read().power_w == power_w
    assert node_sensors(node, baselines_w={"other-*": 700}) == []


def test_a_baseline_is_assumed_and_a_node_s_own_power_is_the_whole(tmp_path: Path) -> None:
    file = tmp_path / "power"
    file.write_text("500")
    declared = node_sensors("n1", baseline_w=100, baseline_source="data sheet", power_file=str(file))
    run = RunFolder(tmp_path / "run")
    now = [0.0]
    meter = Meter(
        run.ledger_file("n1"),
        node="n1",
        interval_s=1.0,
        sensors=declared,
        discover_sensors=False,
        clock=lambda: (now[0], now[0]),
    )
    settled(declared[0])
    for t in range(11):
        now[0] = float(t)
        declared[0]._newest = (500.0, time.time(), time.monotonic())
        meter.sample(last=t == 10)
    account = account_run(run)
    by_kind = {device.kind: device for device in account.devices}
    assert by_kind["baseline"].energy_j == pytest.approx(1000) and by_kind["baseline"].method == "assumed"
    assert by_kind["node"].energy_j == pytest.approx(4000) and "rest of the node" in by_kind["node"].name
    assert account.energy_j == pytest.approx(5000)
    assert sum(part["energy_j"] for part in account.phases.values()) == pytest.approx(5000)

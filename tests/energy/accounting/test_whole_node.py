"""A node with a sensor of its own: what it has beyond its parts, each joule once, also where that sensor failed."""

import math
from pathlib import Path
from typing import Any

import pytest
from energy_fakes import FakeSensor, meter_fake, metered_window, reading

from energy.accounting.account import Account, account_run
from energy.accounting.merge import merge
from energy.accounting.placement import ranks_event
from energy.accounting.uncertainty import half_width, parts_of
from energy.accounting.whole_node import beyond
from energy.metering.live import live_figures, since
from energy.metering.meter import Meter
from energy.runs import RunFolder
from energy.sensors import Reading

TIMES = [float(n) for n in range(11)]
FAILED = RuntimeError("no answer from the controller")


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return RunFolder(tmp_path / "run")


def gpu(power_w: float = 100.0, uuid: str = "GPU-1") -> FakeSensor:
    return FakeSensor(uuid, [reading(power_w * t, power_w) for t in TIMES])


def node(power_w: float = 500.0, failed: range = range(0), uuid: str = "node@n1") -> FakeSensor:
    readings: list[Any] = [FAILED if t in failed else reading(power_w=power_w) for t in range(len(TIMES))]
    return FakeSensor(uuid, readings, kind="node", method="integrated")


def accounted(run: RunFolder, *sensors: FakeSensor) -> Account:
    meter_fake(run, list(sensors), TIMES)
    account = account_run(run)
    assert math.fsum(part["energy_j"] for part in account.phases.values()) == pytest.approx(account.energy_j)
    assert math.fsum(attempt["energy_j"] for attempt in account.attempts) == pytest.approx(account.energy_j)
    assert merge([run]).energy_j == pytest.approx(account.energy_j)
    return account


@pytest.mark.parametrize(
    ("failed", "energy_j"),
    [
        (range(5, 8), 6 * 500 + 4 * 100),  # known from 0 to 4 s and from 8 to 10 s
        (range(5, 11), 4 * 500 + 6 * 100),  # lost for good
        (range(0, 4), 6 * 500 + 4 * 100),  # came up late
        (range(0, 11), 10 * 100),
        (range(1, 11), 10 * 100),  # one answer, which says nothing of any time
    ],
)
def test_while_the_node_s_sensor_fails_its_parts_count(run: RunFolder, failed: range, energy_j: float) -> None:
    account = accounted(run, gpu(), node(failed=failed))
    assert account.energy_j == pytest.approx(energy_j)
    assert account.devices[0].energy_j == pytest.approx(1000)
    assert any("node@n1" in text and "its parts alone" in text for text in account.warnings)
    if len(failed) < 10:
        assert account.devices[1].gap_s == pytest.approx(len(failed) + (failed.stop < 11) * (failed.start > 0))


@pytest.mark.parametrize("answered_s", [9.4, 7.0])
def test_a_controller_s_last_answer_does_not_cut_off_its_node(run: RunFolder, answered_s: float) -> None:
    answers = [Reading(power_w=500.0, power_unix_s=min(t, answered_s)) for t in TIMES]
    account = accounted(run, gpu(), FakeSensor("node@n1", answers, kind="node", method="integrated"))
    assert account.end_unix_s == 10 and account.devices[0].energy_j == pytest.approx(1000)
    assert account.energy_j == pytest.approx(answered_s * 500 + (10 - answered_s) * 100)
    assert account.devices[1].metered_s == pytest.approx(answered_s)
    if answered_s < 9:  # longer ago than an answer takes
        assert account.devices[1].gap_s == pytest.approx(3)
        assert any("was not read for 3.0 s: the node's energy is then that of its parts" in w for w in account.warnings)


def test_two_sensors_of_a_node_count_once(run: RunFolder) -> None:
    account = accounted(run, gpu(), node(), node(520.0, uuid="redfish@n1"))
    assert account.energy_j == pytest.approx(5000)
    assert any("redfish@n1) reads the same node as" in text for text in account.warnings)


def test_another_sensor_of_the_node_stands_in(run: RunFolder) -> None:
    account = accounted(run, gpu(), node(failed=range(5, 8)), node(520.0, failed=range(2), uuid="redfish@n1"))
    # The second was read for longer (8 s); the first has what came before.
    assert account.energy_j == pytest.approx(2 * 500 + 8 * 520)
    assert not any("its parts alone" in text for text in account.warnings)


def test_the_interval_of_a_node_is_that_of_its_sensor_and_of_the_parts_beside_it(run: RunFolder) -> None:
    account = accounted(run, gpu(), node(failed=range(5, 11)))
    parts = sorted((method, round(energy_j)) for method, energy_j, _ in parts_of(account.devices))
    assert parts == [("counter", 600), ("integrated", 2000)]
    assert math.fsum(energy_j for _, energy_j, _ in parts_of(account.devices)) == pytest.approx(account.energy_j)


def test_what_is_taken_out_of_a_shared_node_widens_its_interval(run: RunFolder) -> None:
    sensors = [gpu(), gpu(300.0, "GPU-2"), node()]
    now = [0.0]
    meter = Meter(
        run.ledger_file("n1"), node="n1", sensors=sensors, discover_sensors=False, clock=lambda: (now[0], now[0])
    )
    meter.note(ranks_event(1, shared=True, on_gpus=True))
    run.metrics_dir.mkdir(parents=True)
    run.metrics_file(0).write_text('{"event": "devices", "attempt": 1, "uuids": ["GPU-1"]}\n')
    for now[0] in TIMES:
        meter.sample(last=now[0] == TIMES[-1])
    account = account_run(run)
    assert account.energy_j == pytest.approx(5000 - 3000) == merge([run]).energy_j
    # 5 % of the 5000 J that the sensor read, and of the 3000 J of the board that is taken out: not of the 2000 J left.
    parts = parts_of(account.devices)
    assert half_width(parts) == pytest.approx(half_width([("integrated", 5000, 0), ("counter", 3000, 0)]), rel=1e-6)
    assert half_width(parts) > 2 * half_width([("integrated", account.energy_j, 0)])


def test_a_window_and_the_screen_never_have_less_than_the_parts() -> None:
    window, meter = metered_window([gpu(400.0), node(failed=range(1, 11))], 9)
    assert window.energy_j == pytest.approx(3600, rel=1e-3) and [d.kind for d in window.counted] == ["gpu"]
    assert next(d for d in window.devices if d.kind == "node").note.startswith("lost (RuntimeError: no answer")
    assert meter.live()["energy_j"] == pytest.approx(4000) and meter.live()["missing"] == ["node@n1"]


def test_two_sensors_of_a_node_count_once_in_a_window_and_on_the_screen() -> None:
    window, meter = metered_window([gpu(), node(), node(520.0, uuid="redfish@n1")], 9)
    assert window.energy_j == pytest.approx(9 * 500, rel=1e-3)
    assert meter.live()["power_w"] == 500.0


def test_of_two_sensors_for_one_device_the_second_is_left_out_and_named() -> None:
    meter = Meter(node="n1", sensors=[node(), node(520.0)], discover_sensors=False)
    assert len(meter.sensors) == 1
    assert any("node@n1" in text and "left out" in text for text in meter.warnings)


def test_the_last_answer_of_a_controller_stands_for_no_time_after_it(run: RunFolder) -> None:
    """Answers at 0 and 2 s; the one at 2 s is shown for half a minute, until it is too old."""
    now = [0.0]
    answers = [Reading(power_w=500.0, power_unix_s=2.0 if t >= 2 else 0.0) for t in range(32)]
    sensor = FakeSensor("node@n1", [*answers, *[FAILED] * 9], kind="node", method="integrated")
    parts = FakeSensor("GPU-1", [reading(100.0 * t, 100.0) for t in range(41)])
    meter = Meter(
        run.ledger_file("n1"), node="n1", sensors=[parts, sensor], discover_sensors=False,
        clock=lambda: (now[0], now[0]),
    )  # fmt: skip
    for t in range(41):
        now[0] = float(t)
        meter.sample(last=t == 40)
    account = account_run(run)
    assert account.energy_j == pytest.approx(2 * 500 + 38 * 100)


def test_a_node_that_uses_less_than_its_parts_is_said(run: RunFolder) -> None:
    account = accounted(run, gpu(600.0), node(500.0))
    assert account.energy_j == pytest.approx(5000)
    assert any("1000 J less than its parts" in text for text in account.warnings)


def test_a_controller_that_says_0_w_takes_no_energy_away(run: RunFolder) -> None:
    account = accounted(run, gpu(600.0), node(0.0))
    assert account.energy_j == pytest.approx(6000) and [device.kind for device in account.devices] == ["gpu"]
    assert any("shows 0 J where 6000 J were measured" in text and "left out" in text for text in account.warnings)


def test_live_figures_of_what_was_not_read_are_not_zero() -> None:
    about = {"uuid": "GPU-1", "name": "GPU", "kind": "gpu", "power_w": None, "energy_j": 0.0, "counter_mj": None}
    lost, began = about | {"missing": "GPU is lost"}, about | {"missing": None, "counter_mj": 7}
    for devices, energy_j in (([], None), ([lost], None), ([lost, began], 0.0), ([lost | {"energy_j": 5.0}], 5.0)):
        found = live_figures("n1", 0.0, devices)
        assert (found["power_w"], found["energy_j"]) == (None, energy_j) and since(found, None) == found
    nothing = live_figures("n1", 0.0, [lost])
    assert nothing["devices"][0]["energy_j"] is None and since(nothing, nothing)["energy_j"] is None
    assert since(found, nothing)["energy_j"] == since(found, nothing)["devices"][0]["energy_j"] == 5.0


@pytest.mark.parametrize(
    ("spans", "covered", "left"),
    [
        ([(0, 10)], [], [(0, 10)]),
        ([(0, 10)], [(0, 10)], []),
        ([(0, 10)], [(2, 3), (5, 12)], [(0, 2), (3, 5)]),
        ([(0, 4), (6, 10)], [(3, 7)], [(0, 3), (7, 10)]),
        ([(5, 6)], [(0, 1), (8, 9)], [(5, 6)]),
    ],
)
def test_spans_beyond_others(spans: list, covered: list, left: list) -> None:
    assert beyond(spans, covered) == left


def test_rows_at_the_first_moment_of_a_clock_that_was_set_back_are_counted(run: RunFolder) -> None:
    now = [0.0]
    sensors = [
        FakeSensor("GPU-1", [reading(300.0 * t, 300.0) for t in range(101)]),
        FakeSensor("node@n1", [reading(power_w=500.0)] * 101, kind="node", method="integrated"),
    ]
    meter = Meter(
        run.ledger_file("n1"), node="n1", sensors=sensors, discover_sensors=False,
        clock=lambda: (1e6 + now[0] - (10.0 if now[0] > 0 else 0.0), now[0]),
    )  # fmt: skip
    for t in range(101):
        now[0] = float(t)
        meter.sample(last=t == 100)
    account = account_run(run)
    assert {device.kind: round(device.energy_j) for device in account.devices} == {"gpu": 30_000, "node": 20_000}
    assert merge([run]).energy_j == pytest.approx(50_000)

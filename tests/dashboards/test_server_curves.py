"""The chart of a run is the account's curves: the same joules in each cell, and the same beginning and end."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from energy_fakes import FakeSensor, meter_fake, reading
from record_fakes import START

from dashboards.server import power_read, power_store
from dashboards.server.power_sketch import sketch
from energy.accounting.account import account_run
from energy.accounting.curves import curve_of
from energy.accounting.placement import ranks_event
from energy.ledger.readings import read_sessions
from energy.metering.meter import Meter
from energy.runs import RunFolder
from energy.sensors import Reading

SECONDS = 1507  # models were asked last at 1500


def gpu(seconds: int = SECONDS, **about: Any) -> FakeSensor:
    used = np.cumsum(100.0 + 60 * (np.arange(seconds) % 7))
    sensor = FakeSensor("GPU", [reading(float(j), 100.0) for j in used])
    sensor.describe_more(about)
    return sensor


def model(uuid: str = "cpu", readings: list[Any] | None = None) -> FakeSensor:
    """Asked every ten seconds, and each time it has another power."""
    varied = [reading(None, 50.0 + 10 * (k % 5)) for k in range(SECONDS)]
    return FakeSensor(uuid, readings or varied, kind="cpu", method="modelled")


def whole(run: RunFolder) -> None:
    meter_fake(run, [gpu(), model()], [START + t for t in range(SECONDS)])


def killed(run: RunFolder) -> None:
    meter_fake(run, [gpu(), model()], [START + t + 0.3 for t in range(SECONDS)], stop=False)


def only_models(run: RunFolder) -> None:
    meter_fake(run, [model(), model("dram")], [START + t for t in range(SECONDS)], stop=False)


def looked_up_late(run: RunFolder) -> None:
    late = [*[Reading(pending=True)] * 7, *[reading(None, 80.0)] * SECONDS]
    meter_fake(run, [gpu(), model(readings=late)], [START + t for t in range(SECONDS)], stop=False)


def lost_at_the_end(run: RunFolder) -> None:
    lost = [*[reading(None, 70.0)] * 150, OSError("lost")]
    meter_fake(run, [gpu(), model(readings=lost)], [START + t for t in range(SECONDS)], stop=False)


def begun_again(run: RunFolder) -> None:
    """Killed, and another attempt with a part of the GPU, which was killed too."""
    killed(run)
    later = [START + 1600.0 + t for t in range(300)]
    meter_fake(run, [gpu(300, share=0.5), model()], later, attempt=2, stop=False)


def two_nodes(run: RunFolder) -> None:
    killed(run)
    meter_fake(run, [model("cpu@n2")], [START + 200.0 + t for t in range(905)], stop=False, node="n2")


def booked_j(run: RunFolder, edges: np.ndarray, only: tuple[str, ...] = ("counter", "modelled")) -> np.ndarray:
    """Joules between moments by the account's own curves, each stretch from its start to its end. only: by method."""
    found = np.zeros(len(edges) - 1)
    for path in run.ledgers():
        for session in read_sessions(path)[0]:
            for device in (k for k, about in enumerate(session.sensors) if about["method"] in only):
                curve = curve_of(device, session).between(*session.span())
                found += np.diff(np.interp(edges, curve.time_unix_s, curve.cumulative_j))
    return found


@pytest.mark.parametrize("sliced", [False, True])
@pytest.mark.parametrize(
    "metered", [whole, killed, only_models, looked_up_late, lost_at_the_end, begun_again, two_nodes]
)
def test_the_chart_has_the_joules_of_the_account(
    metered: Callable[[RunFolder], None], sliced: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if sliced:  # as if the seconds of the whole run were too many to be held at once
        monkeypatch.setattr(power_read, "SLICE_BYTES", 100)
        monkeypatch.setattr(power_read, "SLICE_S", 300.0)
    run = RunFolder(tmp_path)
    metered(run)
    account, found = account_run(run), power_store.read(run)
    assert found is not None and account.start_unix_s is not None and account.end_unix_s is not None
    assert found.start_unix_s == pytest.approx(account.start_unix_s, abs=1e-3)
    assert found.end_unix_s == pytest.approx(account.end_unix_s, abs=1e-3)
    edges = np.minimum(found.start_unix_s + found.step_s * np.arange(found.cells + 1), found.end_unix_s)
    drawn_j = np.nan_to_num(found.total_w()) * found.step_s
    assert drawn_j == pytest.approx(booked_j(run, edges), rel=1e-4, abs=1e-2)
    assert found.modelled_w is not None
    modelled_j = np.nan_to_num(found.modelled_w) * found.step_s
    assert modelled_j == pytest.approx(booked_j(run, edges, ("modelled",)), rel=1e-4, abs=1e-2)
    few = sketch(run, 60)
    assert few is not None and few.modelled_w is not None
    assert np.nansum(few.modelled_w) * few.step_s == pytest.approx(modelled_j.sum(), rel=0.05)  # a minute, at a kill
    gap_j = account.phases.get("gap", {"energy_j": 0.0})["energy_j"]
    late_j = account.energy_j - gap_j - drawn_j.sum()  # up to where the counter was read last before the restart
    assert -0.5 <= late_j <= (500.0 if metered is begun_again else 0.5)
    last = [k for k in range(found.cells) if edges[k + 1] > edges[-1] - 12]
    near = power_store.PowerStore().look(run, edges[last[0]], edges[-1], 12)
    assert near is not None and near["edges_unix_s"][-1] == pytest.approx(edges[-1], abs=0.01)
    near_w = np.array([value or 0.0 for value in near["modelled_w"]])
    assert near_w @ np.diff(near["edges_unix_s"]) == pytest.approx(modelled_j[last].sum(), rel=0.02)
    assert near["energy_kwh"][-1] - near["energy_kwh"][0] == pytest.approx(drawn_j[last].sum() / 3.6e6, rel=1e-3)


def node(readings: list[Any], uuid: str = "bmc") -> FakeSensor:
    """A sensor of the whole node."""
    return FakeSensor(uuid, readings, kind="node", method="integrated")


def gpus(*watts: float) -> list[FakeSensor]:
    return [FakeSensor(f"GPU-{k}", [reading(w * t, w) for t in range(700)]) for k, w in enumerate(watts, 1)]


def shared_node(run: RunFolder) -> None:
    """Of its two GPUs one is the run's."""
    run.metrics_dir.mkdir(parents=True)
    devices = {"event": "devices", "attempt": 1, "uuids": ["GPU-1"], "time_unix_s": START}
    run.metrics_file(0).write_text(json.dumps(devices) + "\n")
    sensors, now = [*gpus(100.0, 700.0), node([reading(power_w=1000.0)] * 700)], [START]
    meter = Meter(
        run.ledger_file("n1"), node="n1", sensors=sensors, discover_sensors=False, clock=lambda: (now[0], now[0])
    )
    meter.note(ranks_event(1, shared=True, on_gpus=True))
    for second in range(700):
        now[0] = START + second
        meter.sample(last=second == 699)


def incredible_sensor(run: RunFolder) -> None:
    """Less than half of its parts, over the whole; in its first five minutes it shows what can be."""
    shown = [reading(power_w=400.0)] * 301 + [reading(power_w=0.0)] * 399
    meter_fake(run, [*gpus(600.0), node(shown)], [START + t for t in range(700)])


def sensors_that_fail(run: RunFolder) -> None:
    lost: list[Any] = [OSError("lost")] * 300
    first, second = node([reading(power_w=500.0)] * 400 + lost), node(lost * 3, "redfish")
    meter_fake(
        run,
        [*gpus(300.0), second, first, model(readings=[reading(power_w=50.0)] * 700)],
        [START + t for t in range(700)],
    )


def killed_and_begun_again(run: RunFolder) -> None:
    meter_fake(run, gpus(300.0), [START + t for t in range(90)], stop=False)
    again = FakeSensor("GPU-1", [reading(300.0 * (t + 200), 300.0) for t in range(500)])
    meter_fake(run, [again], [START + 200.5 + t for t in range(500)], attempt=2)


@pytest.mark.parametrize("sliced", [False, True])
@pytest.mark.parametrize("metered", [shared_node, incredible_sensor, sensors_that_fail, killed_and_begun_again])
def test_a_node_s_sensor_and_the_time_after_a_crash_are_drawn_as_booked(
    metered: Callable[[RunFolder], None], sliced: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if sliced:
        monkeypatch.setattr(power_read, "SLICE_BYTES", 10)
        monkeypatch.setattr(power_read, "SLICE_S", 100.0)
    run = RunFolder(tmp_path)
    metered(run)
    account, store = account_run(run), power_store.PowerStore()
    whole, few = store.overview(run), sketch(run, 60)
    for found in (whole, few):
        assert found is not None
        assert found.energy_kwh(np.array([found.end_unix_s]))[0] * 3.6e6 == pytest.approx(account.energy_j, rel=2e-3)
    assert whole is not None and whole.modelled_w is not None
    few_points = whole.cut(whole.start_unix_s, whole.end_unix_s, 3)  # of which some are measured for a part
    shown_j = np.array(few_points["modelled_w"], float) @ np.diff(few_points["edges_unix_s"])
    assert shown_j == pytest.approx(np.nansum(whole.modelled_w) * whole.step_s, rel=1e-3)
    assert shown_j == pytest.approx(50.0 * 300 if metered is sensors_that_fail else 0.0, rel=0.02)
    near = store.look(run, START + 100, START + 180, 160)  # in cells of 0.1 s
    assert near is not None and whole is not None
    drawn_j = np.array(near["nodes"]["n1"], float) @ np.diff(near["edges_unix_s"])
    assert drawn_j == pytest.approx(whole.total_w()[100:180].sum(), rel=1e-3)
    if metered is killed_and_begun_again:
        assert np.nanmax(whole.high_w) == pytest.approx(300.0, rel=0.01), "no peak where rows and a gap meet in a cell"
    if whole.believed:  # which the first minutes may have told wrongly
        early = replace(whole, believed_s=200.0)
        assert power_store.extended(whole, run, {}, 0.0) is not None and not power_store.extended(early, run, {}, 0.0)

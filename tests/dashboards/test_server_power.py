"""Power for charts: as much energy as the account, no spike lost, the end of a live run read without the rest."""

import json
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from energy_fakes import FakeSensor, meter_fake, reading, write_phases
from record_fakes import START, make_run

from dashboards.server import power, power_sketch, power_store, steps
from energy.accounting.account import account_run
from energy.runs import RunFolder


def metered(
    folder: Path, watts: list[float], node: str = "n1", shift_s: float = 0.0, since_s: float = 0.0
) -> RunFolder:
    """A run of one GPU with a counter that draws so much in each second; all but the first reading come later."""
    run = RunFolder(folder)
    used = np.concatenate([[0.0], np.cumsum(watts)])
    gpu = FakeSensor(f"GPU-{node}", [reading(float(j), w) for j, w in zip(used, [*watts, watts[-1]], strict=True)])
    meter_fake(run, [gpu], [START + since_s + t + (shift_s if t else 0.0) for t in range(len(used))], node=node)
    return run


def test_the_energy_is_the_accounts(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    found = power_store.read(run)
    assert found is not None and found.devices == 3
    assert found.energy_kwh(np.array([found.end_unix_s]))[0] * 3.6e6 == pytest.approx(account_run(run).energy_j)
    mean = found.total_w()[5:-5]
    assert mean == pytest.approx(np.full(len(mean), 100 + 210 + 50), rel=1e-3)


def test_a_second_of_36_hours_is_seen(tmp_path: Path) -> None:
    cells = 36 * 3600
    for second in (0, 77_777, cells - 1):
        watts = np.full(cells, 300.0, np.float32)
        watts[second], low = 701.0, watts.copy()
        whole = power.Power(START, 1.0, {"n1": watts}, low, watts, np.zeros(cells, np.uint16), START)
        shown = whole.cut(START, START + cells, 600)
        assert len(shown["high_w"]) == 600 and max(shown["high_w"]) == 701.0
        assert shown["high_w"].count(701.0) == 1 and min(shown["low_w"]) == 300.0
        assert shown["energy_kwh"][-1] == pytest.approx((300 * cells + 401) / 3.6e6, rel=1e-6)


def test_a_spike_between_two_grid_lines_keeps_its_height_through_the_files(tmp_path: Path) -> None:
    watts = [200.0] * 1500
    watts[900] = 650.0
    run = metered(tmp_path / "run", watts, shift_s=0.4)
    store = power_store.PowerStore()
    shown = store.look(run, None, None, 20)
    assert shown is not None and len(shown["high_w"]) == 20
    assert max(shown["high_w"]) == pytest.approx(650, rel=1e-3)
    assert max(each for each in shown["nodes"]["n1"]) < 220
    near = store.look(run, START + 890, START + 910, 40)
    assert near is not None
    peak = int(np.argmax([each or 0 for each in near["nodes"]["n1"]]))
    assert near["nodes"]["n1"][peak] == pytest.approx(650, rel=0.01)
    assert near["edges_unix_s"][peak] - START == pytest.approx(900.4, abs=1.0)
    assert near["energy_kwh"][0] == pytest.approx(200 * 890 / 3.6e6, rel=1e-3)  # counted from the run's start


def test_the_seconds_of_a_run_by_the_minute_are_there_where_one_zooms(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(power_store, "SECONDS_BYTES", -1)  # as if they were too large to be read whole
    watts = [200.0] * 20_000
    watts[14_902] = 650.0
    run = metered(tmp_path / "run", watts)
    store = power_store.PowerStore()
    whole = store.look(run, None, None, 300)
    assert whole is not None and whole["by"] == "minute" and max(whole["high_w"]) == pytest.approx(650, rel=1e-3)
    monkeypatch.setattr(Path, "read_bytes", lambda path: pytest.fail(f"{path} was read whole"))
    near = store.look(run, START + 14_600, START + 15_200, 600)
    assert near is not None and near["by"] == "second" and near["step_s"] == 1.0 and near["remarks"] == []
    peak = int(np.argmax([each or 0 for each in near["nodes"]["n1"]]))
    assert near["nodes"]["n1"][peak] == pytest.approx(650, rel=1e-3)
    assert near["edges_unix_s"][peak] - START == pytest.approx(14_902, abs=1)
    assert near["energy_kwh"][0] == pytest.approx(200 * 14_600 / 3.6e6, rel=1e-3)
    monkeypatch.setattr(power_store, "LOOK_BYTES", 100)
    assert store.look(run, START + 14_600, START + 15_200, 600) == near  # it is kept
    far = store.look(run, START + 14_500, START + 15_200, 600)
    assert far is not None and far["by"] == "minute" and "shown by the minute" in far["remarks"][0]


def test_a_curve_that_is_behind_its_ledgers_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(power_store, "MANY_LEDGERS", 0)
    monkeypatch.setattr(power_store, "SHORT_WAIT_S", 0.2)
    monkeypatch.setattr(power_store, "BEHIND_S", 0.01)
    monkeypatch.setattr(power_store, "REST", 0)
    monkeypatch.setattr(power_store, "REST_OF_END", 0)
    run, store = metered(tmp_path / "run", [100.0] * 300), power_store.PowerStore()
    shown = store.look(run, None, None, 60)
    assert shown is not None and shown["behind_s"] == 0 and shown["remarks"] == []
    go_on, extended = threading.Event(), power_store.extended
    monkeypatch.setattr(power_store, "extended", lambda *given: go_on.wait(60) and extended(*given))
    metered(tmp_path / "run", [100.0] * 300, since_s=400.0)  # a second stretch
    shown = store.look(run, None, None, 60)
    assert shown is not None and shown["behind_s"] > 0 and "before now: the ledger of its node" in shown["remarks"][0]
    go_on.set()
    until = time.monotonic() + 30
    while (shown := store.look(run, None, None, 60)) and shown["behind_s"] and time.monotonic() < until:
        time.sleep(0.02)
    assert shown is not None and shown["remarks"] == [] and shown["run"][1] == pytest.approx(START + 700, abs=2)


def test_a_look_that_ends_within_a_cell_has_the_power_of_it(tmp_path: Path) -> None:
    run = metered(tmp_path / "run", [200.0] * 300, shift_s=0.4)
    store = power_store.PowerStore()
    for start, end in ((100.0, 107.33), (20.05, 20.52), (290.0, 1e9), (2.0, 299.99)):
        shown = store.look(run, START + start, START + end, 1000)
        assert shown is not None
        assert shown["nodes"]["n1"][1:] == pytest.approx([200.0] * (len(shown["nodes"]["n1"]) - 1), rel=0.01)


@pytest.mark.parametrize("by", ["second", "minute"])
def test_the_end_of_a_live_run_is_added_to_what_was_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, by: str
) -> None:
    if by == "minute":
        monkeypatch.setattr(power_store, "SECONDS_BYTES", -1)
    rng = np.random.default_rng(7)
    watts = rng.uniform(100, 600, 700).round().tolist()
    run = RunFolder(tmp_path / "run")
    used = np.concatenate([[0.0], np.cumsum(watts)])
    gpu = FakeSensor("GPU-1", [reading(float(j), 300.0) for j in used])
    store = power_store.PowerStore()
    whole = power_store.read
    full: list[str] = []

    def read(*given: Any) -> power.Power | None:
        full.append("read")
        return whole(*given)

    monkeypatch.setattr(power_store, "read", read)
    monkeypatch.setattr(power_store, "REST", 0)
    monkeypatch.setattr(power_store, "REST_OF_END", 0)
    from energy.metering.meter import Meter

    held = [START]
    meter = Meter(
        run.ledger_file("n1"), node="n1", interval_s=1.0, attempt=1, sensors=[gpu], discover_sensors=False,
        clock=lambda: (held[0], held[0]),
    )  # fmt: skip
    for second in range(len(used)):
        held[0] = START + 0.7 * second  # so that the newest cell is never a whole one
        meter.sample(last=second == len(used) - 1)
        if second in (150, 151, 400, 620):
            now = store.overview(run)
            assert now is not None and now.end_unix_s == pytest.approx(
                held[0], abs=0.01
            )  # as new as the newest reading
            shown = now.cut(now.end_unix_s - 20.0, now.end_unix_s, 40)
            assert min(shown["nodes"]["n1"]) > 90  # the newest cell is not whole, and no dip
    now, fresh = store.overview(run), whole(run)
    assert now is not None and fresh is not None and full == ["read"] and now.by == fresh.by == by
    assert now.energy_kwh(np.array([now.end_unix_s]))[0] == pytest.approx(sum(watts) / 3.6e6, rel=1e-3)
    if by == "minute":  # of what was written meanwhile, more is known than from rows of a minute
        assert now.cells == fresh.cells and now.total_w() == pytest.approx(fresh.total_w(), rel=0.05)
        return
    for ours, theirs in ((now.mean_w["n1"], fresh.mean_w["n1"]), (now.high_w, fresh.high_w), (now.low_w, fresh.low_w)):
        assert ours == pytest.approx(theirs, nan_ok=True)


def test_a_node_that_writes_late_is_not_forgotten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(power_store, "REST", 0)
    monkeypatch.setattr(power_store, "REST_OF_END", 0)
    run = metered(tmp_path / "run", [100.0] * 900)
    metered(tmp_path / "late", [50.0] * 900, node="n2")
    store, files = power_store.PowerStore(), sorted((tmp_path / "late" / "energy").iterdir())
    metered(tmp_path / "run", [50.0] * 300, node="n2")  # all that it had written so far
    first = store.overview(run)
    assert first is not None and np.isnan(first.mean_w["n2"][500])
    for file in files:
        (run.energy_dir / file.name).write_bytes(file.read_bytes())
    now = store.overview(run)
    assert now is not None and now.total_w()[[100, 500, 850]] == pytest.approx([150.0] * 3, rel=1e-3)


def test_a_long_run_of_many_nodes_has_longer_cells_and_its_spike(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(power_store, "MOST_VALUES", 600)
    watts = [200.0] * 1500
    watts[902] = 650.0
    found = power_store.read(metered(tmp_path / "run", watts))
    assert found is not None and found.step_s == 8.0 and found.cells == 188
    assert found.high_w.max() == pytest.approx(650) and found.end_unix_s >= START + 1500


def test_where_no_seconds_were_kept_the_minutes_have_the_spike(tmp_path: Path) -> None:
    watts = [200.0] * 1500
    watts[902] = 650.0
    run = metered(tmp_path / "run", watts)
    for finer in (".seconds", ".raw"):
        run.ledger_file("n1").with_suffix(finer).unlink()
    found = power_store.read(run)
    assert found is not None and found.by == "minute" and found.high_w.max() == pytest.approx(650, rel=1e-3)


def test_what_was_not_read_is_a_hole_and_counted(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    lost: list[Any] = [*[reading(None, 100.0)] * 20, *[OSError("lost")] * 20, *[reading(None, 100.0)] * 20]
    values = [reading(50.0 * t, 50.0) for t in range(60)]
    late = [*values[:20], *[OSError("lost")] * 20, *values[40:]]  # its counter tells afterwards what it drew
    sensors = [FakeSensor("GPU-1", lost, method="integrated"), FakeSensor("GPU-2", values), FakeSensor("GPU-3", late)]
    meter_fake(run, sensors, [START + t for t in range(60)])
    found = power_store.read(run)
    assert found is not None
    assert found.unread[25:35].tolist() == [1] * 10
    assert found.unread[5:15].tolist() == found.unread[45:55].tolist() == [0] * 10
    assert found.total_w()[25:35] == pytest.approx(np.full(10, 100.0), rel=1e-3)
    assert found.total_w()[45:55] == pytest.approx(np.full(10, 200.0), rel=1e-3)
    assert found.energy_kwh(np.array([found.end_unix_s]))[0] * 3.6e6 == pytest.approx(
        account_run(run).energy_j, rel=0.02
    )


def test_of_a_run_of_which_nothing_was_read_nothing_is_zero(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    meter_fake(run, [FakeSensor("GPU-1", [OSError("lost")] * 90)], [START + t for t in range(90)])
    whole = power_store.read(run)
    for found in (whole, power_sketch.sketch(run, 60)):
        assert found is not None and np.isnan(found.energy_kwh(np.array([START, START + 50]))).all()
        shown = found.cut(START, START + 80, 4)
        assert shown["energy_kwh"] == [None] * 5 and shown["nodes"] == {"n1": [None] * 4} and max(shown["unread"]) == 1
    run.write_run({"run_id": "run", "created_unix_s": START})
    run.metrics_dir.mkdir()
    event = {"event": "step", "attempt": 1, "step": 1, "tokens": 10, "loss": 1.0, "time_unix_s": START + 9}
    run.metrics_file(0).write_text(json.dumps(event) + "\n")
    assert steps.chart(steps.measured(run, steps.StepStore(), whole))["energy_kwh"] == [None]


def test_many_nodes_are_few_bands_and_lose_no_energy(tmp_path: Path) -> None:
    columns = {f"n{k:02}": np.full(10, 100.0 + k, np.float32) for k in range(20)}
    total = np.sum(list(columns.values()), axis=0)
    whole = power.Power(START, 1.0, columns, total, total, np.zeros(10, np.uint16), START)
    shown = whole.cut(START, START + 10, 10)["nodes"]
    assert len(shown) == power.BANDS and "14 other nodes" in shown and "n19" in shown
    assert sum(column[0] for column in shown.values()) == pytest.approx(float(total[0]), rel=1e-4)
    assert len(whole.cut(START, START + 10, 10, None)["nodes"]) == 20
    many = {f"n{k:03}": np.full(10, 100.0, np.float32) for k in range(200)}
    alike = power.Power(START, 1.0, many, total, total, np.zeros(10, np.uint16), START).cut(START, START + 10, 10)
    assert alike["nodes"] == {"200 nodes": [20_000.0] * 10}


def test_the_nodes_of_a_run_are_summed(tmp_path: Path) -> None:
    metered(tmp_path / "run", [100.0] * 90)
    run = metered(tmp_path / "run", [40.0] * 30 + [60.0] * 60, node="n2")
    found = power_store.read(run)
    assert found is not None and sorted(found.mean_w) == ["n1", "n2"]
    for column in (found.low_w, found.high_w, found.total_w()):
        assert column[[5, 20, 40, 80]] == pytest.approx([140.0, 140.0, 160.0, 160.0], rel=1e-3)


def test_a_run_without_a_reading_has_no_power(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    run.write_run({"run_id": "run"})
    assert power_store.read(run) is None and power_store.PowerStore().look(run, None, None, 100) is None


def test_thinning_keeps_the_lowest_and_the_highest_loss() -> None:
    losses = np.array([5.0 - k * 1e-5 for k in range(50_000)] + [4.4])
    losses[[31_234, 40_001, 5]] = 99.0, 0.5, np.nan
    columns = {"loss": losses, "evaluation": np.array([0.0] * 50_000 + [1.0])}
    kept = steps.thinned(columns, 500)
    assert len(kept) <= 503 and {31_234, 40_001, 49_999} <= set(kept.tolist()) and 5 not in kept
    assert kept.tolist() == sorted(kept.tolist()) and kept[-1] == 50_000


def test_metrics_are_read_on_from_where_they_stood(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, store = RunFolder(tmp_path), steps.StepStore()
    run.write_run({"run_id": "run", "created_unix_s": START, "model": {"flop_per_token": 6.0}})
    run.metrics_dir.mkdir()
    file = run.metrics_file(0)

    def line(step: int, **more: Any) -> str:
        event = {"event": "step", "attempt": 1, "step": step, "tokens": 10 * step, "loss": 1 / step}
        return json.dumps(event | {"time_unix_s": START + step} | more) + "\n"

    def shown() -> dict[str, Any]:
        return steps.chart(steps.measured(run, store, None))

    evaluation = line(2, event="evaluation", loss=None, validation_loss=0.7, time_unix_s=START + 2.5, tokens=None)
    file.write_text(line(1) + line(2) + evaluation + "{torn\n" + line(3)[:20])
    found = shown()
    assert found["step"] == [1, 2, 2] and found["kind"] == ["step", "step", "evaluation"]
    assert found["loss"] == [1.0, 0.5, 0.7] and found["tokens"] == [10, 20, 20]
    assert found["compute_flop"] == [60.0, 120.0, 120.0] and found["energy_kwh"] == [None] * 3
    with file.open("a") as more:
        more.write(line(3)[20:] + line(4, loss=float("nan")) + line(5, tokens="many", loss=True))
    found = shown()
    assert found["step"] == [1, 2, 3, 2] and found["without_loss"] == 2
    assert [row["step"] for row in steps.rows(steps.measured(run, store, None))] == [1, 2, 2, 3, 4, 5]
    spans = [("startup", 0.0, 1.0), ("train_step", 1.0, 5.0), ("checkpoint", 5.0, 5.5), ("checkpoint", 5.6, 6.0),
             ("evaluation", 6.0, 6.2), ("checkpoint", 8.0, 8.5), ("checkpoint", 9.0, 8.0)]  # fmt: skip
    write_phases(run, [(phase, START + start, START + end) for phase, start, end in spans])
    assert shown()["step"] == found["step"]

    def lanes(start: float, end: float, points: int) -> Any:
        found = store.lanes(run, START + start, START + end, points)
        return found and {
            phase: [[round(a - START, 2), round(b - START, 2)] for a, b in spans] for phase, spans in found.items()
        }

    both = [[5.0, 6.0], [8.0, 8.5]]  # what lies nearer to each other than one can see is one
    assert lanes(0, 10, 50) == {"startup": [[0, 1]], "checkpoint": both, "evaluation": [[6.0, 6.2]]}
    assert lanes(5.2, 8.1, 1000) == {"checkpoint": [[5.2, 5.5], [5.6, 6.0], [8.0, 8.1]], "evaluation": [[6.0, 6.2]]}
    assert lanes(20, 30, 50) == {}
    monkeypatch.setattr(steps, "LARGE_BYTES", 0)
    assert store.lanes(run, START, START + 10, 50) is not None and steps.StepStore().lanes(run, START, 10, 50) is None
    sampled = steps.Metrics()
    sampled.sample(file, 6)
    assert sampled.columns()["evaluation"].tolist().count(1.0) == 1, "all of these, and each once"
    assert 3 <= len(sampled.columns()["step"]) <= 8 and set(sampled.columns()["step"]) <= {1, 2, 3, 4, 5}
    file.write_text(line(7) * 40)  # another run of that name, in the same file
    assert shown()["step"] == [7] * 40
    file.unlink()
    assert shown()["step"] == []

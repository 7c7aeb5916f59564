"""What figures draw: nothing lost, nothing made up, nothing drawn of what is not there."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from figure_sample import copy_sample, declare
from matplotlib.figure import Figure

from dashboards.figures import FIGURES, Missing, Source, make_figure
from dashboards.figures.curves import energy_at
from dashboards.figures.drawing import spread, thin
from dashboards.figures.pareto import front, pareto_drawing
from dashboards.figures.phases import kind_of
from dashboards.figures.power import event_lanes, gpu_heat_drawing, power_drawing
from dashboards.figures.rates import rates_drawing, rates_of
from dashboards.figures.spent import spending
from energy.accounting.account import Account, DeviceEnergy
from energy.runs import SERIES, RunFolder

OF_A_RUN = [name for name, figure in FIGURES.items() if figure.make is not None]


def words(svg: str) -> str:
    """The text of an SVG element, a line each."""
    return "\n".join(re.findall(r"<text[^>]*>([^<]*)</text>", svg))


@pytest.fixture
def whole(tmp_path: Path) -> Source:
    """The sample with all that a figure could want."""
    return Source(declare(copy_sample(tmp_path / "whole")))


@pytest.fixture
def empty(tmp_path: Path) -> Source:
    """A run that failed before anything was metered or trained."""
    folder = RunFolder(tmp_path / "empty")
    folder.path.mkdir()
    folder.write_run({"run_id": "empty", "status": "failed", "attempts": [], "created_unix_s": 1.7e9})
    return Source(folder)


@pytest.mark.parametrize("name", OF_A_RUN)
def test_a_run_without_data_gets_no_figure_but_a_reason(name: str, empty: Source) -> None:
    with pytest.raises(Missing, match=f"--figure {name} of empty: ") as raised:
        make_figure(name, empty)
    assert len(str(raised.value)) > 50


@pytest.mark.parametrize("name", OF_A_RUN)
def test_every_form_is_one_file_and_the_same_every_time(name: str, whole: Source) -> None:
    drawing = make_figure(name, whole)
    for form, start in (("svg", b"<?xml"), ("png", b"\x89PNG"), ("pdf", b"%PDF")):
        first = drawing.file(form)
        assert first.startswith(start)
        assert first == make_figure(name, whole).file(form)
    svg = drawing.file("svg").decode()
    assert "<text" not in svg, "letters are outlines: no font is needed to read it"
    assert not re.search(r'href="(?!#|data:)', svg)


def test_an_unknown_figure_names_the_near_ones(whole: Source) -> None:
    with pytest.raises(ValueError, match="did you mean power"):
        make_figure("powr", whole)
    with pytest.raises(ValueError, match="there are power, phases"):
        make_figure("§", whole)
    with pytest.raises(ValueError, match="hoofprint compare RUN RUN --figure pareto"):
        make_figure("pareto", whole)
    with pytest.raises(ValueError, match="name its folder"):
        make_figure("power", None)


def test_power_has_its_events_and_the_grid_strip_only_where_there_is_a_series(whole: Source, tmp_path: Path) -> None:
    said = words(make_figure("power", whole).inline())
    for expected in ("startup", "compile", "checkpoint", "evaluation", "Grid intensity (g CO₂eq/kWh), DE"):
        assert expected in said
    assert "attempt" not in said, "one attempt is no event"
    assert "Grid" not in words(make_figure("power", Source(copy_sample(tmp_path / "bare"))).inline())


def test_a_series_with_a_hole_is_hatched_there_and_zero_is_a_value(whole: Source) -> None:
    path = whole.run.path / SERIES
    series = json.loads(path.read_text())
    start = whole.account.start_unix_s
    assert start is not None
    series |= {"start_unix_s": [start], "end_unix_s": [start + 20], "g_per_kwh": [0.0]}
    path.write_text(json.dumps(series))
    assert "hatched: not covered" in words(make_figure("power", whole).inline())
    path.write_text(json.dumps(series | {"end_unix_s": [start + 7200]}))
    again = Source(whole.run)
    assert "hatched: not covered" not in words(make_figure("power", again).inline())


def test_steps_that_were_done_again_are_a_lost_stretch(whole: Source) -> None:
    assert "lost" not in words(make_figure("power", whole).inline())
    again = dict(whole.steps[-3], attempt=2, time_unix_s=whole.steps[-1]["time_unix_s"] + 5)
    with whole.run.metrics_file(0).open("a") as file:
        file.write(json.dumps(again) + "\n")
    assert "lost" in words(make_figure("power", Source(whole.run)).inline())


def test_a_large_run_is_in_kilowatts() -> None:
    said = words(power_drawing(gpus(4, 8)).inline())
    assert "Power (kW), mean over 10.0 s" in said
    assert "16" in said.splitlines()
    assert "16000" not in said


def test_lanes_join_what_touches_and_show_attempts_after_a_restart() -> None:
    phases = [{"phase": "checkpoint", "start_unix_s": 5.0, "end_unix_s": 6.0}, {"phase": "train_step",
               "start_unix_s": 6.0, "end_unix_s": 9.0}]  # fmt: skip
    attempts = [{"start_unix_s": 0.0, "end_unix_s": 4.0}, {"start_unix_s": 4.5, "end_unix_s": 9.0}]
    assert event_lanes(phases, attempts) == {"attempt": [(0.0, 4.0), (4.5, 9.0)], "checkpoint": [(5.0, 6.0)]}
    assert list(event_lanes(phases, attempts[:1])) == ["checkpoint"]


def test_what_was_spent_ends_at_the_record(whole: Source) -> None:
    record = whole.record
    energy = spending(whole.account, record, "energy", whole.series)
    assert energy.key == "energy_facility_kwh"
    assert energy.amount[-1] == pytest.approx(record["energy"]["energy_facility_kwh"], rel=1e-9)
    assert energy.measured[-1] == pytest.approx(energy.amount[-1] * record["energy"]["share_measured"], rel=1e-9)
    carbon = spending(whole.account, record, "carbon", whole.series)
    assert carbon.amount[-1] == pytest.approx(record["carbon"]["carbon_tco2eq"], rel=1e-12)
    assert np.all(np.diff(carbon.amount) >= 0)


def test_carbon_ends_at_the_record_under_a_series_that_changes_during_the_run(whole: Source) -> None:
    path, start = whole.run.path / SERIES, whole.account.start_unix_s
    assert start is not None
    edges = [start - 3600, start + 30, start + 3600]
    changing = {"start_unix_s": edges[:2], "end_unix_s": edges[1:], "g_per_kwh": [100.0, 500.0]}
    path.write_text(json.dumps(json.loads(path.read_text()) | changing))
    carbon = spending(whole.account, whole.record, "carbon", whole.series)
    assert carbon.amount[-1] == pytest.approx(whole.record["carbon"]["carbon_tco2eq"], rel=1e-12)


def test_energy_over_time_ends_at_what_the_account_booked() -> None:
    account = gpus(1, 2)
    account.devices[0].energy_j *= 1.5  # a counter that says more than its power's integral
    end = np.array([account.end_unix_s])
    assert energy_at(account, end)[0] == pytest.approx(account.energy_j)
    assert energy_at(account, end, ("modelled",))[0] == 0.0


def test_budget_and_plan_are_drawn_and_a_far_budget_is_named(whole: Source, tmp_path: Path) -> None:
    said = words(make_figure("energy-spent", whole).inline())
    assert "budget 6.00 Wh" in said
    assert "planned 4.50 Wh (3.60 to 5.85)" in said
    assert "0.818 Wh modelled" in said
    far = Source(declare(copy_sample(tmp_path / "far"), budget_kwh=6.0))
    assert "↑ budget 6.00 kWh, 0.0890 % of it used" in words(make_figure("energy-spent", far).inline())


def test_carbon_that_is_not_known_says_what_the_run_lacks(tmp_path: Path) -> None:
    with pytest.raises(Missing, match=r"a PUE \(energy.pue\) and a grid intensity"):
        make_figure("carbon-spent", Source(copy_sample(tmp_path / "bare")))


def test_where_the_energy_went_adds_up_to_all_of_it(whole: Source) -> None:
    shares = {"useful": 0.0, "overhead": 0.0, "lost or not known": 0.0}
    for name, part in whole.account.phases.items():
        shares[kind_of(name)] += part["energy_j"] / whole.account.energy_j
    assert sum(shares.values()) == pytest.approx(1.0)
    said = words(make_figure("phases", whole).inline())
    assert f"useful {100 * shares['useful']:.1f} %" in said
    assert {kind_of(name) for name in ("lost", "gap", "idle_devices", "unattributed")} == {"lost or not known"}
    assert kind_of("compile") == "overhead"


@pytest.mark.parametrize(
    ("x", "label"),
    [
        ("energy", "IT energy (Wh)"),
        ("tokens", "tokens trained (M)"),
        ("flop", "compute by the PaLM convention (PFLOP)"),
        ("hours", "time since the meter started (s)"),
    ],
)
def test_loss_against_each_axis_has_its_unit(x: str, label: str, whole: Source) -> None:
    whole.x = x
    said = words(make_figure("loss", whole).inline())
    assert label in said
    assert "validation 5.491" in said
    assert "training 5.563" in said


def test_rates_are_those_of_the_steps(whole: Source) -> None:
    rates = rates_of(whole.account, whole.steps)
    second, last = whole.steps[1], whole.steps[-1]
    assert rates["tokens_per_s"][0] == pytest.approx(65536 / second["seconds"])
    assert len(rates["time"]) == len(whole.steps) - 1
    spent = np.diff(energy_at(whole.account, np.array([whole.steps[0]["time_unix_s"], last["time_unix_s"]])))
    tokens = last["tokens"] - whole.steps[0]["tokens"]
    assert np.mean(rates["joule_per_token"]) == pytest.approx(float(spent[0]) / tokens)


def test_each_attempt_of_a_resized_run_has_the_mfu_of_its_own_gpus(whole: Source) -> None:
    steps = [
        {"attempt": attempt, "time_unix_s": float(t), "seconds": 1.0, "tokens": 1000 * attempt * t}
        for attempt in (1, 2)
        for t in range(200 * attempt, 200 * attempt + 150)
    ]  # twice the tokens/s on twice the GPUs
    rates = rates_of(Account(), steps)
    assert set(rates["tokens_per_s"]) == {1000.0, 2000.0}, "no point is of two attempts"
    assert (rates["tokens_per_s"] == 1000.0 * rates["attempt"]).all()
    whole.record["compute"] |= {"devices": 4, "peak_flops": 1e6, "flop_per_token": 400}
    whole.record["run"]["attempts"] = [{"attempt": 1, "world_size": 2}, {"attempt": 2, "world_size": 4}]
    figure = Figure()
    rates_drawing(Account(), steps, whole.record).draw(figure)
    (line,) = [axes.lines[0] for axes in figure.axes if axes.get_title().startswith("MFU")]
    shown = np.asarray(line.get_ydata(), float)
    assert shown[np.isfinite(shown)] == pytest.approx(np.full(len(rates["time"]), 20.0))


def test_mfu_without_a_peak_is_named_and_not_drawn(whole: Source) -> None:
    assert "MFU (%), PaLM convention over a peak of 989 TFLOP/s" in words(make_figure("rates", whole).inline())
    whole.record["compute"]["peak_flops"] = None
    said = words(make_figure("rates", whole).inline())
    assert "not shown: MFU: no peak is known for these devices" in said
    assert "MFU (%)" not in said


def gpus(nodes: int, each: int, lost: str = "") -> Account:
    times = 1.7e9 + np.arange(0.0, 600.0, 10.0)
    account = Account(start_unix_s=float(times[0]), end_unix_s=float(times[-1]))
    for node in range(nodes):
        for gpu in range(each):
            uuid = f"GPU-{node:02d}{gpu:02d}"
            power = np.where((times > 1.7e9 + 300) & (uuid == lost), np.nan, 500.0)
            about: tuple[Any, ...] = (uuid, "H200", f"n{node}", "gpu", "gpu", "counter", float(np.nansum(power) * 10))
            account.devices.append(DeviceEnergy(*about, samples=60, gap_s=0.0))
            account.power.append((uuid, times, power))
    return account


def test_the_heat_map_hatches_a_gpu_that_was_not_read() -> None:
    assert "hatched" not in words(gpu_heat_drawing(gpus(2, 4)).inline())
    said = words(gpu_heat_drawing(gpus(2, 4, lost="GPU-0102")).inline())
    assert "hatched: not read" in said
    assert "n1 GPU 0102" in said


def test_many_gpus_are_a_row_a_node_and_still_a_small_file() -> None:
    drawing = gpu_heat_drawing(gpus(70, 2))
    assert "mean of the 2 GPUs of a node" in words(drawing.inline())
    assert len(drawing.file("svg")) < 300_000


def test_places_take_the_series_of_others_and_hatch_what_none_covers(whole: Source) -> None:
    own = whole.series
    assert own is not None
    whole.more_series = {"elsewhere": type(own)(own.start_unix_s[:5], own.end_unix_s[:5], (100.0,) * 5, "else.csv")}
    said = words(make_figure("places", whole).inline())
    assert "DE" in said
    assert "elsewhere" in said
    assert "hatched: not covered" in said
    flat = f"{1000 * whole.record['energy']['energy_facility_kwh'] * 100 / 1000:#.3g}"
    assert flat in said, "100 g/kWh over the facility's energy, in g"


def test_the_front_has_no_run_that_another_beats_in_both() -> None:
    assert front([(3.0, 1.0), (1.0, 3.0), (2.0, 3.5), (2.5, 2.0)]) == [(1.0, 3.0), (2.5, 2.0), (3.0, 1.0)]


def test_a_comparison_needs_two_runs_with_loss_and_energy() -> None:
    run = {"name": "a", "energy_it_kwh": 1.0, "low_kwh": None, "high_kwh": None, "loss": 2.0, "partial": False,
           "comparable": True, "path": []}  # fmt: skip
    with pytest.raises(Missing, match="b: no energy or no loss"):
        pareto_drawing([run, run | {"name": "b", "loss": None}])
    other = run | {"name": r"lr$\q$5", "energy_it_kwh": 2.0, "comparable": False}
    said = words(pareto_drawing([run, other, run | {"name": "c", "loss": None}]).inline())
    assert r"lr$\q$5 (does not compare)" in said, "a name is no formula"
    assert "not drawn, no energy or no loss: c" in said


def test_the_paper_s_figure_has_its_printed_and_recomputed_numbers() -> None:
    said = words(make_figure("llama-paper", None).inline())
    for expected in ("LLaMA-65B", "449", "450", "173", "France, "):
        assert expected in said


def test_thinning_keeps_every_spike() -> None:
    y = np.zeros(100_000)
    y[77_777] = 9.0
    x, kept = thin(np.arange(100_000.0), y)
    assert len(x) < 4000
    assert kept.max() == 9.0
    assert (x[0], x[-1]) == (0.0, 99_999.0)
    assert spread([1.0, 1.1, 5.0], 1.0) == [1.0, 2.0, 5.0]

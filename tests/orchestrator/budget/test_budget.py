"""Budgets: what counts, what is forecast, when a run is told to stop, and what a spec or a resume must not get past."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from energy_fakes import FakeSensor, meter_fake, reading
from rich.console import Console
from rich.text import Text
from watched import NOW, PLACE
from watched import run as run
from watched import spec as spec

from energy.runs import RunFolder
from orchestrator.budget.before import require_budget, require_room, spent_before
from orchestrator.budget.plan import budgets_of_plan
from orchestrator.budget.watch import CLOSING_S, Pace, Spending, Watch, forecast_words, limits_of
from orchestrator.driver.run_watch import BudgetSpent
from orchestrator.live import state as live_state
from orchestrator.screens import top as screen_top
from orchestrator.screens import view
from orchestrator.screens.run import RunScreen
from orchestrator.spec.experiment import Experiment
from orchestrator.spec.file import BadInput

KWH = 3.6e6
GPUS = ("cluster.device=auto", "cluster.gpu_hour_price=2.50 EUR")


def watch(experiment: Experiment, *, before: Spending = Spending(), gpus: int = 4) -> Watch:  # noqa: B008 (frozen)
    return Watch(experiment, before, gpus, NOW)


@pytest.mark.parametrize(
    ("overrides", "quantity", "limit", "spent"),
    [
        (["energy.budget.energy=3 kWh"], "energy_it_kwh", 3.0, 2.0),
        (["energy.budget.energy=3000 Wh", *PLACE], "energy_facility_kwh", 3.0, 2.5),
        (["energy.budget.carbon=2 kgCO2eq", *PLACE], "carbon_tco2eq", 0.002, 0.001),
        (["energy.budget.carbon=0.002", *PLACE], "carbon_tco2eq", 0.002, 0.001),
        (["energy.budget.gpu_hours=16 GPUh", *GPUS], "gpu_hours", 16.0, 8.0),
        (["energy.budget.cost=1,000 EUR", *GPUS], "cost_eur", 1000.0, 20.0),
    ],
)
def test_each_kind_counts_in_its_own_unit(
    spec: Any, overrides: list[str], quantity: str, limit: float, spent: float
) -> None:
    seen = watch(spec(*overrides))
    seen.feed(1.0 * KWH, NOW + 3600, NOW + 3600)
    seen.feed(2.0 * KWH, NOW + 7200, NOW + 7200)
    [state] = seen.states(Pace(0, 100, None, None, 0.0), NOW + 7200)
    assert (state.limit.quantity, state.limit.limit) == (quantity, pytest.approx(limit))
    assert state.spent == pytest.approx(spent)
    assert state.forecast is None and state.stops_at_step is None  # nothing is known of its steps yet


def test_the_forecast_is_the_present_joules_per_token_to_the_end(spec: Any) -> None:
    seen = watch(spec("energy.budget.energy=3 kWh"))
    seen.feed(2.4 * KWH, NOW + 60, NOW + 60)
    # 100 steps of 2 s at 14.4 kW to come: 0.8 kWh
    pace = Pace(800, 900, 14_400.0, 2.0, 10.0)
    [state] = seen.states(pace, NOW + 60)
    assert state.forecast == pytest.approx(3.2)
    assert state.held_back == pytest.approx(0.04)
    # 0.56 kWh are left until it must be told, 0.008 a step: it goes on for 70 steps, and ends with the one after
    assert state.stops_at_step == 871
    assert (state.says, state.due) == ("over", False)
    words = forecast_words(state.document(), 900)
    assert words == "will end at 3.20 kWh of 3.00 kWh: stops at about step 871 of 900"
    more = watch(spec("energy.budget.energy=3.3 kWh"), before=seen.spending)
    more.feed(0.0, NOW + 60, NOW + 60)
    [enough] = more.states(pace, NOW + 60)
    assert (enough.says, enough.stops_at_step) == ("ok", None)
    assert forecast_words(enough.document(), 900) is None


def test_from_80_percent_on_it_warns_and_what_is_held_back_makes_it_due(spec: Any) -> None:
    seen = watch(spec("energy.budget.energy=3 kWh"))
    pace = Pace(99, 100, 3600.0, 1.0, 100.0)  # 0.1 kWh are held back
    says = []
    for kwh in (2.3, 2.45, 2.89, 2.91):
        seen.feed(kwh * KWH, NOW + 1, NOW + 1)
        says += [state.says for state in seen.states(pace, NOW + 1)]
    assert says == ["ok", "warned", "warned", "due"]


def test_carbon_by_the_hour_is_counted_as_it_came(spec: Any, tmp_path: Path) -> None:
    series = tmp_path / "series.csv"
    series.write_text("time,g_per_kwh\n2026-01-01T00:00Z,100\n2026-01-01T01:00Z,500\n2026-01-01T02:00Z,100\n")
    start = 1767225600.0  # 2026-01-01T00:00Z
    where = ("energy.pue=2", "energy.pue_source=a test", f"energy.grid_series={series}")
    seen = Watch(spec("energy.budget.carbon=10 kg", *where), Spending(), 1, start)
    seen.feed(1.0 * KWH, start + 1800, start + 1800)
    seen.feed(2.0 * KWH, start + 5400, start + 5400)
    [state] = seen.states(Pace(0, 100, None, None, 0.0), start + 5400)
    assert state.spent == pytest.approx(2 * (100 + 500) / 1e6)


def test_other_workers_change_what_a_second_costs(spec: Any) -> None:
    seen = watch(spec("energy.budget.gpu_hours=100", *GPUS), gpus=4)
    seen.feed(None, NOW + 3600, NOW + 3600)
    seen.resize(2)
    seen.feed(None, NOW + 7200, NOW + 7200)
    assert seen.spending.device_hours == pytest.approx(6.0)
    [state] = seen.states(Pace(5, 10, None, 720.0, 0.0), NOW + 7200)  # they are known where no energy is
    assert (state.spent, state.forecast, state.says) == (pytest.approx(6.0), pytest.approx(8.0), "ok")


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["energy.budget.carbon=1 kg"], "a budget of carbon needs energy.pue"),
        (["energy.budget.carbon=1 kg", *PLACE[:2]], "a budget of carbon needs energy.grid, or energy.intensity"),
        (["energy.budget.cost=5 EUR", "cluster.device=auto"], "needs cluster.gpu_hour_price"),
        (["energy.budget.cost=5 USD", *GPUS], "write both in one currency"),
        (["energy.budget.gpu_hours=5"], "there are no GPU-hours"),
        (["energy.budget.gpu_hours=5 h", *GPUS], "units: GPUh, GPU-hours"),
        (["energy.budget.energy=5 kg"], "units: Wh, kWh, MWh, GWh"),
        (["energy.budget.energy=-1 kWh"], "expected a number greater than 0"),
        (["energy.budget.cost=0 EUR", *GPUS], "expected an amount above 0"),
        (["energy.budget.watts=5"], "unknown key watts"),
        (["energy.budget=3 kWh"], "expected keys such as energy, carbon"),
    ],
)
def test_a_budget_that_cannot_be_counted_is_a_fault_of_the_spec(spec: Any, overrides: list[str], said: str) -> None:
    with pytest.raises(BadInput, match=said):
        spec(*overrides)


def test_what_is_proposed_holds_what_it_is_for_and_can_be_typed(spec: Any) -> None:
    overrides = ["energy.budget.energy=3 Wh", "energy.budget.carbon=2 g", "energy.budget.gpu_hours=7", *PLACE, *GPUS]
    experiment = spec(*overrides, "energy.budget.cost=12 EUR")
    for limit in limits_of(experiment, 400.0):
        wanted = 1.2345678 * limit.limit
        again = spec(*overrides, "energy.budget.cost=12 EUR", limit.option(wanted))
        [new] = [each for each in limits_of(again, 400.0) if each.key == limit.key]
        assert wanted <= new.limit < 1.01 * wanted


def test_a_spent_budget_refuses_with_the_numbers_and_so_does_one_that_a_start_would_spend(spec: Any) -> None:
    limits = limits_of(spec("energy.budget.energy=3 kWh"), None)
    require_room(limits, Spending(2.0 * KWH, startup_j=0.5 * KWH))
    with pytest.raises(
        BadInput, match="have taken 3.01 kWh .*budget is 3.00 kWh.*--set 'energy.budget.energy=6.02 kWh'"
    ):
        require_room(limits, Spending(3.01 * KWH))
    with pytest.raises(BadInput, match="taken 2.80 kWh, and a start-up alone takes 0.300 kWh"):
        require_room(limits, Spending(2.8 * KWH, startup_j=0.3 * KWH))


def test_a_plan_says_whether_it_fits(spec: Any) -> None:
    def planned(factor: float) -> dict[str, Any]:
        return {"energy_it_kwh": 2.0 * factor, "carbon_tco2eq": 0.001 * factor, "gpu_hours": 8.0 * factor}

    plan = {**planned(1.0), "low": planned(0.5), "high": planned(1.5), "intensity_g_per_kwh": 400.0}
    overrides = ["energy.budget.energy=2 kWh", "energy.budget.carbon=1.2 kg", "energy.budget.gpu_hours=12", *PLACE]
    experiment = spec(*overrides, "energy.budget.cost=50 EUR", *GPUS)
    told = {each["key"]: each for each in budgets_of_plan(experiment, plan)}
    assert told["energy"]["likely"] == pytest.approx(2.5) and told["energy"]["fits"] is False
    assert told["energy"]["words"] == "budget of 2.00 kWh (facility energy): too small for 2.50 kWh (stops at 80 %)"
    assert told["carbon"]["words"] == "budget of 1.20 kg CO₂eq: holds as likely, not at the most (1.50 kg CO₂eq)"
    assert (told["gpu_hours"]["fits"], told["gpu_hours"]["words"]) == (True, "budget of 12.0 GPU-hours: holds")
    assert told["cost"]["likely"] == pytest.approx(20.0)
    unknown = dict.fromkeys(planned(1.0))
    nothing = {**unknown, "low": unknown, "high": unknown, "intensity_g_per_kwh": 400.0}
    assert {each["fits"] for each in budgets_of_plan(experiment, nothing)} == {None}


def test_what_was_spent_is_all_attempts_and_one_without_a_step_was_a_start_up(spec: Any, tmp_path: Path) -> None:
    sensor = [reading(100.0 * second, 100.0) for second in range(60)]
    folder = RunFolder(tmp_path / "run")
    for attempt, seconds in ((1, 20), (2, 10)):
        first = NOW + 100 * attempt
        moments = [first + second for second in range(seconds)]
        meter_fake(folder, [FakeSensor("GPU-1", sensor[:seconds])], moments, attempt=attempt)
    times = [{"attempt": n, "started_unix_s": NOW, "ended_unix_s": NOW + 1800, "status": "budget"} for n in (1, 2)]
    folder.write_run({"attempts": times, "world_size": 4, "status": "budget"})
    before = spent_before(folder, spec(*PLACE), 4, attempt=3)
    assert before.energy_j == pytest.approx(1900.0 + 900.0)
    assert before.carbon_t == pytest.approx(2800 / KWH * 1.25 * 400e-6)
    assert before.device_hours == pytest.approx(4.0)
    folder.update_run(attempts=[times[0] | {"world_size": 16}, times[1]])  # it went on with fewer
    assert spent_before(folder, spec(*PLACE), 4, attempt=3).device_hours == pytest.approx(8.0 + 2.0)
    # One that nobody wrote the end of was held as long as its meters read: no less, and nothing is for nothing.
    unended = [{**times[0], "started_unix_s": NOW + 200, "ended_unix_s": None, "waited_s": 2.0}]
    folder.update_run(attempts=unended)
    assert spent_before(folder, spec(*PLACE), 4, attempt=3).device_hours == pytest.approx(4 * (9 - 2) / 3600)
    folder.update_run(attempts=times)
    assert before.startup_j == pytest.approx(1900.0)
    assert spent_before(folder, spec(), 4, attempt=2).energy_j == pytest.approx(1900.0)
    said = "taken 0.778 Wh, and a start-up alone takes 0.528 Wh.* --set 'energy.budget.energy=2 Wh'"
    with pytest.raises(BadInput, match=said):
        require_budget(spec("energy.budget.energy=1 Wh"), folder)
    require_budget(spec("energy.budget.energy=2 Wh"), folder)


# --- the watch of a run: the files of a run that is made here, looked at by the real thing


def test_it_asks_the_trainer_in_time_and_says_why(run: Any) -> None:
    watch = run.watch("energy.budget.energy=2 Wh")  # 7,200 J
    for second in range(1, 100):
        run.step(second, NOW + second)
        run.meter(NOW + second, 100.0, 100.0 * second)
        watch.look(NOW + second)
        if watch.stopped_by is not None:
            break
    # Two steps, the look before the next one and the closing are ahead of it: at 100 W, 100 J for each second of them.
    ahead_s = 2 * 1.0 + 0.5 + CLOSING_S
    assert 7200 - 100 * ahead_s <= 100.0 * second < 7200 - 100 * ahead_s + 100
    assert (run.folder.path / "stop").exists()
    assert run.said[0] == "81 % of the budget of 2.00 Wh (IT energy) used"  # the first look at or past 80 %
    assert run.said[-1] == "the budget of 2.00 Wh is reached: checkpoint and report"
    assert len(run.said) == len(set(run.said))
    with pytest.raises(BudgetSpent, match=f"the budget of 2.00 Wh .* stopped the run after step {second}"):
        watch.ended()


def test_what_was_used_since_the_last_reading_counts_too(run: Any) -> None:
    watch = run.watch("energy.budget.energy=2 Wh")
    run.step(1, NOW + 1)
    run.meter(NOW + 1, 100.0, 3000.0)
    watch.look(NOW + 1)
    watch.look(NOW + 31)  # no reading came: 30 s at 100 W
    assert watch.budget.spending.energy_j == pytest.approx(6000.0)
    assert watch.nodes.documents(NOW + 31, NOW + 31)[0]["power_w"] is None  # and nobody knows what it draws now
    watch.look(NOW + 50)
    assert watch.stopped_by is not None


def test_a_node_that_died_takes_no_more_of_the_budget(run: Any) -> None:
    watch = run.watch("energy.budget.energy=1 kWh", "energy.budget.carbon=1 kg", *PLACE)
    watch.nodes.alive = lambda: {"n2"}
    run.step(1, NOW + 1)
    run.meter(NOW + 1, 5000.0, 9000.0)
    run.meter(NOW + 1, 100.0, 100.0, node="n2")
    watch.look(NOW + 1)
    watch.look(NOW + 9)  # n1 is silent, and may be at work
    assert watch.budget.spending.energy_j == pytest.approx(9100.0 + 8 * 5100.0)
    for second in range(10, 3601, 5):  # an hour at its power would be five times the budget
        run.meter(NOW + second, 100.0, 100.0 * second, node="n2")
        watch.look(NOW + second)
    assert watch.stopped_by is None and not (run.folder.path / "stop").exists()
    spent = watch.budget.spending
    assert spent.energy_j == pytest.approx(9000.0 + 360_000.0)
    assert spent.carbon_t == pytest.approx(369_000 / KWH * 1.25 * 400e-6)  # what it was held for is taken back


def test_a_meter_that_is_started_again_loses_nothing(run: Any) -> None:
    watch = run.watch("energy.budget.energy=1 kWh")
    run.meter(NOW + 10, 100.0, 1000.0)
    watch.look(NOW + 10)
    run.meter(NOW + 15, 100.0, 200.0, pid=2)  # 3 s without a meter: by the counter
    watch.look(NOW + 15)
    assert watch.nodes.energy_j == pytest.approx(1500.0)
    run.meter(NOW + 16, 100.0, 300.0, pid=2)
    run.meter(NOW + 16, 50.0, 70.0, node="n2")
    watch.look(NOW + 16)
    assert watch.nodes.energy_j == pytest.approx(1670.0)
    (run.folder.path / "live" / "n2.json").unlink()  # the run has nothing to do with that node
    watch.look(NOW + 17)
    assert watch.nodes.energy_j == pytest.approx(1600.0)


def test_a_budget_that_the_start_up_spends_ends_the_run_at_once(run: Any) -> None:
    watch = run.watch("energy.budget.energy=1 Wh")
    run.meter(NOW + 1, 100.0, 3200.0)
    with pytest.raises(BudgetSpent, match="does not hold the start-up, which has taken 0.889 Wh"):
        watch.look(NOW + 1)
    assert not (run.folder.path / "stop").exists()


def test_a_run_that_stops_already_is_not_stopped_by_its_budget(run: Any) -> None:
    watch = run.watch("energy.budget.energy=1 Wh")
    run.step(1, NOW + 1)
    (run.folder.path / "stop").touch()  # Ctrl-C
    run.meter(NOW + 1, 100.0, 4000.0)
    watch.look(NOW + 1)
    assert watch.stopped_by is None
    watch.ended()


def test_an_evaluation_that_comes_before_the_stop_is_held_back_for(run: Any) -> None:
    watch = run.watch("energy.budget.energy=1 kWh", "training.evaluate_every_steps=10")
    for number in range(1, 8):
        run.step(number, NOW + number)
    run.meter(NOW + 7, 100.0, 700.0)
    watch.look(NOW + 7)
    plain = watch.states[0].held_back
    run.mark(event="phase", phase="evaluation", start_unix_s=NOW, end_unix_s=NOW + 30)  # how long the last one took
    watch.look(NOW + 7.1)
    assert watch.states[0].held_back == pytest.approx(plain)
    run.step(8, NOW + 8)
    watch.look(NOW + 8)
    assert watch.states[0].held_back == pytest.approx(plain + 30 * 100 / KWH)


def test_gpu_hours_on_a_cpu_are_refused_when_that_is_known(run: Any) -> None:
    with pytest.raises(BadInput, match="a CPU has no GPU-hours"):
        run.watch("energy.budget.gpu_hours=5", *GPUS)


def test_a_run_without_a_budget_or_without_attempts_may_go_on(spec: Any, tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "none")
    require_budget(spec(), folder)  # reads nothing
    folder.write_run({"attempts": [], "world_size": 1})
    require_budget(spec("energy.budget.energy=1 Wh"), folder)


def test_what_the_watch_writes_is_what_top_shows(run: Any) -> None:
    watch = run.watch("energy.budget.energy=2 Wh", "energy.budget.carbon=1 g", *PLACE)
    told = live_state.read(run.folder, NOW).document
    assert told is None
    watch.look(NOW + 1)
    told = json.loads((run.folder.path / "live.json").read_text())
    unknown = ("step", "loss", "power_w", "energy_it_kwh", "energy_facility_kwh", "carbon_tco2eq", "tokens_per_s")
    assert {told[key] for key in unknown} == {None}
    assert (told["phase"], told["nodes"], told["stragglers"]) == ("startup", [], None)
    for second in range(2, 12):
        run.step(second - 1, NOW + second)
        run.meter(NOW + second, 100.0, 100.0 * second)
        watch.look(NOW + second)
    run.mark(event="step", step=11, loss=float("nan"), seconds=1.0, time_unix_s=NOW + 12)
    watch.look(NOW + 12.5)
    text = (run.folder.path / "live.json").read_text()
    told = json.loads(text)
    assert "NaN" not in text and told["loss"] is None
    assert (told["phase"], told["step"], told["tokens"], told["tokens_per_s"]) == ("train_step", 11, 11 * 256, 256.0)
    assert told["energy_it_kwh"] == pytest.approx(1100 / KWH)
    assert told["energy_facility_kwh"] == pytest.approx(1.25 * 1100 / KWH)
    assert told["forecast"]["energy_it_kwh"] == pytest.approx((1100 + 9 * 100) / KWH)
    assert [each["quantity"] for each in told["budget"]] == ["energy_facility_kwh", "carbon_tco2eq"]
    (run.folder.path / ".lock").touch()
    live = live_state.read(run.folder, NOW + 13)
    shown = "\n".join(line.plain for line in screen_top.lines(live, 100, NOW + 13))
    assert "11 of 20  ·  loss --" in shown and "of 2.00 Wh" in shown and "facility energy" in shown
    assert "of 1.00 g" in shown and "n1  100 W  gpu 100" in shown
    line = screen_top.plain(live, NOW + 13)
    assert "step=11/20" in line and "budget_energy=0.0004" in line


@pytest.mark.parametrize(("intensity", "carbon"), [(400, "over"), (0, "ok")])
def test_what_no_meter_has_read_is_not_known_and_never_nothing(run: Any, intensity: int, carbon: str) -> None:
    limits = ("energy.budget.energy=2 Wh", "energy.budget.carbon=1 g")
    watch = run.watch(*limits, *PLACE, f"energy.intensity={intensity}")
    for second in range(1, 4):
        run.meter(NOW + second, None, None)
        run.step(second, NOW + second)
        watch.look(NOW + second)
    for told in watch.document["budget"]:
        assert {told[key] for key in ("spent", "share", "forecast", "held_back", "startup", "stops_at_step")} == {None}
        assert (told["state"], told["words"]["spent"]) == ("unknown", "not known")
    of = ("2.00 Wh (facility energy)", "1.00 g CO₂eq (carbon)")
    assert run.said == [f"no meter has read any energy yet: the budget of {each} stops nothing" for each in of]
    shown = view.Shown(watch.document)
    text = "\n".join(line.plain for line in [*view.training(shown, 100, NOW + 3), *view.starting(shown, 100, NOW + 3)])
    assert text.count(" -- %  not known of 2.00 Wh ") == text.count(" -- %  not known of 1.00 g ") == 2
    assert " budget_energy=-/0.002 budget_energy_stops_at_step=- budget_carbon=-/1e-06 " in view.key_values(shown, NOW)
    run.meter(NOW + 4, 100.0, 5700.0)  # 1.98 Wh at the facility
    watch.look(NOW + 4)
    assert [state.says for state in watch.states] == ["due", carbon] and watch.stopped_by is not None


@pytest.mark.parametrize("constant", [(), PLACE[2:]], ids=["the series alone", "beside a constant"])
def test_a_run_shows_one_carbon_wherever_it_is_looked_at(
    run: Any, constant: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    series = tmp_path / "series.csv"
    series.write_text("time,g_per_kwh\n2025-10-09T08:00Z,100\n2025-10-09T09:00Z,500\n2025-10-09T10:00Z,500\n")
    watch = run.watch("energy.budget.carbon=1 kg", *PLACE[:2], f"energy.grid_series={series}", *constant)
    for second in (300, 500):  # 1 kWh before 9 o'clock, which is 400 s on, and 1 kWh after it
        run.step(second // 50, NOW + second)
        run.meter(NOW + second, 18_000.0, (second - 100) / 200 * KWH)
        watch.look(NOW + second)
    screen, drawn = RunScreen(), list[Text]()
    screen._console = Console(force_terminal=True)
    monkeypatch.setattr(screen, "_width", lambda: 100)
    monkeypatch.setattr(screen, "_draw", drawn.extend)
    screen.update(watch)
    (run.folder.path / ".lock").touch()
    lines = screen_top.lines(live_state.read(run.folder, NOW + 501), 100, NOW + 501)
    for seen in (drawn, lines):  # 1.25 x (100 + 500) g so far, of the whole run and of its budget
        text = "\n".join(line.plain for line in seen)
        assert re.findall(r"\d+ g of .*? k?g", text) == ["750 g of 781 g", "750 g of 1.00 kg"]


def test_fewer_workers_lower_the_peak_and_a_restart_is_a_start_up(run: Any) -> None:
    watch = run.watch()
    run.step(1, NOW + 1)
    watch.look(NOW + 1)
    assert watch.progress.phase == "train_step"
    watch._peak_flops, watch.progress.peak_flops = 1e12, 4e12
    watch.restarted(2, 2)
    assert (watch.progress.phase, watch.progress.peak_flops, watch.attempt) == ("startup", 2e12, 2)

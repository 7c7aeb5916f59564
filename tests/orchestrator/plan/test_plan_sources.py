"""Where throughput and power come from, in their order; and what is refused rather than guessed."""

import json
from pathlib import Path

import pytest
from plan_fakes import spec, write_run

from energy.boundaries import BOUNDARIES, METHODS
from orchestrator.plan import PlanOptions, make_plan
from orchestrator.plan.failures import restart_time, storage_bandwidth
from orchestrator.plan.plan import BESIDE, CONTRACT
from orchestrator.plan.ranges import Basis

NODE = ("cluster.workers=8",)


def test_own_runs_come_before_published_figures(tmp_path: Path) -> None:
    experiment = spec("llama_7b", *NODE)
    for number, speed in enumerate((40_000.0, 36_000.0, 37_000.0)):
        write_run(tmp_path, experiment, run_id=f"run-{number}", tokens_per_s=speed, power_w=300.0 + number)
    plan = make_plan(experiment, tmp_path)
    assert plan["tokens_per_s_per_gpu"] == 37_000 / 8
    assert (plan["low"]["tokens_per_s_per_gpu"], plan["high"]["tokens_per_s_per_gpu"]) == (4500, 5000)
    assert plan["throughput_basis"] == "measured" and plan["extrapolated"] is False
    assert "3 earlier runs of this model" in plan["assumptions"][0]["source"]
    assert plan["device_power_w"] == pytest.approx(301)  # typical power, and the rated one beside it
    assert plan["energy_rated_it_kwh"] == pytest.approx(plan["gpu_hours"] * 0.4)
    # Start-up once, evaluation as often per step as before.
    steps_h = 1e12 / 37_000 / 3600
    assert plan["wall_days"] * 24 == pytest.approx(steps_h * 1.05 + (4000 - 3600 - 180) / 3600)


@pytest.mark.parametrize(
    "changes",
    [
        {"gpu": "NVIDIA H100 80GB HBM3"},
        {"device_type": "cpu"},
        {"gpu": "NVIDIA A100-SXM4-40GB"},
        {"tokens_per_s": 0.0},
        {"attempts": [{"world_size": 16}, {"world_size": 8}]},
    ],
)
def test_runs_on_other_hardware_do_not_count(tmp_path: Path, changes: dict) -> None:
    experiment = spec("llama_7b", *NODE)
    write_run(tmp_path, experiment, **changes)
    assert "llm-foundry" in make_plan(experiment, tmp_path)["assumptions"][0]["source"]


def test_runs_of_another_size_do_not_count_where_something_is_published(tmp_path: Path) -> None:
    write_run(tmp_path, spec("llama_13b", *NODE))
    assert "llm-foundry" in make_plan(spec("llama_7b", *NODE), tmp_path)["assumptions"][0]["source"]
    with pytest.raises(ValueError, match="no runs throughput is known"):
        make_plan(spec("llama_65b", *NODE), tmp_path, PlanOptions(throughput="runs"))


def test_runs_on_fewer_gpus_are_extrapolated(tmp_path: Path) -> None:
    write_run(tmp_path, spec("llama_7b", *NODE))
    plan = make_plan(spec("llama_7b"), tmp_path)
    assert plan["extrapolated"] is True and plan["tokens_per_s"] == 5000 * 2048


def test_a_damaged_footprint_is_skipped_and_named(tmp_path: Path) -> None:
    experiment = spec("llama_7b", *NODE)
    folder = write_run(tmp_path, experiment, run_id="torn")
    (folder / "footprint.json").write_text('{"compute": {')
    (write_run(tmp_path, experiment, run_id="empty") / "footprint.json").write_text("{}")
    plan = make_plan(experiment, tmp_path)
    assert any(warning.startswith("torn:") for warning in plan["warnings"])
    assert any(warning.startswith("empty:") for warning in plan["warnings"])
    assert "llm-foundry" in plan["assumptions"][0]["source"]


def test_what_is_stated_wins_and_is_checked(tmp_path: Path) -> None:
    experiment = spec("llama_7b", *NODE)
    write_run(tmp_path, experiment)
    plan = make_plan(experiment, tmp_path, PlanOptions(mfu=0.4))
    assert plan["mfu"] == pytest.approx(0.4) and plan["throughput_basis"] == "stated"
    assert plan["tokens_per_s_per_gpu"] == pytest.approx(0.4 * 312e12 / 42863689728)
    assert make_plan(experiment, options=PlanOptions(tokens_per_s_per_gpu=1000.0))["tokens_per_s"] == 8000
    with pytest.raises(ValueError, match="more than A100-SXM4-80GB can do"):
        make_plan(experiment, options=PlanOptions(tokens_per_s_per_gpu=9000.0))
    with pytest.raises(ValueError, match="not both"):
        make_plan(experiment, options=PlanOptions(mfu=0.4, tokens_per_s_per_gpu=1000.0))


def test_the_nearest_size_is_scaled_at_equal_mfu_and_said_to_be() -> None:
    own = ("model.dim=4608", "model.n_heads=36", "model.n_layers=24", "cluster.workers=8")
    plan = make_plan(spec("llama_7b", *own))
    assert plan["throughput_basis"] == "scaled" and plan["extrapolated"] is True
    assert plan["mfu"] == pytest.approx(0.6413, abs=1e-3)  # that of llm-foundry's 7B on 8
    h100 = make_plan(spec("llama_13b", "cluster.accelerator=H100-80GB", *NODE))
    assert any("scaled from 6.6 B" in warning for warning in h100["warnings"])
    assert h100["mfu"] == pytest.approx(0.464, abs=1e-3)


@pytest.mark.parametrize(
    "overrides", [("cluster.accelerator=MI300X",), ("model.dim=512", "model.n_heads=8", "model.n_layers=4")]
)
def test_no_figure_for_this_device_or_size_is_refused(overrides: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match="--mfu"):
        make_plan(spec("llama_7b", *overrides))
    plan = make_plan(spec("llama_7b", *overrides), options=PlanOptions(strict=False))
    assert plan["gpu_hours"] is None and plan["carbon_tco2eq"] is None and plan["compute_flop"] > 0
    assert any("tokens/s" in text for text in plan["missing"])


def test_a_laptop_without_runs_gets_what_can_be_given() -> None:
    plan = make_plan(spec("laptop"))
    assert set(CONTRACT) <= set(plan) and set(CONTRACT) <= set(plan["low"]) and set(CONTRACT) <= set(plan["high"])
    assert plan["params"] > 0 and plan["compute_flop"] > 0 and plan["memory_gb_per_gpu"] > 0
    for key in ("gpu_hours", "wall_days", "tokens_per_s_per_gpu", "mfu", "fits", "energy_it_kwh", "carbon_tco2eq"):
        assert plan[key] is None, key
    assert plan["loss"] is None and plan["failures"] is None
    json.dumps(plan, allow_nan=False)


def test_a_laptop_learns_from_its_own_runs(tmp_path: Path) -> None:
    experiment = spec("laptop", "energy.pue=1.2", "energy.pue_source=mine")
    write_run(tmp_path, experiment, device_type="cpu", world_size=2, tokens_per_s=10_000.0, power_w=30.0)
    plan = make_plan(experiment, tmp_path)
    assert plan["device_type"] == "cpu" and plan["gpu_hours"] == 0 and plan["tokens_per_s_per_gpu"] is None
    seconds = 1e6 / 10_000 * 1.05 + (4000 - 3600 - 180)
    assert plan["wall_days"] * 86400 == pytest.approx(seconds)
    assert plan["energy_it_kwh"] == pytest.approx(30 * seconds / 3.6e6)
    assert plan["energy_facility_kwh"] == pytest.approx(1.2 * plan["energy_it_kwh"])
    assert plan["carbon_tco2eq"] is None  # no intensity was given


@pytest.mark.parametrize("told", [True, False])  # False: a record that has no count of devices
def test_a_run_that_was_resumed_after_a_week_plans_as_one_that_went_through(told: bool, tmp_path: Path) -> None:
    experiment, week_s = spec("laptop"), 7 * 86400.0
    again = {"started_unix_s": 2000 + week_s, "waited_s": 300.0}  # and it goes on, as far as the record
    cases = {
        "through": {"attempts": [{"started_unix_s": 0.0, "ended_unix_s": 4000.0}]},
        "resumed": {
            "attempts": [{"started_unix_s": 0.0, "ended_unix_s": 2000.0}, again],
            "duration_s": 4520 + week_s, "ended_unix_s": 4520 + week_s, "held_s": 4220.0,
        },
        "untold": {},  # when its attempts were
    }  # fmt: skip
    plans = []
    for name, changes in cases.items():
        folder = write_run(tmp_path / name, experiment, device_type="cpu", world_size=2, packages=2, **changes)
        if not told:
            record = json.loads((folder / "footprint.json").read_text())
            del record["compute"]["devices"]
            (folder / "footprint.json").write_text(json.dumps(record))
        plans.append(make_plan(experiment, tmp_path / name))
    startup_s = {each["key"]: each["value"] for each in plans[0]["assumptions"]}["startup_s"]
    assert plans[0] == plans[1] == plans[2] and (plans[0]["devices"], startup_s) == (2, 220.0)


def test_runs_of_another_machine_say_nothing_about_this_one(tmp_path: Path) -> None:
    experiment = spec("laptop")
    write_run(tmp_path, experiment, device_type="cpu", world_size=2, hosts=["another"])
    assert make_plan(experiment, tmp_path)["wall_days"] is None


@pytest.mark.parametrize("name", ["llama_7b", "llama_13b", "llama_33b", "llama_65b"])
@pytest.mark.parametrize("workers", [8, 128, 2048])
def test_low_likely_high_are_in_order(name: str, workers: int) -> None:
    plan = make_plan(spec(name, f"cluster.workers={workers}"), options=PlanOptions(gpu_hour_price=2.0))
    for key, likely in plan["low"].items():
        if isinstance(likely, int | float):
            assert plan["low"][key] <= plan[key] <= plan["high"][key], key
    lost = plan["failures"]["lost_share"]
    assert 0 < lost["low"] <= lost["likely"] <= lost["high"] < 0.5
    assert plan["cost"] == pytest.approx(2 * plan["gpu_hours"])
    assert all(each["source"] for each in plan["assumptions"])


@pytest.mark.parametrize(
    ("declared", "said"),
    [
        ("energy.intensity=0.385", "unit: 0.385 g/kWh is less than any grid has: are these kg/kWh?"),
        ("energy.device_rated_power=0.4", "kilowatts where watts are meant"),
        ("energy.pue=4.5", "out of range: a PUE of 4.5"),
    ],
)
def test_what_is_declared_in_another_unit_is_doubted_before_anything_starts(declared: str, said: str) -> None:
    assert any(said in text for text in make_plan(spec("llama_7b", declared))["warnings"])
    assert make_plan(spec("llama_7b"))["warnings"] == []


def test_failures_and_the_interval() -> None:
    from orchestrator.plan import Reliability
    from orchestrator.plan.failures import best_interval_s, lost_share

    assert best_interval_s(60, 86400) == pytest.approx((2 * 60 * 86400) ** 0.5)
    best = best_interval_s(60, 86400)
    assert lost_share(best, 60, 86400, 0) < min(lost_share(x * best, 60, 86400, 0) for x in (0.9, 1.1))
    declared = Reliability(failures_per_gpu_hour=1e-4, checkpoint_bandwidth_gb_s=100.0, restart_minutes=10.0)
    failures = make_plan(spec("llama_65b"), options=PlanOptions(reliability=declared))["failures"]
    assert failures["mtbf_hours"] == pytest.approx(1e4 / 2048)
    assert failures["checkpoint_s"] == pytest.approx(12 * 65285660672 / 1e11)
    assert failures["expected"]["likely"] == pytest.approx(1e-4 * 1023391.8, rel=1e-6)
    none = make_plan(spec("llama_65b"), options=PlanOptions(reliability=Reliability(failures_per_gpu_hour=0.0)))
    assert none["failures"]["best_interval_s"] is None and none["failures"]["expected"]["likely"] == 0


@pytest.mark.parametrize(
    ("budget", "key", "limit"),
    [("500 MWh", "energy_facility_kwh", 5e5), ("170 tCO2eq", "carbon_tco2eq", 170), ("1000000 GPUh", "gpu_hours", 1e6),
     ("30 d", "wall_days", 30)],
)  # fmt: skip
def test_budget(budget: str, key: str, limit: float) -> None:
    plan = make_plan(spec("llama_65b"), options=PlanOptions(budget=budget))
    assert plan["budget"]["share"]["likely"] == pytest.approx(plan[key] / limit)
    with pytest.raises(ValueError, match="--budget"):
        make_plan(spec("llama_65b"), options=PlanOptions(budget=budget.replace(" ", " x")))


def test_under_a_series_the_plan_takes_its_mean_over_the_time_that_it_covers(tmp_path: Path) -> None:
    """When the training will run is not known: each hour counts alike, the two that are missing not at all."""
    path = tmp_path / "grid.csv"
    hours = {"00": 100, "01": 100, "04": 400}
    rows = "".join(f"2024-03-01T{hour}:00Z,{g_per_kwh}\n" for hour, g_per_kwh in hours.items())
    path.write_text(f"start_utc,intensity_g_per_kwh\n{rows}")
    plan, plain = make_plan(spec("llama_65b", f"energy.grid_series={path}")), make_plan(spec("llama_65b"))
    assert plan["intensity_g_per_kwh"] == pytest.approx(200.0)
    for side, same in ((plan, plain), (plan["low"], plain["low"]), (plan["high"], plain["high"])):
        assert side["carbon_tco2eq"] == pytest.approx(same["energy_facility_kwh"] * 200 / 1e6)
    assert "grid.csv" in plan["sources"]["carbon_tco2eq"] and "mean over" in plan["sources"]["carbon_tco2eq"]


def test_ranges_of_factors_widen_the_plan() -> None:
    declared = (
        "energy.pue=aws fleet 2025",
        "energy.intensity_range={low: 300, high: 400, source: our grid from 2019 to 2024}",
    )
    plan, plain = make_plan(spec("llama_65b", *declared)), make_plan(spec("llama_65b"))
    for side, pue, g_per_kwh in (("low", 1.06, 300.0), ("high", 1.46, 400.0)):
        facility = plain[side]["energy_it_kwh"] * pue
        assert plan[side]["energy_facility_kwh"] == pytest.approx(facility)
        assert plan[side]["carbon_tco2eq"] == pytest.approx(facility * g_per_kwh / 1e6)
    assert plan["carbon_tco2eq"] == pytest.approx(plain["energy_it_kwh"] * 1.14 * 385 / 1e6)
    assert plan["sources"]["energy_facility_kwh"].startswith("PUE 1.14 (1.06 to 1.46): aws fleet 2025")
    intensity = next(each for each in plan["assumptions"] if each["key"] == "intensity_g_per_kwh")
    assert (intensity["low"], intensity["high"]) == (300.0, 400.0) and "2019 to 2024" in intensity["note"]


@pytest.mark.parametrize(
    ("option", "price", "currency", "source"),
    [(None, 2.5, "EUR", "cluster.gpu_hour_price"), (2.0, 2.0, None, "--gpu-hour-price")],
)
def test_the_price_of_the_spec_counts_unless_the_command_line_has_one(
    option: float | None, price: float, currency: str | None, source: str
) -> None:
    experiment = spec("llama_65b", "cluster.gpu_hour_price=2.50 EUR")
    plan = make_plan(experiment, options=PlanOptions(gpu_hour_price=option))
    assert plan["cost"] == pytest.approx(price * plan["gpu_hours"]) and plan["cost_currency"] == currency
    [told] = [each for each in plan["assumptions"] if each["key"] == "gpu_hour_price"]
    assert (told["value"], told["source"]) == (price, source)
    assert (
        plan["sources"]["cost"]
        == f"{price:g} {told['unit']}"
        == f"{price:g} {currency or ''} per GPU-hour".replace("  ", " ")
    )


def test_devices_that_are_not_known_are_named_among_what_is_missing() -> None:
    for device, todo in (("auto", "name cluster.accelerator"), ("cpu", "plan by a run")):
        plan = make_plan(spec("laptop", f"cluster.device={device}"), options=PlanOptions(tokens_per_s_per_gpu=1000.0))
        assert plan["wall_days"] > 0 and plan["device_hours"] is None
        [said] = [text for text in plan["missing"] if text.startswith("how many devices draw power")]
        assert f"energy and carbon: {todo}" in said


def test_every_planned_figure_has_its_boundary_and_method(tmp_path: Path) -> None:
    plan = make_plan(spec("llama_65b"), options=PlanOptions(gpu_hour_price=2.0))
    assert set(plan["quantities"]) == {*CONTRACT, *BESIDE} - {"flop_convention"}
    assert plan["quantities"]["cost"] == {
        "boundary": "devices", "method": "computed", "from": "gpu_hours x gpu_hour_price"
    }  # fmt: skip
    for key, told in plan["quantities"].items():
        assert told["boundary"] in BOUNDARIES and told["method"] in METHODS, key
    assert make_plan(spec("llama_65b"))["quantities"]["cost"]["method"] is None
    assert plan["quantities"]["tokens_per_s"]["method"] == "assumed"
    write_run(tmp_path, spec("llama_7b", *NODE))
    own = make_plan(spec("llama_7b", *NODE), tmp_path)["quantities"]
    assert (own["tokens_per_s"]["method"], own["device_power_w"]["method"]) == ("measured", "counter")


def test_power_that_earlier_runs_only_modelled_is_not_called_measured(tmp_path: Path) -> None:
    write_run(tmp_path, spec("llama_7b", *NODE), method="modelled")
    plan = make_plan(spec("llama_7b", *NODE), tmp_path)
    assert plan["quantities"]["device_power_w"]["method"] == "modelled"
    power = next(each for each in plan["assumptions"] if each["key"] == "device_power_w")
    assert "(before): modelled, boundary gpu" in power["source"] and "(modelled)" in plan["sources"]["energy_it_kwh"]
    write_run(tmp_path, spec("llama_7b", *NODE), run_id="metered")
    assert make_plan(spec("llama_7b", *NODE), tmp_path)["quantities"]["device_power_w"]["method"] == "mixed"


def test_a_power_that_nothing_tells_is_missing_until_a_run_has_drawn_it(tmp_path: Path) -> None:
    said = "the power of a device: give energy.device_rated_power, or run it once"
    assert said in make_plan(spec("laptop"), tmp_path)["missing"]
    write_run(tmp_path, spec("laptop"), device_type="cpu", world_size=2, power_w=40.0)
    drawn = make_plan(spec("laptop"), tmp_path)
    assert said not in drawn["missing"] and drawn["device_power_w"] == pytest.approx(40.0)


def test_a_grid_that_is_named_is_told_with_its_place_and_year() -> None:
    by_place = make_plan(spec("llama_65b", "energy.grid=FR", "energy.intensity=null", "energy.intensity_source=null"))
    assert by_place["sources"]["carbon_tco2eq"].startswith("56.039 g/kWh: FRA, 2023: Our World in Data")
    assert make_plan(spec("llama_65b"))["sources"]["carbon_tco2eq"].startswith("385 g/kWh: the LLaMA paper")


def test_storage_and_restarts_are_those_of_the_table() -> None:
    basis = Basis()
    assert storage_bandwidth(16384, basis) == (2000.0, 7000.0)
    restart = restart_time(basis)
    assert restart.high == pytest.approx(0.1 * 54 * 86400 / 466) and restart.low == 0
    assert [each["key"] for each in basis.assumptions] == ["checkpoint_bandwidth_gb_s", "restart_s"]
    assert all("Grattafiori et al. 2024" in each["source"] for each in basis.assumptions)

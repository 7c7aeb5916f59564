"""The footprint as a pure function: sums, factors that are missing, intervals, the paper's method."""

import copy
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from energy_fakes import FakeSensor, meter_fake, metered_window, reading

from energy.accounting import uncertainty
from energy.accounting.account import Account, DeviceEnergy, account_run
from energy.accounting.uncertainty import quantile
from energy.boundaries import BOUNDARIES, METHODS, WHOLE_NODE, boundary_of_record, boundary_text, covered_by
from energy.carbon.series import IntensitySeries
from energy.factors import Basis, peak_flops, pue, rated_power
from energy.records.footprint import make_footprint
from energy.records.record import canonical
from energy.runs import RunFolder
from energy.schemas import record_schema


def device(
    uuid: str, name: str, energy_j: float, kind: str = "gpu", boundary: str = "gpu", method: str = "counter"
) -> DeviceEnergy:
    return DeviceEnergy(uuid, name, "n0", kind, boundary, method, energy_j, samples=10, gap_s=0.0)


def hour(devices: list[DeviceEnergy], phases: dict[str, dict[str, Any]] | None = None) -> Account:
    return Account(devices, phases or {}, start_unix_s=1000.0, end_unix_s=4600.0)


RUN: dict[str, Any] = {
    "run_id": "r1", "name": "small", "status": "completed", "planned_tokens": 1000, "device_type": "cuda",
    "world_size": 2,
    "attempts": [{"attempt": 1, "started_unix_s": 1000.0, "ended_unix_s": 4600.0, "status": "completed"}],
    "ended_unix_s": 4600.0, "created_unix_s": 1000.0, "hosts": ["n0"], "model": {"flop_per_token": 100.0},
    "accounting": {"pue": {"value": 1.1, "source": "spec"},
                   "intensity_g_per_kwh": {"value": 385, "source": "spec"}},
}  # fmt: skip
STEPS = [
    {"attempt": 1, "step": n, "tokens": 100 * n, "loss": 3.0 / n, "seconds": 1.0, "time_unix_s": 1000.0 + n}
    for n in range(1, 11)
]


def account(*methods: str) -> Account:
    devices = [device(f"GPU-{n}", "NVIDIA A100-SXM4-80GB", 1.8e6, method=m) for n, m in enumerate(methods)]
    total = sum(device.energy_j for device in devices)
    phases = {
        "train_step": {"energy_j": 0.75 * total, "seconds": 2700.0, "standard_error_j": 1.0, "method": "direct"},
        "unattributed": {"energy_j": 0.25 * total, "seconds": 900.0, "standard_error_j": 1.0, "method": "direct"},
    }
    return hour(devices, phases)


def test_energy_carbon_and_the_papers_method() -> None:
    record = make_footprint(RUN, account("counter", "counter"), STEPS, [])
    energy = record["energy"]
    assert energy["energy_it_kwh"] == pytest.approx(1.0)
    assert energy["energy_facility_kwh"] == pytest.approx(1.1)
    assert record["carbon"]["carbon_tco2eq"] == pytest.approx(1.1 * 385 / 1e6)
    assert energy["joule_per_token"] == pytest.approx(3600)
    assert sum(part["energy_kwh"] for part in energy["phases"]) == pytest.approx(energy["energy_it_kwh"])
    assert record["time"]["gpu_hours"] == pytest.approx(2.0)
    assert energy["paper_method"]["energy_facility_kwh"] == pytest.approx(2 * 0.4 * 1.1)
    assert energy["paper_method"]["ratio_measured_to_paper"] == pytest.approx(1.25)
    assert record["compute"]["compute_flop"] == 100_000
    assert record["compute"]["mfu"] == pytest.approx(100 * 100 / (2 * 312e12))
    assert record["run"]["partial"] is False


def test_missing_factors_leave_null_and_say_so() -> None:
    run = {**RUN, "accounting": {}}
    record = make_footprint(run, account("counter"), STEPS, [])
    assert record["energy"]["energy_facility_kwh"] is None
    assert record["carbon"]["carbon_tco2eq"] is None
    assert record["energy"]["paper_method"] is None
    assert any("PUE" in text for text in record["quality"]["warnings"])
    assert {"pue", "intensity_g_per_kwh"} <= {item["key"] for item in record["assumptions"]}


def test_a_cpu_run_needs_its_rated_power_from_the_spec() -> None:
    cpu = hour([device("cpu-0", "some CPU", 3.6e5, kind="cpu", boundary="node", method="modelled")])
    run = {**RUN, "device_type": "cpu"}
    assert make_footprint(run, cpu, STEPS, [])["energy"]["paper_method"] is None
    run["accounting"] = {**RUN["accounting"], "device_rated_power_w": {"value": 250, "source": "data sheet"}}
    record = make_footprint(run, cpu, STEPS, [])
    assert record["energy"]["paper_method"]["energy_facility_kwh"] == pytest.approx(0.275)
    assert record["time"]["gpu_hours"] == 0
    assert record["energy"]["share_modelled"] == 1


def test_rated_figures_of_the_tables_carry_what_belongs_to_them() -> None:
    record = make_footprint(RUN, account("counter"), STEPS, [])
    stored = {each["key"]: each for each in record["assumptions"]}
    assert stored["device_rated_power_w"] == rated_power("A100-80GB").as_dict()
    assert stored["peak_flops"] == peak_flops("A100-80GB").as_dict()
    own = RUN["accounting"] | {"device_rated_power_w": {"value": 350.0, "source": "the operator"}}
    declared = make_footprint({**RUN, "accounting": own}, account("counter"), STEPS, [])
    assert declared["energy"]["paper_method"]["device_power_w"] == 350
    assert "embodied_kgco2eq" in {factor["key"] for factor in record["embodied"]["factors"]}


BLOCKS = ("data", "compute", "time", "energy", "carbon", "embodied", "water", "sci")


@pytest.mark.parametrize("accounting", [RUN["accounting"], {}], ids=["known", "nothing known"])
def test_every_figure_has_its_boundary_and_method(accounting: dict[str, Any]) -> None:
    record = make_footprint({**RUN, "accounting": accounting}, account("counter", "modelled"), STEPS, [])
    for block in BLOCKS:
        told = record[block]["quantities"]
        figures = {k for k, v in record[block].items() if isinstance(v, int | float) and not isinstance(v, bool)}
        assert figures <= set(told) <= set(record[block]), (block, figures - set(told))
        for key, each in told.items():
            assert each["boundary"] in BOUNDARIES and (each["method"] in METHODS or each["method"] is None)
            assert (each["method"] is None) == (record[block][key] is None), (block, key)
            assert ("from" in each) >= (each["method"] == "computed"), (block, key)


def test_the_method_of_the_energy_is_that_of_its_devices() -> None:
    def method(*methods: str) -> str:
        told = make_footprint(RUN, account(*methods), STEPS, [])["energy"]["quantities"]["energy_it_kwh"]
        assert told["boundary"] == "gpu"
        return told["method"]

    assert method("counter", "counter") == "counter" and method("modelled") == "modelled"
    assert method("counter", "integrated") == "measured" and method("counter", "modelled") == "mixed"


def test_an_hourly_series_computes_the_intensity() -> None:
    hours = IntensitySeries((0.0, 3600.0), (3600.0, 7200.0), (100.0, 300.0), "the operator")
    metered = account("counter", "counter")
    metered.curve = (np.array([1000.0, 4600.0]), np.array([0.0, 3.6e6]))
    record = make_footprint(RUN, metered, STEPS, [], hours)
    carbon = record["carbon"]
    assert carbon["quantities"]["intensity_g_per_kwh"]["method"] == "computed"
    assert "hour by hour" in carbon["quantities"]["carbon_tco2eq"]["from"]
    marginal = make_footprint(RUN, metered, STEPS, [], replace(hours, basis=Basis.parse("marginal")))
    (said,) = set(marginal["quality"]["warnings"]) - set(record["quality"]["warnings"])
    assert said.startswith("the operator: marginal intensities") and marginal["carbon"]["basis"] == "location"


def test_only_a_sensor_or_a_declaration_of_the_whole_node_makes_it_whole() -> None:
    assert boundary_text("node", {"gpu", "cpu"}) == BOUNDARIES["node"] and boundary_text("gpu", {"gpu"}).startswith(
        "the acc"
    )
    assert all(boundary_text("node", {"gpu", kind}).startswith("whole nodes") for kind in ("node", "baseline"))

    def told(*nodes: str) -> tuple[str | None, str]:
        devices = [{"node": f"n{n}", "kind": k, "samples": 9} for n, kinds in enumerate(nodes) for k in kinds.split()]
        unread = {"node": "n9", "kind": "gpu", "samples": 0}
        energy = {"boundary": "node", "devices": [*devices, unread, {"node": "", "kind": "unknown", "samples": 9}]}
        return covered_by(energy), boundary_of_record(energy)

    assert told("gpu node", "gpu baseline") == ("whole nodes", WHOLE_NODE)
    assert told("gpu cpu", "gpu") == ("node", BOUNDARIES["node"])
    parts = f"1 of 2 nodes as {WHOLE_NODE}; of the others {BOUNDARIES['node']}"
    assert told("gpu cpu baseline node", "gpu cpu") == ("1 of 2 nodes whole", parts)
    nothing: dict[str, Any] = {"boundary": None, "devices": []}
    assert (covered_by(nothing), boundary_of_record(nothing)) == (None, "no device was metered")


def test_a_mig_instance_is_said_to_count_as_a_whole_gpu_in_what_was_made() -> None:
    notes = [make_footprint(RUN, account(method), STEPS, [])["embodied"]["note"] for method in ("counter", "assumed")]
    assert notes[1].startswith(f"{notes[0]}; a MIG instance counts as the whole of its GPU")


def test_the_schema_knows_the_words_for_boundaries_and_methods() -> None:
    words = record_schema()["$defs"]["quantities"]["additionalProperties"]["properties"]
    assert words["boundary"]["enum"] == [*BOUNDARIES, None] and words["method"]["enum"] == [*METHODS, None]


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("intensity_g_per_kwh", 0.385, "0.385 g/kWh is less than any grid has: are these kg/kWh?"),
        ("intensity_g_per_kwh", 385_000, "more than any grid has"),
        ("pue", 11.0, "a PUE of 11"),
    ],
)
def test_what_is_implausible_is_said_in_the_record(key: str, value: float, said: str) -> None:
    def warnings(accounting: dict[str, Any]) -> list[str]:
        metered = hour([device("GPU-1", "NVIDIA A100-SXM4-80GB", 1.2e6)])
        record = make_footprint({**RUN, "accounting": accounting}, metered, STEPS, [])
        return [text for text in record["quality"]["warnings"] if text.startswith("implausible: ")]

    assert any(said in text for text in warnings(RUN["accounting"] | {key: {"value": value, "source": "spec"}}))
    assert warnings(RUN["accounting"]) == []


def test_intervals_independent_when_measured_and_together_when_modelled() -> None:
    two = make_footprint(RUN, account("counter", "integrated"), STEPS, [])["uncertainty"]
    # Two equal uniform errors: a triangle, whose 95 % lie within (1 - sqrt(0.05)) of its half width.
    assert two["relative"] == pytest.approx(0.05 * (1 - math.sqrt(0.05)), rel=2e-3)
    assert two["energy_it_kwh"]["low"] < 1.0 < two["energy_it_kwh"]["high"]
    assert make_footprint(RUN, account("modelled", "modelled"), STEPS, [])["uncertainty"]["relative"] == pytest.approx(
        0.5 * 0.95
    )


def test_a_node_with_a_sensor_of_its_own_has_that_sensors_interval_alone(tmp_path: Path) -> None:
    """As the window over the same readings has it; a second node is independent of the first."""

    def sensors() -> list[FakeSensor]:
        gpus = [FakeSensor(f"GPU-{n}", [reading(100.0 * t, 100.0) for t in range(101)]) for n in range(8)]
        return [*gpus, FakeSensor("bmc", [reading(1000.0 * t, 1000.0) for t in range(101)], kind="node")]

    run = RunFolder(tmp_path / "r")
    meter_fake(run, sensors(), [float(t) for t in range(101)])
    account = account_run(run)
    told = make_footprint(RUN, account, [], [])["uncertainty"]
    assert account.energy_j == pytest.approx(100_000)
    assert told["relative"] == 0.0475 and told["relative_90"] == 0.045

    window, _ = metered_window(sensors(), 99)
    assert window.energy_j and window.high_j
    assert (window.high_j - window.energy_j) / window.energy_j == pytest.approx(told["relative"], rel=0.01)

    second = [replace(each, node="n2") for each in account.devices]
    both = make_footprint(RUN, hour([*account.devices, *second]), [], [])["uncertainty"]["relative"]
    assert both == pytest.approx(0.05 * (1 - math.sqrt(0.05)), rel=2e-3)


def test_a_node_sensor_that_was_never_read_takes_nothing_away(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "r")
    gpu = FakeSensor("GPU-1", [reading(100.0 * t, 100.0) for t in range(21)])
    meter_fake(run, [gpu, FakeSensor("bmc", [reading()] * 21, kind="node")], [float(t) for t in range(21)])
    record = make_footprint(RUN, account_run(run), [], [])
    assert record["energy"]["energy_it_kwh"] == pytest.approx(2000 / 3.6e6)
    assert any("(bmc) was never read" in text for text in record["quality"]["warnings"])


def test_the_peak_is_that_of_the_metered_devices_whatever_the_spec_names() -> None:
    def record(name: str, device_type: str = "cuda") -> dict[str, Any]:
        accounting = RUN["accounting"] | {"peak_flops": peak_flops("A100-80GB").as_dict()}
        run = {**RUN, "accounting": accounting, "device_type": device_type}
        return make_footprint(run, hour([device("GPU-1", name, 1e6)]), STEPS, [])

    def said(record: dict[str, Any]) -> list[str]:
        return [text for text in record["quality"]["warnings"] if "the spec names" in text]

    h100 = record("NVIDIA H100 80GB HBM3")
    assert h100["compute"]["peak_flops"] == peak_flops("NVIDIA H100 80GB HBM3").value > 900e12
    assert h100["energy"]["paper_method"]["device_power_w"] == 700
    assert len(said(h100)) == 1 and "H100" in said(h100)[0] and "A100" in said(h100)[0]
    assert said(record("NVIDIA A100-SXM4-80GB")) == []
    unknown = record("NVIDIA A100-SXM4-80GB MIG 1g.10gb")
    assert unknown["compute"]["peak_flops"] == 312e12 and "MIG 1g.10gb" in said(unknown)[0]
    on_cpus = record("some CPU", device_type="cpu")
    assert on_cpus["compute"]["peak_flops"] is None and on_cpus["compute"]["mfu"] is None
    assert "no MFU" in said(on_cpus)[0]


def test_the_ranges_of_factors_are_in_the_interval_of_what_they_make() -> None:
    ranged = {"pue": {"value": 1.2, "source": "spec", "low": 1.1, "high": 1.3},
              "intensity_g_per_kwh": {"value": 400.0, "source": "spec", "low": 300.0, "high": 400.0}}  # fmt: skip
    told = make_footprint({**RUN, "accounting": ranged}, account("counter"), STEPS, [])["uncertainty"]
    plain = make_footprint(RUN, account("counter"), STEPS, [])["uncertainty"]

    def relative(key: str, bound: str) -> float:
        value = {"energy_it_kwh": 0.5, "energy_facility_kwh": 0.6, "carbon_tco2eq": 0.6 * 400 / 1e6}[key]
        return told[key][bound] / value - 1

    assert told["energy_it_kwh"] == plain["energy_it_kwh"]
    assert relative("energy_facility_kwh", "high") == pytest.approx(quantile([0.05, 1 / 12]), rel=1e-5)
    # The intensity's range lies to one side of its value: so does the middle of the carbon.
    assert relative("carbon_tco2eq", "p50") == pytest.approx(-0.125)
    assert relative("carbon_tco2eq", "high") == pytest.approx(-0.125 + quantile([0.05, 1 / 12, 0.125]), rel=1e-4)
    assert told["factors_with_range"] == ["pue", "intensity_g_per_kwh"] and told["factors_without_range"] == []
    assert plain["factors_without_range"] == ["pue", "intensity_g_per_kwh"]
    assert "pue as given: its source states no range" in plain["method"]


def test_the_tables_range_of_a_fleet_widens_the_carbon() -> None:
    """The carbon's interval is wider than the energy's where a factor has a range, and as wide where none has."""

    def widths(accounting: dict[str, Any]) -> tuple[float, float]:
        told = make_footprint({**RUN, "accounting": accounting}, account("counter"), STEPS, [])["uncertainty"]
        energy, carbon = told["energy_it_kwh"], told["carbon_tco2eq"]
        return tuple((each["high"] - each["low"]) / each["p50"] for each in (energy, carbon))  # type: ignore[return-value]

    energy, carbon = widths(RUN["accounting"] | {"pue": pue()["aws fleet 2025"].as_dict()})
    assert carbon > 2 * energy
    energy, carbon = widths(RUN["accounting"] | {"pue": pue()["aws eu-west-1 2025"].as_dict()})
    assert carbon == pytest.approx(energy)


def test_last_bits_of_a_library_do_not_reach_the_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = make_footprint(RUN, account("counter", "integrated", "counter"), STEPS, [])
    sine, exponential = math.sin, math.exp
    monkeypatch.setattr(uncertainty.math, "sin", lambda x: math.nextafter(sine(x), 2.0))
    monkeypatch.setattr(uncertainty.math, "exp", lambda x: math.nextafter(exponential(x), 0.0))
    uncertainty.relative_quantile.cache_clear()
    other = make_footprint(RUN, account("counter", "integrated", "counter"), STEPS, [])
    uncertainty.relative_quantile.cache_clear()
    assert canonical(other) == canonical(plain)


def test_no_sensor_is_missing_and_not_zero() -> None:
    record = make_footprint(RUN, hour([]), STEPS, [])
    assert record["energy"]["energy_it_kwh"] is None
    assert record["uncertainty"]["energy_it_kwh"] is None
    assert any("missing" in text for text in record["quality"]["warnings"])
    assert record["quality"]["gap_s"] is None and record["energy"]["boundary"] is None
    assert record["energy"]["quantities"]["energy_it_kwh"] == {"boundary": None, "method": None}
    assert record["time"]["gpu_hours"] == 2.0  # that they were held is known all the same


def test_of_a_run_that_ended_before_it_had_devices_no_hours_are_known() -> None:
    """Ray did not start: 64 workers were asked for, and the host that is named is the driver's."""
    peak = peak_flops("A100-80GB").as_dict()
    run = {**RUN, "status": "failed", "device_type": None, "world_size": 64, "accounting": {"peak_flops": peak}}
    record = make_footprint(run, hour([]), [], [])
    compute, time = record["compute"], record["time"]
    hours = [compute[key] for key in ("devices", "mean_devices", "device_hours", "gpu_hours", "hardware_days")]
    assert {*hours, time["device_hours"], time["gpu_hours"], time["quantities"]["gpu_hours"]["method"]} == {None}
    assert record["energy"]["paper_method"] is record["embodied"]["carbon_tco2eq"] is None
    assert not any("on CPUs" in text for text in record["quality"]["warnings"]) and time["duration_s"] == 3600


def test_a_device_that_was_never_read_is_missing_beside_one_that_was() -> None:
    never = replace(device("GPU-1", "NVIDIA A100-SXM4-80GB", 0.0, method="unknown"), samples=0)
    at_rest = device("GPU-2", "NVIDIA A100-SXM4-80GB", 0.0)
    devices = [*account("counter").devices, never, at_rest]
    energy = make_footprint(RUN, hour(devices), STEPS, [])["energy"]
    assert [each["energy_j"] for each in energy["devices"]] == [1.8e6, None, 0.0]
    assert [each["energy_kwh"] for each in energy["devices"]] == [0.5, None, 0.0] and energy["energy_it_kwh"] == 0.5


def test_a_failed_run_is_partial_and_counts_recomputed_tokens() -> None:
    again = [{**step, "attempt": 2} for step in STEPS[3:6]]
    record = make_footprint({**RUN, "status": "failed", "error": "boom"}, account("counter"), STEPS[:5] + again, [])
    assert record["run"]["partial"] is True
    assert record["run"]["trained_fraction"] == pytest.approx(0.6)
    assert record["data"]["tokens_processed"] == 800


def test_a_run_whose_last_step_was_skipped_came_to_its_end() -> None:
    skipped = [{"step": n, "reason": "the loss is nan"} for n in (3, 10)]
    data = {"steps_skipped": 2, "tokens_skipped": 200, "skipped": skipped}
    ended = make_footprint({**RUN, "data": data}, account("counter"), STEPS[:2] + STEPS[3:9], [])
    assert ended["run"]["trained_fraction"] == 1 and ended["run"]["partial"] is False
    assert make_footprint(RUN, account("counter"), STEPS[:9], [])["run"]["partial"] is True


def test_no_steps_no_division() -> None:
    record = make_footprint({**RUN, "status": "failed"}, account("counter"), [], [])
    assert record["energy"]["joule_per_token"] is None
    assert record["run"]["trained_fraction"] == 0


def test_each_attempt_counts_the_gpus_that_it_held() -> None:
    """Ten hours on eight GPUs and one on four are 84 GPU-hours, whatever the run had last."""
    first = {"attempt": 1, "started_unix_s": 0.0, "ended_unix_s": 36_000.0, "status": "failed", "world_size": 8}
    second = {**first, "attempt": 2, "started_unix_s": 40_000.0, "ended_unix_s": 43_600.0, "world_size": 4}
    run = {**RUN, "world_size": 4, "attempts": [first, second], "ended_unix_s": 43_600.0}
    steps = STEPS[:5] + [{**step, "attempt": 2, "seconds": 2.0} for step in STEPS[5:]]  # half as fast on half as many
    record = make_footprint(run, account(*["counter"] * 8), steps, [])
    assert record["time"]["gpu_hours"] == record["compute"]["device_hours"] == 84.0
    assert record["energy"]["paper_method"]["device_hours"] == 84.0
    assert not any("did not train" in text for text in record["quality"]["warnings"])  # all eight did, at first
    alone = make_footprint({**RUN, "world_size": 8}, account(*["counter"] * 8), STEPS[:5], [])
    assert record["compute"]["mfu"] == pytest.approx(alone["compute"]["mfu"])
    # Five seconds on eight and ten on four carried the tokens, however long each of them was held.
    assert record["compute"]["mean_devices"] == pytest.approx((5 * 8 + 10 * 4) / 15)
    assert alone["compute"]["mean_devices"] == 8.0
    unsaid = [{key: value for key, value in each.items() if key != "world_size"} for each in (first, second)]
    assert make_footprint({**run, "attempts": unsaid}, account("counter"), steps, [])["time"]["gpu_hours"] == 44.0
    waited = [{**first, "waited_s": 36_000.0}]  # nobody held them in all that time: none, and not all of it
    assert make_footprint({**run, "attempts": waited}, account("counter"), [], [])["time"]["gpu_hours"] == 0.0
    assert make_footprint({**run, "attempts": []}, account("counter"), [], [])["time"]["gpu_hours"] > 0


def test_a_command_that_is_measured_has_no_useful_energy_rather_than_none_of_it() -> None:
    energy = make_footprint({**RUN, "kind": "measure"}, account("counter"), [], [])["energy"]
    assert energy["useful_kwh"] is None and energy["useful_share"] is None
    assert energy["quantities"]["useful_kwh"]["method"] is None
    assert make_footprint(RUN, account("counter"), STEPS, [])["energy"]["useful_share"] == pytest.approx(0.75)


def test_pure_and_canonical() -> None:
    run, before = copy.deepcopy(RUN), copy.deepcopy(RUN)
    text = canonical(make_footprint(run, account("counter"), STEPS, []))
    assert run == before
    assert text == canonical(make_footprint(run, account("counter"), STEPS, []))
    assert list(json.loads(text)) == sorted(json.loads(text))


def test_a_loss_that_is_no_number_does_not_stop_the_record() -> None:
    record = make_footprint(RUN, account("counter"), [*STEPS[:-1], {**STEPS[-1], "loss": math.nan}], [])
    assert record["data"]["training_loss"] is None
    canonical(record)

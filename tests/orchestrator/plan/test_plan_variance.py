"""Planned against actual: the factors multiply to the ratio, and each names its cause."""

import math

import pytest
from plan_fakes import footprint, spec

from orchestrator.plan import compare, make_plan

EXPERIMENT = spec("llama_7b", "cluster.workers=8")
PLANNED = 4668.2365  # tokens/s of each
# At that rate on 8 for 90 % of the tokens, then on 4: a device-second each over 0.1375 s.
ELASTIC = {"world_size": 4, "tokens_per_s": PLANNED / 0.1375, "mean_devices": 1 / 0.1375}


def explained(actual: dict) -> dict:
    return compare(make_plan(EXPERIMENT), actual)


@pytest.mark.parametrize("changes", [{"trained": 1.2e8}, ELASTIC])
def test_the_factors_multiply_to_every_total(changes: dict) -> None:
    result = explained(footprint(EXPERIMENT, **changes))
    ratios = {row["factor"]: row["ratio"] for row in result["factors"]}
    assert [total["key"] for total in result["totals"]] == [
        "device_hours", "energy_it_kwh", "energy_facility_kwh", "carbon_tco2eq",
    ]  # fmt: skip
    for total in result["totals"]:
        assert math.prod(ratios[name] for name in total["factors"]) == pytest.approx(total["ratio"], rel=1e-12)
        assert total["ratio"] == total["actual"] / total["planned"]
    assert math.fsum(row["share"] for row in result["factors"]) == pytest.approx(1)


@pytest.mark.parametrize(
    ("changes", "factor", "ratio", "says"),
    [
        ({"power_w": 200.0}, "power", 0.5, "less"),
        ({"intensity": 770.0}, "intensity", 2.0, "dirtier"),
        ({"tokens_per_s": 8 * PLANNED / 2}, "throughput", 2.0, "slower"),
        (ELASTIC, "throughput", 1.0, "as planned"),
        (ELASTIC | {"duration_s": 3600.0}, "overhead", 1.0, "as planned"),
        ({"trained": 40_000.0 * 3600 / 1.25}, "repeated", 1.25, "done again"),
        ({"duration_s": 7200.0}, "overhead", 2.0, "outside"),
        ({"pue": 1.1}, "pue", 1.0, "as planned"),
    ],
)
def test_a_cause_is_named(changes: dict, factor: str, ratio: float, says: str) -> None:
    row = next(row for row in explained(footprint(EXPERIMENT, **changes))["factors"] if row["factor"] == factor)
    assert row["ratio"] == pytest.approx(ratio, rel=1e-3)
    assert says in row["text"]


def test_what_one_side_does_not_know_has_no_ratio() -> None:
    actual = footprint(EXPERIMENT)
    actual["carbon"] = {"carbon_tco2eq": None, "intensity_g_per_kwh": None}
    result = explained(actual)
    assert result["explained"] == "energy_facility_kwh"
    assert result["factors"][-1]["ratio"] is None and result["totals"][-1]["ratio"] is None
    assert math.fsum(row["share"] for row in result["factors"] if row["share"] is not None) == pytest.approx(1)


def test_a_plan_without_a_throughput_explains_nothing() -> None:
    laptop = spec("laptop")
    result = compare(make_plan(laptop), footprint(laptop, device_type="cpu", world_size=2))
    assert result["explained"] is None and all(total["ratio"] is None for total in result["totals"])


def test_a_run_that_trained_nothing_is_compared_without_a_failure() -> None:
    actual = footprint(EXPERIMENT)
    actual["data"] = {"tokens_trained": 0, "tokens_processed": 0}
    actual["compute"]["tokens_per_s"] = None
    assert explained(actual)["explained"] is None

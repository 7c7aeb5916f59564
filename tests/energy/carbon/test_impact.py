"""What stands beside the energy, to the gram and the litre: each column by hand from a factor of its own."""

from typing import Any

import pytest

from energy.carbon.impact import carbon_block, embodied_block, given, sci_block, water_block

IT_KWH, FACILITY_KWH = 80.0, 100.0
YEAR_H = 8760.0


def declared(**values: Any) -> dict[str, Any]:
    return {"accounting": {key: {"value": value, "source": f"{key} by us"} for key, value in values.items()}}


def carbon_of(run: dict[str, Any], warnings: list[str] | None = None) -> dict[str, Any]:
    return carbon_block(run, FACILITY_KWH, 1.25, None, None, [] if warnings is None else warnings)


def test_carbon_by_location_by_market_and_of_the_losses_on_the_lines() -> None:
    run = declared(intensity_g_per_kwh=400.0, intensity_market_g_per_kwh=50.0, transmission_loss=0.2)
    found = carbon_of(run)
    assert found["carbon_tco2eq"] == pytest.approx(0.04)
    assert found["carbon_market_tco2eq"] == pytest.approx(0.005)
    # Of 125 kWh that the power stations give, a fifth is lost: 25 kWh more, and not a fifth of 100.
    assert found["carbon_transmission_tco2eq"] == pytest.approx(0.01)
    assert (found["source"], found["market_source"]) == (
        "intensity_g_per_kwh by us",
        "intensity_market_g_per_kwh by us",
    )
    alone = carbon_of(declared(intensity_g_per_kwh=400.0))
    assert alone["carbon_market_tco2eq"] is None and alone["carbon_transmission_tco2eq"] is None
    assert carbon_block(run, None, None, None, None, [])["carbon_tco2eq"] is None


def test_figures_at_the_edge_of_what_can_be() -> None:
    assert given(declared(pue=1.0), "pue", 1.0) == (1.0, "pue by us")
    assert carbon_of(declared(intensity_g_per_kwh=0.0))["carbon_tco2eq"] == 0.0  # known, and nothing
    for run, key, lowest in (
        (declared(pue=0.99), "pue", 1.0),
        (declared(wue_l_per_kwh=float("nan")), "wue_l_per_kwh", 0.0),
    ):
        with pytest.raises(ValueError, match=key):
            given(run, key, lowest)
    with pytest.raises(ValueError, match="below 1"):
        carbon_of(declared(intensity_g_per_kwh=400.0, transmission_loss=1.0))


def test_location_beside_market_is_as_it_should_be_and_other_bases_beside_each_other_are_said() -> None:
    run = declared(intensity_g_per_kwh=400.0, intensity_market_g_per_kwh=50.0)
    run["accounting"]["intensity_g_per_kwh"]["basis"] = {"scope": "lifecycle", "market": "location"}
    run["accounting"]["intensity_market_g_per_kwh"]["basis"] = {"scope": "direct", "market": "market"}
    warnings: list[str] = []
    carbon_of(run, warnings)
    assert len(warnings) == 1 and "lifecycle" in warnings[0] and "direct" in warnings[0]


def test_water_on_site_is_of_the_it_energy_and_off_site_of_the_facilitys() -> None:
    found = water_block(declared(wue_l_per_kwh=0.5, water_intensity_l_per_kwh=2.0), IT_KWH, FACILITY_KWH)
    assert (found["on_site_l"], found["off_site_l"]) == (40.0, 200.0)
    alone = water_block(declared(water_intensity_l_per_kwh=2.0), IT_KWH, FACILITY_KWH)
    assert alone["off_site_l"] == 200.0 and "off site is" in alone["note"]
    nothing = water_block({}, IT_KWH, FACILITY_KWH)
    assert nothing["on_site_l"] is None and nothing["off_site_l"] is None and "not counted" in nothing["note"]


def test_a_gpu_for_a_year_carries_its_part_of_its_making_and_of_a_server() -> None:
    found = embodied_block({"device_type": "cuda"}, ["NVIDIA A100-SXM4-80GB"] * 2, YEAR_H)
    assert found["carbon_tco2eq"] == pytest.approx((150 / 5 + 5700 / 8 / 4.5) / 1000)
    assert found["low_tco2eq"] == pytest.approx((127.6 / 6 + 2500 / 8 / 6) / 1000)
    assert found["high_tco2eq"] == pytest.approx((319.3 / 4 + 5700 / 8 / 3) / 1000)
    for run, names in (({"device_type": "cpu"}, ["a CPU"]), ({"device_type": "cuda"}, ["NVIDIA H200"])):
        unknown = embodied_block(run, names, YEAR_H)
        assert unknown["carbon_tco2eq"] is None and "does not mean zero" in unknown["note"]


def test_of_several_known_kinds_the_reason_is_that_their_hours_are_not_told_apart() -> None:
    names = ["NVIDIA H100 80GB HBM3", "NVIDIA A100-SXM4-80GB"]
    found = embodied_block({"device_type": "cuda"}, names, YEAR_H)
    assert found["carbon_tco2eq"] is None
    assert found["note"].startswith("not counted: the record does not know which part of the device-hours")
    assert "A100-SXM4-80GB, H100-SXM" in found["note"]


def test_sci_is_both_carbons_in_grams_for_each_unit() -> None:
    found = sci_block(0.04, 0.01, 2e6, 4e18, 5_000_000)
    assert [found[f"score_g_per_{unit}"] for unit in ("million_tokens", "exaflop", "million_params")] == pytest.approx(
        [25_000, 12_500, 10_000]
    )
    assert found["operational_g_per_million_tokens"] == pytest.approx(20_000)
    part = sci_block(0.04, None, 2e6, None, None)
    assert part["score_g_per_million_tokens"] is None and "stands alone" in part["note"]
    assert part["operational_g_per_million_tokens"] == pytest.approx(20_000)
    assert part["operational_g_per_exaflop"] is None and part["operational_g_per_million_params"] is None
    assert sci_block(0.04, 0.01, 0.0, None, None)["score_g_per_million_tokens"] is None  # of no token

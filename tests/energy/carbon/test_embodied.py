"""Embodied carbon: the standard's own example, BLOOM's rates, and one device by both conventions."""

import pytest

from energy.carbon.embodied import BUSY_SHARE, embodied_rate, hourly_kg


def test_a_tonne_over_four_calendar_years_is_28_5_g_an_hour() -> None:
    assert hourly_kg(1000, 4) * 1000 == pytest.approx(28.5, abs=0.05)


def test_bloom_s_rates_by_the_hours_in_use() -> None:
    assert hourly_kg(2500, 6, "busy-hour") == pytest.approx(0.056, abs=5e-4)
    assert hourly_kg(150, 6, "busy-hour") == pytest.approx(0.003, abs=4e-4)


def test_a_device_carries_an_eighth_of_a_server() -> None:
    rate = embodied_rate("NVIDIA A100-SXM4-80GB")
    assert rate is not None
    assert rate.central_kg_per_h == pytest.approx(150 / (5 * 8760) + 5700 / 8 / (4.5 * 8760))
    assert rate.low_kg_per_h == pytest.approx(127.6 / (6 * 8760) + 2500 / 8 / (6 * 8760))
    assert rate.high_kg_per_h == pytest.approx(319.3 / (4 * 8760) + 5700 / 8 / (3 * 8760))
    assert [factor.value for factor in rate.factors] == [150, 5700]
    busy = embodied_rate("A100-80GB", "busy-hour")
    assert busy is not None and busy.central_kg_per_h == pytest.approx(rate.central_kg_per_h / BUSY_SHARE)


def test_no_gpu_s_figure_has_the_server_in_it() -> None:
    """A server is added to each GPU: a published share of a server with its GPUs would count it twice."""
    rate = embodied_rate("NVIDIA H100 80GB HBM3")
    assert rate is not None and [factor.value for factor in rate.factors] == [1312 / 8, 5700]


def test_unknown_is_none_and_a_foreign_device_an_error() -> None:
    assert embodied_rate("H200") is None
    with pytest.raises(ValueError, match="unknown accelerator"):
        embodied_rate("H1000")

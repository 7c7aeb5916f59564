"""Units for people."""

from energy.human import human_carbon, human_count, human_energy, human_flop, human_joule, human_time


def test_the_scale_fits() -> None:
    assert human_energy(0.0005) == "0.500 Wh"
    assert human_energy(0.0015) == "1.50 Wh"
    assert human_energy(2500) == "2.50 MWh"
    assert human_carbon(3.2e-7) == "320 mg CO₂eq"
    assert human_joule(0.0042) == "4.20 mJ"
    assert human_count(1.4e12) == "1.40 T"
    assert human_count(819_200) == "819 k"
    assert human_time(3 * 86400) == "3.00 d"
    assert human_flop(2e21) == "2.00 ZFLOP"
    assert human_time(90) == "1.50 min"


def test_the_interval_keeps_the_unit() -> None:
    assert human_energy(1.5, 1.4, 1.6) == "1.50 kWh (1.40 to 1.60)"
    assert human_carbon(1.0, 0.9, 1.1) == "1.00 t CO₂eq (0.900 to 1.10)"


def test_nothing_is_not_zero() -> None:
    assert human_energy(None) == "not known"
    assert human_carbon(None) == "not known"
    assert human_energy(0) == "0 J"

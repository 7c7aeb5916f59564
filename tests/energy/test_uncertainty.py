"""The interval holds the truth as often as it says: neither too narrow nor too wide."""

import math
import random

import pytest
from energy_fakes import FakeSensor, reading

from energy.meter import Meter
from energy.uncertainty import half_width, quantile

NORMAL_Z = 1.959963984540054


def test_quantiles_that_are_known() -> None:
    assert quantile([]) == 0.0
    assert quantile([2.0]) == pytest.approx(1.9)
    assert quantile([1.0, 1.0]) == pytest.approx(2 * (1 - math.sqrt(0.05)), rel=2e-3)  # a triangle
    assert quantile([1.0] * 100) == pytest.approx(NORMAL_Z * math.sqrt(100 / 3), rel=1e-6)
    assert quantile([1.0] * 30) == pytest.approx(NORMAL_Z * math.sqrt(30 / 3), rel=5e-3)
    assert quantile([1.0, 1e-6]) == pytest.approx(0.95, rel=1e-3)
    assert quantile([100.0] + [0.01] * 100) == pytest.approx(95.0, rel=5e-3)  # many, but one of them dominates


def test_over_a_thousand_simulated_runs_the_truth_lies_inside_in_95_of_100() -> None:
    draw = random.Random(11)
    inside = 0
    for _ in range(1000):
        boards = [draw.uniform(100, 1000) for _ in range(draw.choice([1, 1, 2, 4, 8]))]
        edge_j = draw.uniform(0, 10)
        guessed = draw.choice([0.0, draw.uniform(10, 300)])
        modelled = guessed * (1 + draw.uniform(-0.5, 0.5))  # the truth lies within half of what the model gave
        read = [true_j * (1 + draw.uniform(-0.05, 0.05)) + draw.uniform(-edge_j, edge_j) for true_j in boards]
        parts = [("counter", energy_j, edge_j) for energy_j in read] + [("modelled", guessed, 0.0)]
        half_j = half_width(parts)
        inside += abs(math.fsum(read) + guessed - math.fsum(boards) - modelled) <= half_j
    assert 930 <= inside <= 990


def test_over_windows_of_a_meter_too() -> None:
    draw = random.Random(5)
    inside = 0
    for _ in range(400):
        count, true_j = draw.choice([1, 2, 3]), 0.0
        sensors = []
        for n in range(count):
            power_w, gain = draw.uniform(80, 400), draw.uniform(0.95, 1.05)
            true_j += 10 * power_w
            readings = [reading(energy_j=power_w * gain * t, power_w=power_w * gain) for t in range(12)]
            sensors.append(FakeSensor(f"GPU-{n}", readings))
        now = [0.0]
        meter = Meter(sensors=sensors, discover_sensors=False, interval_s=1.0, clock=lambda now=now: (now[0], now[0]))
        meter.sample()
        meter.begin("w")
        for t in range(1, 11):
            now[0] = float(t)
            meter.sample()
        window = meter.end("w")
        now[0] = 11.0
        meter.sample()
        inside += window.low_j <= true_j <= window.high_j
    assert 372 <= inside <= 396  # 93 to 99 of 100

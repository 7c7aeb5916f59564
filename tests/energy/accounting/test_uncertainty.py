"""The interval holds the truth as often as it says: neither too narrow nor too wide."""

import math
import random

import pytest
from energy_fakes import FakeSensor, metered_window, reading

from energy.accounting.account import Account, DeviceEnergy
from energy.accounting.uncertainty import half_width, quantile
from energy.records.footprint import make_footprint
from energy.units import JOULE_PER_KWH

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
        window, _ = metered_window(sensors, 10)
        inside += window.low_j <= true_j <= window.high_j
    assert 372 <= inside <= 396  # 93 to 99 of 100


RUN = {"device_type": "cuda", "world_size": 1, "accounting": {}}


def simulated(draw: random.Random) -> tuple[float, Account]:
    """(true J, account) of a run on one to three nodes, as their sensors gave it: some nodes with a sensor of their
    own, devices with counters or power alone (which missed something), a gap, modelled CPUs."""
    true_j, devices = 0.0, []
    wrong = draw.uniform(-0.5, 0.5)  # of all models together: the truth beside what they gave
    for node in range(draw.choice([1, 1, 2, 3])):
        parts = []
        for number in range(draw.choice([1, 2, 4])):
            used_j, gap_j, doubt_j = draw.uniform(1e3, 1e5), draw.choice([0.0, 500.0]), 0.0
            method, missed_j = draw.choice(["counter", "integrated"]), 0.0
            if method == "integrated":
                doubt_j = draw.uniform(0.0, 0.2) * used_j
                missed_j = draw.uniform(-doubt_j, doubt_j)
            read_j = (used_j + gap_j) * (1 + draw.uniform(-0.05, 0.05)) + missed_j
            parts.append((used_j + gap_j, DeviceEnergy(f"G{node}-{number}", "GPU", f"n{node}", "gpu", "node", method,
                                                       read_j, 10, 0.0, doubt_j)))  # fmt: skip
        cpu_j = draw.uniform(0.0, 2e4)
        parts.append((cpu_j * (1 + wrong), DeviceEnergy(f"C{node}", "CPU", f"n{node}", "cpu", "node", "modelled",
                                                        cpu_j, 10, 0.0)))  # fmt: skip
        node_j = math.fsum(part for part, _ in parts)
        devices += [part for _, part in parts]
        if draw.random() < 0.5:
            # The node's sensor was read for a share of the time, and other people's GPUs are on the node as well.
            share, beyond_j = draw.choice([1.0, 0.3]), draw.uniform(1e3, 1e4)
            others = [(used_j, used_j * (1 + draw.uniform(-0.05, 0.05))) for used_j in [5e4] * draw.choice([0, 0, 3])]
            doubt_j = draw.uniform(0.0, 0.02) * node_j
            true_reading_j = share * (node_j + beyond_j) + math.fsum(used_j for used_j, _ in others)
            read_j = true_reading_j * (1 + draw.uniform(-0.05, 0.05)) + draw.uniform(-doubt_j, doubt_j)
            for _, part in parts:
                part.in_node_j = share * part.energy_j
            inside_j = math.fsum([*(part.in_node_j for _, part in parts), *(told_j for _, told_j in others)])
            taken_out = [("counter", -told_j, 0.0) for _, told_j in others]
            devices.append(DeviceEnergy(f"N{node}", "rest of the node", f"n{node}", "node", "node", "integrated",
                                        read_j - inside_j, 10, 0.0, doubt_j, in_node_j=-inside_j,
                                        taken_out=taken_out))  # fmt: skip
            node_j += share * beyond_j  # what the rest used while nobody read it is missing, and named
        true_j += node_j
    return true_j, Account(devices, start_unix_s=0.0, end_unix_s=3600.0)


def test_over_a_thousand_runs_through_the_record_too() -> None:
    draw = random.Random(3)
    inside = inside_90 = 0
    for _ in range(1000):
        true_j, account = simulated(draw)
        told = make_footprint(RUN, account, [], [])["uncertainty"]["energy_it_kwh"]
        inside += told["low"] <= true_j / JOULE_PER_KWH <= told["high"]
        inside_90 += told["p5"] <= true_j / JOULE_PER_KWH <= told["p95"]
    assert 930 <= inside <= 990 and 870 <= inside_90 <= 940

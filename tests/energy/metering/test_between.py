"""The edge of a window lies between two updates of a counter: where in between the energy was used."""

import math
import random

import pytest
from truth import parse

from energy.metering.between import used_mj
from energy.metering.track import Track
from energy.sensors import Reading

PERIOD_S, MEAN_OF_S = 0.1, 0.025


def test_a_load_that_is_switched_is_cut_exactly() -> None:
    seen = [(0.95, 100.0), (1.05, 100.0), (1.15, 400.0)]  # switched at 1.08, between updates at 1.0 and 1.1
    total_mj = 1e3 * (100 * 0.08 + 400 * 0.02)
    for at_s, joules in ((1.0, 0.0), (1.05, 5.0), (1.08, 8.0), (1.09, 12.0), (1.1, 16.0)):
        assert used_mj(1.0, 1.1, total_mj, at_s, seen) == pytest.approx(1e3 * joules, abs=1e-6)


@pytest.mark.parametrize(
    "seen",
    [
        [(0.95, 100.0), (1.05, 100.0)],  # nobody saw what came after
        [(1.05, 100.0), (1.15, 400.0)],  # nor what was before
        [(0.95, 100.0), (1.05, 400.0), (1.15, 100.0)],  # there and back
        [(0.95, 100.0), (1.15, 150.0)],  # no moment of a single change gives the total
        [(0.95, 200.0), (1.15, 200.0)],
        [],
    ],
)
def test_otherwise_it_is_a_straight_line(seen: list[tuple[float, float]]) -> None:
    assert used_mj(1.0, 1.1, 20_000.0, 1.03, seen) == pytest.approx(6000.0)


def test_updates_at_one_moment_leave_nothing_between() -> None:
    assert used_mj(1.0, 1.0, 0.0, 1.0, [(0.9, 100.0), (1.1, 200.0)]) == 0.0


def test_edges_in_a_load_that_is_switched_all_the_time_are_nearer_than_a_straight_line() -> None:
    draw = random.Random(3)
    ours_j, line_j = [], []
    for _ in range(150):
        gpu = parse(f"gpu uuid=GPU-1 trace=bursts low=80 high=400 seed={draw.randrange(1000)}")[0]
        counter_s, power_s, at_s = draw.uniform(0, 0.1), draw.uniform(0, 0.1), draw.uniform(5, 60)
        track = Track(True, PERIOD_S)

        def updated(offset_s: float, now_s: float) -> float:
            return math.floor((now_s - offset_s) / PERIOD_S) * PERIOD_S + offset_s

        now_s = first_s = at_s - 0.537  # a row of the ledger's; then the meter reads until the edge is known
        while not track.is_settled(at_s):
            counted_s, shown_s = updated(counter_s, now_s), updated(power_s, now_s)
            power_w = gpu.energy_j(shown_s - MEAN_OF_S, shown_s) / MEAN_OF_S
            counter_mj = round(gpu.energy_j(0, counted_s) * 1e3)
            track.update(Reading(counter_mj, power_w, counted_s, shown_s), now_s, now_s)
            now_s = max(at_s, now_s + 0.01)
        true_j = gpu.energy_j(0, at_s)
        start_s, end_s = updated(counter_s, at_s), updated(counter_s, at_s) + PERIOD_S
        line = (at_s - start_s) / PERIOD_S * gpu.energy_j(start_s, end_s) + gpu.energy_j(0, start_s)
        found_mj = track.energy_at(at_s)
        assert found_mj is not None
        ours_j.append(abs(found_mj / 1e3 + gpu.energy_j(0, updated(counter_s, first_s)) - true_j))
        line_j.append(abs(line - true_j))
    assert max(ours_j) <= max(line_j) + 0.01
    assert math.fsum(ours_j) < 0.6 * math.fsum(line_j)

"""Joules by phase: edges of long ones, regression over short ones, and a sum that is exact in every case."""

import math

import numpy as np
import pytest

from energy.accounting.account import lost_windows
from energy.accounting.phases import UNATTRIBUTED, Timeline, by_phase, disjoint, overlay

STEP_S, POWERS_W = 0.3, {"forward": 400.0, "optimiser": 150.0}


def curve_of_steps(seconds: float, spacing_s: float, seed: int = 1):
    """Spans of 0.2 s at 400 W and 0.1 s at 150 W, and the true curve of energy, seen every `spacing_s` or so."""
    draw = np.random.default_rng(seed)
    times = np.concatenate([[0.0], np.cumsum(spacing_s * draw.uniform(0.8, 1.2, round(seconds / spacing_s)))])
    whole, rest = np.divmod(times, STEP_S)
    energy_j = whole * 95.0 + 400 * np.minimum(rest, 0.2) + 150 * np.maximum(rest - 0.2, 0)
    spans = []
    for n in range(int(times[-1] / STEP_S)):
        spans += [("forward", n * STEP_S, n * STEP_S + 0.2), ("optimiser", n * STEP_S + 0.2, (n + 1) * STEP_S)]
    return times, energy_j, spans


def total(found) -> float:
    return math.fsum(part.energy_j for part in found.values())


@pytest.mark.parametrize("spacing_s", [0.5, 1.0])
def test_phases_shorter_than_the_readings_are_told_by_regression(spacing_s: float) -> None:
    times, energy_j, spans = curve_of_steps(600, spacing_s)
    found = by_phase(times, energy_j, Timeline(spans))
    assert total(found) == pytest.approx(energy_j[-1], rel=1e-12)
    for name, power_w in POWERS_W.items():
        part = found[name]
        assert part.method == "regression"
        truth_j = power_w * part.seconds
        assert abs(part.energy_j - truth_j) < 4 * part.standard_error_j + 1e-6
        assert part.energy_j == pytest.approx(truth_j, rel=0.02)
    edges = np.array([(start, end) for name, start, end in spans if name == "optimiser"])
    naive_j = float(np.diff(np.interp(edges, times, energy_j), axis=1).sum())
    assert abs(naive_j - 150 * found["optimiser"].seconds) > 0.2 * naive_j  # what reading the curve there would give


def test_the_standard_error_of_the_regression_covers_the_truth() -> None:
    covered = 0
    for seed in range(60):
        times, energy_j, spans = curve_of_steps(120, 0.5, seed)
        noise = np.random.default_rng(seed + 1000).normal(0, 2, len(times))
        noise[[0, -1]] = 0
        part = by_phase(times, np.maximum.accumulate(energy_j + noise), Timeline(spans))["optimiser"]
        covered += abs(part.energy_j - 150 * part.seconds) <= 2 * part.standard_error_j
    assert covered >= 50


def test_phases_that_always_come_together_are_not_told_apart_by_regression() -> None:
    times = np.arange(0.0, 60.5, 0.3)  # a whole step in every interval: nothing distinguishes the two
    energy_j = times / STEP_S * 95.0
    spans = [
        s
        for n in range(200)
        for s in (("forward", n * 0.3, n * 0.3 + 0.2), ("optimiser", n * 0.3 + 0.2, n * 0.3 + 0.3))
    ]
    found = by_phase(times, energy_j, Timeline(spans))
    assert {part.method for part in found.values()} == {"direct"}
    # Neither has an interval of its own: the errors say that their parts of the sum are not known.
    assert all(abs(found[name].energy_j - watts * found[name].seconds) < 2 * found[name].standard_error_j
               for name, watts in POWERS_W.items())  # fmt: skip
    assert total(found) == pytest.approx(energy_j[-1], rel=1e-12)


def test_long_phases_are_told_by_their_edges_with_an_error() -> None:
    times = np.arange(0.0, 101.0)
    energy_j = np.where(times < 60, 300 * times, 300 * 60 + 50 * (times - 60))
    found = by_phase(times, energy_j, Timeline([("train_step", 0.0, 60.0), ("checkpoint", 60.0, 90.0)]))
    assert (found["train_step"].energy_j, found["checkpoint"].energy_j) == pytest.approx((18000, 1500))
    assert found[UNATTRIBUTED].energy_j == pytest.approx(500) and found[UNATTRIBUTED].seconds == pytest.approx(10)
    errors_j = {name: part.standard_error_j for name, part in found.items()}
    # What one phase is given too much at an edge the other lacks; from 90 s on power does not change.
    assert errors_j["train_step"] == pytest.approx(250 / math.sqrt(12), rel=0.01)
    assert errors_j["checkpoint"] == pytest.approx(errors_j["train_step"], rel=0.01) and errors_j[UNATTRIBUTED] < 2


@pytest.mark.parametrize(("train_s", "save_s", "pause_s"), [(17, 3.5, 0), (17, 3.5, 6), (60, 30, 6), (17, 2.0, 6)])
def test_the_errors_of_phases_cover_the_truth(train_s: float, save_s: float, pause_s: float) -> None:
    """Of a few readings' length or many, beside each other or apart: without bias, and inside two standard errors."""
    powers_w, truths_j, relative = {"train_step": 400.0, "checkpoint": 100.0, UNATTRIBUTED: 250.0}, [], []
    for seed in range(20):
        draw = np.random.default_rng(seed)
        at, marks = draw.uniform(3, 4), [("before", UNATTRIBUTED, 0.0)]
        for _ in range(40):
            for name, span_s in (("train_step", train_s), ("checkpoint", save_s), (UNATTRIBUTED, pause_s)):
                if span_s:
                    marks.append(("", name, at))
                    at += span_s * draw.uniform(0.9, 1.1)
        marks.append(("", UNATTRIBUTED, at))
        turns = np.array([start for _, _, start in marks] + [at + 5])
        watts = np.array([powers_w[name] for _, name, _ in marks])
        true_j = np.concatenate([[0.0], np.cumsum(watts * np.diff(turns))])
        times = np.concatenate([[0.0], np.cumsum(draw.uniform(0.8, 1.2, int(2 * at)))])
        times = times[times <= at + 5]
        curve_j = np.interp(times, turns, true_j)
        spans = [
            (name, start, end)
            for (_, name, start), end in zip(marks, turns[1:], strict=True)
            if name in ("train_step", "checkpoint")
        ]
        found = by_phase(times, curve_j, Timeline(spans))
        assert total(found) == pytest.approx(curve_j[-1], rel=1e-12)
        for name in ("train_step", "checkpoint"):
            truth_j = powers_w[name] * math.fsum(end - start for phase, start, end in spans if phase == name)
            truths_j.append(abs(found[name].energy_j - truth_j) <= 2 * found[name].standard_error_j)
            relative.append(found[name].energy_j / truth_j - 1)
    assert np.mean(truths_j) > 0.95 and abs(np.mean(relative)) < 0.01


def test_marks_of_one_phase_that_touch_are_one_span() -> None:
    marks = [{"phase": "train_step", "start_unix_s": float(n), "end_unix_s": n + 1.0} for n in range(5)]
    assert disjoint(marks) == [("train_step", 0.0, 5.0)]
    assert overlay([("train_step", 0.0, 5.0)], "lost", [(3.0, 9.0)]) == [("train_step", 0.0, 3.0), ("lost", 3.0, 5.0)]
    assert overlay([("a", 0.0, 9.0)], "lost", [(2.0, 3.0)]) == [("a", 0.0, 2.0), ("lost", 2.0, 3.0), ("a", 3.0, 9.0)]


def test_steps_that_a_later_attempt_did_again_are_lost() -> None:
    def step(attempt: int, number: int, at: float) -> dict:
        return {"attempt": attempt, "step": number, "time_unix_s": at, "seconds": 1.0}

    steps = [step(1, n, 10.0 + n) for n in range(1, 8)] + [step(2, n, 40.0 + n) for n in range(5, 9)]
    marks = [{"attempt": 1, "start_unix_s": 10.0, "end_unix_s": 18.5}]
    assert lost_windows(steps, marks) == [(14.0, 18.5)]
    assert lost_windows(steps[:7], marks) == []
    all_again = [step(1, 1, 11.0), step(2, 1, 41.0)]
    assert lost_windows(all_again, []) == [(10.0, 11.0)]

"""A cluster whose machines others hold: the run waits, or goes on with what is left, and counts no GPU-hours then."""

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from supervised import Clock, EndedAtOnce, Supervised
from supervised import cluster as cluster
from supervised import run as run
from supervised import supervision as supervision
from tiny import write_spec

from orchestrator.budget.watch import Spending, Watch
from orchestrator.cluster import capacity
from orchestrator.driver import supervise
from orchestrator.spec.file import load_experiment


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def test_a_cluster_that_others_use_is_waited_for_within_the_attempt(
    supervision: Supervised, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(capacity, "free_by_node", lambda: {"a": {"CPU": 2.0}})

    def others_leave_in_12_s() -> Iterator[Any]:
        yield from itertools.islice(clock.without_room(), 7)
        yield None  # held
        clock.now_s += 1000.0
        yield True

    result, said, begun = supervision(*[clock.without_room] * 6, others_leave_in_12_s)  # it has no range
    assert (result, begun) == (True, [])
    assert said == ["the cluster had no room for the workers, 4 on cpu: waiting until others leave it"]
    assert supervision.befell[-1] is None  # and in the end nothing had happened to the attempt
    # That Ray Train starts is start-up at first, and nothing but waiting when it does so again.
    assert sum(supervision.waited_s) == 20.0 + 5 * 22.0 + 12.0


def test_a_run_that_is_ended_while_it_waits_has_said_how_long(supervision: Supervised, clock: Clock) -> None:
    def tick() -> None:
        if clock.now_s >= 1012.0:
            raise EndedAtOnce

    supervision.tick = tick
    assert isinstance(supervision(clock.without_room)[0], EndedAtOnce)
    assert sum(supervision.waited_s) == 8.0  # from 1002 to the look before


def test_a_budget_of_gpu_hours_does_not_count_while_there_is_no_room(
    supervision: Supervised, clock: Clock, tmp_path: Path
) -> None:
    seen = Watch(load_experiment(write_spec(tmp_path, workers=4)), Spending(), 4, clock.now_s)
    supervision.tick, supervision.waited = lambda: seen.feed(None, clock.now_s, clock.now_s), seen.waited
    hours = [seen.spending.device_hours]

    def without_room() -> Iterator[Any]:
        for room in clock.without_room():
            hours.append(seen.spending.device_hours)
            yield room

    result, *_ = supervision(*[without_room] * 30, lambda: True)
    assert result is True
    assert max(hours) <= 4 * 4.0 / 3600  # 2 s of Ray Train's start, and one look


def test_a_run_with_a_range_goes_on_with_what_others_leave_and_takes_no_more(
    supervision: Supervised, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervise, "LOOK_S", 0.0)
    free, ranks = {"a": {"CPU": 1.0}, "b": {"CPU": 0.0}}, dict[str, int]()
    monkeypatch.setattr(capacity, "free_by_node", lambda: free)
    monkeypatch.setattr(capacity, "_ranks_by_node", lambda: ranks)

    def others_leave_one() -> Iterator[Any]:
        free["b"]["CPU"] = 2.0
        yield from clock.without_room()

    def with_two() -> Iterator[bool | None]:
        free["a"]["CPU"], free["b"]["CPU"], ranks["b"] = 0.0, 1.0, 2
        yield None
        yield None
        yield True  # one more is free: 3 do not share the batch

    options = ("cluster.min_workers=2",)
    result, said, begun = supervision(clock.without_room, others_leave_one, with_two, overrides=options)
    assert (result, begun) == (True, [("the cluster had no room for the workers", 2)])
    assert said == [
        "the cluster had no room for the workers, 4 on cpu: waiting until others leave it",
        "attempt 2 begins with 2 workers instead of 4: the cluster had no room for the workers",
    ]
    assert sum(supervision.waited_s) == 20.0 + 22.0

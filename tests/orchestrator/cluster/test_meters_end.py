"""A cluster, or a node, that answers nothing any more does not hold a run's start or end."""

import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from ray.exceptions import ActorDiedError, GetTimeoutError

from energy.runs import RunFolder
from orchestrator.cluster import meters


def test_the_end_does_not_wait_for_a_call_that_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    answered = threading.Event()
    monkeypatch.setattr(meters, "TELL_LAST_S", 0.1)
    monkeypatch.setattr(meters.ray, "nodes", lambda: [])
    monkeypatch.setattr(meters, "PLACEMENT_EVERY_S", 0.01)
    monkeypatch.setattr(meters, "rank_counts", answered.wait)
    found = meters.Meters(lambda node_id, name: None)
    try:
        threading.Event().wait(0.2)  # by now the thread is in the call
        said = found.tell_last()
        assert said is not None and said.startswith("Ray did not say within")
    finally:
        answered.set()


@pytest.fixture(autouse=True)
def without_ray(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Ray starts by itself for whoever asks it anything: in the process of all tests, which would end with it."""
    started: list[Any] = []
    monkeypatch.setattr(ray, "init", lambda *_, **given: started.append(given))
    yield
    assert not started


class Meter:
    """Of a node that has joined; what it is asked for is noted, and whether it answers is in its name."""

    def __init__(self, node: str, asked: list[str]):
        self._node, self._asked = node, asked

    def __getattr__(self, what: str) -> Any:
        self._what = what
        return self

    def remote(self, *_: Any) -> str:
        self._asked.append(f"{self._what} {self._node}")
        return self._node


def test_a_node_that_does_not_answer_is_named_and_the_others_figures_stand(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    left_s: list[float] = []

    def get(node: str, timeout: float) -> dict[str, Any]:
        assert len(asked) == 3  # all at once: the last one does not read on until the first have ended
        left_s.append(timeout)
        if node == "hangs":
            monkeypatch.setattr(meters.time, "monotonic", lambda: began + timeout)
            raise GetTimeoutError
        if node == "dies":
            raise ActorDiedError
        return {"node": node}

    began = meters.time.monotonic()
    monkeypatch.setattr(meters.time, "monotonic", lambda: began)
    monkeypatch.setattr(meters.ray, "get", get)
    monkeypatch.setattr(meters.ray, "nodes", lambda: [])
    monkeypatch.setattr(meters, "rank_counts", dict)
    found = meters.Meters(lambda node_id, name: None)
    found.tell_last()
    for node in ("hangs", "dies", "lives"):
        found.append(Meter(node, asked))
        found.nodes.append(node)
    said = "the meter of {} does not answer: if it does not come back, its energy is missing ({})"
    assert meters.describe_meters(found) == [
        {"node": "lives"},
        {"node": "hangs", "sensors": [], "warnings": [said.format("hangs", "GetTimeoutError")]},
        {"node": "dies", "sensors": [], "warnings": [said.format("dies", "ActorDiedError")]},
    ]
    assert left_s[0] == meters.DESCRIBE_S and max(left_s[1:]) < 1.0  # one limit for all, and what has come is taken


def test_a_node_that_is_lost_was_metered_all_the_same() -> None:
    lost, old, new = {"node": "a", "n": 1}, {"node": "b", "n": 1}, {"node": "b", "n": 2}
    assert meters.of_all_nodes([lost, old], [new]) == [lost, new]


def test_a_meter_that_was_started_again_is_told_where_the_ranks_are(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(meters, "PLACEMENT_EVERY_S", 0.001)
    monkeypatch.setattr(meters, "REPEAT_EVERY", 2)
    monkeypatch.setattr(meters.ray, "nodes", lambda: [])
    monkeypatch.setattr(meters.ray, "wait", lambda *_, **__: None)
    monkeypatch.setattr(meters, "rank_counts", lambda: {"a": 1})
    found = meters.Meters(lambda node_id, name: None)
    found.append(Meter("a", asked))
    for _ in range(6000):
        if len(asked) >= 3:
            break
        threading.Event().wait(0.01)
    assert len(asked) >= 3
    assert found.tell_last() is None and set(asked) == {"place a"}


def test_calls_that_waited_for_the_actor_may_come_in_any_order(tmp_path: Path) -> None:
    """A node that had a rank is not others' again because an older word comes later."""
    actor = object.__new__(meters.MeterActor)
    noted: list[dict[str, Any]] = []
    meter = SimpleNamespace(note=noted.append, live=lambda: {})
    actor.__dict__ |= {"_meter": meter, "_ranks": None, "_shared": True, "_node_id": "a", "_before": None}
    actor.__dict__ |= {"_placing": threading.Lock(), "_run": RunFolder(tmp_path), "_live": tmp_path / "live.json"}
    RunFolder(tmp_path).write_run({"device_type": "cuda"})
    for ranks in ({"a": 4}, {}, {"a": 4}):
        actor.place(ranks)
    assert [event["ranks"] for event in noted] == [4]

"""A cluster that answers nothing any more does not hold a run's end."""

import threading

import pytest

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

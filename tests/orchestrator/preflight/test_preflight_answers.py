"""Who answers a preflight's questions in time, who fails, and who is silent: asked of real Ray."""

import time
from collections.abc import Iterator
from typing import Any

import pytest
import ray

from orchestrator.driver.launch import RAY_ENVIRONMENT
from orchestrator.preflight.answers import Answers

LIMIT_S = 3.0


@pytest.fixture(scope="module")
def node() -> Iterator[Any]:
    """What starts an actor as a node has one."""

    class Node:
        def answer(self, after_s: float = 0.0) -> str:
            time.sleep(after_s)
            return "sound"

        def fail(self) -> None:
            raise OSError("no disk")

        def die(self) -> None:
            ray.actor.exit_actor()

    with pytest.MonkeyPatch.context() as patch:
        for name, value in RAY_ENVIRONMENT.items():
            patch.setenv(name, value)
        ray.init(address="local", num_cpus=4, include_dashboard=False, log_to_driver=False)
        actor: Any = ray.remote(num_cpus=0)(Node)
        yield actor.remote
        ray.shutdown()


def test_what_was_answered_before_it_is_collected_counts(node: Any) -> None:
    nodes = {name: node() for name in ("quick", "later", "hangs", "broken", "dies", "hangs too")}
    ray.get([each.answer.remote() for each in nodes.values()])
    said: list[tuple[int, int]] = []
    asked = {
        "quick": nodes["quick"].answer.remote(),
        "later": nodes["later"].answer.remote(1.0),
        "hangs": nodes["hangs"].answer.remote(600.0),
        "broken": nodes["broken"].fail.remote(),
        "dies": nodes["dies"].die.remote(),
        "hangs too": nodes["hangs too"].answer.remote(600.0),
    }
    answers = Answers(asked, LIMIT_S, lambda done, of: said.append((done, of)))
    time.sleep(LIMIT_S + 0.5)  # as long as the other stages took
    answers.wait()
    assert answers.results == {"quick": "sound", "later": "sound"}
    assert answers.silent == {"hangs", "hangs too"} and answers.died == {"dies"}
    assert answers.faults["hangs"] == "no answer within 3 s" and "no disk" in answers.faults["broken"]
    assert set(answers.faults) == {"hangs", "hangs too", "broken", "dies"}
    assert said[-1] == (4, 6)


def test_a_wait_that_others_cut_short_blames_nobody(node: Any) -> None:
    late = node()
    ray.get(late.answer.remote())
    answers = Answers({"late": late.answer.remote(1.0)}, 60.0).wait(0.1)
    assert (answers.results, answers.faults, answers.silent) == ({}, {}, set())
    assert answers.wait().results == {"late": "sound"}

"""Whether the nodes of a cluster see the run's folder and can write copies of checkpoints (`checkpoint.copy_to`), asked
before the training.

Keys and mounts are those of the nodes, and not the driver's. Each node where ranks may come is asked, and whether all
of them write to the same place, because a checkpoint or a copy is whole only with the files of all ranks.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import ray

from orchestrator.checkpoints.saved import unseen
from orchestrator.preflight.answers import Answers
from orchestrator.preflight.nodes import Node, cluster_nodes, on, ring
from orchestrator.spec.file import BadInput

CLEAN_S = 10.0
MOST_NAMED = 3  # nodes, of those that were refused alike


class NodeStorage:
    """One node's part: leaves a word of its own in the storage, and looks for another's."""

    def __init__(self, uri: str, run_id: str, token: str):
        self._uri, self._run_id, self._token = uri, run_id, token

    def write(self, name: str) -> str | None:
        """Why it could not, in words."""
        from orchestrator.checkpoints.copies import Copies, with_advice

        try:
            self._copies = Copies(self._uri, self._run_id)
            self._copies.leave(_probe(name), self._word(name))
        except ValueError as refusal:
            return str(refusal).removeprefix(f"checkpoint.copy_to {self._uri}: ")
        except OSError as refusal:
            return with_advice(refusal)
        return None

    def finds(self, name: str) -> bool:
        """Whether the word that the node of this name left is there."""
        return self._copies.finds(_probe(name), self._word(name))

    def take_away(self, name: str) -> None:
        self._copies.take_away(_probe(name))

    def _word(self, name: str) -> bytes:
        return f"{name} {self._token}".encode()


def _probe(name: str) -> str:
    return f".probe-{name}"


def require_run_seen(run: Path, device: str, say: Callable[[str], None], limit_s: float) -> None:
    """BadInput where a node that has what ranks need does not see the run's folder: each rank writes its part of a
    checkpoint there, and makes a folder of that name where there is none.

    device: cpu or cuda. limit_s: for the answer of a node. One that does not answer is told by `say`.
    """
    own = ray.get_runtime_context().get_node_id()
    nodes = [node for node in _for_ranks(device) if node.ray_id != own]
    probe = run / _probe(uuid.uuid4().hex)
    look: Any = ray.remote(num_cpus=0, max_retries=0)(unseen)
    try:
        probe.touch()
        asked = {node: look.options(scheduling_strategy=on(node)).remote(run, {probe.name: 0}) for node in nodes}
        looked = Answers(asked, limit_s).wait()
    finally:
        probe.unlink(missing_ok=True)
    for node, why in looked.faults.items():
        say(f"{node.name} did not say whether it sees {run}: {why}")
    blind = [node.name for node, away in looked.results.items() if away]
    if blind:
        see = "does not see" if len(blind) == 1 else "do not see"
        raise BadInput(
            f"{_first(blind)} {see} {run}, and no checkpoint would be whole without what ranks write there: put the "
            "run's folder on storage that all nodes share (--runs); nothing was trained"
        )


def require_storage_of_nodes(uri: str, run_id: str, device: str, say: Callable[[str], None], limit_s: float) -> None:
    """BadInput where a node that has what ranks need cannot write copies, or writes them where others do not see them.

    device: cpu or cuda. limit_s: for each answer of a node. A node that is lost meanwhile is told by `say`: the
    training has its own way with those.
    """
    nodes = _for_ranks(device)
    actor: Any = ray.remote(num_cpus=0)(NodeStorage)
    token = uuid.uuid4().hex
    written: list[Node] = []
    try:
        for node in nodes:
            node.check = actor.options(scheduling_strategy=on(node)).remote(uri, run_id, token)
        refused = _refused({node: node.check.write.remote(node.name) for node in nodes}, written, say, limit_s)
        if refused:
            raise BadInput(_in_words(uri, refused, len(nodes)))
        asked = Answers({pair: pair[0].check.finds.remote(pair[1].name) for pair in ring(written)}, limit_s)
        seen = asked.wait()
        apart = [pair for pair, finds in seen.results.items() if not finds]
        if apart:
            pairs = ", ".join(f"{a.name} does not see what {b.name} wrote" for a, b in apart[:MOST_NAMED])
            raise BadInput(
                f"checkpoint.copy_to {uri} is not one storage for all nodes: {pairs}; mount the same one there on "
                "every node, or name one that all of them reach, such as s3://; nothing was trained"
            )
        unread = {pair[0]: why for pair, why in seen.faults.items() if pair not in seen.died}
        if unread:
            raise BadInput(_in_words(uri, unread, len(nodes)))
    finally:
        gone = Answers({node: node.check.take_away.remote(node.name) for node in written}, CLEAN_S)
        gone.wait()  # what could not be taken away is a few bytes, replaced by the next attempt
        for node in nodes:
            if node.check is not None:
                ray.kill(node.check)


def _for_ranks(device: str) -> list[Node]:
    return [node for node in cluster_nodes() if (node.gpus if device == "cuda" else node.cpus)]


def _refused(
    asked: Mapping[Node, Any], written: list[Node], say: Callable[[str], None], limit_s: float
) -> dict[Node, str]:
    """{node: why it wrote nothing}; those that did go into `written`."""
    answers = Answers(asked, limit_s).wait()
    refused = {node: why for node, why in answers.results.items() if why is not None}
    written += [node for node in asked if node in answers.results and node not in refused]
    for node, why in answers.faults.items():
        if node in answers.died:
            say(f"{node.name} was not asked whether it writes copies of checkpoints: {why}")
        else:
            refused[node] = why
    return refused


def _in_words(uri: str, refused: Mapping[Node, str], nodes: int) -> str:
    """What nodes said, those that said the same together."""
    by_why: dict[str, list[str]] = {}
    for node, why in refused.items():
        by_why.setdefault(why, []).append(node.name)
    said = [f"on {_first(names)}: {why}" for why, names in by_why.items()]
    where = f"{len(refused)} of {nodes} nodes"
    return f"checkpoint.copy_to {uri} cannot be written from {where}: {'; '.join(said)}; nothing was trained"


def _first(names: Sequence[str]) -> str:
    more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
    return f"{', '.join(names[:MOST_NAMED])}{more}"

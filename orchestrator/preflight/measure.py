"""The stages of a preflight: sensors and disk of each node, matmul of each rank, all-reduces between them.

All nodes compute and write at once, as in training; nodes of an emulated cluster, which share a machine, compute in
turn. All-reduces go between neighbours on a ring of the nodes, two at a time: a node's figure is the better one of
its two, so that a slow node does not make its neighbours look slow.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import ray

from orchestrator.driver.endings import is_echo
from orchestrator.preflight.answers import Answers
from orchestrator.preflight.node import ALL_REDUCE_BYTES, NodeCheck, Rank
from orchestrator.preflight.nodes import Held, Node, Pair, in_turn, on, other, ring
from orchestrator.spec.file import BadInput

PING_S = 5.0  # for an answer of a rank that has nothing to do for it
SETTLE_S = 10.0  # so long the others wait for a node whose sensors do not answer; what comes later still counts
Progress = Callable[[float, float | None, str], None]
Key = TypeVar("Key", bound=Hashable)


class Measuring:
    """Runs the stages over `nodes`, whose documents it fills. BadInput where ranks have room on none of them."""

    def __init__(self, nodes: Sequence[Node], device: str, limit_s: float, progress: Progress):
        self._nodes, self._device, self._limit_s, self._progress = nodes, device, limit_s, progress
        self._idle = self._with_room()

    def run(self, runs_dir: Path, place: Path) -> dict[str, Any]:
        """All stages; what the nodes did together. `place`: a folder that the driver made where the runs lie."""
        check: Any = ray.remote(num_cpus=0, max_concurrency=3)(NodeCheck)  # a call that hangs holds up no other
        for node in self._nodes:
            node.check = check.options(scheduling_strategy=on(node)).remote()
        sensors = self._ask(
            "sensors", {node: node.check.sensors.remote(str(runs_dir.absolute())) for node in self._nodes}
        )
        sensors.wait(SETTLE_S)
        disks = self._ask("disk writes", {n: n.check.disk.remote(str(place), n.ray_id) for n in self._nodes}).wait()
        for node, disk in disks.results.items():
            node.document |= {"sees_runs": disk["sees_runs"], "disk_write_mb_per_s": disk["mb_per_s"]}
        for node, why in disks.faults.items():
            node.missing("disk write", why)
        self._begin()
        rates = self._matmul()
        fleet = self._all_reduce()
        sensors.wait()
        for node, found in sensors.results.items():
            node.document |= found
        for node, why in sensors.faults.items():
            node.missing("sensors", why)
        for rank, rate in rates.items():  # after the sensors: what a GPU did at work stands, not what it did at rest
            told = {"matmul_tflop_per_s": rate["tflop_per_s"], "matmul_low": rate["low"], "matmul_high": rate["high"]}
            if rank.uuid is None:
                rank.node.document |= told
            else:
                rank.node.gpu(rank.uuid, rank.name).update(rate["gpu"] or {}, **told)
        return fleet

    def end(self) -> None:
        """Ends all actors, those too that hang."""
        for node in self._nodes:
            for actor in filter(None, (node.check, *(rank.actor for rank in node.ranks))):
                ray.kill(actor)

    def _with_room(self) -> list[Node]:
        """The nodes where ranks are to be and everything is free; the others are said to be busy."""
        cuda = self._device == "cuda"
        what = "GPUs" if cuda else "CPUs"
        wanted = [node for node in self._nodes if (node.gpus if cuda else node.cpus)]
        idle: list[Node] = []
        busy: dict[Node, str] = {}
        for node in wanted:
            total, free = (node.gpus, node.free_gpus) if cuda else (node.cpus, node.free_cpus)
            if free >= total:
                idle.append(node)
                continue
            busy[node] = f"{free:g} of {total} {what} free"
            node.missing("matmul", f"busy: {busy[node]}")
            node.missing("all-reduce", f"busy: {busy[node]}")
        if idle:
            return idle
        if not busy:
            raise BadInput(f"the cluster has no {what} to measure: {len(self._nodes)} nodes; nothing was measured")
        there = "; ".join(f"{node.name}: {free}" for node, free in busy.items())
        raise BadInput(
            f"no node of the cluster is free, and a rate beside another job tells nothing: {there}; `ray status` and "
            "`hoofprint status` say who computes there: wait for it; nothing was measured"
        )

    def _ask(self, text: str, asked: Mapping[Any, Any]) -> Answers[Any]:
        return Answers(asked, self._limit_s, lambda done, total: self._progress(done, total, f"preflight: {text}"))

    def _begin(self) -> None:
        """Starts the ranks; those that do not begin are dropped."""
        actor: Any = ray.remote(max_concurrency=2)(Rank)  # one that is held up by another still answers `ping`
        for node in self._idle:
            cuda = self._device == "cuda"
            options = {"num_cpus": 0, "num_gpus": 1} if cuda else {"num_cpus": node.cpus}
            for _ in range(node.gpus if cuda else 1):
                started = actor.options(scheduling_strategy=on(node), **options).remote(self._device, node.cpus)
                node.ranks.append(Held(node, started))
        begun = self._ask("ranks begin", {rank: rank.actor.begin.remote() for n in self._idle for rank in n.ranks})
        for rank, about in begun.wait().results.items():
            rank.uuid, rank.name = about.get("uuid"), about.get("name", "")
            if rank.uuid is None:
                rank.node.document["threads"] = about["threads"]
        self._drop(begun.faults, "matmul", "all-reduce")

    def _drop(self, faults: Mapping[Held, str], *what: str) -> None:
        """Ends ranks that did not do what they were asked, and says what is missing for it."""
        for rank, why in faults.items():
            for each in what:
                rank.node.missing(each, f"GPU {rank.uuid}: {why}" if rank.uuid else why)
            ray.kill(rank.actor)
            rank.node.ranks.remove(rank)

    def _matmul(self) -> dict[Held, dict[str, Any]]:
        """Rates by rank."""
        rates: dict[Held, dict[str, Any]] = {}
        for nodes in in_turn([(node,) for node in self._idle]):
            ranks = [rank for (node,) in nodes for rank in node.ranks]
            asked = self._ask("matmul", {rank: rank.actor.matmul.remote() for rank in ranks})
            rates |= asked.wait().results
            self._drop(asked.faults, "matmul", "all-reduce")
        return rates

    def _all_reduce(self) -> dict[str, Any]:
        """Within the nodes, between neighbours, over all nodes; bus bandwidth in GB/s (1e9 bytes)."""
        self._all_reduce_within()
        members = [node for node in self._idle if node.ranks]
        pairs: dict[Pair, float] = {}
        failed: dict[Pair, str] = {}
        for turn in in_turn(ring(members)):
            groups = {pair: [node.ranks[0] for node in pair] for pair in turn if all(node.ranks for node in pair)}
            failed |= {pair: "the rank of one of them was lost before" for pair in turn if pair not in groups}
            rates, faults = self._reduce("between neighbours", "all-reduce", groups)
            pairs |= rates
            failed |= faults
        for node in members:
            own = [rate for pair, rate in pairs.items() if node in pair]
            node.document["all_reduce_gb_per_s"] = max(own, default=None)
            if not own and len(members) > 1:
                whys = [f"with {other(pair, node).name}: {why}" for pair, why in failed.items() if node in pair]
                node.missing("all-reduce", "; ".join(whys))
        sound = [node for node in members if node.ranks and node.document["all_reduce_gb_per_s"] is not None]
        rate, fault = next(iter(pairs.values()), None), None  # of two nodes: the same two
        if len(sound) > 2:
            everyone = {"all": [node.ranks[0] for node in sound]}
            over_all, why = self._reduce("over all nodes", "all-reduce", everyone)
            rate, fault = over_all.get("all"), why.get("all")
        return {
            "backend": "nccl" if self._device == "cuda" else "gloo",
            "bytes": ALL_REDUCE_BYTES[self._device],
            "nodes": len(sound),
            "bus_gb_per_s": rate,
            "fault": fault,
            "pairs": [
                {"nodes": [node.name for node in pair], "bus_gb_per_s": pairs.get(pair), "fault": failed.get(pair)}
                for pair in (*pairs, *failed)
            ],
        }

    def _all_reduce_within(self) -> None:
        """Between the GPUs of each node that has several."""
        inside = {node: node.ranks for node in self._idle if len(node.ranks) > 1}
        for turn in in_turn([(node,) for node in inside]):
            groups = {node: list(inside[node]) for (node,) in turn}
            rates, faults = self._reduce("within nodes", "all-reduce within", groups)
            for node, rate in rates.items():
                node.document["all_reduce_within_gb_per_s"] = rate
            for node, why in faults.items():
                node.missing("all-reduce within", why)

    def _reduce(
        self, where: str, what: str, groups: Mapping[Key, Sequence[Held]]
    ) -> tuple[dict[Key, float], dict[Key, str]]:
        """An all-reduce in each of the groups, all at once: (bus bandwidth in GB/s, why there is none).

        A rank that dies or hangs is dropped, with `what` missing on its node: asked again, it would hold up others.
        """
        text = f"all-reduce {where}"
        ports = self._ask(text, {key: ranks[0].actor.free_port.remote() for key, ranks in groups.items()}).wait()
        faults = dict(ports.faults)
        lost = {groups[key][0]: why for key, why in ports.faults.items()}
        asked: dict[tuple[Key, int], Any] = {}
        for key, port in ports.results.items():
            ranks = groups[key]
            for number, rank in enumerate(ranks):
                meet_at = f"{ranks[0].node.address}:{port}"
                # A rank whose partner is gone mostly says so itself, within twice this time, and can be asked again.
                said = rank.actor.all_reduce.remote(number, len(ranks), meet_at, self._limit_s / 3)
                asked[key, number] = said
        answers = self._ask(text, asked).wait()
        lost |= {groups[key][number]: answers.faults[key, number] for key, number in answers.died}
        for key in {key for key, _ in answers.silent}:
            silent = [groups[key][number] for of, number in answers.silent if of == key]
            why = f"no answer within {self._limit_s:g} s"
            held = self._held_up(silent, why)
            lost |= held
            faults[key] = why
            # NCCL ends the process of a rank whose partner stands still: one that died beside such a one was sound.
            still = ", ".join(rank.node.name for rank, said in held.items() if said == why)
            if still:
                died = [groups[key][number] for of, number in answers.died if of == key]
                lost |= dict.fromkeys(died, f"held up by {still}, which does not answer")
        rates = {}
        for key in ports.results:
            whys = [why for (of, _), why in answers.faults.items() if of == key]
            if whys:
                faults.setdefault(key, next((why for why in whys if not is_echo(why)), whys[0]))
                continue
            seconds = [answers.results[key, number] for number in range(len(groups[key]))]
            rates[key] = bus_gb_per_s(ALL_REDUCE_BYTES[self._device], seconds)
        self._drop(lost, what)
        return rates, faults

    def _held_up(self, silent: Sequence[Held], why: str) -> dict[Held, str]:
        """Why each of these ranks of a group did not answer: torch waits for ever for a rank that takes its connection
        and then stands still, so that the sound one is told by that it still answers anything else."""
        asked = {rank: rank.actor.ping.remote() for rank in silent}
        awake = Answers(asked, min(PING_S, self._limit_s)).wait().results
        still = ", ".join(rank.node.name for rank in silent if rank not in awake)
        return {
            rank: f"held up by {still}, which does not answer" if still and rank in awake else why for rank in silent
        }


def bus_gb_per_s(size_bytes: int, seconds: Sequence[Sequence[float]]) -> float:
    """The bus bandwidth in GB/s of an all-reduce of `size_bytes`: 2 (n - 1) / n of it cross each of the n links.

    seconds: of each rank, of each repeat. A repeat lasts as long as its slowest rank; the median repeat counts. By that
    factor figures of different numbers of ranks compare (nccl-tests, doc/PERFORMANCE.md).
    """
    ranks = len(seconds)
    lasted = statistics.median(map(max, zip(*seconds, strict=True)))
    return 2 * (ranks - 1) / ranks * size_bytes / lasted / 1e9

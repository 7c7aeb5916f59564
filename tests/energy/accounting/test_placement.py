"""On a shared cluster a run has the nodes and GPUs of its ranks, and no others; what is left out is named."""

import json
import math
import os
from collections.abc import Sequence
from pathlib import Path

import pytest
from energy_fakes import FakeSensor, reading

from energy.accounting.account import account_run
from energy.accounting.merge import merge
from energy.accounting.placement import IN_TURNS, ranks_event
from energy.metering.meter import Meter
from energy.records.footprint import make_footprint
from energy.runs import RunFolder


def metered(
    run: RunFolder,
    node: str,
    events: list[dict],
    attempt: int = 1,
    start: int = 0,
    more: Sequence[FakeSensor] = (),
    ended: bool = True,
    marked: int | None = None,
) -> None:
    """Ten seconds of two GPUs of 100 W and a CPU of 10 W."""
    times = [float(n) for n in range(start, start + 11)]
    sensors = [FakeSensor(f"GPU-{node}-{k}", [reading(100.0 * t, 100.0) for t in times]) for k in range(2)]
    sensors.append(FakeSensor(f"cpu@{node}", [reading(10.0 * t, 10.0) for t in times], kind="cpu"))
    sensors += more
    for sensor in sensors:
        sensor.describe_more({"node": node})
    now = [times[0]]
    meter = Meter(
        run.ledger_file(node), node=node, attempt=attempt, sensors=sensors, discover_sensors=False,
        clock=lambda: (now[0], now[0]),
    )  # fmt: skip
    for now[0] in times:
        if now[0] == times[5]:
            for event in events:
                meter.note(event)
            if marked is not None:
                meter.mark(marked)
        meter.sample(last=ended and now[0] == times[-1])
    if not ended:
        assert meter._writer is not None
        for appender in (meter._writer._main, meter._writer._raw, meter._writer._seconds):
            assert appender is not None
            os.close(appender._fd)  # as the kernel does


def held(run: RunFolder, *uuids: str, attempt: int = 1) -> None:
    run.metrics_dir.mkdir(parents=True, exist_ok=True)
    with open(run.metrics_file(0), "a") as file:
        file.write(json.dumps({"event": "devices", "attempt": attempt, "uuids": uuids}) + "\n")


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return RunFolder(tmp_path / "run")


def test_nodes_without_a_rank_are_left_out_and_named(run: RunFolder) -> None:
    metered(run, "n1", [ranks_event(0, shared=True, on_gpus=True), ranks_event(2, shared=True, on_gpus=True)])
    metered(run, "n2", [ranks_event(0, shared=True, on_gpus=True)])
    held(run, "GPU-n1-0", "GPU-n1-1")
    account = account_run(run)
    assert {device.node for device in account.devices} == {"n1"} and account.energy_j == pytest.approx(2100)
    assert any("n2" in text and "2100 J" in text and "not in the total" in text for text in account.warnings)
    assert merge([run]).energy_j == pytest.approx(2100)


@pytest.mark.parametrize(
    ("fine", "killed"), [(False, False), (True, False), (True, True)], ids=["by the minute", "by the second", "killed"]
)
def test_what_a_node_used_before_its_first_rank_is_others(run: RunFolder, fine: bool, killed: bool) -> None:
    """The command before had it, and was followed by a wait: nor is what lies between a gap."""
    wait, came = (ranks_event(n, shared=True, on_gpus=True, from_monotonic_s=26.0 if n else None) for n in (0, 2))
    metered(run, "n1", [], attempt=1, ended=not killed)
    metered(run, "n1", [wait, came], attempt=2, start=20)
    held(run, "GPU-n1-0", "GPU-n1-1")
    account = account_run(run, fine=fine)
    assert account.energy_j == pytest.approx(2100 + 4 * 210)
    assert [attempt["energy_j"] for attempt in account.attempts] == pytest.approx([2100, 4 * 210])
    assert (account.attempts[1]["start_unix_s"], account.end_unix_s) == (26.0, 30.0)
    assert [text for text in account.warnings if "for 6 s: the 1260 J that its devices used" in text]
    assert merge([run]).energy_j == pytest.approx(2100 + 4 * 210)


@pytest.mark.parametrize("fine", [False, True])
def test_an_attempt_that_waited_in_vain_has_used_nothing(run: RunFolder, fine: bool) -> None:
    came = ranks_event(2, shared=True, on_gpus=True, from_monotonic_s=6.0)
    metered(run, "n1", [ranks_event(0, shared=True, on_gpus=True), came], marked=2)
    held(run, "GPU-n1-0", "GPU-n1-1", attempt=2)
    account = account_run(run, fine=fine)
    assert [attempt["energy_j"] for attempt in account.attempts] == pytest.approx([0.0, 4 * 210])
    assert [attempt["seconds"] for attempt in account.attempts] == [0.0, 4.0 if fine else 0.0]  # from its first row


def test_gpus_of_others_on_a_node_of_ours_are_left_out_and_named(run: RunFolder) -> None:
    metered(run, "n1", [ranks_event(1, shared=True, on_gpus=True)])
    held(run, "GPU-n1-0")
    account = account_run(run)
    assert {device.uuid for device in account.devices} == {"GPU-n1-0", "cpu@n1"}
    assert account.energy_j == pytest.approx(1100) and "idle_devices" not in account.phases
    assert any("1 GPUs of this shared node" in text and "1000 J" in text for text in account.warnings)
    assert merge([run]).energy_j == pytest.approx(1100)


@pytest.mark.parametrize(
    ("uuids", "waited", "shared", "said"),
    [
        (["GPU-n1-0", "GPU-n1-1"], 1, True, False),
        (["GPU-n1-0"], 1, True, True),
        (["GPU-n1-0", "GPU-n1-1"], 2, True, True),
        (["GPU-n1-0", "GPU-n1-1"], 3, True, True),
        (["GPU-n1-0"], 2, False, False),
    ],
    ids=["waited before it had any", "went on with fewer", "waited after a loss", "waited again", "its own cluster"],
)
def test_gpus_that_were_not_held_throughout_are_counted_and_it_says_so(
    run: RunFolder, uuids: list[str], waited: int, shared: bool, said: bool
) -> None:
    for node in "n1", "n2":
        metered(run, node, [ranks_event(2, shared=shared, on_gpus=True)])
    held(run, "GPU-n1-0", "GPU-n1-1", attempt=2)
    held(run, *uuids, attempt=3)
    run.write_run({"attempts": [{"attempt": number, "waited_s": 9.0 * (number == waited)} for number in (1, 2, 3)]})
    told = [text for text in account_run(run).warnings if text == IN_TURNS]
    assert len(told) == 2 * said  # of each node; a record has a warning once


def test_a_run_on_cpus_has_no_gpu_of_a_shared_node(run: RunFolder) -> None:
    metered(run, "n1", [ranks_event(1, shared=True, on_gpus=False)])
    assert {device.uuid for device in account_run(run).devices} == {"cpu@n1"}


@pytest.mark.parametrize("events", [[], [ranks_event(0, shared=False, on_gpus=True)]])
def test_in_a_ray_of_our_own_or_where_nothing_was_noted_all_counts(run: RunFolder, events: list[dict]) -> None:
    metered(run, "n1", events)
    held(run, "GPU-n1-0")
    account = account_run(run)
    assert account.energy_j == pytest.approx(2100)
    assert account.phases["idle_devices"]["energy_j"] == pytest.approx(1000)


def test_each_attempt_has_its_own_nodes(run: RunFolder) -> None:
    metered(run, "n1", [ranks_event(1, shared=True, on_gpus=False)])
    metered(run, "n1", [ranks_event(0, shared=True, on_gpus=False)], attempt=2, start=20)
    metered(run, "n2", [ranks_event(1, shared=True, on_gpus=False)], attempt=2, start=20)
    account = account_run(run)
    assert [attempt["energy_j"] for attempt in account.attempts] == pytest.approx([100, 100])


def test_the_rest_of_a_shared_node_contains_no_gpu_of_others(run: RunFolder) -> None:
    times = [float(n) for n in range(11)]
    node = FakeSensor("node@n1", [reading(power_w=500.0) for _ in times], kind="node", method="integrated")
    metered(run, "n1", [ranks_event(1, shared=True, on_gpus=True)], more=[node])
    held(run, "GPU-n1-0")
    account = account_run(run)
    assert account.energy_j == pytest.approx(5000 - 1000)
    assert math.fsum(phase["energy_j"] for phase in account.phases.values()) == pytest.approx(account.energy_j)


def test_the_record_s_hosts_are_the_run_s_own(run: RunFolder) -> None:
    metered(run, "n1", [ranks_event(2, shared=True, on_gpus=True)])
    metered(run, "n2", [ranks_event(0, shared=True, on_gpus=True)])
    held(run, "GPU-n1-0", "GPU-n1-1")
    about = {"hosts": ["n1", "n2", "n3"], "meters": [{"node": node} for node in ("n1", "n2", "n3")]}
    account = account_run(run)
    assert account.other_nodes == ["n2"]
    record = make_footprint(about, account, [], [])
    assert record["hardware"]["hosts"] == ["n1", "n3"]
    # A node whose ledger is not here is missing; one that was nobody's is not.
    missing = [text for text in record["quality"]["warnings"] if text.startswith("no ledger of node")]
    assert len(missing) == 1 and "no ledger of node n3" in missing[0]


def test_a_node_that_had_a_rank_in_one_attempt_is_the_run_s(run: RunFolder) -> None:
    metered(run, "n1", [ranks_event(1, shared=True, on_gpus=False)])
    metered(run, "n1", [ranks_event(0, shared=True, on_gpus=False)], attempt=2, start=20)
    assert account_run(run).other_nodes == []


def test_of_a_node_whose_gpus_are_all_other_people_s_nothing_is_left_and_that_is_said(run: RunFolder) -> None:
    now, sensor = [0.0], FakeSensor("GPU-1", [reading(100.0 * t, 100.0) for t in range(11)])
    meter = Meter(
        run.ledger_file("n1"), node="n1", sensors=[sensor], discover_sensors=False, clock=lambda: (now[0], now[0])
    )
    meter.note(ranks_event(1, shared=True, on_gpus=False))
    for now[0] in map(float, range(11)):
        meter.sample(last=now[0] == 10)
    account = account_run(run)
    assert account.energy_j == 0 and account.devices == [] and account.curve is None
    assert any("held by no rank of this run" in text and "1000 J" in text for text in account.warnings)

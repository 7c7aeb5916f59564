"""A node that dies takes its meter along: from then on its energy is missing, and the account says so."""

from pathlib import Path

import pytest
from energy_fakes import FakeSensor, meter_fake, reading

from energy.accounting.account import account_run
from energy.runs import RunFolder


def _metered(run: RunFolder, node: str, uuid: str, times_s: range, stop: bool = True, attempt: int = 1) -> None:
    readings = [reading(energy_j=100.0 * time, power_w=100.0) for time in times_s]
    meter_fake(run, [FakeSensor(uuid, readings)], [float(time) for time in times_s], attempt, stop, node)


@pytest.mark.parametrize(
    ("attempts", "metered_s", "lost_s", "held_in"),
    [
        ([range(100)], range(10), 89, {1}),  # the run went on to its end
        ([range(100)], range(10), 89, set()),  # of a node that no rank trained on, such as the head's
        ([range(30), range(40, 100)], range(10), 19, {1}),  # another attempt went on without the node
        ([range(30), range(40, 100)], range(10), 89, {1, 2}),  # and with it, but without its meter
        ([range(30), range(40, 100)], range(28), 0, {1}),  # a driver that is killed takes all meters along
        ([range(30), range(40, 100)], range(40, 60), 0, {1}),  # a drained machine goes when the run has left it
    ],
)
def test_what_a_node_used_after_its_meter_was_lost_is_missing_and_not_zero(
    attempts: list[range], metered_s: range, lost_s: int, held_in: set[int], tmp_path: Path
) -> None:
    run = RunFolder(tmp_path / "run")
    run.metrics_dir.mkdir(parents=True)
    for number, times_s in enumerate(attempts, start=1):
        _metered(run, "n1", "GPU-1", times_s, stop=number == len(attempts), attempt=number)
        held = ["GPU-1", *(["GPU-2"] if number in held_in else [])]
        with run.metrics_file(0).open("a") as file:
            file.write(f'{{"event": "devices", "attempt": {number}, "uuids": {held!r}}}\n'.replace("'", '"'))
    _metered(run, "n2", "GPU-2", metered_s, stop=False, attempt=1 if metered_s[0] == 0 else 2)
    account = account_run(run)
    gaps = {device.uuid: device.gap_s for device in account.devices}
    told = [warning for warning in account.warnings if "its meter was lost at" in warning]
    assert gaps["GPU-2"] == pytest.approx(lost_s, abs=1.1)
    if lost_s:
        [warning] = told
        assert warning.startswith(f"n2: its meter was lost at 1970-01-01 00:00:{metered_s[-1]:02d} UTC")
        assert "is missing, not zero" in warning
    else:
        assert told == []


def test_a_device_that_went_before_its_meter_was_started_again_is_not_a_lost_meter(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    run.metrics_dir.mkdir(parents=True)
    run.metrics_file(0).write_text(
        "".join(f'{{"event": "devices", "attempt": {number}, "uuids": ["GPU-1"]}}\n' for number in (1, 2))
    )
    for number, (times_s, uuids) in enumerate([(range(30), ("GPU-1", "GPU-2")), (range(40, 100), ("GPU-1",))], start=1):
        sensors = [FakeSensor(uuid, [reading(energy_j=100.0 * s, power_w=100.0) for s in times_s]) for uuid in uuids]
        meter_fake(run, sensors, [float(s) for s in times_s], number, number == 2, "n1")
    account = account_run(run)
    assert {device.uuid: device.gap_s for device in account.devices}["GPU-2"] == 0.0
    [warning] = [warning for warning in account.warnings if "meter" in warning]
    assert "(GPU-2) was not on n1 any more when its meter was started again at 1970-01-01 00:00:40 UTC" in warning

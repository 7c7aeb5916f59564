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
    ("attempts", "metered_s", "lost_s", "held_later"),
    [
        ([range(100)], range(10), 89, False),  # the run went on to its end
        ([range(30), range(40, 100)], range(10), 19, False),  # another attempt went on without the node
        ([range(30), range(40, 100)], range(10), 89, True),  # and with it, but without its meter
        ([range(30), range(40, 100)], range(28), 0, False),  # a driver that is killed takes all meters along
        ([range(30), range(40, 100)], range(40, 60), 0, False),  # a drained machine goes when the run has left it
    ],
)
def test_what_a_node_used_after_its_meter_was_lost_is_missing_and_not_zero(
    attempts: list[range], metered_s: range, lost_s: int, held_later: bool, tmp_path: Path
) -> None:
    run = RunFolder(tmp_path / "run")
    run.metrics_dir.mkdir(parents=True)
    for number, times_s in enumerate(attempts, start=1):
        _metered(run, "n1", "GPU-1", times_s, stop=number == len(attempts), attempt=number)
        held = ["GPU-1", *(["GPU-2"] if number == 1 or held_later else [])]
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

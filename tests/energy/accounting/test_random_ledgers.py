"""Random ledgers of devices whose true energy is known: whatever happened to the meters, the account adds up, counts
each joule once, and is never above the truth by more than it says."""

from __future__ import annotations

import math
import os
import random
import shutil
from itertools import pairwise
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
from energy_fakes import write_phases
from record_fakes import make_run

from energy.accounting.account import Account, account_run
from energy.accounting.merge import merge
from energy.boundaries import shares_of
from energy.ledger.readings import read_sessions
from energy.metering import meter as meter_module
from energy.metering.meter import Meter
from energy.records.record import write_record
from energy.records.verify import verify_run
from energy.runs import RunFolder
from energy.sensors import Reading

START = 1_750_000_000.0  # unix s
METHODS = {"gpu": ("counter", "counter", "integrated"), "cpu": ("counter", "modelled"), "baseline": ("assumed",)}


class Device:
    """Uses another power each second, which is known; its sensor fails, its counter begins anew, as it was drawn."""

    def __init__(self, draw: random.Random, kind: str, uuid: str, inside: list[Device] | None = None) -> None:
        self.draw, self.inside, self.now_s = draw, inside, 0.0
        self.watts = [0.0 if draw.random() < 0.2 else draw.uniform(20, 400) for _ in range(97)]
        self.sums = np.concatenate([[0.0], np.cumsum(self.watts)])
        self.fails, self.blind, self.dumb, self.resets = (draw.choice([0, 0, p]) for p in (0.1, 0.05, 0.05, 0.01))
        self.counter_j, self.lost_until_s = draw.uniform(0, 1e6), -1.0
        self.method = "integrated" if inside is not None else draw.choice(METHODS[kind])
        boundary = "gpu" if kind == "gpu" else "node"
        self.about = dict(uuid=uuid, name=uuid, node="n", kind=kind, method=self.method, boundary=boundary)

    def describe(self) -> dict[str, str]:
        return dict(self.about)

    def used_j(self, until_s: float) -> float:
        cycles, rest_s = divmod(until_s, 97.0)
        return cycles * self.sums[-1] + float(np.interp(rest_s, range(98), self.sums))

    def power_w(self, at_s: float) -> float:
        return self.watts[int(at_s % 97)] + sum(device.power_w(at_s) for device in self.inside or ())

    def read(self) -> Reading:
        draw, at_s = self.draw, self.now_s
        if draw.random() < self.fails:
            self.lost_until_s = at_s + draw.choice([0.0, draw.uniform(0, 20)])
        if at_s <= self.lost_until_s:
            raise RuntimeError("lost")
        power_w = self.power_w(at_s)
        if self.method != "counter":
            return Reading(power_w=power_w, covers_past=self.method != "integrated")
        if draw.random() < self.resets:
            self.counter_j = -self.used_j(at_s)
        counter_mj = None if draw.random() < self.dumb else max(0, round(1e3 * (self.counter_j + self.used_j(at_s))))
        return Reading(counter_mj, None if counter_mj is not None and draw.random() < self.blind else power_w)


def stretch(run: RunFolder, draw: random.Random, node: str, devices: list[Device], at_s: float, attempt: int) -> float:
    """Meter for a while, then stop or be killed; when that was."""
    held, until_s, stop = [at_s], at_s + draw.choice([0.0, 1.0, 10.0, 100.0]), draw.random() < 0.5
    meter = Meter(
        run.ledger_file(node), node=node, attempt=attempt, sensors=devices, discover_sensors=False,
        clock=lambda: (START + held[0], held[0]),
    )  # fmt: skip
    with patch.object(meter_module, "boot_id", lambda: "the machine"):
        while True:
            for device in devices:
                device.now_s = held[0]
            last = held[0] >= until_s
            if last and stop:
                meter._read_all(meter._lock, keep=True)  # a stop reads twice: the row before it is kept everywhere too
            meter.sample(last=last and stop)
            if last:
                break
            held[0] += draw.choice([draw.uniform(0.05, 0.3), draw.uniform(0.8, 1.0), 1.0])
            held[0] += draw.uniform(5, 30) if draw.random() < 0.005 else 0.0  # nobody ran
    if not stop and meter._writer is not None:
        for appender in (meter._writer._main, meter._writer._raw, meter._writer._seconds):
            os.close(appender._fd)  # as the kernel does for a process that is killed
    return held[0]


def metered(folder: Path, draw: random.Random, whole: bool) -> tuple[RunFolder, dict[str, Device]]:
    """A run on one machine in one to three containers, each with its meters one after the other."""
    run, world, attempt = make_run(folder, meter=False, start=START), {}, 1
    for number in range(draw.choice([1, 1, 2, 3])):
        found = [Device(draw, "gpu", f"GPU-{number}-{n}") for n in range(draw.choice([1, 2, 4]))]
        if draw.random() < 0.7:
            found.append(world.get("cpu") or Device(draw, "cpu", "cpu"))  # all containers see the machine's CPU
        if draw.random() < 0.3 and number == 0:
            found.append(Device(draw, "baseline", "baseline"))
        world |= {device.about["uuid"]: device for device in found}
        if whole and number == 0:
            found.append(Device(draw, "node", "node", inside=list(world.values())))
        at_s = draw.uniform(0, 20)
        for _ in range(draw.choice([1, 2, 3])):
            at_s = stretch(run, draw, f"n{number}", found, at_s, attempt) + draw.choice([0.5, 3.0, 40.0])
            attempt += draw.random() < 0.5
    spans = [(START + (s := draw.uniform(-10, 300)), START + s + draw.choice([0.1, 3, 60])) for _ in range(60)]
    write_phases(run, [(draw.choice(["train_step", "idle", "checkpoint"]), *span) for span in spans])
    return run, world


def assert_adds_up(account: Account, total_j: float) -> None:
    for parts in (account.phases.values(), account.attempts):
        assert math.fsum(part["energy_j"] for part in parts) == pytest.approx(total_j, rel=1e-12, abs=1e-9)
    assert account.curve is not None and account.curve[1][-1] == pytest.approx(total_j, rel=1e-9, abs=1e-6)
    assert not total_j or math.fsum(filter(None, shares_of(account.devices, total_j).values())) == pytest.approx(1.0)


def metered_j(device: Device, run: RunFolder, account: Account) -> float:
    """What it used from the start to the end, without the time between an orderly stop and the next start."""
    moments = [account.start_unix_s, account.end_unix_s]
    for sessions in [read_sessions(path)[0] for path in run.ledgers()] if len(run.ledgers()) == 1 else ():
        apart = [(old.span()[1], new.span()[0]) for old, new in pairwise(sessions) if old.ended]
        moments[1:1] = [moment for pair in apart for moment in pair]
    used_j = [device.used_j(float(moment) - START) for moment in moments if moment is not None]
    return math.fsum(after - before for before, after in zip(used_j[::2], used_j[1::2], strict=True))


@pytest.mark.parametrize("seed", range(40))
def test_a_random_ledger_adds_up_and_counts_each_joule_once(tmp_path: Path, seed: int) -> None:
    draw = random.Random(seed)
    run, world = metered(tmp_path / "run", draw, whole=seed % 3 == 0)
    account = account_run(run, fine=True)
    total_j = account.energy_j
    assert_adds_up(account, total_j)
    assert len({device.uuid for device in account.devices}) == len(account.devices)
    for device in account.devices if seed % 3 else ():
        assert device.energy_j >= 0 and device.gap_s >= -1e-9
        if device.method == "counter":  # all of them were exact: what is above them was made up
            used_j = metered_j(world[device.uuid], run, account)
            assert device.energy_j <= used_j + device.doubt_j + 1.0
            told = [
                text for text in account.warnings if device.uuid in text and ("unknown" in text or "missing" in text)
            ]
            if len(run.ledgers()) == 1 and not told:  # what lacks is named
                assert device.energy_j >= used_j - device.doubt_j - 1.0
    assert all(part["energy_j"] >= -1e-6 for part in account.phases.values()) or seed % 3 == 0
    # Twice the same run is the same joules, and the finer files add shape and none of them.
    shutil.copytree(run.path, tmp_path / "again")
    again = merge([run, RunFolder(tmp_path / "again")])
    assert again.energy_j == pytest.approx(total_j, rel=1e-9) and merge([run]).overlap_j == pytest.approx(0, abs=1e-6)
    last = [read_sessions(path)[0][-1] for path in run.ledgers()]
    modelled = any(device.method in ("modelled", "assumed") for device in account.devices)
    if all(session.ended for session in last) and not modelled and seed % 3:
        assert account_run(run, fine=False).energy_j == pytest.approx(total_j, rel=1e-6)
    write_record(run)
    assert verify_run(run).ok

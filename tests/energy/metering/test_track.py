"""A device's curve where readings come late, and what was seen last of one that is lost or begins anew."""

import json
import math
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from energy_fakes import FakeSensor
from truth import parse

from energy.accounting.uncertainty import half_width
from energy.ledger.readings import read_sessions
from energy.metering.track import LONGEST_UPDATE_S, Track
from energy.runs import RunFolder
from energy.sensors import Reading

TRACES = (
    "trace=square low=100 high=400 period=1",
    "trace=steps low=80 mid=250 high=400 step=2 optimizer=0.25 every=5 dip=3",
    "trace=square low=100 high=400 period=0.35",
    "trace=bursts low=80 high=400 on=0.15 off=0.25",
)


def power_alone(trace: str, seed: int, stalls: float) -> tuple[float, float, float]:
    """(integrated J, doubt J, true J) of 30 s of a GPU without a counter, which is read every 50 ms but for stalls:
    so many a second, each of up to 1.5 s."""
    draw = random.Random(f"{trace} {seed}")
    [gpu] = parse(f"gpu uuid=a {trace} phase={draw.uniform(0, 10)} seed={seed}")
    offset_s = draw.uniform(0, 0.1)
    track, now_s, first_s, at_s = Track(False, LONGEST_UPDATE_S), 100.0, None, 0.0
    while now_s < 130.0:
        at_s = offset_s + math.floor((now_s - offset_s) / 0.1) * 0.1
        first_s = at_s if first_s is None else first_s
        track.update(Reading(power_w=gpu.energy_j(at_s - 0.025, at_s) / 0.025, power_unix_s=at_s), now_s, now_s)
        now_s += draw.uniform(0.04, 0.06) + (draw.uniform(0, 1.5) if draw.random() < stalls * 0.05 else 0.0)
    assert first_s is not None
    return track.held_mj / 1e3, track.doubt_mj / 1e3, gpu.energy_j(first_s, at_s)


@pytest.mark.parametrize("trace", TRACES)
@pytest.mark.parametrize("stalls", [0.0, 0.1, 0.5])
def test_the_interval_of_power_alone_holds_however_often_readings_come_late(trace: str, stalls: float) -> None:
    inside = 0
    for seed in range(100):
        held_j, doubt_j, true_j = power_alone(trace, seed, stalls)
        inside += abs(held_j - true_j) <= half_width([("integrated", held_j, doubt_j)])
    assert inside >= 93


def test_doubt_grows_with_missed_updates_and_not_where_power_is_constant() -> None:
    doubts = [math.fsum(power_alone(TRACES[0], seed, stalls)[1] for seed in range(20)) for stalls in (0.0, 0.1, 0.5)]
    assert 2 * doubts[0] < doubts[1] and 2 * doubts[1] < doubts[2]
    held_j, doubt_j, true_j = power_alone("trace=constant power=300", 1, 0.5)
    assert doubt_j == pytest.approx(0, abs=0.5) and held_j == pytest.approx(true_j, rel=1e-3)


GLANCES = """
import json, os, sys
from energy.sensors import nvml
from energy.metering.readers import Channel
clock_file, *moments = sys.argv[1:]
now = [0.0]
def move(at):
    now[0] = at
    with open(clock_file, "w") as file:
        file.write(repr(at))
move(0.0)
[sensor], _ = nvml.find("n1")
channel = Channel(sensor)
clock = lambda: (now[0], now[0])
seen = []
for place, at in enumerate(map(float, moments)):
    move(at)
    (channel.glance if place % 4 else channel.read)(clock)
    track = channel.track
    seen.append([at, track.energy_mj / 1e3, track.doubt_mj / 1e3, track.held_mj / 1e3, track.missing, track.resets])
print(json.dumps(seen))
"""


def glanced(nvml_env: Callable[[str], dict[str, str]], tmp_path: Path, gpu: str, moments: list[float]) -> list[list]:
    """A reading and three glances in turn, at those simulated seconds."""
    clock = tmp_path / "clock.txt"
    clock.write_text("0.0")
    done = subprocess.run(
        [sys.executable, "-c", GLANCES, str(clock), *map(str, moments)],
        # Timestamps of field values are unix times: this epoch makes them simulated seconds.
        env=nvml_env(gpu) | {"NVML_SIM_CLOCK": str(clock), "NVML_SIM_EPOCH": "0"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


MOMENTS = [n / 4 for n in range(13)]


def test_of_a_lost_gpu_what_a_glance_saw_is_known(nvml_env: Callable[[str], dict[str, str]], tmp_path: Path) -> None:
    seen = glanced(nvml_env, tmp_path, "gpu uuid=GPU-1 power=400 lost=1.6", MOMENTS)
    at, energy_j, doubt_j, _, missing, _ = next(row for row in seen if row[4])
    # Seen at 1.5 and found lost at 1.75, with the reading before at 1.0: held to the middle of the quarter of a second.
    assert at == 1.75 and missing
    assert energy_j == pytest.approx(600 + 50) and doubt_j == pytest.approx(50)
    assert seen[-1][1] == energy_j


def test_of_a_reloaded_driver_only_the_time_since_a_glance_is_integrated(
    nvml_env: Callable[[str], dict[str, str]], tmp_path: Path
) -> None:
    # Power steps from 100 to 400 W at 1.5: held over the whole second since the reading it would be far off.
    gpu = "gpu uuid=GPU-1 trace=square low=100 high=400 period=3 phase=1.5 reset=1.9"
    seen = glanced(nvml_env, tmp_path, gpu, MOMENTS)
    [truth] = parse(gpu)
    assert seen[-1][5] == 1
    assert seen[-1][1] == pytest.approx(truth.energy_j(0.0, 3.0), abs=0.1 * 400 + 15)


def test_what_glances_saw_of_the_power_is_integrated(nvml_env: Callable[[str], dict[str, str]], tmp_path: Path) -> None:
    gpu = "gpu uuid=GPU-1 trace=square low=100 high=400 period=1 counter_period=0 update=0 window=0"
    seen = glanced(nvml_env, tmp_path, gpu, MOMENTS)
    assert seen[-1][3] == pytest.approx(parse(gpu)[0].energy_j(0.0, 3.0))  # readings alone would all see 400 W


def test_a_flaky_device_fills_no_disk(tmp_path: Path) -> None:
    from energy.ledger import frames as ledger
    from energy.metering.meter import Meter

    hours, run, now = 6, RunFolder(tmp_path / "run"), [0.0]
    count = hours * 3600 * 2
    flaky = [RuntimeError("timeout") if n % 2 else Reading(100_000 * n, 100.0) for n in range(count)]
    sensors = [FakeSensor("GPU-1", flaky), FakeSensor("GPU-2", [Reading(50_000 * n, 50.0) for n in range(count)])]
    path = run.ledger_file("n1")
    meter = Meter(path, sensors=sensors, discover_sensors=False, interval_s=0.5, clock=lambda: (now[0], now[0]))
    for n in range(count):
        now[0] = n / 2
        meter.sample(last=n == count - 1)
    kinds = [frame.kind for frame in ledger.frames(path.read_bytes(), [])]
    assert kinds.count(ledger.MINUTE) <= hours * (60 + 2 * 60 + 1) + 2
    assert kinds.count(ledger.EVENT) <= hours * 120 + 2
    path.with_suffix(".raw").unlink()  # the seconds file: a row a second, and so many changes more
    path.with_suffix(".raw.old").unlink(missing_ok=True)
    [session], _ = read_sessions(path)
    assert len(session.ticks) <= hours * (3600 + 2 * 600 + 1) + 200
    # All distances have the same energy, and what was thinned away still says that the device could not be read.
    [coarse], _ = read_sessions(path, fine=False)
    assert coarse.ticks["rows"]["energy_mj"][-1].tolist() == session.ticks["rows"]["energy_mj"][-1].tolist()
    assert (coarse.ticks["rows"]["flags"][:, 0] > 0).mean() > 0.3


def reset_interval(trace: str, seed: int, every_s: float, stamped: bool = True) -> tuple[float, float, float]:
    """(J of a curve, its doubt in J, true J) of a GPU that is read so often, and whose counter begins anew once."""
    draw = random.Random(f"{trace} {seed} {every_s}")
    [gpu] = parse(f"gpu uuid=a {trace} phase={draw.uniform(0, 20)} seed={seed}")
    counter_s, power_s, reset_s = draw.uniform(0, 0.1), draw.uniform(0, 0.1), draw.uniform(105, 112)
    track, now_s, ends_s = Track(True, LONGEST_UPDATE_S), 100.0, []
    while now_s < 115.0:
        counted_s, seen_s = (offset + math.floor((now_s - offset) / 0.1) * 0.1 for offset in (counter_s, power_s))
        counted_s = max(counted_s, reset_s) if now_s >= reset_s else counted_s
        used_j = gpu.energy_j(reset_s, counted_s) if now_s >= reset_s else 5e5 + gpu.energy_j(100, counted_s)
        stamps = (counted_s, seen_s) if stamped else (None, None)
        reading = Reading(round(1e3 * used_j), gpu.energy_j(seen_s - 0.025, seen_s) / 0.025, *stamps)
        track.update(reading, now_s, now_s, now_s)
        track.row(now_s)  # what was seen before it is not forgotten
        ends_s.append(counted_s)
        now_s += every_s * draw.uniform(0.8, 1)
    assert track.resets == 1
    return track.energy_mj / 1e3, track.doubt_mj / 1e3, gpu.energy_j(ends_s[0], ends_s[-1])


def test_the_interval_of_a_reset_holds_the_truth_and_is_never_certain() -> None:
    # Sampled power fills in between two epochs of the counter: without the gain, which the same board has all along.
    traces = (*TRACES, "trace=constant power=300", "trace=square low=100 high=400 period=9")
    drawn = [reset_interval(trace, seed, (0.2, 0.5, 1.0)[seed % 3]) for trace in traces for seed in range(150)]
    assert all(doubt_j > 0 for _, doubt_j, _ in drawn)

    def inside(share: float) -> float:
        held = [
            abs(told_j - true_j) <= half_width([("assumed", 0, share * doubt_j)]) for told_j, doubt_j, true_j in drawn
        ]
        return sum(held) / len(held)

    assert 0.93 <= inside(1.0) <= 0.99 and inside(0.5) < 0.93  # too wide fails as well


def test_constant_power_over_a_reset_is_exact_where_updates_are_stamped_and_else_says_by_how_much_not() -> None:
    for seed in range(20):
        told_j, doubt_j, true_j = reset_interval("trace=constant power=300", seed, 1.0)
        assert told_j == pytest.approx(true_j, abs=0.01) and doubt_j < 2
        told_j, doubt_j, true_j = reset_interval("trace=constant power=300", seed, 1.0, stamped=False)
        # Both ends of the time between the epochs, and of what was counted, are known to an update of 0.1 s.
        assert abs(told_j - true_j) <= doubt_j and 30 <= doubt_j <= 90


def test_a_reset_while_an_edge_waits_leaves_the_curve_askable() -> None:
    track = Track(True, LONGEST_UPDATE_S)
    for at_s, used_mj in ((0.0, 500_000), (1.0, 600_000), (1.01, 1_000), (1.02, 2_000)):  # a driver without timestamps
        track.update(Reading(used_mj, 100.0), at_s, at_s)
    assert track.resets == 1
    assert track.energy_at(0.9) == pytest.approx(90_000, abs=10_000) and track.energy_at(1.02) == track.energy_mj


def test_what_was_seen_before_a_device_was_missing_stands_for_no_time_after() -> None:
    track = Track(True, LONGEST_UPDATE_S)
    for at_s, reading in (
        (0.0, Reading(500_000, 400.0)),
        (1.0, Reading(900_000, 400.0)),
        (1.2, Reading(error="lost")),
        (60.0, Reading(None, 400.0)),  # it is back, without a counter so far: nobody knows of the minute
        (61.0, Reading(None, 400.0)),
    ):
        track.update(reading, at_s, at_s)
    assert track.energy_mj == 400_000 + 40_000 + 400_000 and track.doubt_mj >= 40_000
    track.update(Reading(1_000_000, 400.0), 62.0, 62.0)
    assert (track.energy_mj, track.doubt_mj) == (840_000, 340_000)  # more than its counter says, by so much
    track.update(Reading(30_000_000, 400.0), 63.0, 63.0)
    assert (track.energy_mj, track.doubt_mj) == (29_500_000, 0)  # its counter knew all along


def test_a_counter_that_comes_up_late_is_joined_to_the_power_before_it() -> None:
    track = Track(True, LONGEST_UPDATE_S)
    for at_s, counter_mj in ((0.0, None), (1.0, None), (2.0, 7_000_000), (3.0, 7_400_000)):
        track.update(Reading(counter_mj, 400.0), at_s, at_s)
    assert track.energy_mj == 1_200_000 and 0 < track.doubt_mj < 100_000

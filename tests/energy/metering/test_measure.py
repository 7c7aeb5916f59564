"""`measure` around real commands: energy against a known truth, exit codes, signals, and what is left behind."""

import json
import os
import pty
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from truth import parse

from energy.accounting.account import account_run
from energy.carbon.grid import intensity
from energy.factors import Factor
from energy.metering import child
from energy.metering.measure import ending, measure
from energy.metering.measurement import Factors
from energy.metering.meter import Meter
from energy.runs import RunFolder

GPU = "gpu uuid=GPU-11111111-1111-1111-1111-111111111111 trace=square low=100 high=400 period=0.35\n"
MEASURE = """
import json, sys
from energy.metering.measure import measure
given = json.loads(sys.argv[1])
print(json.dumps(measure(given.pop("command"), **given).as_json()), file=sys.stderr)
"""
# Says how often it got each signal once its stdin ends.
COUNTS = """
import collections, signal, sys
got = collections.Counter()
for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1"):
    signal.signal(getattr(signal, name), lambda number, frame: got.update([signal.Signals(number).name]))
print("ready", flush=True)
sys.stdin.readline()
print(" ".join(f"{name}={count}" for name, count in sorted(got.items())), flush=True)
"""
SH = ["/bin/sh", "-c"]
Environment = Callable[[str], dict[str, str]]


def start(environment: dict[str, str], **given: Any) -> subprocess.Popen[str]:
    pipes: dict[str, Any] = {name: subprocess.PIPE for name in ("stdin", "stdout", "stderr")}
    command = [sys.executable, "-c", MEASURE, json.dumps(given)]
    # Tests that a script runs in the background inherit that Ctrl-C is ignored.
    listen = {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.default_int_handler)}
    return subprocess.Popen(command, env=environment, text=True, start_new_session=True, **pipes, **listen)


def finish(process: subprocess.Popen[str]) -> dict[str, Any]:
    _, stderr = process.communicate(timeout=120)
    assert process.returncode == 0, stderr
    return json.loads(stderr.splitlines()[-1])


def test_window_and_record_agree_with_the_truth(nvml_env: Environment, tmp_path: Path) -> None:
    epoch_s = int(time.time())
    environment = nvml_env(GPU) | {"NVML_SIM_EPOCH": str(epoch_s)}
    result = finish(start(environment, command=[*SH, "sleep 2"], runs_dir=str(tmp_path / "runs")))
    folder = RunFolder(result["run"])
    span = folder.phases()[0]
    truth_j = parse(GPU)[0].energy_j(span["start_unix_s"] - epoch_s, span["end_unix_s"] - epoch_s)
    gpu = result["devices"][0]
    edge_j = 400 * 0.1  # the counter is updated ten times a second
    assert gpu["energy_j"] == pytest.approx(truth_j, abs=edge_j) and gpu["method"] == "counter"
    assert gpu["low_j"] < truth_j < gpu["high_j"]
    assert result["duration_s"] == pytest.approx(span["end_unix_s"] - span["start_unix_s"], abs=0.05)
    account = account_run(folder)
    host_w = sum(d["energy_j"] or 0.0 for d in result["devices"][1:]) / result["duration_s"]
    window_j = result["energy_it_kwh"] * 3.6e6
    assert account.phases["command"]["energy_j"] == pytest.approx(window_j, abs=edge_j + host_w)
    record = json.loads((folder.path / "footprint.json").read_text())
    assert record["energy"]["energy_it_kwh"] == pytest.approx(account.energy_j / 3.6e6)
    # One number: what the meter read before and after the command is in neither.
    assert account.energy_j == pytest.approx(window_j, abs=edge_j + 0.1 * host_w)
    assert (account.start_unix_s, account.end_unix_s) == pytest.approx(
        (span["start_unix_s"], span["end_unix_s"]), abs=0.01
    )
    assert account.phases["unattributed"]["energy_j"] == 0
    assert record["run"]["status"] == "completed" and record["run"]["purpose"] == "measure"


def test_two_at_once_each_get_their_window(nvml_env: Environment, tmp_path: Path) -> None:
    environment, runs = nvml_env(GPU.replace("trace=square", "power=200")), str(tmp_path / "runs")
    both = [start(environment, command=[*SH, f"sleep {s}"], runs_dir=runs) for s in (1, 2)]
    short, long = (finish(process) for process in both)
    assert short["run_id"] != long["run_id"]
    for result in (short, long):
        assert result["devices"][0]["energy_j"] == pytest.approx(200 * result["duration_s"], rel=0.02)


@pytest.mark.parametrize(
    ("code", "status", "error"),
    [
        (0, "completed", None),
        (3, "failed", "the command ended with exit code 3"),
        (130, "stopped", "the command was ended by SIGINT"),
        (139, "failed", "the command was ended by SIGSEGV"),
        (255, "failed", "the command ended with exit code 255"),
    ],
)
def test_endings(code: int, status: str, error: str | None) -> None:
    assert ending(code) == (status, error)


@pytest.mark.parametrize(("script", "code"), [("exit 0", 0), ("exit 3", 3), ("kill -9 $$", 137), ("kill -15 $$", 143)])
def test_exit_codes(script: str, code: int) -> None:
    assert child.run([*SH, script]) == code


def test_the_streams_are_the_callers(capfd: pytest.CaptureFixture[str]) -> None:
    script = "echo out; echo err >&2"
    child.run([*SH, script])
    assert capfd.readouterr() == ("out\n", "err\n")
    child.run([*SH, script], stdout_to_stderr=True)
    assert capfd.readouterr() == ("", "out\nerr\n")


def test_the_command_does_not_inherit_what_python_ignores(capfd: pytest.CaptureFixture[str]) -> None:
    child.run([*SH, "grep SigIgn /proc/self/status"])
    ignored = int(capfd.readouterr().out.split()[1], 16)
    assert not ignored >> (signal.SIGPIPE - 1) & 1


def test_a_command_that_cannot_run_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("not a program")
    (tmp_path / "bare").write_text("\0\0\0\0")
    (tmp_path / "bare").chmod(0o755)
    cases = {"no-such-command": 127, str(tmp_path / "text"): 126, str(tmp_path): 126, str(tmp_path / "bare"): 126}
    for command, code in cases.items():
        with pytest.raises(child.CannotStart, match=Path(command).name) as caught:
            measure([command], tmp_path / "runs", gpus=None)
        assert caught.value.exit_code == code
    assert not list((tmp_path / "runs").glob("*"))


def test_a_program_found_later_in_the_path_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder, mode in (("first", 0o644), ("second", 0o755)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "tool").write_text("#!/bin/sh\nexit 7\n")
        (tmp_path / folder / "tool").chmod(mode)
    monkeypatch.setenv("PATH", f"{tmp_path / 'first'}:{tmp_path / 'second'}")
    assert child.run(["tool"]) == 7


def test_what_cannot_be_is_refused_before_the_command_starts(tmp_path: Path) -> None:
    marker, runs = tmp_path / "ran", tmp_path / "runs"
    (runs / "taken").mkdir(parents=True)
    (tmp_path / "file").touch()
    touch = ["touch", str(marker)]
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        held.listen()
        port = held.getsockname()[1]
        for given, expected in (
            ({"name": "taken"}, "exists"),
            ({"name": "../up"}, "plain folder name"),
            ({"gpus": ["GPU-none"]}, "hoofprint doctor"),
            ({"prometheus": ("127.0.0.1", port)}, f"port {port} .* in use"),
        ):
            with pytest.raises(ValueError, match=expected):
                measure(touch, runs, **given)  # type: ignore[arg-type]
    with pytest.raises(OSError):
        measure(touch, tmp_path / "file")
    assert not marker.exists() and [path.name for path in runs.iterdir()] == ["taken"]


def test_factors_need_sources_and_sense() -> None:
    with pytest.raises(ValueError, match="--pue-source"):
        Factors.declared(pue=1.2)
    with pytest.raises(ValueError, match="at least 1"):
        Factors.declared(pue=0.9, pue_source="x")
    with pytest.raises(ValueError, match="--intensity-g-per-kwh: the source of which figure"):
        Factors.declared(intensity_source="x")
    factors = Factors.declared(1.5, "a", 400.0, "b")
    assert factors.totals(7.2e6) == {"energy_it_kwh": 2.0, "energy_facility_kwh": 3.0, "carbon_tco2eq": 0.0012}
    assert Factors.declared(1.5, "a").totals(7.2e6)["carbon_tco2eq"] is None
    assert set(factors.totals(None).values()) == {None}


def test_a_command_s_factors_go_into_its_record_with_year_place_and_hash(tmp_path: Path) -> None:
    france = intensity("FR")
    factors = Factors(Factor("pue", 1.2, "1", "the operator"), france)
    folder = measure([*SH, "exit 0"], tmp_path, gpus=None, factors=factors).folder
    record = json.loads((folder.path / "footprint.json").read_text())
    stored = {each["key"]: each for each in record["assumptions"]}
    assert stored["intensity_g_per_kwh"] == france.as_dict() and france.year is not None
    assert Factor.from_dict(stored["pue"]) == factors.pue and len(stored["pue"]["sha256"]) == 64


@pytest.mark.parametrize("send", [os.kill, os.killpg], ids=["to measure alone", "to the group"])
def test_a_signal_reaches_the_command_once(send: Callable[[int, int], None], tmp_path: Path) -> None:
    process = start({**os.environ}, command=[sys.executable, "-c", COUNTS], runs_dir=str(tmp_path), gpus=None)
    assert process.stdin is not None and process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP, signal.SIGINT):
        send(process.pid, number)
        time.sleep(0.5)
    process.stdin.write("\n")
    process.stdin.flush()
    assert process.stdout.readline() == "SIGHUP=1 SIGINT=2 SIGTERM=1 SIGUSR1=1\n"
    assert finish(process)["exit_code"] == 0


def test_ctrl_c_after_the_commands_end_does_not_lose_the_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop = Meter.stop

    def interrupted(meter: Meter) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        stop(meter)

    monkeypatch.setattr(Meter, "stop", interrupted)
    before = signal.getsignal(signal.SIGINT)
    result = measure([*SH, "exit 4"], tmp_path, gpus=None)
    assert result.exit_code == 4 and result.folder.read_run()["status"] == "failed"
    assert (result.folder.path / "footprint.json").exists() and signal.getsignal(signal.SIGINT) == before


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_kill_before_the_command_starts_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    monkeypatch.setattr("energy.metering.measure._meter", lambda *_: os.kill(os.getpid(), number))
    before = signal.signal(number, signal.SIG_DFL)  # a test that runs in the background may inherit that it is ignored
    try:
        with pytest.raises(SystemExit) as ended:
            measure([*SH, "exit 0"], tmp_path, gpus=None)
        assert ended.value.code == 128 + number and signal.getsignal(number) == signal.SIG_DFL
    finally:
        signal.signal(number, before)
    assert list(tmp_path.iterdir()) == []


def test_what_a_command_leaves_at_work_is_named(tmp_path: Path) -> None:
    told = tmp_path / "pid"
    is_asleep = "until grep -q sleep /proc/$!/comm; do :; done"  # before that it has the shell's name
    script = f"setsid sleep 600 & echo $! > {told}; {is_asleep}; exit 3"
    result = measure([*SH, script], tmp_path / "runs", gpus=None)
    os.kill(pid := int(told.read_text()), signal.SIGKILL)
    assert result.exit_code == 3 and result.window.duration_s < 600
    record = json.loads((result.folder.path / "footprint.json").read_text())
    for warnings in (result.warnings, record["quality"]["warnings"]):
        assert any(f"left 1 process at work ({pid} sleep)" in text for text in warnings)


def test_ctrl_c_at_a_terminal_reaches_the_command_once(tmp_path: Path) -> None:
    given = {"command": [sys.executable, "-c", COUNTS], "runs_dir": str(tmp_path), "gpus": None}
    pid, terminal = pty.fork()
    if pid == 0:
        os.execv(sys.executable, [sys.executable, "-c", MEASURE, json.dumps(given)])
    seen = b""
    try:
        while b"ready" not in seen:
            seen += os.read(terminal, 1000)
        os.write(terminal, b"\x03")
        time.sleep(0.5)
        os.write(terminal, b"\n")
        while chunk := os.read(terminal, 1000):
            seen += chunk
    except OSError:
        pass  # Linux says so when the last process of the terminal has ended
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 0 and b"SIGINT=1\r\n" in seen, seen

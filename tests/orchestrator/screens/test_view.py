"""The live view: what it says, that it never wraps, and that a long run costs it no more than a short one."""

import json
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from orchestrator.budget.watch import Spending
from orchestrator.live import state
from orchestrator.live.progress import CURVE_ROOM, Curve, RunProgress, Tail
from orchestrator.screens.view import Shown, key_values, metering, preparing, spark, starting, training

NOW = time.mktime((2026, 3, 4, 12, 0, 0, 0, 0, -1))


def gpu(method: str = "counter") -> dict:
    return {"kind": "gpu", "method": method, "name": "NVIDIA A100-SXM4-80GB"}


def cpu(method: str = "counter") -> dict:
    return {"kind": "cpu", "method": method, "name": "a CPU"}


def dram(method: str = "counter") -> dict:
    return {"kind": "dram", "method": method, "name": "memory"}


@pytest.mark.parametrize(
    ("hosts", "gpus", "said"),
    [
        ([[gpu()] * 8 + [cpu(), dram()]], 8, "measured: energy counters on 8/8 GPUs, RAPL on 1/1 hosts"),
        (
            [[gpu()] * 7 + [cpu()], [gpu("integrated"), cpu("modelled"), dram("modelled")]],
            8,
            "measured: energy counters on 7/8 GPUs, power integrated on 1/8 GPUs, RAPL on 1/2 hosts (memory: 0/2); "
            "modelled: CPU and memory on 1/2 hosts",
        ),
        ([[cpu("modelled"), dram("modelled")]], 0, "measured: nothing; modelled: CPU and memory on 1/1 hosts"),
        ([[cpu()]], 4, "measured: none of the 4 GPUs, RAPL on 1/1 hosts (memory: 0/1)"),
    ],
)
def test_what_is_measured_in_words(hosts: list[list[dict]], gpus: int, said: str) -> None:
    assert metering([{"sensors": sensors} for sensors in hosts], gpus) == said


def progress(steps: int = 300, **known: float) -> RunProgress:
    """A run of 1,000 steps of 8,192 tokens, one a second, that checkpointed and evaluated on the way."""
    run = RunProgress(1000, 8192, NOW - steps - 10, **known)
    for step in range(1, steps + 1):
        run.feed(
            {"event": "step", "step": step, "loss": 9 - 0.02 * step, "seconds": 1.0, "time_unix_s": NOW - steps + step}
        )
    run.feed({"event": "checkpoint", "step": 300, "time_unix_s": NOW - 1, "blocked_s": 0.1, "seconds": 1.0})
    run.feed({"event": "evaluation", "step": steps, "time_unix_s": NOW, "validation_loss": 3.25})
    return run


def shown(
    run: RunProgress, carbon_t: float | None = None, pue: float | None = None, grid: float | None = None
) -> Shown:
    """By the live state of a watch over this run, without a budget."""
    budget = SimpleNamespace(spending=Spending(carbon_t=carbon_t), pue=pue, intensity_g_per_kwh=lambda now: grid)
    nodes = SimpleNamespace(documents=lambda *now: [])
    watch: Any = SimpleNamespace(progress=run, budget=budget, nodes=nodes)
    watch.run_id, watch.attempt, watch.states, watch.stragglers = "one", 1, [], None
    return Shown(state.document(watch, NOW, NOW))


def test_the_facts() -> None:
    run = progress(flop_per_token=1e7, peak_flops=1e12)
    for second in range(100):
        run.feed_power({"power_w": 20.0 + second % 7, "energy_j": 25.0 * second, "read_s": NOW - 100 + second})
    text = "\n".join(line.plain for line in training(shown(run), 80, NOW))
    assert "300 of 1,000" in text and "loss 3.000" in text and "validation 3.250" in text
    assert "8,192 tokens/s" in text
    assert "MFU 8.2 % (PaLM count, peak 1.00 TFLOP/s)" in text
    assert "21.0 W" in text and "2.56 mJ/token" in text
    assert text.count("ends at 12:11") == 3  # 700 steps of a second: tokens, time, energy
    assert "0.688 Wh of 4.77 Wh" in text and "carbon" not in text and "grid" not in text
    assert " 30 %  2.46 M of 8.19 M" in text
    assert "checkpoint at step 300" in text and "validation loss 3.250 at step 300" in text
    assert "MFU" not in "\n".join(line.plain for line in training(shown(progress()), 80, NOW))  # no peak, no MFU


def test_carbon_where_pue_and_grid_are_declared() -> None:
    run = progress()
    run.feed_power({"power_w": 21.0, "energy_j": 3.6e6, "read_s": NOW})
    text = "\n".join(line.plain for line in training(shown(run, 480e-6, 1.2, 400.0), 80, NOW))
    assert "480 g of 482 g" in text and "grid 400 g/kWh" in text  # 1 kWh so far, and 4 Wh to come


def test_days_from_now_have_their_date() -> None:
    run = progress(steps=3)
    run.total_steps = 10_000_000
    assert any("ends at 28 Jun 05:" in line.plain for line in training(shown(run), 120, NOW))


@pytest.mark.parametrize("width", [20, 40, 80, 120])
def test_no_line_is_wider_than_the_terminal(width: int) -> None:
    run = progress(flop_per_token=1e7, peak_flops=1e17)
    for second in range(300):
        run.feed_power({"power_w": 123456.0, "energy_j": 1e9, "read_s": NOW - 300 + second})
    run.events.append((NOW, "a very long event " * 20))
    seen = shown(run)
    drawn = [training(seen, width, NOW), starting(seen, width, NOW), training(shown(progress(1)), width, NOW)]
    drawn.append(preparing("tokenising a source with a long name", 5e6, 1e7, width))
    for line in (line for lines in drawn for line in lines):
        assert line.cell_len <= width and "\n" not in line.plain


def test_for_a_file_one_line_of_key_values() -> None:
    facts = dict(part.split("=") for part in key_values(shown(progress()), NOW).split(" "))
    assert facts["step"] == "300/1000" and facts["tokens_per_s"] == "8192" and facts["checkpoint_step"] == "300"
    assert facts["power_w"] == facts["mfu"] == "-"
    assert facts["ends"].startswith("2026-03-04T12:11:40")


def test_the_tail_reads_each_line_once_and_waits_for_whole_ones(tmp_path: Path) -> None:
    path = tmp_path / "rank-0.jsonl"
    path.write_text('{"step": 1}\n')
    tail = Tail(path)  # an attempt before wrote that
    assert tail.read() == []
    with path.open("ab") as file:
        file.write(b'{"step": 2}\n{"st')
        file.flush()
        assert tail.read() == [{"step": 2}]
        file.write(b'ep": 3}\n\nnot json\n')
        file.flush()
        assert tail.read() == [{"step": 3}]
    assert tail.read() == []
    assert Tail(tmp_path / "not yet").read() == []


def test_the_tail_never_goes_back_to_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "rank-0.jsonl"
    tail = Tail(path)
    path.write_text("".join(json.dumps({"step": step}) + "\n" for step in range(1000)))
    assert len(tail.read()) == 1000
    path.write_bytes(b"x" * path.stat().st_size + b'{"step": 1000}\n')  # what was read is not looked at again
    assert tail.read() == [{"step": 1000}]


def test_a_million_steps_are_a_few_hundred_points() -> None:
    curve = Curve()
    for step in range(100_000):
        curve.add(step)
    curve.add(float("nan"))
    assert len(curve.points) <= 2 * CURVE_ROOM + 1
    assert curve.points == sorted(curve.points)
    assert curve.points[0] < 500 and curve.points[-1] > 99_000


def test_sparks() -> None:
    assert spark([], 10) == ""
    assert spark([1.0, 2.0], 10) == "▁█"
    assert spark([100.0, 101.0], 10, low=0.0) == "██"  # a steady power looks steady
    assert len(spark(list(range(1000)), 30)) == 30


def test_the_step_that_compiles_is_in_no_rate() -> None:
    run = RunProgress(1000, 8192, NOW - 100, peak_flops=None)
    step = {"event": "step", "loss": 5.0, "time_unix_s": NOW}
    run.feed({"event": "enter", "phase": "compile", "time_unix_s": NOW - 90})
    run.feed({**step, "step": 1, "seconds": 60.0})
    assert run.tokens_per_s is None
    run.feed({"event": "enter", "phase": "train_step", "time_unix_s": NOW - 30})
    run.feed({**step, "step": 2, "seconds": 2.0})
    assert run.tokens_per_s == 4096.0

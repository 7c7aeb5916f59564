"""`hoofprint plan` as a user and another program see it."""

import functools
import io
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from plan_fakes import EXPERIMENTS, spec
from rich.console import Console

from energy.factors import Factor
from orchestrator.plan.plan import CONTRACT, PlanOptions, make_plan
from orchestrator.plan.screen import print_plan
from orchestrator.plan.sweep import parse_sweep, run_sweep
from orchestrator.spec.file import load_experiment

HOOFPRINT = [sys.executable, "-c", "from orchestrator.cli import main; main()"]
LLAMA, LAPTOP = str(EXPERIMENTS / "llama_7b.yaml"), str(EXPERIMENTS / "laptop.yaml")


def hoofprint(*arguments: str, columns: int = 80) -> subprocess.CompletedProcess[str]:
    environment = {"COLUMNS": str(columns), "PATH": "", "NO_COLOR": "1", "PYTHONIOENCODING": "utf-8"}
    return subprocess.run([*HOOFPRINT, *arguments], capture_output=True, text=True, timeout=120, env=environment,
                          cwd=EXPERIMENTS.parent)  # fmt: skip


def test_json_has_the_contract(tmp_path: Path) -> None:
    done = hoofprint("plan", LLAMA, "--json", "--runs", str(tmp_path))
    assert done.returncode == 0 and done.stderr == ""
    plan = json.loads(done.stdout)
    for side in (plan, plan["low"], plan["high"]):
        assert set(CONTRACT) <= set(side)
    for each in plan["assumptions"]:
        assert {"key", "value", "unit", "source"} <= set(each) and each["source"]
    by_table = {each["key"]: each for each in plan["assumptions"] if "sha256" in each}
    assert {"peak_flops", "embodied_kgco2eq", "pue", "intensity_g_per_kwh", "device_rated_power_w"} <= set(by_table)
    assert all(Factor.from_dict(each).as_dict() == each for each in by_table.values())


@pytest.mark.parametrize("columns", [80, 120])
@pytest.mark.parametrize("spec", [LLAMA, LAPTOP])
def test_the_screen_fits(spec: str, columns: int, tmp_path: Path) -> None:
    done = hoofprint("plan", spec, "--runs", str(tmp_path), "--gpu-hour-price", "2", columns=columns)
    assert done.returncode == 0 and done.stderr == ""
    *screen, last = done.stdout.rstrip().splitlines()
    assert max(map(len, screen)) <= columns
    assert "…" not in done.stdout  # nothing was cut off
    assert screen[-1] == "Nothing was started. Start it with:" and last == f"  hoofprint run {spec}"
    assert ("low" in done.stdout) == (spec == LLAMA)
    assert "Budget" not in done.stdout


def test_the_screen_shows_the_budget_and_the_overrides() -> None:
    done = hoofprint("plan", LLAMA, "--budget", "30 MWh", "--set", "training.tokens=1.0T")
    assert "121 % over the budget" in done.stdout
    assert done.stdout.rstrip().endswith("--set training.tokens=1.0T")


def test_sweep_json_marks_what_was_measured() -> None:
    done = hoofprint("plan", LLAMA, "--sweep", "cluster.nodes=1..256", "--json")
    rows = json.loads(done.stdout)["rows"]
    assert [row["workers"] for row in rows] == [8, 16, 32, 64, 128, 256, 512, 1024, 2048]
    assert [row["extrapolated"] for row in rows] == [True] * 8 + [False]
    days = [row["wall_days"] for row in rows]
    assert days == sorted(days, reverse=True)


def test_sweep_of_the_grid_scales_the_carbon_only() -> None:
    done = hoofprint("plan", LLAMA, "--sweep", "energy.intensity=50,100 g/kWh,0.4 kg/kWh", "--json")
    rows = json.loads(done.stdout)["rows"]
    assert [round(row["carbon_tco2eq"] / rows[0]["carbon_tco2eq"], 6) for row in rows] == [1, 2, 8]
    assert len({row["energy_facility_kwh"] for row in rows}) == 1


@pytest.mark.parametrize("size", ["7b", "13b", "33b", "65b"])
def test_a_sweep_over_grids_replaces_the_intensity_of_the_spec(size: str) -> None:
    done = hoofprint("plan", str(EXPERIMENTS / f"llama_{size}.yaml"), "--sweep", "energy.grid=FR,DE")
    assert done.returncode == 0, done.stderr
    assert "FR" in done.stdout and "recompute" in done.stdout and "…" not in done.stdout


def test_the_bar_of_a_sweep_stands_behind_what_it_shows() -> None:
    """Of a sweep over grids behind the carbon, and of any other behind the days."""

    def before_the_bar(sweep: str, row: str) -> str:
        screen = hoofprint("plan", str(EXPERIMENTS / "llama_65b.yaml"), "--sweep", sweep).stdout
        line = next(line for line in screen.splitlines() if line.split()[:1] == [row])
        header = next(line for line in screen.splitlines() if "GPU-hours" in line)
        place = min(line.index(mark) for mark in "━╌" if mark in line)
        return header[:place].rstrip() + (": carbon" if "bar: carbon" in screen else ": days")

    assert before_the_bar("energy.grid=FR,PL", "PL").endswith("t CO2eq: carbon")
    assert before_the_bar("cluster.workers=1024,2048", "1024").endswith("days: days")


def test_a_sweep_replaces_a_figure_together_with_its_range() -> None:
    ranged = "energy.pue_range={low: 1.05, high: 1.2, source: our meters}"
    done = hoofprint("plan", LLAMA, "--set", ranged, "--sweep", "energy.pue=1.1,1.4", "--json")
    assert [row["error"] for row in json.loads(done.stdout)["rows"]] == [None, None]


def test_a_sweep_shows_the_values_that_the_spec_refuses() -> None:
    done = hoofprint("plan", LLAMA, "--sweep", "cluster.workers=64,96")
    assert done.returncode == 0
    assert "96: batch of 2048 sequences does not divide over 96 ranks" in " ".join(done.stdout.split())
    assert "measured on as many devices" in done.stdout


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("cluster.workers=8..64", ["8", "16", "32", "64"]),
        ("cluster.workers=8..48", ["8", "16", "32", "48"]),
        ("cluster.workers=8..32:8", ["8", "16", "24", "32"]),
        ("training.tokens=1M..4M", ["1000000", "2000000", "4000000"]),
        ("energy.grid=FR, DE", ["FR", "DE"]),
        ("energy.pue=1.0..1.6:0.1", ["1", "1.1", "1.2", "1.3", "1.4", "1.5", "1.6"]),
        ("training.batch_tokens=1M..1.5M:0.25M", ["1000000", "1250000", "1500000"]),
        ("training.learning_rate=1.2345678e-4..1.2345678e-4", ["0.00012345678"]),
    ],
)
def test_ranges(text: str, values: list[str]) -> None:
    assert parse_sweep(text).values == values


@pytest.mark.parametrize("sweep", ["training.compile=true,false,auto", "cluster.max_failures=2..8"])
def test_a_sweep_takes_what_has_no_unit(sweep: str) -> None:
    load = functools.partial(load_experiment, EXPERIMENTS / "laptop.yaml")
    assert [row["error"] for row in run_sweep(load, parse_sweep(sweep))["rows"]] == [None] * 3


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--set", "cluster.accelerator=A100-SXM4-81GB"], "A100-SXM4-80GB"),
        (["--gpu-hour-price", "-1"], "--gpu-hour-price"),
        (["--gpu-hour-price", "nan"], "--gpu-hour-price"),
        (["--mfu", "1.2"], "--mfu"),
        (["--mfu", "0"], "--mfu"),
        (["--tokens-per-s-per-gpu", "-5"], "--tokens-per-s-per-gpu"),
        (["--failures-per-gpu-hour", "-1"], "--failures-per-gpu-hour"),
        (["--restart-minutes", "inf"], "--restart-minutes"),
        (["--throughput", "guess"], "llama_paper"),
        (["--budget", "a lot"], "--budget"),
        (["--sweep", "cluster.workers"], "key=a..b"),
        (["--sweep", "cluster.workers=64..8"], "must rise"),
        (["--sweep", "cluster.workers=8..many"], "8..many"),
        (["--sweep", "cluster.workers=8..256..512"], "a range has two ends"),
        (["--sweep", "cluster.workers=1..1000:1"], "more than 200"),
        (["--sweep", "cluster.workers=8,,16"], "empty"),
        (["--sweep", "cluster.wrkers=8..16"], "did you mean workers?"),
        (["--set", "cluster.accelerator=MI300X"], "--mfu"),
        (["--sharding", "--json"], "leave out --json"),
        (["--sharding", "--sweep", "cluster.workers=8..64"], "leave out --sweep"),
        (["--sharding", "--set", "cluster.tensor_parallel=128"], "n_heads"),
    ],
)
def test_bad_input_is_named(arguments: list[str], named: str) -> None:
    done = hoofprint("plan", LLAMA, *arguments)
    assert done.returncode == 2, done.stderr
    assert named in done.stderr and "Traceback" not in done.stderr
    assert done.stdout == ""


def test_what_lies_where_can_be_printed() -> None:
    done = hoofprint("plan", LLAMA, "--sharding", "--set", "cluster.replicas=4", "--set", "cluster.tensor_parallel=8")
    lines = done.stdout.splitlines()
    assert lines[0] == "2048 ranks: 4 replicas x 64 shards x 8 tensor", done.stderr
    [gate] = [line.split() for line in lines if line.startswith("blocks.*.ffn.w_gate.weight")]
    assert gate[1:] == [
        "32",
        "11008",
        "x",
        "4096",
        *gate[5:-1],
        f"{22 * 4096 * 4:,}",
    ]  # 11008 / 8 rows over 64: at most 22
    assert lines[-1].startswith("weights at rest: ") and lines[-1].endswith("1 gathered ahead")


@pytest.mark.parametrize("more", [[], ["--json"], ["--sweep", "cluster.workers=8..64"], ["--help"]])
def test_nothing_heavy_is_imported(more: list[str]) -> None:
    code = (
        f"import sys; from orchestrator.cli import cli\ntry: cli({['plan', LLAMA, *more]!r})\n"
        "except SystemExit: pass\n"
        "print([m for m in ('torch', 'ray', 'pandas', 'matplotlib', 'numpy') if m in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stderr.strip() == "[]"


def test_a_carbon_of_zero_is_shown_and_hours_of_no_gpu_are_not() -> None:
    def screen(*overrides: str) -> str:
        plan = make_plan(spec("llama_7b", *overrides), options=PlanOptions(tokens_per_s_per_gpu=3000.0))
        console = Console(file=io.StringIO(), width=200)
        print_plan(plan, "", console)
        return console.file.getvalue()  # type: ignore[attr-defined, no-any-return]

    clean, on_cpu = screen("energy.intensity=0"), screen("cluster.device=cpu", "cluster.accelerator=null")
    assert re.search(r"carbon, g CO2eq +0 +0 g/kWh", clean) and "t CO2eq" in clean
    assert "time, days" in on_cpu and "GPU-hours" not in on_cpu

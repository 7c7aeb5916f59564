"""The figures of a plan: what an assumption moves is what the plan itself would say, and what happened is on top."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from figure_sample import copy_sample, declare, hoofprint

from dashboards.figures import Missing, Source, make_figure, read_plan
from dashboards.figures.fan import Fan, fans_of
from dashboards.figures.planned import assumptions
from dashboards.figures.tornado import panels_of, tornado_drawing
from orchestrator.plan import PlanOptions, make_plan
from orchestrator.spec.file import load_experiment

SPEC = Path(__file__).parents[2] / "experiments" / "llama_65b.yaml"
RANGES = (
    "energy.pue_range={low: 1.05, high: 1.3, source: a test}",
    "energy.intensity_range={low: 300, high: 500, source: a test}",
)


def planned(*overrides: str, **options: Any) -> dict[str, Any]:
    return make_plan(load_experiment(SPEC, overrides), None, PlanOptions(**options))


def test_an_end_of_a_bar_is_what_the_plan_says_with_that_value() -> None:
    plan = planned(*RANGES)
    by_name = {each.name: each for each in assumptions(plan)}
    low_rate, high_rate = plan["low"]["tokens_per_s_per_gpu"], plan["high"]["tokens_per_s_per_gpu"]
    again = {
        ("PUE", 0): planned("energy.pue=1.05"),
        ("PUE", 1): planned("energy.pue=1.3"),
        ("grid intensity", 0): planned("energy.intensity=300"),
        ("grid intensity", 1): planned("energy.intensity=500"),
        ("throughput", 0): planned(tokens_per_s_per_gpu=high_rate),
        ("throughput", 1): planned(tokens_per_s_per_gpu=low_rate),
    }
    for (name, end), other in again.items():
        factor = by_name[name].factors()[end]
        for key, _, _, _ in panels_of(plan):
            moved = plan[key] * (factor if key in by_name[name].moves else 1.0)
            assert moved == pytest.approx(other[key], rel=1e-9), (name, end, key)


def test_interruptions_come_on_top_and_a_value_without_a_range_is_named_beneath() -> None:
    plan = planned()
    lost = next(each for each in assumptions(plan) if each.on_top)
    share = plan["failures"]["lost_share"]
    assert lost.factors() == (1 + share["low"], 1 + share["high"])
    said = tornado_drawing(plan).inline()
    assert "power of a device 400 W; PUE 1.10; grid intensity 385 g/kWh" in " ".join(said.split())
    assert "20.4" not in said, "no bar without a range"


def test_no_range_is_no_figure() -> None:
    plan = planned(tokens_per_s_per_gpu=380.0) | {"failures": None}
    with pytest.raises(Missing, match=r"no assumption of the plan has a range.*PUE 1\.10"):
        make_figure("tornado", None, plan)


def test_a_plan_without_time_says_what_it_lacks() -> None:
    laptop = make_plan(load_experiment(SPEC.with_name("laptop.yaml")), None)
    for name in ("tornado", "fan"):
        with pytest.raises(
            Missing, match=f"--figure {name} of the plan of laptop: the plan has no time.*lacks tokens/s"
        ):
            make_figure(name, None, laptop)


def test_a_fan_begins_at_nothing_and_ends_at_the_plan() -> None:
    energy, tokens = fans_of(planned(*RANGES))
    end = np.array([0.0, 2 * energy.seconds[2]])
    steep = Fan("energy_it_kwh", "", (3.5, 5.2, 6.6), (60.0, 95.0, 110.0))  # at first the low case draws most
    assert [part[0] for part in steep.envelope(np.array([30.0]))] == pytest.approx([5.2 * 30 / 95, 5.2 * 30 / 95, 1.8])
    for fan in (energy, tokens):
        least, likely, most = fan.envelope(np.linspace(0.0, end[1], 500))
        assert np.all(least <= likely) and np.all(likely <= most)
        assert (least[0], least[-1], likely[-1], most[-1]) == pytest.approx((0.0, *fan.ends))
    slow, quick = (Fan("tokens", "", (1.0, 1.0, 1.0), (10.0, 20.0, 40.0)).envelope(np.array([10.0]))[k] for k in (0, 2))
    assert (slow[0], quick[0]) == (0.25, 1.0), "the slowest has a quarter when the quickest is done"


def test_what_happened_ends_at_the_record_and_the_last_step(tmp_path: Path) -> None:
    source = Source(declare(copy_sample(tmp_path / "run")))
    energy, tokens = fans_of(source.planned(), source.account, source.record, source.steps)
    assert energy.key == "energy_facility_kwh"
    assert energy.happened is not None and tokens.happened is not None
    assert energy.happened[1][-1] == pytest.approx(source.record["energy"]["energy_facility_kwh"], rel=1e-9)
    assert tokens.happened[1][-1] == source.record["data"]["tokens_trained"]
    assert tokens.happened[0][0] == 0.0 and np.all(np.diff(tokens.happened[0]) >= 0)
    source.record["energy"]["pue"] = None
    energy, _ = fans_of(source.planned(), source.account, source.record, source.steps)
    assert energy.key == "energy_it_kwh", "plan and run within one boundary"
    assert energy.happened is not None
    assert energy.happened[1][-1] == pytest.approx(source.record["energy"]["energy_it_kwh"], rel=1e-9)


def test_the_command_takes_the_json_of_plan_and_of_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert hoofprint(monkeypatch, "plan", SPEC, "--json") == 0
    Path("plan.json").write_text(capsys.readouterr().out)
    run = declare(copy_sample(tmp_path / "run")).path
    for figure in ("tornado", "fan"):
        assert hoofprint(monkeypatch, "plot", "plan.json", "--figure", figure, "-o", "a.svg") == 0
        assert hoofprint(monkeypatch, "plot", run, "--figure", figure, "-o", "b.svg") == 0
        assert hoofprint(monkeypatch, "plot", run / "plan.json", "--figure", figure, "-o", "c.svg") == 0
        assert Path("a.svg").read_bytes() != Path("b.svg").read_bytes()
        with_what_happened = Path("b.svg").read_bytes() != Path("c.svg").read_bytes()
        assert with_what_happened == (figure == "fan")
    assert read_plan(Path("plan.json"))["name"] == "llama-65b"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{", "not JSON"),
        ("[]", "not a plan; write one by: hoofprint plan SPEC --json > plan.json"),
        (json.dumps({"key": "cluster.nodes", "rows": []}), "the plans of a sweep"),
        (json.dumps({"schema": "hoofprint/plan/2"}), "take the newer version"),
    ],
)
def test_a_file_that_is_no_plan_says_how_to_write_one(text: str, expected: str, tmp_path: Path) -> None:
    path = tmp_path / "p.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=expected.replace(".", r"\.")):
        read_plan(path)

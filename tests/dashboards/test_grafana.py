"""The Grafana dashboard asks only for what the endpoint and Ray's metrics really export."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from energy_fakes import FakeSensor, reading
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from energy.metering.meter import Meter
from energy.metering.prometheus import MeterCollector
from orchestrator.cluster.training_metrics import LABELS, TRAINING

FILE = Path(__file__).parents[2] / "dashboards" / "grafana" / "hoofprint.json"
DASHBOARD: dict[str, Any] = json.loads(FILE.read_text(encoding="utf-8"))
PANELS: list[dict[str, Any]] = DASHBOARD["panels"]
VARIABLES: dict[str, dict[str, Any]] = {each["name"]: each for each in DASHBOARD["templating"]["list"]}
EXPRS = [target["expr"] for panel in PANELS for target in panel["targets"]]
QUERIES = [VARIABLES[name]["definition"] for name in ("run", "node")]


@pytest.fixture(scope="module")
def exported() -> dict[str, set[str]]:
    """{metric: its labels}: of a meter as a scrape shows them, of the training as Ray is told (tests/ray scrapes)."""
    sensor = FakeSensor("GPU-1", [reading(1.0, 10.0), reading(2.0, 10.0)])
    meter = Meter(node="n1", sensors=[sensor], discover_sensors=False)
    meter.sample()
    registry = CollectorRegistry()
    registry.register(MeterCollector(meter, "run-1"))  # type: ignore[arg-type]
    families = text_string_to_metric_families(generate_latest(registry).decode())
    of_meter = {sample.name: set(sample.labels) for family in families for sample in family.samples}
    return of_meter | {each.name: set(LABELS) for each in TRAINING}


@pytest.mark.parametrize("expr", EXPRS + QUERIES)
def test_every_metric_and_label_is_exported(expr: str, exported: dict[str, set[str]]) -> None:
    names = re.findall(r"hoofprint_\w+", expr)
    assert names and set(names) <= exported.keys()
    for name, selector in re.findall(r"(hoofprint_\w+)\{([^}]*)\}", expr):
        assert set(re.findall(r"(\w+)=?[=!~]", selector)) <= exported[name]
    labels = set().union(*(exported[name] for name in names))
    assert all(set(re.split(r",\s*", group)) <= labels for group in re.findall(r"by \(([^)]*)\)", expr))


@pytest.mark.parametrize("expr", EXPRS + QUERIES)
def test_every_name_takes_the_prefix_of_its_source(expr: str) -> None:
    assert expr.count("hoofprint_") == expr.count("${prefix}hoofprint_")
    assert expr.count("{") == expr.count("}") and expr.count("(") == expr.count(")")


def test_legends_name_labels_that_are_left(exported: dict[str, set[str]]) -> None:
    for panel in PANELS:
        for target in panel["targets"]:
            shown = set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]))
            kept = re.findall(r"by \(([^)]*)\)", target["expr"])
            left = set(re.split(r",\s*", kept[0])) if kept else exported["hoofprint_device_power_watts"]
            assert shown <= left, panel["title"]


def test_everything_of_the_training_is_shown() -> None:
    assert {each.name for each in TRAINING} <= set(re.findall(r"hoofprint_\w+", " ".join(EXPRS)))


def test_counters_are_asked_for_their_growth() -> None:
    for expr in EXPRS:
        if "joules_total" in expr and "increase(" not in expr:
            assert expr.startswith("sum by (kind, method)"), expr  # the curve of the total itself


def test_runs_nodes_source_and_data_source_can_be_chosen() -> None:
    assert VARIABLES.keys() == {"datasource", "prefix", "run", "node"}
    assert [option["value"] for option in VARIABLES["prefix"]["options"]] == ["", "ray_"]
    assert VARIABLES["datasource"]["query"] == "prometheus"
    assert all(expr.count('run=~"$run"') == expr.count("hoofprint_") for expr in EXPRS)
    of_nodes = [expr for expr in EXPRS if "hoofprint_training_" not in expr]
    assert of_nodes and all(expr.count('node=~"$node"') == expr.count("hoofprint_") for expr in of_nodes)
    sources = [panel["datasource"] for panel in PANELS] + [t["datasource"] for p in PANELS for t in p["targets"]]
    assert all(source == {"type": "prometheus", "uid": "${datasource}"} for source in sources)


def test_panels_lie_side_by_side() -> None:
    assert len({panel["id"] for panel in PANELS}) == len(PANELS)
    taken: set[tuple[int, int]] = set()
    for panel in PANELS:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not cells & taken and at["x"] + at["w"] <= 24, panel["title"]
        taken |= cells

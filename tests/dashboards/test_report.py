"""Figures and reports: deterministic, self-contained, honest about what is partial."""

import json
import re
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dashboards import report
from dashboards.figures import loss_energy_figure, phases_figure, power_figure
from energy.accounting.account import Account, DeviceEnergy
from energy.carbon.embodied import CONVENTIONS
from energy.export.eu_form import document
from energy.export.sentence import text as sentence
from energy.records.footprint import make_footprint
from energy.records.record import canonical
from energy.runs import RunFolder


def device(
    uuid: str, name: str, energy_j: float, kind: str = "gpu", method: str = "counter", node: str = "n0"
) -> DeviceEnergy:
    return DeviceEnergy(uuid, name, node, kind, "node", method, energy_j, samples=241, gap_s=0.0)


def make_account() -> Account:
    times = 1.7e9 + np.arange(0, 120.1, 0.5)
    wave = 350 + 40 * np.sin(np.arange(len(times)) / 9)
    wave[:30] = 90
    host = np.full(len(times), 140.0)
    power = [("GPU-aaaa", times, wave), ("GPU-bbbb", times, wave * 0.95), ("host-n0", times, host)]
    joules = [float(np.sum(watts[:-1] * 0.5)) for _, _, watts in power]
    total = sum(joules)
    devices = [
        device("GPU-aaaa", "NVIDIA H200", joules[0]),
        device("GPU-bbbb", "NVIDIA H200", joules[1], method="integrated"),
        device("host-n0", "host baseline", joules[2], kind="cpu", method="modelled"),
    ]
    parts = {
        "startup": 0.06,
        "data_wait": 0.02,
        "train_step": 0.8,
        "checkpoint": 0.03,
        "evaluation": 0.05,
        "unattributed": 0.04,
    }
    phases = {
        name: {"energy_j": share * total, "seconds": 120 * share, "standard_error_j": 1.0, "method": "direct"}
        for name, share in parts.items()
    }
    return Account(
        devices,
        phases,
        power=power,
        warnings=["one sensor <could> not be read"],
        start_unix_s=1.7e9,
        end_unix_s=1.7e9 + 120,
    )


STEPS = [
    {
        "event": "step",
        "attempt": 1,
        "step": n,
        "time_unix_s": 1.7e9 + 15 + n,
        "loss": 4 + 6 * 0.95**n,
        "tokens": 8192 * n,
        "seconds": 1.0,
    }
    for n in range(1, 101)
]
EVALUATIONS = [
    {
        "event": "evaluation",
        "attempt": 1,
        "step": n,
        "time_unix_s": 1.7e9 + 15 + n,
        "validation_loss": 4.2 + 6 * 0.95**n,
    }
    for n in range(20, 101, 20)
]
RUN: dict[str, Any] = {
    "run_id": "20260101-small",
    "name": "llama-small",
    "status": "failed",
    "purpose": "a test",
    "error": "rank 1 died: <signal 9>",
    "created_unix_s": 1.7e9,
    "ended_unix_s": 1.7e9 + 120,
    "code_revision": "abc1234",
    "versions": {"torch": "2.9"},
    "attempts": [{"attempt": 1, "started_unix_s": 1.7e9, "ended_unix_s": 1.7e9 + 120, "status": "failed"}],
    "hosts": ["n0"],
    "world_size": 2,
    "device_type": "cuda",
    "planned_tokens": 8192 * 163,
    "command": "hoofprint run small.yaml",
    "model": {
        "params": 15_000_000,
        "dim": 288,
        "n_layers": 6,
        "n_heads": 6,
        "sequence_length": 256,
        "flop_per_token": 9e7,
    },
    "data": {"unigram_entropy_nats": 7.1},
    "accounting": {
        "pue": {"value": 1.1, "source": "the spec"},
        "intensity_g_per_kwh": {"value": 385, "source": "US average, paper"},
    },
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunFolder:
    monkeypatch.setattr(report, "account_run", lambda run: make_account())
    (tmp_path / "metrics").mkdir()
    (tmp_path / "run.json").write_text(json.dumps(RUN))
    (tmp_path / "experiment.yaml").write_text("name: llama-small\n")
    (tmp_path / "metrics" / "rank-0.jsonl").write_text(
        "\n".join(json.dumps(line) for line in STEPS + EVALUATIONS) + "\n"
    )
    (tmp_path / "footprint.json").write_text(canonical(make_footprint(RUN, make_account(), STEPS, EVALUATIONS)))
    return RunFolder(tmp_path)


def all_figures() -> list[str]:
    account = make_account()
    return [
        power_figure(account),
        phases_figure(account),
        loss_energy_figure(account, STEPS, EVALUATIONS, 7.1),
    ]


def test_figures_are_the_same_bytes_every_time_and_valid() -> None:
    first = all_figures()
    assert first == all_figures()
    identifiers: list[str] = []
    for svg in first:
        root = ET.fromstring(svg)
        assert root.get("role") == "img"
        assert root.find("{http://www.w3.org/2000/svg}title") is not None
        assert "#101418" not in svg
        identifiers += re.findall(r'\bid="([^"]+)"', svg)
    assert len(identifiers) == len(set(identifiers))


def test_figures_of_nothing_say_so() -> None:
    empty = Account([], {}, [])
    assert "no power readings" in power_figure(empty)
    assert "no energy" in phases_figure(empty)
    assert "no steps" in loss_energy_figure(empty, [])


def test_many_devices_are_drawn_as_groups() -> None:
    account = make_account()
    account.devices = [device(f"GPU-{n:04d}", "NVIDIA H200", 1.0, node=f"n{n // 8}") for n in range(32)]
    account.power = [(d.uuid, account.power[0][1], account.power[0][2]) for d in account.devices]
    assert "n3 GPU × 8" in power_figure(account)


def test_modelled_power_is_hatched() -> None:
    svg = power_figure(make_account())
    assert "<pattern" in svg
    assert not re.search(r"fill: url[^\"]*fill-opacity", svg)
    assert "host baseline, modelled" in svg


class Checker(HTMLParser):
    VOID = {"meta", "br", "link", "img", "hr", "input"}

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_report_is_one_offline_file_that_tells_the_truth(folder: RunFolder) -> None:
    html_path, markdown_path = report.write_report(folder)
    html, markdown = html_path.read_text(), markdown_path.read_text()
    checker = Checker()
    checker.feed(html)
    assert checker.open == []
    assert '<html lang="en">' in html
    assert not re.search(r'(src|href)="(?!#)', html)
    assert "@import" not in html
    assert "<script" not in html
    assert "&lt;signal 9&gt;" in html
    assert html.count("<svg") == 3
    for text in (html, markdown):
        assert "partial: 61 % of the planned tokens (failed)" in text
        for expected in (
            "IT energy",
            "Not counted",
            "US average, paper",
            "H200-SXM: vendor data sheet",
            "abc1234",
            "hoofprint run small.yaml",
            "name: llama-small",
        ):
            assert expected in text


def test_both_forms_say_what_the_metering_took_which_factor_has_a_range_and_what_conforms(folder: RunFolder) -> None:
    path = folder.path / "footprint.json"
    record = json.loads(path.read_text())
    took = {"cpu_s": 3.5, "cpu_counts": "the threads that the meter started", "peak_memory_mb": 60.0, "energy_j": 7.0}
    record["quality"]["metering_overhead"] = took
    next(each for each in record["assumptions"] if each["key"] == "pue").update(low=1.06, high=1.46)
    path.write_text(canonical(record))
    for text in (each.read_text() for each in report.write_report(folder)):
        said = "3.50 s of CPU time (the threads that the meter started), about 7.00 J by the mean power of the CPUs"
        assert f"The metering itself took {said}." in text
        assert "1.10 (1.06 to 1.46)" in text

    record["sci"]["score_g_per_million_tokens"] = 1.0
    for convention, claims in (("calendar", True), ("busy-hour", False)):
        record["embodied"]["convention"] = CONVENTIONS[convention]
        path.write_text(canonical(record))
        assert ["ISO/IEC 21031" in each.read_text() for each in report.write_report(folder)] == [claims] * 2

    record["quality"]["metering_overhead"] = dict.fromkeys(took)
    path.write_text(canonical(record))
    assert not any("metering itself" in each.read_text() for each in report.write_report(folder))


def test_both_forms_call_nothing_measured_that_was_not(folder: RunFolder) -> None:
    """Metered is not measured: what was modelled or not read says so where its figure stands."""
    path = folder.path / "footprint.json"
    record = json.loads(path.read_text())
    covered = report.headline(record)[0]["note"]
    assert "% modelled" in covered and "(PaLM, of 989 TFLOP/s)" in report.headline(record)[3]["note"]
    record["energy"]["devices"][0] |= {"samples": 0, "energy_j": None, "energy_kwh": None}
    record["energy"]["devices"][2] |= {"kind": "baseline"}
    record["energy"]["devices"][1] |= {"node": "n1"}
    path.write_text(canonical(record))
    html, markdown = (each.read_text() for each in report.write_report(folder))
    assert f'As metered<br><span class="quiet">{covered}</span>' in html and ">Measured<" not in html
    for text in (html, markdown):
        assert "As metered / paper's method" in text and text.count("not read") == 1
        assert ": 1 of 2 nodes as whole nodes, by" in re.sub("<[^>]*>", "", text)
        assert "preparing the data and starting Ray" in text and "development runs other" in text
    assert "(1 of 2 nodes as whole nodes, by" in sentence(record)
    folder.update_run(kind="measure")
    assert not any("Ray" in each.read_text() for each in report.write_report(folder))
    assert len(report.headline(record)) == 5
    told = report.headline(record | {"model": {"params": None}})
    assert [card["label"] for card in told] == ["IT energy", "Carbon", "Time"] and "token" not in json.dumps(told)


def test_where_nothing_was_read_both_forms_have_no_zeros(folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "figures", lambda run: dict.fromkeys(("power", "phases", "loss-energy"), ""))
    path = folder.path / "footprint.json"
    nothing = make_account()
    nothing.devices = []
    path.write_text(canonical(make_footprint({**RUN, "device_type": None}, nothing, STEPS, EVALUATIONS)))
    html, markdown = (each.read_text() for each in report.write_report(folder))
    assert "Boundary not known: no device was metered." in markdown and "device-hours not known, " in markdown
    assert "<strong>not known</strong>: no device was metered. Time without readings" in html
    assert "| train step | not known | not known | – | 1.60 min |" in markdown
    assert '<td class="n">not known</td><td class="n">not known</td><td class="n">–</td>' in html
    for text in (html, markdown):
        assert "0 J" not in text and "0.0 %" not in text and "needs a measurement<" in text.replace(" |", "<")


@pytest.mark.parametrize(
    "known, needs",
    [
        ({}, "of 0.0110 Wh at the facility"),
        ({"pue": None, "intensity": None}, "needs PUE and grid intensity"),
        ({"intensity": None}, "needs grid intensity; 0.0110 Wh at the facility"),
        ({"it": None}, "needs a measurement"),
        ({"it": None, "pue": None, "intensity": None}, "needs a measurement, PUE and grid intensity"),
        ({"series": "ab", "intensity": None}, "needs grid intensity for all of its time; 0.0110 Wh at the facility"),
    ],
)
def test_carbon_says_what_it_lacks(folder: RunFolder, known: dict[str, Any], needs: str) -> None:
    record = json.loads((folder.path / "footprint.json").read_text())
    given: dict[str, Any] = {"it": 1e-5, "pue": 1.1, "intensity": 385.0, "series": None} | known
    is_known = None not in (given["it"], given["pue"], given["intensity"])
    energy: dict[str, Any] = record["energy"]
    energy |= {"energy_it_kwh": given["it"], "pue": given["pue"]}
    energy["energy_facility_kwh"] = 1.1e-5 if given["it"] and given["pue"] else None
    record["carbon"] |= {"intensity_g_per_kwh": given["intensity"], "series_sha256": given["series"]}
    record["carbon"]["carbon_tco2eq"] = 4e-9 if is_known else None
    assert report.headline(record)[1]["note"] == needs
    assert is_known or f"not known: it {needs.partition(';')[0]}" in sentence(record)


@pytest.mark.parametrize(
    "share, said",
    [(1.0, "100 %"), (1 - 1e-12, "100 %"), (0.9999, "99.9 %"), (0.9961, "99.6 %"), (0.5, "50.0 %"), (3e-5, "0.003 %")],
)
def test_less_than_all_is_never_100_percent(folder: RunFolder, share: float, said: str) -> None:
    record = json.loads((folder.path / "footprint.json").read_text())
    record["energy"] |= {"share_measured": share, "share_modelled": 1 - share, "share_assumed": 0.0}
    assert report.headline(record)[0]["note"].startswith(f"{said} measured")
    assert f", {said} of it measured)" in sentence(record)
    assert f"({said} of it measured)" in document(record)["energy_methodology"]


def test_both_forms_name_the_code_of_an_attempt_that_ran_other(folder: RunFolder) -> None:
    same = {"code_revision": "abc1234", "versions": {"torch": "2.9"}}
    path = folder.path / "footprint.json"
    record = json.loads(path.read_text())
    record["run"]["attempts"] = [
        {**RUN["attempts"][0], **same, "attempt": number, **other}
        for number, other in enumerate([{"code_revision": "0ld"}, {"versions": {"torch": "2.8"}}, {}], 1)
    ]
    path.write_text(canonical(record))
    for each in report.write_report(folder):
        text = each.read_text()
        assert "attempt 1 ran 0ld; attempt 2 ran torch 2.8" in text and "attempt 3 ran" not in text


def test_both_forms_name_the_steps_that_were_skipped(folder: RunFolder) -> None:
    path = folder.path / "footprint.json"
    record = json.loads(path.read_text())
    skips = [
        {"step": 12 + n, "reason": "the loss is <nan>", "first_sequence": 8 * n, "last_sequence": 8 * n + 7}
        for n in range(1000)  # what the record names of 1234
    ]
    record["data"] |= {"steps_skipped": 1234, "tokens_skipped": 1234 * 8192, "skipped": skips}
    path.write_text(canonical(record))
    html, markdown = (each.read_text() for each in report.write_report(folder))
    assert "<nan>" not in html
    for text in (html.replace("&lt;", "<").replace("&gt;", ">"), markdown):
        assert (
            "1,234 steps (10.1 M tokens) changed nothing, for want of a finite loss or gradient: step 12 (the" in text
        )
        assert "step 15 (the loss is <nan>; sequences 24 to 31) and 1,230 more, in footprint.json" in text
        assert "step 16" not in text

    record["data"] |= {"steps_skipped": 1, "tokens_skipped": 8192, "skipped": skips[:1]}
    path.write_text(canonical(record))
    assert all("1 step (8,192 tokens) changed nothing" in each.read_text() for each in report.write_report(folder))
    for key in ("steps_skipped", "tokens_skipped", "skipped"):
        del record["data"][key]
    path.write_text(canonical(record))
    assert not any("changed nothing" in each.read_text() for each in report.write_report(folder))


def test_report_is_written_the_same_twice(folder: RunFolder) -> None:
    first = [path.read_bytes() for path in report.write_report(folder)]
    assert first == [path.read_bytes() for path in report.write_report(folder)]
    assert not list(Path(folder.path).glob(".*"))


def test_the_causes_are_ratios_of_actual_to_planned(folder: RunFolder) -> None:
    factors = [
        {"factor": "tokens", "planned": 1000.0, "actual": 900.0, "unit": "tokens", "ratio": 0.9},
        {"factor": "throughput", "planned": 5000.0, "actual": 4000.0, "unit": "tokens/s per device", "ratio": 1.25},
        {"factor": "pue", "planned": None, "actual": 1.1, "unit": "1", "ratio": None},
    ]
    totals = [{"key": "device_hours", "planned": 2.0, "actual": 2.25, "ratio": 1.125}]
    plan = Path(folder.path) / "plan.json"
    plan.write_text(json.dumps({"plan": {}, "outcome": {"totals": totals, "factors": factors}}))
    html, markdown = (path.read_text() for path in report.write_report(folder))
    assert "| time per token (device-µs) | 200 | 250 | 1.25 |" in markdown
    assert "| tokens | 1,000 | 900 | 0.9 |" in markdown
    for text in (html, markdown):
        assert "Each cause is a ratio of actual to planned" in text and "throughput" not in text
    assert "purpose: a test" in html


def test_thousands_of_gpus_stay_under_two_megabytes_and_the_rest_is_counted(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    account = make_account()
    _, times, watts = account.power[0]
    account.devices = [device(f"GPU-{n:04d}", "NVIDIA H200", 1.0, node=f"n{n // 8}") for n in range(2048)]
    account.power = [(d.uuid, times, watts) for d in account.devices]
    monkeypatch.setattr(report, "account_run", lambda run: account)
    record = make_footprint(RUN, account, STEPS, EVALUATIONS)
    (folder.path / "footprint.json").write_text(canonical(record))
    html, markdown = report.write_report(folder)
    assert html.stat().st_size < 2_000_000
    for path in (html, markdown):
        text = path.read_text()
        assert text.count("GPU-0") < 3 * 128 and "And 1920 more devices: footprint.json has each." in text

"""What is not known is no zero on the pages, and the time of which nothing is known is in no mean."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from live_document import live_document
from server_fakes import START, recorded, serve

from dashboards.server.parts import budget_bar, heat_map, live_cards
from dashboards.server.rendering import environment
from energy.records.record import FILE_NAME


def test_what_a_record_does_not_know_is_not_zero_watt(tmp_path: Path) -> None:
    path = recorded(tmp_path / "run").path / FILE_NAME
    with serve(tmp_path) as client:
        for energy_kwh, method, gap_s, crash, metered_s, watts in (
            (0.01, "counter", 0.0, None, 50.0, "720"),  # over the half for which it was there
            (0.01, "counter", 0.0, None, 0.0, "?"),
            # Of a record from before that was noted.
            (0.01, "counter", 0.0, None, None, "360"),  # over the 100 s of its attempts, not over the run
            (0.01, "integrated", 20.0, None, None, "450"),
            (0.01, "integrated", 50.0, 0.002, None, "450"),  # 30 s of that are in no attempt
            (0.01, "counter", 30.0, 0.002, None, "277"),  # its counter told what was used in them
            (0.01, "integrated", 100.0, None, None, "?"),
            (None, "counter", 0.0, None, None, "?"),
        ):
            record = json.loads(path.read_text())
            energy, gap = record["energy"], {"phase": "gap", "seconds": 30.0, "energy_kwh": crash, "share": 0.1}
            energy["devices"] = energy["devices"][:1]
            energy["devices"][0] |= {"energy_kwh": energy_kwh, "method": method, "gap_s": gap_s}
            energy["devices"][0].pop("metered_s", None)
            energy["devices"][0] |= {} if metered_s is None else {"metered_s": metered_s}
            energy["attempts"] = [{"seconds": 40.0}, {"seconds": 60.0}]
            energy["phases"] = [each for each in energy["phases"] if each["phase"] != "gap"] + [gap] * bool(crash)
            path.write_text(json.dumps(record))
            assert f"</span> {watts}</li>" in client.text("/run/run/state"), (energy_kwh, method, gap_s, crash)
        known = client.text("/run/run/")
        record["energy"]["energy_it_kwh"] = None
        for part in record["energy"]["phases"]:
            part |= {"energy_kwh": 0.0, "share": 0.0 if part["phase"] == "startup" else None}  # as some versions wrote
        path.write_text(json.dumps(record))
        page = client.text("/run/run/")
    row = r'>startup</th><td class="n">([^<]*)</td><td class="n">([^<]*)</td>'
    assert re.findall(row, page) == [("–", "–")] and re.findall(row, known)[0][1].endswith(" %")


@pytest.mark.parametrize(
    ("changes", "by_hour", "said"),
    [
        ({"energy_it_kwh": None, "energy_facility_kwh": None}, False, "nothing was read yet"),
        (
            {"pue": None, "energy_facility_kwh": None, "intensity_g_per_kwh": None},
            False,
            "needs PUE and grid intensity",
        ),
        ({"pue": None, "energy_facility_kwh": None}, False, "needs PUE"),
        ({"intensity_g_per_kwh": None}, False, "needs grid intensity"),
        ({"intensity_g_per_kwh": None}, True, "the grid intensity of some hours is not known"),
        ({}, True, "the grid intensity of some hours is not known"),
    ],
)
def test_the_card_of_carbon_says_what_it_lacks(changes: dict[str, Any], by_hour: bool, said: str) -> None:
    document = live_document(START, carbon_tco2eq=None) | changes
    card = next(each for each in live_cards(document, by_hour) if each["label"] == "Carbon so far")
    assert (card["value"], card["note"]) == ("not known", said)


def test_a_budget_and_devices_of_which_nothing_is_known_have_no_bar_and_no_highest() -> None:
    [known] = live_document(START)["budget"]
    unknown = known | dict.fromkeys(("spent", "share", "forecast", "held_back", "stops_at_step")) | {"state": "unknown"}
    unknown["words"] = known["words"] | {"spent": "not known", "forecast": None}
    template = environment("").get_template("more.html.j2")
    cells, scale = heat_map([("n1", [("GPU-1", "a GPU", "gpu", None, None)])])
    rest: dict[str, Any] = {"cells": cells, "scale": scale, "nodes_left": 0, "document": None}
    pages = [template.render(rest, budget=[budget_bar(each)]) for each in (known, unknown)]
    assert '<svg class="bar"' in pages[0] and "<strong>over</strong>" in pages[0]
    assert "energy: not known of 3.00 kWh" in pages[1]
    assert "<svg" not in pages[1] and "<strong>" not in pages[1]
    assert "not read: silent" in pages[1] and "Watts of each device.</p>" in pages[1]

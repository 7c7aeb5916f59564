"""Hugging Face model card: `co2_eq_emissions` in the YAML block, in GRAMS, and the section for people.

The Hub's documentation asks for grams of CO2eq; kilograms, as codecarbon prints them, are the commonest mistake in
published cards and make a model look a thousand times cleaner. `card_faults` finds them.

`write_card` changes a README.md only between its own two markers and at the key co2_eq_emissions of its YAML block;
every other byte stays, whatever its line ends are.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

import yaml

from energy.export.facts import Facts, facts_of, figure, significant
from energy.export.sentence import say
from energy.human import digits, human_carbon, human_energy

KEY = "co2_eq_emissions"
BEGIN, END = "<!-- hoofprint: begin, written from footprint.json -->", "<!-- hoofprint: end -->"
FIGURES = 4
FRONT = re.compile(r"\A(\ufeff?---[ \t]*(\r?\n))(.*?)(^---[ \t]*(?:\r?\n|\Z))", re.DOTALL | re.MULTILINE)
OWN_KEY = re.compile(rf"^(['\"]?){KEY}\1[ \t]*:")
UNITS = ((1e-3, "kilograms"), (1e-6, "tonnes"), (1e3, "milligrams"))
NEAR = 0.05  # a factor this close to a power of a thousand is a mistake of the unit, not of the figure
LEAST_G_PER_KWH = 3.0  # no grid is cleaner over a training; Iceland and Norway have some 20 to 30


def grams(facts: Facts) -> float | None:
    """Location-based carbon in g, rounded for print."""
    return None if facts.location_g is None else significant(facts.location_g, FIGURES)


def emissions(record: Mapping[str, Any]) -> dict[str, Any] | None:
    """The value of co2_eq_emissions; None where the carbon is not known. What is not known has no key."""
    facts = facts_of(record)
    if facts.location_g is None:
        return None
    value = {
        "emissions": grams(facts),
        "source": f"hoofprint: {facts.methods}; location-based, PUE {facts.pue:g}, without embodied carbon and offsets",
        "training_type": facts.training_type,
        "geographical_location": facts.region,
        "hardware_used": facts.devices,
    }
    return {key: part for key, part in value.items() if part is not None}


def _plain(value: Any) -> str:
    """YAML for a text or a number; never an exponent, which YAML 1.1 reads as text."""
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    text = format(Decimal(repr(float(value))), "f")
    return text[:-2] if text.endswith(".0") else text


def front_matter(record: Mapping[str, Any]) -> str:
    """The lines of the key, without the dashes around the block; '' where the carbon is not known."""
    value = emissions(record)
    if value is None:
        return ""
    lines = [f"{KEY}:  # emissions in grams of CO2eq", *(f"  {key}: {_plain(part)}" for key, part in value.items())]
    return "\n".join(lines) + "\n"


def section(record: Mapping[str, Any]) -> str:
    """The section for people, with the fields of the Hub's template."""
    facts = facts_of(record)
    interval = record["uncertainty"]["carbon_tco2eq"] or {}
    carbon = human_carbon(facts.location_tco2eq, interval.get("low"), interval.get("high"))
    embodied = human_carbon(facts.embodied_tco2eq)
    intensity = "not known" if facts.intensity_g_per_kwh is None else f"{figure(facts.intensity_g_per_kwh)} g/kWh"
    facility = human_energy(facts.energy_facility_kwh)
    pue = "" if facts.pue is None else f" (PUE {facts.pue:g})"
    hours = "not known" if facts.device_hours is None else f"{digits(facts.device_hours)} device-hours"
    lines = [
        "## Environmental Impact",
        "",
        say(facts),
        "",
        f"- **Hardware Type:** {facts.devices}",
        f"- **Hours used:** {hours}",
        f"- **Cloud Provider:** {facts.provider or 'not known'}",
        f"- **Compute Region:** {facts.region or 'not known'}",
        f"- **Energy:** {human_energy(facts.energy_it_kwh)} IT; {facility} at the facility{pue}",
        f"- **Grid intensity:** {intensity}",
        f"- **Carbon Emitted:** {carbon} (location-based); {human_carbon(facts.market_tco2eq)} (market-based)",
        f"- **Embodied carbon:** {embodied}",
    ]
    return "\n".join(lines) + "\n"


def text(record: Mapping[str, Any]) -> str:
    """A whole card: the YAML block, where the carbon is known, and the section between its markers."""
    block = front_matter(record)
    front = f"---\n{block}---\n\n" if block else ""
    return f"{front}{BEGIN}\n{section(record)}{END}\n"


def _parsed(block: str) -> dict[str, Any]:
    try:
        value = yaml.safe_load(block) if block.strip() else {}
    except yaml.YAMLError as error:
        place = getattr(error, "problem_mark", None)
        where = f" at line {place.line + 2}" if place else ""
        raise ValueError(f"the model card's YAML block is not YAML{where}: put it right first") from None
    if not isinstance(value, dict):
        raise ValueError("the model card's YAML block holds no keys: put it right first")
    return value


def _without(block: str) -> tuple[str, str]:
    """(the lines before the key, those after): the key's own lines are dropped; without it all lines are before."""
    lines = block.splitlines(keepends=True)
    places = [number for number, line in enumerate(lines) if OWN_KEY.match(line)]
    if not places:
        return block, ""
    if len(places) > 1:
        raise ValueError(f"the model card has {KEY} {len(places)} times: leave one")
    end = first = places[0]
    for number in range(first + 1, len(lines)):
        if lines[number].strip() and not lines[number][0].isspace():
            break
        if lines[number].strip():
            end = number
    return "".join(lines[:first]), "".join(lines[end + 1 :])


def write_card(card: str, record: Mapping[str, Any]) -> str:
    """The card's text with this record in it. Only the key co2_eq_emissions and what lies between the markers change.

    ValueError where the carbon is not known (a card has no word for that), where the YAML block cannot be read, or
    where the markers are torn or there twice; the card is then left alone.
    """
    block = front_matter(record)
    if not block:
        raise ValueError("the record knows no carbon (no PUE or no grid intensity): there are no grams to write")
    newline = "\r\n" if "\r\n" in card else "\n"
    front = FRONT.match(card)
    if front:
        opening, _, old, closing = front.groups()
        before, after = _without(old)
        if before and not before.endswith("\n"):
            before += newline
        new = before + block.replace("\n", newline) + after
        kept = {key: value for key, value in _parsed(old).items() if key != KEY}
        now = _parsed(new)
        if {key: value for key, value in now.items() if key != KEY} != kept or now.get(KEY) != emissions(record):
            raise ValueError(f"{KEY} cannot be put into this YAML block without touching other keys: write it yourself")
        card = opening + new + closing + card[front.end() :]
    else:
        card = f"---{newline}{block.replace(chr(10), newline)}---{newline}{card}"
    return _between_markers(card, section(record).replace("\n", newline), newline)


def _between_markers(card: str, body: str, newline: str) -> str:
    begins, ends = card.count(BEGIN), card.count(END)
    if (begins, ends) == (0, 0):
        gap = "" if not card or card.endswith(newline * 2) else newline if card.endswith(newline) else newline * 2
        return f"{card}{gap}{BEGIN}{newline}{body}{END}{newline}"
    start, end = card.find(BEGIN), card.find(END)
    if (begins, ends) != (1, 1) or end < start:
        raise ValueError(f"the model card's markers are torn: expected {BEGIN} once and {END} once after it")
    return f"{card[: start + len(BEGIN)]}{newline}{body}{card[end:]}"


def card_faults(card: str, record: Mapping[str, Any]) -> list[str]:
    """What a card's co2_eq_emissions says wrongly: kilograms or tonnes for grams, another figure, nothing at all."""
    front = FRONT.match(card)
    value = _parsed(front.group(3)).get(KEY) if front else None
    said = value.get("emissions") if isinstance(value, dict) else value
    facts = facts_of(record)
    if said is None:
        return [f"{KEY} is not in the card"]
    if isinstance(said, bool) or not isinstance(said, int | float):
        return [f"{KEY}.emissions is {said!r}: expected a number, in grams and without a unit"]
    expected = facts.location_g
    if expected is None:
        energy_kwh = facts.energy_facility_kwh or facts.energy_it_kwh
        if energy_kwh and said / energy_kwh < LEAST_G_PER_KWH:
            return [f"{KEY}.emissions is {said:g} g for {energy_kwh:g} kWh: less than any grid emits; kilograms?"]
        return []
    for factor, unit in UNITS:
        if abs(said / (expected * factor) - 1) < NEAR if expected else False:
            return [f"{KEY}.emissions is {said:g}: those are {unit}, the Hub expects grams: {_plain(grams(facts))}"]
    if abs(said - expected) > 10**-FIGURES * expected * 5:
        return [f"{KEY}.emissions is {said:g} g, the record has {_plain(grams(facts))} g"]
    return []

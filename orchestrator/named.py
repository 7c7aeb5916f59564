"""Figures that a spec names instead of stating: `pue: google fleet 2024`, `water_intensity: FR`."""

from typing import Any

from pydantic import GetJsonSchemaHandler
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from energy.places import OF_SPEC, named, told


class OrName:
    """Lets the JSON Schema accept a name in the factor tables as well as the number."""

    def __get_pydantic_json_schema__(self, core: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        return {"anyOf": [handler(core), {"type": "string", "pattern": "^[A-Za-z]"}]}


def with_names_looked_up(given: Any) -> Any:
    """An energy section with the table's number and source where it names one.

    The source is always the table's: one that stands beside a name belongs to a number that the name has replaced.
    """
    if not isinstance(given, dict):
        return given
    found = dict(given)
    for key in OF_SPEC:
        name = given.get(key)
        if isinstance(name, str) and name[:1].isalpha():
            factor = named(key, name)
            found[key], found[f"{key}_source"] = factor.value, told(factor)
    return found

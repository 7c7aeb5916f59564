"""Figures that a spec names instead of stating: `pue: google fleet 2024`, `water_intensity: FR`."""

import contextlib
from typing import Any

from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler, ValidationInfo
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema
from pydantic_core.core_schema import with_info_before_validator_function

from energy.factors.places import OF_SPEC, named, source_in_spec


class OrName:
    """Lets a key hold a name in the factor tables as well as the number, and the JSON Schema know it."""

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return with_info_before_validator_function(_refuse_unknown, handler(source))

    def __get_pydantic_json_schema__(self, core: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        return {"anyOf": [handler(core), {"type": "string", "pattern": "^[A-Za-z]"}]}


def _refuse_unknown(value: Any, info: ValidationInfo) -> Any:
    """A name that is still there was not found in the tables: says so with what is near."""
    if isinstance(value, str) and value[:1].isalpha() and info.field_name in OF_SPEC:
        named(info.field_name, value)
    return value


def with_names_looked_up(given: Any) -> Any:
    """An energy section with the table's number and source where it names one; a name that it lacks stays.

    The source is always the table's: one that stands beside a name belongs to a number that the name has replaced.
    """
    if not isinstance(given, dict):
        return given
    found = dict(given)
    for key in OF_SPEC:
        name = given.get(key)
        if isinstance(name, str) and name[:1].isalpha():
            with contextlib.suppress(ValueError):  # OrName asks again, and tells it of the key
                factor = named(key, name)
                found[key], found[f"{key}_source"] = factor.value, source_in_spec(factor)
    return found

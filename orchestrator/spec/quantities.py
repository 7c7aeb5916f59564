"""What people write for numbers with units (`1.4T`, `400 W`, `30 min`), as pydantic types in base units."""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, GetJsonSchemaHandler
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from energy.units import INTENSITIES

# A comma stands between thousands: `1,4T` is a decimal comma, and no fourteen.
PLAIN = r"(?:(?:[1-9][0-9]{0,2}(?:,[0-9]{3})+|[0-9][0-9_]*)(?:\.[0-9]*)?|\.[0-9]+)"
_SIGNED = rf"[+-]?{PLAIN}(?:[eE][+-]?[0-9]+)?"
_NUMBER = re.compile(rf"\s*({_SIGNED})\s*([^\d\s.,].*?)?\s*")

COUNT = {"": 1.0, "k": 1e3, "K": 1e3, "M": 1e6, "B": 1e9, "G": 1e9, "T": 1e12}
POWER = {"": 1.0, "W": 1.0, "kW": 1e3, "mW": 1e-3, "MW": 1e6}
DURATION = {"": 1.0, "ms": 1e-3, "s": 1.0, "min": 60.0, "h": 3600.0, "d": 86400.0}
INTENSITY = {"": 1.0, **INTENSITIES}
LARGEST, LARGEST_COUNT = 1e300, 1e18


def quantity(text: Any, units: dict[str, float], example: str) -> float:
    """The number `text` stands for in the base unit of `units`; ValueError says what would have been understood."""
    if isinstance(text, bool) or not isinstance(text, int | float | str):
        raise ValueError(f"expected a number such as {example}, got {text!r}")
    if isinstance(text, int | float):
        value = float(text) if abs(text) < LARGEST else math.inf  # of an integer Python would say that it overflows
    else:
        match = _NUMBER.fullmatch(text)
        if not match or (match[2] or "") not in units:
            known = [unit for unit in units if unit]
            hint = f" (units: {', '.join(known)})" if known else ""
            raise ValueError(f"expected a number such as {example}{hint}, got {text!r}{comma(text)}")
        value = float(match[1].replace(",", "").replace("_", "")) * units[match[2] or ""]
    if not math.isfinite(value):
        raise ValueError(f"expected a finite number such as {example}, got {text!r}")
    return value


def comma(text: str) -> str:
    """What to write for a number with a decimal comma; "" of any other text."""
    found = re.search(r"[0-9]+,[0-9]+", text)
    return f": a comma stands between thousands only, so write {found[0].replace(',', '.')}" if found else ""


# Bounds behind a parser reach the schema under pydantic's names for them.
_BOUNDS = {"gt": "exclusiveMinimum", "ge": "minimum", "lt": "exclusiveMaximum", "le": "maximum"}


@dataclass(frozen=True)
class Written:
    """Lets the JSON Schema accept what the parser does: a number, or text with one of the units."""

    units: tuple[str, ...]

    def __get_pydantic_json_schema__(self, core: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        number = {_BOUNDS.get(key, key): value for key, value in handler(core).items()}
        units = "|".join(re.escape(unit) for unit in self.units if unit)
        pattern = rf"^\s*{_SIGNED}\s*" + (f"({units})?" if units else "") + r"\s*$"
        return {"anyOf": [number, {"type": "string", "pattern": pattern}]}


def _parser(units: dict[str, float], example: str) -> Callable[[Any], float]:
    return lambda text: quantity(text, units, example)


def _count(text: Any) -> int:
    value = quantity(text, COUNT, "1.4T or 4194304")
    if abs(value - round(value)) > 1e-6 * max(abs(value), 1):
        raise ValueError(f"expected a whole number such as 1.4T or 4194304, got {text!r}")
    if abs(value) > LARGEST_COUNT:
        raise ValueError(f"expected at most {LARGEST_COUNT:g}, got {text!r}")
    return round(value)


def _whole(value: Any) -> int:
    """No text with units here, and no truth value, which Python counts as 0 or 1."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"expected a whole number such as 1, got {value!r}")
    return value


# YAML 1.1 reads `3e-4` as a string, so plain numbers go through the same door.
Number = Annotated[float, BeforeValidator(_parser({"": 1.0}, "3.0e-4")), Written(())]
Count = Annotated[int, BeforeValidator(_count), Written(tuple(COUNT))]
Positive = Annotated[Count, Field(gt=0)]
Whole = Annotated[int, BeforeValidator(_whole)]
PowerW = Annotated[float, BeforeValidator(_parser(POWER, "400 W")), Written(tuple(POWER))]
DurationS = Annotated[float, BeforeValidator(_parser(DURATION, "30 min")), Written(tuple(DURATION))]
IntensityGPerKwh = Annotated[float, BeforeValidator(_parser(INTENSITY, "385 g/kWh")), Written(tuple(INTENSITY))]

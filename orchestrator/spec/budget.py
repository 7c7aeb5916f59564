"""What a run may take at most, as a section of the spec, and money as people write it."""

import re
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, GetJsonSchemaHandler
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from energy.units import KWH, TONNES
from orchestrator.spec.quantities import PLAIN, Written, comma, quantity
from orchestrator.spec.section import Section

ENERGY = {"": 1.0, **{unit: size for unit, size in KWH.items() if unit != "J"}}
CARBON = {"": 1.0} | {f"{unit}{of}": size for unit, size in TONNES.items() for of in ("", "CO2eq", " CO2eq")}
GPU_HOURS = {"": 1.0, "GPUh": 1.0, "GPU-hours": 1.0}
_MONEY = rf"\s*({PLAIN})\s*([A-Z]{{3}})?\s*"
_MONEY_EXAMPLE = "2.50 EUR (three letters of the currency, or none)"


def money(text: str) -> tuple[float, str]:
    """(amount, currency) of `2.50 EUR`; the currency is "" where none is told."""
    match = re.fullmatch(_MONEY, text)
    assert match is not None, text  # the spec has checked it
    return float(re.sub("[_,]", "", match[1])), match[2] or ""


def _money(given: Any) -> str:
    text = f"{given:f}" if isinstance(given, int | float) and not isinstance(given, bool) else given
    if not isinstance(text, str) or re.fullmatch(_MONEY, text) is None or not money(text)[0] > 0:
        raise ValueError(f"expected an amount above 0 such as {_MONEY_EXAMPLE}, got {given!r}{comma(str(given))}")
    amount, currency = money(text)
    return f"{amount:.12g} {currency}".rstrip()


class _AmountOrText:
    """Lets the JSON Schema accept a plain number too."""

    def __get_pydantic_json_schema__(self, core: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        return {"anyOf": [{"type": "number", "exclusiveMinimum": 0}, {"type": "string", "pattern": f"^{_MONEY}$"}]}


Money = Annotated[str, BeforeValidator(_money), _AmountOrText()]
EnergyKwh = Annotated[float, BeforeValidator(lambda text: quantity(text, ENERGY, "3 kWh")), Written(tuple(ENERGY))]
CarbonT = Annotated[float, BeforeValidator(lambda text: quantity(text, CARBON, "12 kgCO2eq")), Written(tuple(CARBON))]
GpuHours = Annotated[
    float, BeforeValidator(lambda text: quantity(text, GPU_HOURS, "500 GPUh")), Written(tuple(GPU_HOURS))
]


class BudgetSpec(Section):
    """What a run may take at most, over all its attempts: at the first limit it checkpoints and stops (exit code 3).

    Without embodied carbon: hardware is made whether it trains or not. A plain number is in the unit named here.
    """

    energy: Annotated[EnergyKwh, Field(gt=0)] | None = Field(
        default=None, description="kWh of the facility where energy.pue is given, else of the IT equipment"
    )
    carbon: Annotated[CarbonT, Field(gt=0)] | None = Field(
        default=None, description="t CO2eq of the facility's energy, by location"
    )
    gpu_hours: Annotated[GpuHours, Field(gt=0)] | None = Field(
        default=None, description="Hours times the GPUs that were held"
    )
    cost: Money | None = Field(
        default=None, description="GPU-hours at cluster.gpu_hour_price, in its currency, as in 500 EUR"
    )

"""Energy of a run: sensors to joules, joules to carbon. Needs neither torch nor ray.

from energy import Meter, read_ledger
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from energy.ledger.readings import read_ledger as read_ledger
    from energy.metering.meter import Meter as Meter

_WHERE = {"Meter": "energy.metering.meter", "read_ledger": "energy.ledger.readings"}


def __getattr__(name: str) -> Any:
    """Imports on first use: reading a factor should not cost numpy, nor metering pandas."""
    if name not in _WHERE:
        raise AttributeError(f"module 'energy' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_WHERE[name]), name)

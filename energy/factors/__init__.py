"""Numbers from elsewhere, each with its unit and source; unknown is None, never zero and never a guess."""

from energy.factors.hardware import (
    SERVER,
    Accelerator,
    Embodied,
    accelerator,
    accelerators,
    embodied,
    match_accelerator,
    peak_flops,
    rated_power,
)
from energy.factors.model import Basis, Factor, mixed_bases
from energy.factors.tables import FOLDER, presets, pue, read_table, table_sha256, table_versions, wue

__all__ = [
    "FOLDER",
    "SERVER",
    "Accelerator",
    "Basis",
    "Embodied",
    "Factor",
    "accelerator",
    "accelerators",
    "embodied",
    "match_accelerator",
    "mixed_bases",
    "peak_flops",
    "presets",
    "pue",
    "rated_power",
    "read_table",
    "table_sha256",
    "table_versions",
    "wue",
]

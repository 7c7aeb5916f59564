"""Whether the factor tables are those from which a record was computed, and which of its figures rest on another one.

A table that went up by a version is news and no fault. One that differs under the same version is a fault: either it
was altered when the record was computed, or it is altered here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from energy.factors import stale_versions, tables_now

ABSENT_TABLE: Mapping[str, str] = {}
# Of a record's blocks, the tables that are read anew when it is computed; all else is kept in run.json.
DEVICES = ("accelerators",)
READ_ANEW = {
    "compute": DEVICES,
    "assumptions": DEVICES,
    "energy.paper_method": DEVICES,
    "quality.warnings": DEVICES,
    "embodied": ("accelerators", "embodied"),
    "sci": ("accelerators", "embodied"),
}


def look_at_tables(chain: Mapping[str, Any]) -> tuple[list[str] | None, str]:
    """(what does not hold, a note), as a check of `records.verify`."""
    then, now, stale = chain.get("tables"), tables_now(), stale_versions()
    if not then:
        return None, "the record does not say from which tables it was computed"
    # One that versions.csv does not list is of no record.
    faults = [f"table {name}: altered here, it is not the one that versions.csv names" for name in stale if name in now]
    faults += [f"table {name}: gone, a figure that rests on it is not known here" for name in then if name not in now]
    for name in changed_tables(chain):
        here = now.get(name, ABSENT_TABLE)
        if name in now and name not in stale and then[name]["version"] == here.get("version"):
            faults.append(
                f"table {name}: altered when the record was computed, its version {here['version']} is another"
            )
    news = ", ".join(changed_tables(chain).values())
    return faults, f"{len(then)} tables" + (f"; another one by now: {news}" if news else "")


def changed_tables(chain: Mapping[str, Any]) -> dict[str, str]:
    """{table: 'embodied (version 1 then, 2 now)'} of those that are not what the record was computed from."""
    now = tables_now()
    return {
        name: f"{name} (version {about['version']} then, {now.get(name, ABSENT_TABLE).get('version', 'none')} now)"
        for name, about in (chain.get("tables") or {}).items()
        if now.get(name, ABSENT_TABLE).get("sha256") != about["sha256"]
    }


def why_it_differs(field: str, changed: Mapping[str, str]) -> str:
    """Of a figure that came out otherwise, the tables behind it that are others than then; '' where none is."""
    behind = {name for block, names in READ_ANEW.items() if field.startswith(block) for name in names}
    told = [changed[name] for name in sorted(behind & set(changed))]
    return f", by another table than it was computed from: {', '.join(told)}" if told else ""

"""Commands around the figures from elsewhere: factors, check-table."""

import sys
import textwrap
from pathlib import Path
from typing import Any

import click

from orchestrator.commands import JSON, print_json

WIDTH = 80


def _wrapped(text: str, indent: str = "") -> str:
    return textwrap.fill(text, WIDTH, initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False)


def _value(factor: Any) -> str:
    if factor.value is None:
        return "not known"
    unit = "" if factor.unit == "1" else f" {factor.unit}"
    span = f" ({factor.range_text})" if factor.range_text else ""
    return f"{factor.value:,.6g}{unit}{span}"


def _one(factor: Any) -> None:
    """A factor with all that belongs to it."""
    head = "  ".join(str(part) for part in (factor.geography, factor.key, _value(factor), factor.year) if part)
    click.echo(head)
    for text in (factor.note, str(factor.basis) if any(vars(factor.basis).values()) else "", factor.source):
        if text:
            click.echo(_wrapped(text, "    "))
    click.echo(f"    sha256 {factor.sha256[:16]}")


def _many(factors: list[Any]) -> None:
    """A line for each factor: place, value, year, basis, name."""
    rows = []
    for factor in factors:
        basis = " ".join(filter(None, (factor.basis.rate, factor.basis.scope, factor.basis.side)))
        cells = (factor.geography or "", _value(factor), str(factor.year or ""), basis, factor.note.split(";")[0])
        rows.append(cells[:-1] if cells[-1] == cells[0] else cells)
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    for row in rows:
        line = "  ".join(f"{cell:<{width}}" for cell, width in zip(row, [*widths, 0], strict=False) if width or cell)
        click.echo(line[: WIDTH - 1] + "…" if len(line.rstrip()) > WIDTH else line.rstrip())


@click.command()
@click.argument("query", nargs=-1)
@JSON
def factors(query: tuple[str, ...], as_json: bool) -> None:
    """Looks up a factor with its year, basis and source.

    QUERY is a kind, a kind and a name (grid FR, pue google fleet, residual DE, water us-west-2), or a name alone
    (us-west-2, "385 g/kWh"). Kinds: grid, residual (market-based), marginal, water (of electricity), loss (on the
    lines), pue, wue, accelerator, embodied, preset. Two letters are a country's; states are written US-CA or
    California. A kind without a name lists it, and what it does not hold. Without a query: the tables, their versions
    and hashes.
    """
    from energy.factors import table_versions

    if not query:
        tables = table_versions()
        if as_json:
            print_json({"tables": tables})
            return
        from energy.factors.lookup import KINDS

        click.echo(_wrapped(f"hoofprint factors KIND [NAME]: {', '.join(KINDS)}") + "\n")
        for name, told in tables.items():
            click.echo(f"{name:<24}version {told['version']:<6}sha256 {told['sha256'][:16]}")
        return
    from energy.factors.lookup import look_up

    found = look_up(" ".join(query))
    if as_json:
        print_json(
            {
                "query": " ".join(query),
                "factors": [factor.as_dict() for factor in found.factors],
                "alternatives": [factor.as_dict() for factor in found.alternatives],
                "warnings": found.warnings,
                "absent": found.absent,
            }
        )
        return
    if len(found.factors) > 20:
        _many(found.factors)
    else:
        for factor in found.factors:
            _one(factor)
    if found.absent:
        click.echo("\nnot in this table:")
        for text in found.absent:
            click.echo(_wrapped(text, "    "))
    if found.alternatives:
        click.echo("\nfor the same place also:")
        for factor in found.alternatives:
            _one(factor)
    for warning in found.warnings:
        click.echo(_wrapped(f"note: {warning}"), err=True)


@click.command("check-table")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@JSON
def check_table(file: Path, as_json: bool) -> None:
    """Plausibility checks on anybody's table (CSV), or on a record (footprint.json).

    Columns are known by name and unit: gpu_hours, gpu_power_w, pue, g_per_kwh, energy_it_mwh, energy_facility_mwh,
    tco2eq, gpu, devices, days, and many spellings of them. Exit code 0: nothing is implausible; 1: something is; 2: the
    file cannot be read.
    """
    from energy.checking.table import check_file

    checked = check_file(file)
    if as_json:
        print_json(
            {
                "file": file.name,
                "rows": checked.claims,
                "plausible": not checked.findings,
                "findings": [vars(finding) for finding in checked.findings],
                "notes": checked.notes,
            }
        )
    else:
        for finding in checked.findings:
            click.echo(f"{finding.check}: {finding.name} ({finding.place})")
            click.echo(_wrapped(finding.message, "    "))
        rows = f"{checked.claims} row{'s' if checked.claims != 1 else ''}"
        count = f"{len(checked.findings)} finding{'s' if len(checked.findings) != 1 else ''}"
        click.echo(f"{rows}, {count}" if checked.findings else f"{rows}, nothing implausible")
        for note in checked.notes:
            click.echo(_wrapped(f"note: {note}"), err=True)
    if checked.findings:
        sys.exit(1)

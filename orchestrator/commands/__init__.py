"""The commands of `hoofprint`, a module for each group of them, and the options they share.

torch, ray, pandas and matplotlib are imported only inside the commands that use them, so that `--help` is quick.
"""

import json
from pathlib import Path
from typing import Any

import click

RUNS = click.option(
    "--runs", "runs_dir", type=click.Path(path_type=Path, file_okay=False), default=Path("runs"), show_default=True
)
JSON = click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout, all else on stderr.")
SET = click.option("--set", "overrides", multiple=True, metavar="A.B=C", help="Override a key of the spec.")


class NumberOrName(click.ParamType):
    """A number, or the name of a figure in the factor tables, which begins with a letter."""

    name = "number or name"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float | str:
        if isinstance(value, str) and value[:1].isalpha() and value.lower() not in ("nan", "inf", "infinity"):
            return value
        return click.FLOAT.convert(value, param, ctx)


def print_json(value: Any) -> None:
    click.echo(json.dumps(value, indent=2, ensure_ascii=False))

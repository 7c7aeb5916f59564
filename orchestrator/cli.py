"""The command line: the group of commands, and how their failures become messages and exit codes."""

import sys

import click

from orchestrator.commands.formula import estimate, published
from orchestrator.commands.training import generate, report, run, schema


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="hoofprint")
def cli() -> None:
    """Trains LLaMA on Ray and FSDP, and accounts for every joule, FLOP and gram of CO2 a run took."""


for command in (run, report, generate, schema, estimate, published):
    cli.add_command(command)


def main() -> None:
    """Entry point: a user's mistake is a message and exit code 2, never a traceback."""
    try:
        cli(standalone_mode=False)
    except click.exceptions.Abort:
        click.echo("stopped", err=True)
        sys.exit(130)
    except click.ClickException as error:
        error.show()
        sys.exit(2)
    except click.exceptions.Exit as error:
        sys.exit(error.exit_code)
    except ValueError as error:
        click.echo(f"hoofprint: {error}", err=True)
        sys.exit(2)

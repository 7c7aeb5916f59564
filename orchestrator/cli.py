"""The command line: the group of commands, and how their failures become messages and exit codes."""

import errno
import os
import sys
import traceback
from opcode import opmap

import click

from orchestrator.commands.dashboard import dashboard
from orchestrator.commands.factors import check_table, factors
from orchestrator.commands.figures import compare, plot
from orchestrator.commands.formula import estimate, published
from orchestrator.commands.generation import generate
from orchestrator.commands.jobs import status, stop, submit
from orchestrator.commands.listing import runs
from orchestrator.commands.metering import doctor, measure, readings
from orchestrator.commands.planning import plan
from orchestrator.commands.reporting import report, verify
from orchestrator.commands.top import top
from orchestrator.commands.training import run, schema
from orchestrator.commands.weights import export, import_

ROOMS = {"energy", "model", "orchestrator", "dashboards"}


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="hoofprint")
def cli() -> None:
    """Trains LLaMA on Ray and FSDP, and accounts for every joule, FLOP and gram of CO2 a run took."""


VERBOSE = click.Option(["-v", "--verbose"], is_flag=True, expose_value=False, help="Of an error, also the traceback.")

for command in (
    run,
    submit,
    status,
    stop,
    plan,
    report,
    generate,
    import_,
    export,
    schema,
    estimate,
    published,
    measure,
    readings,
    doctor,
    verify,
    runs,
    compare,
    plot,
    top,
    dashboard,
    factors,
    check_table,
):
    if not any("-v" in param.opts for param in command.params):
        command.params.append(VERBOSE)
    cli.add_command(command)


def main() -> None:
    """Entry point: whatever goes wrong is a message and an exit code; the traceback is shown with -v."""
    try:
        cli(standalone_mode=False)
    except click.exceptions.Abort:
        click.echo("stopped", err=True)
        sys.exit(130)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except click.exceptions.Exit as error:
        sys.exit(error.exit_code)
    except BrokenPipeError:
        # Whoever read our output has gone; Python would complain about it once more when it flushes at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        sys.exit(1)
    except OSError as error:
        place = f": {error.filename}" if error.filename and error.strerror else ""
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        todo = f"; free some space{' there' if place else ''} and try again" if full else ""
        _tell(f"{error.strerror or error}{place}{todo}")
        sys.exit(1)
    except Exception as error:
        if isinstance(error, ValueError) and _is_ours(error):
            _tell(str(error))
            sys.exit(2)
        _tell(f"unexpected {type(error).__name__}: {error}\n-v shows where; this is our fault: please report it")
        sys.exit(1)


def _is_ours(error: ValueError) -> bool:
    """Whether a `raise` of this program said it: then it is about what the user did, and says what to do.

    One that Python or a library raised (shapes that do not fit, text that is no number) got past our checks, which is
    our fault and nothing that the user could put right.
    """
    place = error.__traceback__
    while place is not None and place.tb_next is not None:
        place = place.tb_next
    if place is None or place.tb_frame.f_globals["__name__"].partition(".")[0] not in ROOMS:
        return False
    return place.tb_frame.f_code.co_code[place.tb_lasti] == opmap["RAISE_VARARGS"]


def _tell(message: str) -> None:
    arguments = sys.argv[1:]
    own = arguments[: arguments.index("--")] if "--" in arguments else arguments
    if "-v" in own or "--verbose" in own:
        traceback.print_exc()
    click.echo(f"hoofprint: {message}", err=True)

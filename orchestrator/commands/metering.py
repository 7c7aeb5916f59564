"""Commands around the meter alone: measure, doctor, readings."""

import sys
from pathlib import Path
from typing import Any

import click

from orchestrator.commands import JSON, RUNS, NumberOrName, print_json
from orchestrator.commands.printing import require_place


class Endpoint(click.ParamType):
    """A port, or HOST:PORT with an IPv6 address in brackets: (address, port)."""

    name = "endpoint"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, int]:
        if isinstance(value, tuple):
            return value
        host, _, port = value.rpartition(":")
        return host.strip("[]") or "127.0.0.1", click.IntRange(0, 65535).convert(port, param, ctx)


@click.command(context_settings={"allow_interspersed_args": False})
@click.argument("command", nargs=-1, required=True, metavar="-- CMD [ARGS]...")
@click.option("--name", help="Name of the run folder; default: measure and the time.")
@RUNS
@click.option("--interval-s", type=click.FloatRange(0.05, 60), default=1.0, show_default=True, help="Between rows.")
@click.option("--gpus", default="visible", show_default=True, metavar="WHICH",
              help="visible (by CUDA_VISIBLE_DEVICES), all of the node, or UUIDs with commas between.")  # fmt: skip
@click.option(
    "--pue",
    type=NumberOrName(),
    metavar="FIGURE",
    help="Power usage effectiveness: a number with --pue-source, or a name of `hoofprint factors pue`.",
)
@click.option("--pue-source", help="Where that figure comes from.")
@click.option("--intensity-g-per-kwh", type=float, help="Of the grid, g CO2eq per kWh, with --intensity-source.")
@click.option("--intensity-source", help="Where that figure comes from.")
@click.option("--grid", metavar="PLACE", help="Where the grid is (FR, US-CA, us-west-2): its intensity by the tables.")
@click.option("--node-baseline-w", type=click.FloatRange(0), help="Fans, network, storage: W, with the source.")
@click.option("--node-baseline-source", help="Where that figure comes from.")
@click.option("--node-power-command", help="Prints the node's whole power, such as 'ipmitool dcmi power reading'.")
@click.option("--node-power-file", type=click.Path(path_type=Path), help="Holds the node's whole power.")
@click.option("--prometheus", "endpoint", type=Endpoint(), metavar="[HOST:]PORT",
              help="Serve the figures while the command runs: to this machine, or from the HOST address to any that "
              "reaches it (0.0.0.0: all); port 0 takes a free one.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True,
              help="One JSON document on stdout at the end; the command's own stdout then goes to stderr.")  # fmt: skip
@click.option("-q", "--quiet", is_flag=True, help="Say nothing but what went wrong.")
def measure(
    command: tuple[str, ...],
    name: str | None,
    runs_dir: Path,
    interval_s: float,
    gpus: str,
    pue: float | str | None,
    pue_source: str | None,
    intensity_g_per_kwh: float | None,
    intensity_source: str | None,
    grid: str | None,
    node_baseline_w: float | None,
    node_baseline_source: str | None,
    node_power_command: str | None,
    node_power_file: Path | None,
    endpoint: tuple[str, int] | None,
    as_json: bool,
    quiet: bool,
) -> None:
    """Meters any command: its energy and carbon, device by device.

    The command keeps its streams and gets every signal; its exit code is kept too (128 + N when signal N ended it, 127
    when there is no such command, 126 when it may not be executed). The run folder holds the ledger of readings,
    footprint.json and report.html.
    """
    from energy.metering import child
    from energy.metering.measure import measure as measure_command
    from energy.metering.measurement import Factors

    factors = Factors.declared(pue, pue_source, intensity_g_per_kwh, intensity_source)
    if grid is not None:
        factors = Factors(factors.pue, _intensity_of(grid, intensity_g_per_kwh))
    declared = _declared_power(node_baseline_w, node_baseline_source, node_power_command, node_power_file)
    which = gpus if gpus in ("visible", "all") else [part.strip() for part in gpus.split(",") if part.strip()]
    if not which:
        raise click.UsageError("--gpus is empty: expected visible, all, or UUIDs with commas between")

    def opening(folder: Any, meter: Any, address: str | None) -> None:
        from orchestrator.screens import metering as metering_screen

        if not quiet:
            for line in metering_screen.opening(meter.sensors, address):
                _say(line)

    try:
        result = measure_command(
            command,
            runs_dir,
            name=name,
            interval_s=interval_s,
            gpus=which,
            factors=factors,
            declared=declared,
            prometheus=endpoint,
            stdout_to_stderr=as_json,
            opening=opening,
        )
    except child.CannotStart as error:
        _say(f"hoofprint: {error}")
        sys.exit(error.exit_code)
    except OSError as error:
        place, why = error.filename or runs_dir, error.strerror or error
        _say(f"hoofprint: {place} cannot be written ({why}); give another folder with --runs")
        sys.exit(2)
    try:
        report = _write_report(result)
        if not quiet:
            _print_measurement(result, report)
        for fault in result.faults:
            _say(f"hoofprint: {fault}; write it later: hoofprint report {result.folder.path}")
        if as_json:
            print_json(result.as_json())
    except (OSError, KeyboardInterrupt, SystemExit):  # rich turns a broken pipe into an exit of its own
        # A closed terminal, a reader that has gone, Ctrl-C once more: the command's exit code is what counts.
        _close_streams()
    except Exception as error:
        _say(f"hoofprint: unexpected {type(error).__name__}: {error}; the record is in {result.folder.path}")
    sys.exit(result.exit_code)


def _intensity_of(grid: str, intensity_g_per_kwh: float | None) -> Any:
    """The factor of a place by the tables; a figure has options of its own."""
    if intensity_g_per_kwh is not None:
        raise click.UsageError("--grid and --intensity-g-per-kwh both give the intensity; take one")
    from energy.carbon.grid import constant, intensity

    if constant(grid) is not None:
        raise click.UsageError("--grid names a place; a figure goes to --intensity-g-per-kwh, with its source")
    return intensity(grid)


def _declared_power(
    baseline_w: float | None, baseline_source: str | None, command: str | None, file: Path | None
) -> dict[str, Any]:
    """What the options say of the node's power, in one way at most (energy.sensors)."""
    if baseline_w is not None and not baseline_source:
        raise click.UsageError("--node-baseline-w is given without --node-baseline-source: say where it comes from")
    told = {"--node-baseline-w": baseline_w, "--node-power-command": command, "--node-power-file": file}
    given = [option for option, value in told.items() if value is not None]
    if len(given) > 1:
        raise click.UsageError(f"{' and '.join(given)} tell the same power of a node: give one of them")
    return {
        "baseline_w": baseline_w,
        "baseline_source": baseline_source or "",
        "power_command": command,
        "power_file": str(file) if file else None,
    }


def _write_report(result: Any) -> Path | None:
    """The report's path; what keeps it from being written joins the faults."""
    if result.faults:
        return None
    from dashboards.report import write_report

    try:
        html, _ = write_report(result.folder)
    except Exception as error:  # whatever it is, the record is written and the report can be had from it
        result.faults.append(f"the report could not be written: {error}")
        return None
    return html


def _print_measurement(result: Any, report: Path | None) -> None:
    from rich.console import Console

    from orchestrator.screens.metering import print_measurement

    print_measurement(result, report, Console(stderr=True, highlight=False))


def _say(text: str) -> None:
    try:
        click.echo(text, err=True)
    except OSError:
        return  # nobody reads it


def _close_streams() -> None:
    """Python would complain about them once more when it flushes at its end."""
    import os

    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):
        os.dup2(nowhere, stream)


@click.command()
@RUNS
@JSON
@click.option("--cluster", is_flag=True, help="Of every node of a Ray cluster, and what it computes, sends, writes.")
@click.option("--address", metavar="HOST:PORT", help="Of the cluster; default: RAY_ADDRESS, else a local Ray.")
@click.option("--slow-below", type=click.FloatRange(0, 1, min_open=True), default=0.85, show_default=True,
              help="A node or GPU is slow below this share of the median of its like.")  # fmt: skip
@click.option("--limit-s", type=click.FloatRange(1), default=120.0, show_default=True,
              help="For each answer of a node of the cluster.")  # fmt: skip
@click.pass_context
def doctor(
    context: click.Context,
    runs_dir: Path,
    as_json: bool,
    cluster: bool,
    address: str | None,
    slow_below: float,
    limit_s: float,
) -> None:
    """Says which sensors, devices and factors work on this machine, what is missing, and what to do about it.

    With --cluster, of each node too: matmul rate, all-reduce bandwidth, disk writes, power caps and clocks. A node that
    is slow or lacks something is named; the exit code is then 1.
    """
    if cluster:
        _doctor_cluster(address, runs_dir, slow_below, limit_s, as_json)
        return
    for name, option in (("address", "--address"), ("slow_below", "--slow-below"), ("limit_s", "--limit-s")):
        if context.get_parameter_source(name) == click.core.ParameterSource.COMMANDLINE:
            raise click.UsageError(f"{option} is of a cluster: give --cluster too")
    from energy.metering.doctor import examine, is_broken

    checks = examine(runs_dir)
    if as_json:
        print_json({"broken": is_broken(checks), "checks": [check.as_json() for check in checks]})
    else:
        from rich.console import Console

        from orchestrator.screens.metering import print_checks

        print_checks(checks, Console(highlight=False))
    sys.exit(1 if is_broken(checks) else 0)


def _doctor_cluster(address: str | None, runs_dir: Path, slow_below: float, limit_s: float, as_json: bool) -> None:
    from orchestrator.preflight.before_run import PreflightFailed, examine_cluster

    try:
        result = examine_cluster(address, runs_dir, slow_below, limit_s)
    except PreflightFailed as error:
        raise click.ClickException(str(error)) from error
    if as_json:
        print_json(result)
    else:
        from rich.console import Console

        from orchestrator.screens.preflight import print_preflight

        print_preflight(result, Console(highlight=False))
    sys.exit(0 if result["ok"] else 1)


@click.command()
@click.argument("run", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("-o", "--output", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE",
              help="FILE.csv or FILE.parquet; default: CSV on stdout.")  # fmt: skip
@click.option("--minutes", is_flag=True, help="One row a minute and device, in place of every reading that is kept.")
def readings(run: Path, output: Path | None, minutes: bool) -> None:
    """The meters' readings of RUN as one table, oldest first: CSV or Parquet.

    A row is a device at a reading; energy_j is cumulative, power_w the mean since the row before.
    """
    from energy.run_version import require_known
    from energy.runs import RunFolder
    from orchestrator.spec.file import BadInput

    if output is not None and output.suffix not in (".csv", ".parquet"):
        raise BadInput(f"-o {output}: expected a name that ends in .csv or .parquet")
    require_place(None, output)
    require_known(run)
    ledgers = RunFolder(run).ledgers()
    if not ledgers:
        raise BadInput(f"{run} has no ledger: there is no {Path('energy')}/*.ledger in it")
    import pandas as pd

    from energy.ledger.readings import read_ledger

    tables = [read_ledger(path, fine=not minutes) for path in ledgers]
    for table in tables:
        for text in table.attrs.pop("damaged", []):
            click.echo(f"hoofprint: {text}", err=True)
    merged = pd.concat(tables, ignore_index=True).sort_values(["time", "uuid"], kind="stable", ignore_index=True)
    if output is None:
        merged.to_csv(sys.stdout, index=False)
        return
    partial = output.with_name(f".{output.name}.partial")
    try:
        if output.suffix == ".csv":
            merged.to_csv(partial, index=False)
        else:
            merged.to_parquet(partial, index=False)
        partial.replace(output)
    finally:
        partial.unlink(missing_ok=True)
    click.echo(f"{output}: {len(merged):,} rows of {merged['uuid'].nunique()} devices", err=True)

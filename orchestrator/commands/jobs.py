"""Runs from afar: submit one to a cluster, see what runs, stop one in order."""

import sys
import time
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import click

from orchestrator.commands import JSON, RUNS, SET, print_json

if TYPE_CHECKING:
    from rich.table import Table

    from orchestrator.jobs.server import Job
    from orchestrator.live.running import Running

ADDRESS = click.option("--address", metavar="URL", help="The cluster's job server, as http://HOST:8265.")
UNKNOWN = "–"
ATTACHED_LINES = 20  # of the log, shown before it is followed
BAD_INPUT = 2


@click.command()
@click.argument("spec", type=click.Path(path_type=Path))
@click.option("--address", metavar="URL", required=True, help="The cluster's job server, as http://HOST:8265.")
@SET
@click.option(
    "--runs",
    "runs_dir",
    required=True,
    type=click.Path(path_type=PurePosixPath),
    help="Where run folders lie on the cluster: an absolute path on storage that every node reaches.",
)
@click.option("--name", "run_id", help="Name of the run folder; default: the experiment's name and the time.")
@click.option("--resume", metavar="RUN", help="Go on with this run of --runs from its newest checkpoint.")
@click.option("--detach", is_flag=True, help="Return when it is submitted, without following it.")
@click.option("--install", is_flag=True, help="Let Ray install hoofprint's dependencies on the nodes, with pip.")
@click.option("--env", "variables", multiple=True, metavar="KEY=VALUE", help="An environment variable of the job.")
@JSON
def submit(
    spec: Path,
    address: str,
    overrides: tuple[str, ...],
    runs_dir: PurePosixPath,
    run_id: str | None,
    resume: str | None,
    detach: bool,
    install: bool,
    variables: tuple[str, ...],
    as_json: bool,
) -> None:
    """Runs the experiment SPEC as a job of a Ray cluster, and follows it; Ctrl-C lets it go on alone.

    The code travels with the job, and so do data that SPEC names by a relative path, up to 100 MB. Absolute paths are
    those of the cluster. The exit code is the run's.
    """
    from energy.runs import require_run_name
    from orchestrator.jobs import server as jobs
    from orchestrator.spec.file import load_experiment

    if resume is not None and run_id is not None:
        raise click.UsageError("--resume goes on with a run under its own name: leave --name out")
    if faulty := [each for each in variables if "=" not in each[1:]]:
        raise click.UsageError(f"--env {faulty[0]}: expected KEY=VALUE")
    experiment = load_experiment(spec, overrides)
    run = resume or run_id or f"{experiment.name}-{time.strftime('%Y%m%d-%H%M%S')}"
    require_run_name(run)
    client = jobs.connect(address)
    job, there = jobs.submit(
        client,
        spec,
        experiment,
        runs_dir,
        run,
        resume=resume is not None,
        overrides=overrides,
        variables=dict(each.split("=", 1) for each in variables),
        install=install,
    )
    click.echo(f"submitted {job}; the run's folder on the cluster: {runs_dir / run}", err=True)
    for path in there:
        click.echo(f"  {path}: expected on every node of the cluster, and not looked for from here", err=True)
    if as_json:
        print_json({"job": job, "run": run, "runs_dir": str(runs_dir), "address": address})
    if detach:
        click.echo(_ways_on(job, address), err=True)
        return
    sys.exit(_follow(client, job, address))


def _ways_on(job: str, address: str) -> str:
    return (
        f"  follow it: hoofprint status {job} --follow --address {address}\n"
        f"  stop it:   hoofprint stop {job} --address {address}"
    )


def _follow(client: Any, job: str, address: str, tail: int | None = None) -> int:
    """Follows the job's log to its end; the exit code of the run, 0 when Ctrl-C only ended the following."""
    from orchestrator.jobs import server as jobs

    try:
        ended = jobs.follow(client, job, lambda text: click.echo(text, nl=False, err=True), tail)
    except KeyboardInterrupt:
        click.echo(f"\ndetached; {job} goes on\n{_ways_on(job, address)}", err=True)
        return 0
    if ended.status != "SUCCEEDED":
        reason = f", exit code {ended.exit_code}" if ended.exit_code is not None else ""
        click.echo(f"the job {job} ended: {ended.ending}{reason}", err=True)
        # Ray's message repeats the log, unless the job never came to have one.
        if ended.exit_code is None and ended.status == "FAILED" and ended.message:
            click.echo(f"  {ended.message.strip()}", err=True)
        if ended.exit_code != BAD_INPUT and ended.run is not None and ended.runs_dir is not None:
            there = f"--address {address} --runs {ended.runs_dir}"
            click.echo(f"  go on with it: hoofprint submit SPEC {there} --resume {ended.run}", err=True)
    return ended.code


@click.command()
@click.argument("run", required=False)
@RUNS
@ADDRESS
@click.option("--follow", "follow_it", is_flag=True, help="Follow the log of the job RUN until it ends.")
@click.option("--all", "with_ended", is_flag=True, help="Also the jobs that have ended.")
@JSON
def status(
    run: str | None, runs_dir: Path, address: str | None, follow_it: bool, with_ended: bool, as_json: bool
) -> None:
    """What runs now: the runs of a folder, and with --address those of a cluster.

    RUN names one, which may have ended: then how.
    """
    from energy.runs import RunFolder
    from orchestrator.driver import stopping
    from orchestrator.jobs import server as jobs
    from orchestrator.live.running import look, running

    if follow_it and (run is None or address is None):
        raise click.UsageError("--follow needs a RUN and the --address of its cluster (a local run: hoofprint top RUN)")
    if follow_it and as_json:
        raise click.UsageError("--follow shows a log, and --json one document: give one of them")
    if address is None:
        here = running(runs_dir) if run is None else [look(stopping.run_folder(run, runs_dir))]
        there: list[jobs.Job] = []
        others = 0
    else:
        client = jobs.connect(address)
        if follow_it:
            assert run is not None
            sys.exit(_follow(client, jobs.find(client, run).id, address, ATTACHED_LINES))
        here = []
        there, others = jobs.list_jobs(client)
        if run is not None:
            there, with_ended = [jobs.find(client, run)], True
    shown = [job for job in there if job.live or with_ended]
    if as_json:
        print_json({"runs": [each.as_json() for each in here], "jobs": [_as_json(job) for job in shown]})
        return
    from rich.console import Console

    console = Console(highlight=False)
    if here and here[0].status not in ("running", "lost"):  # named, and it has ended
        console.print(_how_it_ended(stopping.as_it_stands(RunFolder(here[0].path))), soft_wrap=True)
    elif here:
        console.print(_runs_table(here))
        for each in here:
            if each.doubt is not None:
                lost = f"; go on with it: hoofprint run SPEC --resume {each.path}" if each.status == "lost" else ""
                console.print(f"{each.run}: {each.doubt}{lost}", soft_wrap=True)
    if shown:
        console.print(_jobs_table(shown))
    if not here and not shown:
        where = f"in {runs_dir}" if address is None else f"on {address}"
        missing = ": there is no such folder" if address is None and not runs_dir.exists() else ""
        console.print(f"nothing runs {where}{missing}", soft_wrap=True)
    for text in _left_out(len(there) - len(shown), others):
        click.echo(text, err=True)


def _left_out(ended: int, others: int) -> list[str]:
    said = []
    if ended:
        said.append(
            f"{ended} job{'s have' if ended > 1 else ' has'} ended: --all shows {'them' if ended > 1 else 'it'}"
        )
    if others:
        said.append(f"{others} other job{'s' if others > 1 else ''} on this cluster: not of hoofprint")
    return said


def _as_json(job: "Job") -> dict[str, Any]:
    keys = ("id", "status", "run", "runs_dir", "started_unix_s", "ended_unix_s", "exit_code", "message")
    return {key: getattr(job, key) for key in keys}


def _runs_table(rows: "list[Running]") -> "Table":
    from rich.table import Table

    from energy.human import digits, human_energy, human_time, percent

    table = Table(box=None, pad_edge=False)
    for head, justify in (
        ("run", "left"),
        ("status", "left"),
        ("since", "right"),
        ("step", "right"),
        ("done", "right"),
        ("loss", "right"),
        ("power", "right"),
        ("IT energy", "right"),
        ("driver", "left"),
    ):
        table.add_column(head, justify=justify)  # type: ignore[arg-type]
    for row in rows:
        done = UNKNOWN
        if row.tokens is not None and row.planned_tokens:
            done = percent(row.tokens / row.planned_tokens)
        table.add_row(
            row.run,
            row.status,
            UNKNOWN if row.started_unix_s is None else human_time(max(0.0, time.time() - row.started_unix_s)),
            UNKNOWN if row.step is None else f"{row.step:,}",
            done,
            UNKNOWN if row.loss is None else f"{row.loss:.3f}",
            UNKNOWN if row.power_w is None else f"{digits(row.power_w)} W",
            UNKNOWN if row.energy_it_kwh is None else human_energy(row.energy_it_kwh),
            f"job {row.job}" if row.job else UNKNOWN if row.host is None else f"{row.host} pid {row.pid}",
        )
    return table


def _jobs_table(rows: "list[Job]") -> "Table":
    from rich.table import Table

    from energy.human import human_time

    table = Table(box=None, pad_edge=False)
    for head in ("job", "run", "status", "for", "exit", "folder on the cluster"):
        table.add_column(head, justify="right" if head in ("for", "exit") else "left")
    for row in rows:
        lasted = None if row.started_unix_s is None else (row.ended_unix_s or time.time()) - row.started_unix_s
        table.add_row(
            row.id,
            row.run or UNKNOWN,
            row.ending,
            UNKNOWN if lasted is None else human_time(max(0.0, lasted)),
            UNKNOWN if row.exit_code is None else str(row.exit_code),
            f"{row.runs_dir}/{row.run}" if row.runs_dir and row.run else row.runs_dir or UNKNOWN,
        )
    return table


@click.command()
@click.argument("run")
@RUNS
@ADDRESS
@click.option("--no-wait", is_flag=True, help="Only ask; do not wait for the end.")
@JSON
def stop(run: str, runs_dir: Path, address: str | None, no_wait: bool, as_json: bool) -> None:
    """Lets RUN end in order: it checkpoints, writes its record and report, and ends at its next step.

    RUN is a run's name in --runs or its folder, in whatever process it runs; with --address, a run or job of that
    cluster.
    """
    from orchestrator.driver import stopping

    if address is None:
        asked = stopping.ask_folder(run, runs_dir)
        who = f" ({asked.holder})" if asked.holder is not None else ""
        click.echo(
            f"asked {asked.folder.path} to stop{who}: it ends after its next step, with checkpoint and report", err=True
        )
        if not no_wait:
            try:
                stopping.wait_for_end(asked)
            except KeyboardInterrupt:
                click.echo("the request stands: the run ends without us waiting for it", err=True)
                no_wait = True
        stands = stopping.as_it_stands(asked.folder)
        if as_json:
            print_json(stands)
        elif not no_wait:
            click.echo(_how_it_ended(stands))
        return
    from orchestrator.jobs import server as jobs

    client = jobs.connect(address)
    job = jobs.find(client, run)
    if not job.live:
        raise ValueError(f"the job {job.id} is not at work: it is {job.ending}")
    click.echo(f"asking {job.id} to stop: it ends after its next step, with checkpoint and report", err=True)
    stopping.ask_job(client, job, lambda text: click.echo(f"  {text}", err=True))
    if not no_wait:
        try:
            jobs.follow(client, job.id, lambda text: click.echo(text, nl=False, err=True), ATTACHED_LINES)
        except KeyboardInterrupt:
            click.echo("the request stands: the job ends without us waiting for it", err=True)
            no_wait = True
    job = jobs.find(client, job.id)
    if as_json:
        print_json(_as_json(job))
    elif not no_wait:
        click.echo(f"{job.id}: {job.ending}")


def _how_it_ended(stands: dict[str, Any]) -> str:
    step, report = stands["checkpoint_step"], stands["report"]
    saved = "no checkpoint" if step is None else f"checkpoint of step {step:,}"
    why = f" ({stands['error']})" if stands["error"] else ""
    return f"{stands['run']}: {stands['status']}{why}, {saved}" + (f", report: {report}" if report else "")

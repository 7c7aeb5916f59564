"""Web pages over a folder of runs: `hoofprint dashboard`."""

import errno
import functools
import re
import secrets
from pathlib import Path

import click

from orchestrator.commands import RUNS


@click.command()
@RUNS
@click.option("--port", type=click.IntRange(0, 65535), default=8321, show_default=True, help="0 takes a free one.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Elsewhere than on loopback a token is needed.")
@click.option("--token", envvar="HOOFPRINT_DASHBOARD_TOKEN", help="What visitors must know; made up when needed.")
@click.option("--prefix", default="", metavar="/PATH", help="Where a proxy shows it.")
@click.option("--experiments", "specs_dir", type=click.Path(path_type=Path),
              help="Folder of the specs that the plan page offers.  [default: experiments]")  # fmt: skip
def dashboard(runs_dir: Path, port: int, host: str, token: str | None, prefix: str, specs_dir: Path | None) -> None:
    """Shows the runs of a folder in a browser: list, live run, comparison, cluster, plan, project total.

    Reads only; Ctrl-C ends it. The folder may be on read-only storage. New runs appear by themselves.
    """
    from dashboards.server import Planning, is_loopback, make_server
    from orchestrator.live import state as live_state
    from orchestrator.plan.asked import plan_asked

    if not runs_dir.is_dir():
        raise click.UsageError(f"{runs_dir}: no such folder; give the folder that holds the runs: --runs DIR")
    if specs_dir is not None and not specs_dir.is_dir():
        raise click.UsageError(f"--experiments {specs_dir}: no such folder")
    if token is not None and not re.fullmatch(r"[A-Za-z0-9_-]{16,128}", token):
        raise click.UsageError("--token: expected 16 to 128 letters, digits, - or _; leave it out to have one made up")
    if token is None and not is_loopback(host):
        token = secrets.token_urlsafe(24)
    planning = Planning(specs_dir or Path("experiments"), functools.partial(plan_asked, runs_dir=runs_dir))
    try:
        server = make_server(runs_dir, live_state.read, host, port, prefix=prefix, token=token, planning=planning)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise click.UsageError(
                f"port {port} of {host} is in use; choose another: --port, 0 takes a free one"
            ) from None
        if isinstance(error, PermissionError) and port < 1024:
            raise click.UsageError(
                f"port {port} may be opened by root only, as all below 1024; choose another: --port"
            ) from None
        raise click.UsageError(f"--host {host}: {error.strerror or error}") from None
    name = f"[{host}]" if ":" in host and not host.startswith("[") else host
    query = f"?token={token}" if token else ""
    click.echo(f"runs of {runs_dir} at http://{name}:{server.server_port}{server.prefix}/{query}")
    if token:
        click.echo("keep this address to yourself: whoever has it sees the runs", err=True)
    if not is_loopback(host):
        click.echo(
            "what is sent is not encrypted: on a network you do not trust, put a proxy with TLS before it", err=True
        )
    try:
        server.serve_forever(poll_interval=0.2)
    except KeyboardInterrupt:
        pass  # how one ends it
    finally:
        server.server_close()

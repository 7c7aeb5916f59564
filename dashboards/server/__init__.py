"""Web pages over a folder of runs: the list, each run while it goes on and afterwards, and what all took together.

Everything comes from Python's own HTTP server, Jinja templates and a few hundred lines of JavaScript that draw on a
canvas: nothing is fetched from elsewhere, no script stands in a page, and no library is copied into the project.
"""

from __future__ import annotations

import threading
from pathlib import Path

from dashboards.server.app import FORM_PAGES, App
from dashboards.server.catalog import ReadLive
from dashboards.server.planning import Planning
from dashboards.server.web import Server, is_loopback

__all__ = ["Planning", "is_loopback", "make_server"]


def make_server(
    directory: Path,
    read_live: ReadLive,
    host: str,
    port: int,
    *,
    prefix: str = "",
    token: str | None = None,
    planning: Planning | None = None,
) -> Server:
    """A server that is bound and not yet started: `serve_forever`. port 0 takes a free one (`server_port`).

    read_live gives the state of a run as it goes on (`orchestrator.live.state.read`); planning: what the plan page asks
    (None: it says that it cannot). ValueError for a prefix that is
    no path, and for a host that others reach without a token. OSError where the port is taken.
    """
    prefix = prefix.rstrip("/")
    if prefix and (not prefix.startswith("/") or prefix.startswith("//") or set(prefix) & set('?#\\"<> %;')):
        raise ValueError(f"--prefix {prefix!r}: expected a path such as /hoofprint")
    if token is None and not is_loopback(host):
        raise ValueError(f"others reach {host}: a token is needed")
    app = App(directory, read_live, prefix, planning)
    server = Server(host, port, app.respond, prefix=prefix, token=token, submit=app.submit, forms=FORM_PAGES)
    threading.Thread(target=app.warm_up, daemon=True).start()
    return server

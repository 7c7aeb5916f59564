"""A dashboard over a folder of fake runs, asked over real HTTP."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPMessage
from pathlib import Path
from typing import Any

from record_fakes import START, make_run

from dashboards.server import make_server
from energy.records.record import write_record
from energy.runs import RunFolder
from orchestrator.live import state as live_state

__all__ = ["START", "Answer", "Client", "recorded", "serve"]


@dataclass
class Answer:
    status: int
    headers: HTTPMessage
    body: bytes

    @property
    def text(self) -> str:
        return self.body.decode()

    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class Client:
    host: str
    port: int

    def ask(self, path: str, method: str = "GET", body: bytes | None = None, **headers: str) -> Answer:
        """The path is sent as it stands, dots and all."""
        connection = HTTPConnection(self.host, self.port, timeout=30)
        try:
            connection.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
            answer = connection.getresponse()
            return Answer(answer.status, answer.headers, answer.read())
        finally:
            connection.close()

    def text(self, path: str) -> str:
        answer = self.ask(path)
        assert answer.status == 200, (path, answer.status, answer.body[:300])
        return answer.text


@contextmanager
def serve(directory: Path, host: str = "127.0.0.1", **options: Any) -> Iterator[Client]:
    server = make_server(directory, live_state.read, host, 0, **options)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield Client("127.0.0.1" if host == "0.0.0.0" else host, server.server_port)
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def recorded(path: Path, **changes: Any) -> RunFolder:
    """A run with ledger, metrics and record."""
    run = make_run(path, **changes)
    write_record(run)
    return run

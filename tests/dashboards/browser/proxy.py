"""A little reverse proxy, as one stands before the pages under a path: it passes on all that is under its prefix."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from server_fakes import Client

OWN = {"connection", "transfer-encoding", "keep-alive", "server", "date"}  # of one stretch of the way, not of both


class Proxy(ThreadingHTTPServer):
    """behind: what is asked; strip: take the prefix off on the way. strayed: paths asked for outside the prefix."""

    daemon_threads = True

    def __init__(self, behind: Client, prefix: str, strip: bool) -> None:
        self.behind, self.prefix, self.strip = behind, prefix, strip
        self.strayed: list[str] = []
        super().__init__(("127.0.0.1", 0), Handler)


class Handler(BaseHTTPRequestHandler):
    server: Proxy
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        if not self.path.startswith(f"{self.server.prefix}/"):
            self.server.strayed.append(self.path)
            self.send_error(502)
            return
        path = self.path.removeprefix(self.server.prefix) if self.server.strip else self.path
        sent = {name: value for name, value in self.headers.items() if name.lower() not in ("host", "connection")}
        connection = HTTPConnection(self.server.behind.host, self.server.behind.port, timeout=30)
        try:
            connection.request("GET", path, headers=sent)
            answer = connection.getresponse()
            body = answer.read()
        finally:
            connection.close()
        self.send_response(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in OWN:
                self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: a page that is open asks every second."""


@contextmanager
def before(behind: Client, prefix: str, strip: bool) -> Iterator[tuple[Proxy, Client]]:
    """The proxy, and how it is asked."""
    proxy = Proxy(behind, prefix, strip)
    thread = threading.Thread(target=proxy.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield proxy, Client("127.0.0.1", proxy.server_port)
    finally:
        proxy.shutdown()
        thread.join()
        proxy.server_close()

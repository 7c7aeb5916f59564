"""HTTP around the pages: GET and HEAD, and POST where a form asks a question too long for an address; the token, the
prefix, and headers that let a page do nothing but show. No method changes anything."""

from __future__ import annotations

import gzip
import hashlib
import hmac
import ipaddress
import socket
import sys
import traceback
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from http import HTTPStatus
from http.cookies import CookieError, SimpleCookie
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qsl, unquote, urlencode, urlsplit

from dashboards.server.forms import fields_of, length_of, why_refused

COOKIE = "hoofprint_token"
PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
# A report is a file of the runs folder: nothing in it may run, whoever wrote it.
REPORT_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; sandbox; frame-ancestors 'none'"
HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
}
LOOPBACK_NAMES = ("localhost",)
COMPRESS_FROM = 1000
IDLE_S = 60.0  # a connection that says nothing for so long is closed
LONGEST_QUERY = 4000
READ_ON = 8_000_000  # bytes of a form that is refused, so that the browser stops sending and sees the answer


@dataclass(frozen=True)
class Response:
    """status, body as bytes, its type; `name`: what a browser saves it as; `policy`: its content-security policy."""

    status: int
    body: bytes
    kind: str = "text/html; charset=utf-8"
    name: str = ""
    policy: str = PAGE_POLICY
    cache: str = "no-cache"
    headers: dict[str, str] = field(default_factory=dict)


class Arguments(dict[str, str]):
    """Of a query or a form: the last value of each key; `every` gives all that were given."""

    def __init__(self, pairs: Iterable[tuple[str, str]] = ()) -> None:
        self.pairs = list(pairs)
        super().__init__(self.pairs)

    def every(self, key: str) -> list[str]:
        return [value for name, value in self.pairs if name == key]


Respond = Callable[[list[str], Arguments], Response]  # (parts of the path, arguments)


def text(status: int, message: str, headers: dict[str, str] | None = None) -> Response:
    return Response(status, f"{message}\n".encode(), "text/plain; charset=utf-8", headers=headers or {})


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches what is bound to `host`."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host.lower() in LOOPBACK_NAMES


class Server(ThreadingHTTPServer):
    """Serves `respond` under `prefix` ("" or "/some/path"). token: what a client must know; None: nothing.

    Without a token only loopback names are answered, so that a foreign page whose name leads here reads nothing.
    submit: answers the forms that are sent to the pages of the names in `forms`, and from pages of this server only.
    """

    daemon_threads = True
    request_queue_size = 64

    def __init__(
        self,
        host: str,
        port: int,
        respond: Respond,
        *,
        prefix: str = "",
        token: str | None = None,
        submit: Respond | None = None,
        forms: Collection[str] = (),
    ) -> None:
        self.respond, self.prefix, self.token = respond, prefix, token
        self.submit, self.forms = submit, forms
        # A browser keeps cookies by host and not by port: two dashboards of one host have a name each.
        self.cookie = f"{COOKIE}_{hashlib.blake2b((token or '').encode(), digest_size=4).hexdigest()}"
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        super().__init__((host.strip("[]"), port), Handler)

    def handle_error(self, request: object, client_address: object) -> None:
        if not isinstance(sys.exc_info()[1], (ConnectionError, TimeoutError)):  # the browser went away: nobody's fault
            traceback.print_exc()


class Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "hoofprint", ""
    timeout = IDLE_S

    def do_GET(self) -> None:
        if self.headers.get("Content-Length", "0") != "0" or "Transfer-Encoding" in self.headers:
            self.close_connection = True  # what nobody reads would be taken for the next request
        self._give(self._answer())

    do_HEAD = do_GET

    def do_POST(self) -> None:
        if not self._takes_forms():
            self._refuse()
            return
        stranger = self._refused()
        if stranger is not None:
            self.close_connection = True
            self._give(stranger)
            return
        refused = why_refused(self.headers)
        if refused is not None:
            self.close_connection = True
            self._read_on()
            self._give(text(*refused))
            return
        length = length_of(self.headers)
        try:
            fields = fields_of(self.rfile.read(length), length)
        except ValueError:
            self.close_connection = True
            self._give(text(400, "the form is not understood"))
            return
        assert self.server.submit is not None
        self._give(self._safely(self.server.submit, self._parts(urlsplit(self.path).path), Arguments(fields)))

    def _takes_forms(self) -> bool:
        """Whether there is a form on the page that is asked for."""
        try:
            path = urlsplit(self.path).path
        except ValueError:
            return False
        return self.server.submit is not None and self._parts(path) in [[name] for name in self.server.forms]

    def _give(self, response: Response) -> None:
        try:
            self._send(response, with_body=self.command != "HEAD")
        except (ConnectionError, TimeoutError):
            self.close_connection = True

    def _read_on(self) -> None:
        left = min(length_of(self.headers), READ_ON)
        try:
            while left > 0 and (got := self.rfile.read(min(left, 65536))):
                left -= len(got)
        except (ConnectionError, TimeoutError):
            pass  # nobody is there to be told

    def __getattr__(self, name: str) -> Callable[[], None]:
        if not name.startswith("do_"):
            raise AttributeError(name)
        return self._refuse  # every other method, by whatever name

    def _refuse(self) -> None:
        self.close_connection = True
        methods = "GET, HEAD, POST" if self._takes_forms() else "GET, HEAD"  # of what is asked for
        allowed = {"Allow": methods, "Connection": "close"}
        self._send(text(405, f"only {methods}: these pages change nothing", allowed), True)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: a page that is open asks every second, and addresses may hold a token."""

    def _answer(self) -> Response:
        try:
            url = urlsplit(self.path)
        except ValueError:
            return text(400, "the address is not understood")
        if len(url.query) > LONGEST_QUERY:
            return text(414, "the address is too long")
        pairs = parse_qsl(url.query, keep_blank_values=True)
        if self.server.token is not None and _same(Arguments(pairs).get("token", ""), self.server.token):
            return self._remember(url.path, [pair for pair in pairs if pair[0] != "token"])
        refused = self._refused()
        if refused is not None:
            return refused
        path, prefix = url.path, self.server.prefix
        if path == prefix and prefix:
            return Response(308, b"", headers={"Location": f"{prefix}/"})
        return self._safely(self.server.respond, self._parts(path), Arguments(pairs))

    def _refused(self) -> Response | None:
        """Why nothing is shown to whoever asks; None where it is."""
        if self.server.token is None:
            if not self._is_for_loopback():
                return text(403, "this dashboard answers to localhost only; behind a proxy, start it with --token")
        elif not self._knows_token():
            return text(
                401,
                "a token is needed: open the address that `hoofprint dashboard` printed, or send it as\n"
                "  Authorization: Bearer TOKEN",
            )
        return None

    def _parts(self, path: str) -> list[str]:
        """Of a path, decoded, without the prefix, which a proxy may have taken off."""
        prefix = self.server.prefix
        if prefix and path.startswith(f"{prefix}/"):
            path = path.removeprefix(prefix)
        return [unquote(part, errors="surrogateescape") for part in path.split("/")[1:]]

    def _safely(self, respond: Respond, parts: list[str], arguments: Arguments) -> Response:
        try:
            return respond(parts, arguments)
        except Exception:  # a page that fails must not take the others with it
            traceback.print_exc()
            return text(500, "this page failed; what went wrong is where `hoofprint dashboard` runs: please report it")

    def _remember(self, path: str, pairs: list[tuple[str, str]]) -> Response:
        """Takes the token out of the address, where it would be seen and passed on, into a cookie."""
        query = f"?{urlencode(pairs)}" if pairs else ""
        path, prefix = "/" + path.lstrip("/\\"), self.server.prefix  # two slashes would be another machine's address
        if not f"{path}/".startswith(f"{prefix}/"):
            path = prefix + path  # a proxy has taken it off
        cookie = f"{self.server.cookie}={self.server.token}; Path={prefix or '/'}; HttpOnly; SameSite=Strict"
        return Response(303, b"", headers={"Location": path + query, "Set-Cookie": cookie})

    def _knows_token(self) -> bool:
        given = self.headers.get("Authorization", "").removeprefix("Bearer ").strip()
        try:
            cookie = SimpleCookie(self.headers.get("Cookie", "")).get(self.server.cookie)
        except CookieError:
            cookie = None
        token = self.server.token or ""
        return _same(given, token) or (cookie is not None and _same(cookie.value, token))

    def _is_for_loopback(self) -> bool:
        host = self.headers.get("Host", "localhost")
        name = host.rsplit(":", 1)[0] if not host.endswith("]") else host
        return is_loopback(name)

    def _send(self, response: Response, with_body: bool) -> None:
        body, status = response.body, response.status
        headers = HEADERS | {"Content-Security-Policy": response.policy, "Cache-Control": response.cache}
        headers |= {"Content-Type": response.kind} | response.headers
        if response.name:
            headers["Content-Disposition"] = f'attachment; filename="{response.name}"'
        if status == HTTPStatus.OK:
            headers["ETag"] = f'W/"{hashlib.blake2b(body, digest_size=12).hexdigest()}"'
            headers["Vary"] = "Accept-Encoding, Cookie"
            if self.headers.get("If-None-Match") == headers["ETag"]:
                status, body = HTTPStatus.NOT_MODIFIED, b""
        if len(body) >= COMPRESS_FROM and "gzip" in self.headers.get("Accept-Encoding", ""):
            body = gzip.compress(body, 5, mtime=0)
            headers["Content-Encoding"] = "gzip"
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if status != HTTPStatus.NOT_MODIFIED:
            self.send_header("Content-Length", str(len(body)))
        if self.close_connection and "Connection" not in headers:
            self.send_header("Connection", "close")
        self.end_headers()
        if with_body:
            self.wfile.write(body)


def _same(given: str, token: str) -> bool:
    """Compared in constant time: how far a guess was right must not show."""
    return bool(token) and hmac.compare_digest(given.encode(), token.encode())

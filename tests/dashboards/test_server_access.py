"""Who may look: loopback, tokens, prefixes; and the command that starts the pages."""

import errno
import os
import re
import signal
import socket
import subprocess
import sys
import tomllib
from fnmatch import fnmatch
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import pytest
from click.testing import CliRunner
from server_fakes import Client, recorded, serve

from dashboards.server import make_server
from dashboards.server.web import is_loopback
from orchestrator.cli import cli
from orchestrator.live import state as live_state

TOKEN = "t0ken-0123456789-abcdef"


def test_loopback_is_what_only_this_machine_reaches() -> None:
    assert all(is_loopback(host) for host in ("127.0.0.1", "127.8.8.8", "::1", "[::1]", "localhost"))
    assert not any(is_loopback(host) for host in ("0.0.0.0", "::", "10.0.0.1", "example.org", ""))


def test_others_are_not_let_in_without_a_token(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="a token is needed"):
        make_server(tmp_path, live_state.read, "0.0.0.0", 0)


def test_a_foreign_name_for_this_machine_reads_nothing(tmp_path: Path) -> None:
    with serve(tmp_path) as client:
        for host in ("evil.example", "evil.example:80", "127.0.0.1.evil.example", "0.0.0.0"):
            assert client.ask("/", Host=host).status == 403
        for host in ("localhost", "localhost:9", "127.0.0.1:80", "[::1]:80", "[::1]"):
            assert client.ask("/", Host=host).status == 200


def cookie_of(client: Client, token: str = TOKEN) -> str:
    """The name of the cookie that a dashboard sets."""
    return client.ask(f"/?token={token}").headers["Set-Cookie"].partition("=")[0]


def test_the_token_opens_every_page_and_leaves_the_address(tmp_path: Path) -> None:
    recorded(tmp_path / "one")
    with serve(tmp_path, "0.0.0.0", token=TOKEN) as client:
        for path in ("/", "/total", "/runs.json", "/run/one/", "/run/one/power.json", "/static/style.css"):
            for wrong in ({}, {"Cookie": f"{cookie_of(client)}=wrong"}, {"Authorization": "Bearer wrong"},
                          {"Authorization": f"Bearer {TOKEN[:-1]}"}, {"Cookie": "a=b; =;;"}):  # fmt: skip
                answer = client.ask(path, **wrong)
                assert answer.status == 401 and b"Bearer TOKEN" in answer.body and b"one/" not in answer.body
            assert client.ask(path, Authorization=f"Bearer {TOKEN}").status == 200
            assert client.ask(f"{path}?token=wrong").status == 401
            assert client.ask(f"{path}?token=").status == 401
        first = client.ask(f"/?q=a+b&token={TOKEN}")
        assert first.status == 303 and first.headers["Location"] == "/?q=a+b"
        cookie = first.headers["Set-Cookie"]
        assert "HttpOnly" in cookie and "SameSite=Strict" in cookie and "Path=/;" in cookie
        known = {"Cookie": cookie.partition(";")[0]}
        assert client.ask("/", **known).status == 200
        again = client.ask(f"/?q=a+b&token={TOKEN}", **known)
        assert again.status == 303 and again.headers["Location"] == "/?q=a+b", "also where the browser knows it already"
        with serve(tmp_path, "0.0.0.0", token=TOKEN[::-1]) as other:  # on another port, to which cookies are the same
            assert cookie_of(other, TOKEN[::-1]) != known["Cookie"].partition("=")[0]
            both = {"Cookie": f"{known['Cookie']}; {cookie_of(other, TOKEN[::-1])}={TOKEN[::-1]}"}
            assert client.ask("/", **both).status == other.ask("/", **both).status == 200
            assert other.ask("/", **known).status == 401
        for path in ("//evil.example/", "/\\evil.example/", "/\\/evil.example/"):
            away = client.ask(f"{path}?token={TOKEN}")
            assert away.status == 303 and re.match(r"/[^/\\]|/$", away.headers["Location"])


def test_under_a_prefix(tmp_path: Path) -> None:
    recorded(tmp_path / "one")
    with serve(tmp_path, prefix="/team/hoofprint/") as client:
        moved = client.ask("/team/hoofprint")
        assert moved.status == 308 and moved.headers["Location"] == "/team/hoofprint/"
        for path in ("/team/hoofprint/", "/team/hoofprint/total", "/team/hoofprint/run/one/"):
            page = client.text(path)
            addresses = re.findall(r'(?:href|src|action|data-url)="([^"#][^"]*)"', page)
            assert len(addresses) > 5 and all(each.startswith("/team/hoofprint/") for each in addresses)
            for each in addresses:
                if "/figure/" in each:  # drawn when asked for: test_server_figures asks, under a prefix too
                    continue
                assert client.ask(each.replace("&amp;", "&")).status in (200, 404 if "report" in each else 200)
        assert client.ask("/run/one/").status == 200  # a proxy may have taken the prefix off
    with serve(tmp_path, prefix="/team", token=TOKEN) as client:
        for path, there in (
            ("/", "/team/"),
            ("/team", "/team"),
            ("/team/total", "/team/total"),
            ("/teams", "/team/teams"),
        ):
            assert client.ask(f"{path}?token={TOKEN}").headers["Location"] == there
    for prefix in ("no-slash", "//other.example", "/a b", '/"x', "/a?b"):
        with pytest.raises(ValueError, match="--prefix"):
            make_server(tmp_path, live_state.read, "127.0.0.1", 0, prefix=prefix)


def test_wrong_options_say_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fault(*options: str) -> str:
        result = CliRunner().invoke(cli, ["dashboard", *options])
        assert result.exit_code == 2, result.output
        return result.output

    assert "give the folder that holds the runs" in fault("--runs", str(tmp_path / "none"))
    assert "16 to 128" in fault("--runs", str(tmp_path), "--token", "short")
    with serve(tmp_path) as client:
        assert "choose another" in fault("--runs", str(tmp_path), "--port", str(client.port))

    def refuse(*given: Any, **named: Any) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr("dashboards.server.make_server", refuse)
    assert "port 80 may be opened by root only" in fault("--runs", str(tmp_path), "--port", "80")
    assert "--host 127.0.0.1: Permission denied" in fault("--runs", str(tmp_path), "--port", "8080")


def test_the_command_prints_its_address_serves_and_ends_by_ctrl_c(tmp_path: Path) -> None:
    recorded(tmp_path / "one")
    command = [sys.executable, "-m", "orchestrator", "dashboard", "--runs", str(tmp_path), "--port", "0"]
    environment = {key: value for key, value in os.environ.items() if key != "HOOFPRINT_DASHBOARD_TOKEN"}
    process = subprocess.Popen(
        [*command, "--host", "0.0.0.0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        # Tests that a script runs in the background inherit that Ctrl-C is ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        found = re.search(r"http://0\.0\.0\.0:(\d+)/\?token=([A-Za-z0-9_-]{32})$", line.strip())
        assert found, line
        address = f"http://127.0.0.1:{found[1]}/runs.json"
        with urlopen(Request(address, headers={"Authorization": f"Bearer {found[2]}"}), timeout=30) as answer:
            assert b'"one"' in answer.read()
    finally:
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=30)
    assert process.returncode == 0 and "Traceback" not in errors and "not encrypted" in errors


def test_every_file_of_the_pages_is_in_the_package() -> None:
    root = Path(__file__).parents[2]
    tools = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["setuptools"]
    package = root / "dashboards" / "server"
    assert any(fnmatch("dashboards.server", pattern) for pattern in tools["packages"]["find"]["include"])
    shipped = {path for pattern in tools["package-data"]["dashboards.server"] for path in package.glob(pattern)}
    kept = {path for path in package.rglob("*") if path.is_file() and path.suffix not in (".py", ".pyc")}
    assert kept and kept == shipped


def test_read_only_storage_stays_as_it_was(tmp_path: Path) -> None:
    recorded(tmp_path / "one")
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    with serve(tmp_path) as client:
        for path in ("/", "/total", "/run/one/", "/run/one/state", "/run/one/power.json", "/run/one/steps.csv"):
            assert client.ask(path).status == 200
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_a_body_is_never_taken_for_the_next_request(tmp_path: Path) -> None:
    inner = b"GET /total HTTP/1.1\r\nHost: localhost\r\n\r\n"
    outer = b"GET / HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(inner)
    with serve(tmp_path) as client, socket.create_connection((client.host, client.port), timeout=30) as line:
        line.sendall(outer + inner)
        answers = b"".join(iter(lambda: line.recv(65536), b""))
    assert answers.count(b"HTTP/1.1 200") == 1 and b"Connection: close" in answers
    with serve(tmp_path) as client, socket.create_connection((client.host, client.port), timeout=30) as line:
        line.sendall(b"GET http://[ HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        assert b"HTTP/1.1 400" in b"".join(iter(lambda: line.recv(65536), b""))

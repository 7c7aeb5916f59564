"""The live provider, against a small server on this machine: answers, failures, cache, and the way back."""

import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlparse

import pytest

from energy.carbon.grid import intensity
from energy.carbon.providers import TOKEN, ElectricityMaps, ProviderError, series_or_declared

START = 1_704_067_200.0  # 2024-01-01T00:00:00Z
H = 3600.0


class Server(ThreadingHTTPServer):
    daemon_threads = True
    mode = "good"

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked: list[dict[str, Any]] = []
        self.ended: list[str] = []  # answers that were waited for to their end

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def log_message(self, *_: Any) -> None:
        pass

    def answer(self, code: int, body: bytes, **headers: str) -> None:
        self.send_response(code)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self) -> None:
        query = {key: values[0] for key, values in parse_qs(urlparse(self.path).query).items()}
        self.server.asked.append(query | {"token": self.headers.get("auth-token"), "path": urlparse(self.path).path})
        mode = self.server.mode
        try:
            if mode == "slow":
                time.sleep(3)
                self.server.ended.append(mode)
            elif mode == "drip":
                self.send_response(200)
                self.end_headers()
                for _ in range(100):
                    self.wfile.write(b" ")
                    self.wfile.flush()
                    time.sleep(0.05)
                self.server.ended.append(mode)
            elif mode in ("401", "404", "429", "500"):
                self.answer(int(mode), b'{"message": "no"}', **({"Retry_After": "30"} if mode == "429" else {}))
            elif mode == "redirect":
                self.answer(302, b"", Location=f"{self.server.url}/elsewhere")
            elif mode == "garbage":
                self.answer(200, b"<html>")
            elif mode in ("nothing", "null", "negative", "odd"):
                value = {"nothing": None, "null": [], "negative": -5, "odd": "many"}[mode]
                rows = [] if mode == "null" else [{"datetime": "2024-01-01T00:00:00Z", "carbonIntensity": value}]
                self.answer(200, json.dumps({"zone": query["zone"], "data": rows}).encode())
            else:
                self.answer(200, json.dumps(hours(query, mode)).encode())
        except OSError:
            pass  # the client has gone, which is what some of these tests are about


def hours(query: dict[str, str], mode: str) -> dict[str, Any]:
    from datetime import datetime, timedelta

    at, end = (datetime.fromisoformat(query[key]) for key in ("start", "end"))
    rows = []
    while at < end:
        scope = "direct" if mode == "scope" else query["emissionFactorType"]
        rows.append({"zone": query["zone"], "datetime": at.isoformat(), "carbonIntensity": 100 + at.hour,
                     "isEstimated": mode == "estimated", "emissionFactorType": scope})  # fmt: skip
        at += timedelta(hours=1)
    return {"zone": query["zone"], "data": rows}


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.delenv(TOKEN, raising=False)
    server = Server()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


def client(server: Server, **more: Any) -> ElectricityMaps:
    return ElectricityMaps("secret-token", base_url=server.url, **{"timeout_s": 5.0, **more})


def test_a_span_is_asked_for_in_whole_hours_with_the_token_in_the_header(server: Server) -> None:
    series = client(server).series("FR", START + 600, START + 2 * H + 1)
    assert series.g_per_kwh == (100, 101, 102) and series.geography == "FR"
    assert (series.start_unix_s[0], series.end_unix_s[-1]) == (START, START + 3 * H)
    assert str(series.basis) == "average, lifecycle, consumption, location" and series.warnings == ()
    (asked,) = server.asked
    assert asked["path"] == "/v3/carbon-intensity/past-range" and asked["token"] == "secret-token"
    assert (asked["start"], asked["end"]) == ("2024-01-01T00:00:00Z", "2024-01-01T03:00:00Z")


def test_long_spans_are_asked_for_in_parts(server: Server) -> None:
    series = client(server).series("FR", START, START + 25 * 24 * H)
    assert len(server.asked) == 3 and len(series.g_per_kwh) == 25 * 24


def test_the_token_comes_from_the_environment(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(TOKEN, "from-outside")
    ElectricityMaps(base_url=server.url).series("FR", START, START + H)
    assert server.asked[0]["token"] == "from-outside"


def test_without_a_token_nothing_is_asked(server: Server) -> None:
    with pytest.raises(ProviderError, match=TOKEN):
        ElectricityMaps(base_url=server.url).series("FR", START, START + H)
    assert server.asked == []


@pytest.mark.parametrize(
    ("mode", "told"),
    [
        ("401", "token was refused"),
        ("404", "no such zone"),
        ("429", "wait 30 s"),
        ("500", "HTTP 500"),
        ("redirect", "HTTP 302"),
        ("garbage", "makes no sense"),
        ("null", "no entries"),
        ("nothing", "no entry has a value"),
        ("negative", "negative"),
        ("odd", "no number"),
        ("scope", "asked for lifecycle factors, got direct"),
    ],
)
def test_failures_say_why_and_keep_the_token_to_themselves(
    server: Server, mode: str, told: str, tmp_path: Path
) -> None:
    server.mode = mode
    with pytest.raises(ProviderError, match=told) as caught:
        client(server, cache_folder=tmp_path).series("FR", START, START + H)
    assert "secret-token" not in str(caught.value)
    assert all(asked["path"] != "/elsewhere" for asked in server.asked)


@pytest.mark.parametrize("mode", ["slow", "drip"])
def test_an_answer_that_does_not_come_ends_in_time(server: Server, mode: str) -> None:
    server.mode = mode
    with pytest.raises(ProviderError, match=r"no answer within 0.3 s"):
        client(server, timeout_s=0.3).series("FR", START, START + H)
    assert server.ended == []  # it was not waited for


def test_nobody_there(server: Server) -> None:
    url = server.url
    server.server_close()
    with pytest.raises(ProviderError, match="cannot be reached|connection broke"):
        ElectricityMaps("t", base_url=url, timeout_s=1).series("FR", START, START + H)


def test_answers_are_kept_and_need_neither_network_nor_token_again(server: Server, tmp_path: Path) -> None:
    first = client(server, cache_folder=tmp_path).series("FR", START, START + 2 * H)
    (kept,) = tmp_path.iterdir()
    assert "secret-token" not in kept.read_text() and "secret-token" not in repr(client(server))
    again = ElectricityMaps("", base_url=server.url, cache_folder=tmp_path).series("FR", START, START + 2 * H)
    assert again == first and len(server.asked) == 1
    kept.write_text("{ torn")
    assert client(server, cache_folder=tmp_path).series("FR", START, START + 2 * H) == first
    assert len(server.asked) == 2


def test_estimates_are_named_and_not_kept(server: Server, tmp_path: Path) -> None:
    server.mode = "estimated"
    series = client(server, cache_folder=tmp_path).series("FR", START, START + 2 * H)
    assert "2 of 2 hours are the provider's estimates" in series.warnings[0]
    assert list(tmp_path.iterdir()) == []


def test_a_failure_falls_back_on_what_was_declared_and_says_so(server: Server) -> None:
    server.mode = "500"
    series, constant, notes = series_or_declared(client(server), "FR", START, START + H, intensity("FR"))
    assert series is None and constant is not None and constant.value == 56.039
    assert "HTTP 500" in notes[0] and "fell back on the declared 56.039" in notes[0]
    assert series_or_declared(client(server), "FR", START, START + H, None)[:2] == (None, None)
    server.mode = "good"
    series, constant, notes = series_or_declared(client(server), "FR", START, START + H, intensity("FR"))
    assert series is not None and constant is not None and notes == []


def test_spans_that_cannot_be() -> None:
    with pytest.raises(ValueError, match="end after it starts"):
        ElectricityMaps("t").series("FR", START, START)
    with pytest.raises(ValueError, match="lifecycle or direct"):
        ElectricityMaps("t", scope="both")

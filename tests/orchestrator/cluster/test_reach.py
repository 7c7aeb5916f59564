"""An address that nothing answers at is refused in seconds, before anything is prepared."""

import socket
import threading
from concurrent import futures
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import grpc
import pytest

from orchestrator.cluster.reach import require_cluster
from orchestrator.spec.file import BadInput


@pytest.mark.parametrize("address", [None, "local", "auto"])
def test_a_local_ray_is_not_asked_for(address: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    require_cluster(address)


def test_what_does_not_answer_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{server.getsockname()[1]}"
        monkeypatch.setenv("RAY_ADDRESS", address)
        with pytest.raises(BadInput, match=rf"no Ray answers at {address} \(RAY_ADDRESS\): Connection refused"):
            require_cluster(None)


def test_what_speaks_grpc_is_let_through() -> None:
    server = grpc.server(futures.ThreadPoolExecutor(1))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        require_cluster(f"127.0.0.1:{port}")
    finally:
        server.stop(None)


@pytest.mark.parametrize("tls", [False, True])
def test_what_answers_and_is_no_ray_is_named(tls: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orchestrator.cluster.reach.TIMEOUT_S", 1.0)
    monkeypatch.setenv("RAY_USE_TLS", "1" if tls else "0")
    web = ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler)
    threading.Thread(target=web.serve_forever, daemon=True).start()
    address = f"127.0.0.1:{web.server_port}"
    try:
        if tls:
            require_cluster(address)  # only Ray has the certificates to ask further
            return
        with pytest.raises(BadInput, match=rf"{address} \(cluster.address\) is not Ray: .* nothing was started"):
            require_cluster(address)
    finally:
        web.shutdown()
        web.server_close()


def test_through_rays_client_no_node_can_be_metered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "ray://head:10001")
    with pytest.raises(BadInput, match=r"ray://head:10001 \(RAY_ADDRESS\): .* HOST:PORT .* hoofprint submit SPEC"):
        require_cluster(None)


@pytest.mark.parametrize("address", ["here:there", "host:0", "host:70000", "http://host"])
def test_what_is_no_address(address: str) -> None:
    with pytest.raises(BadInput, match="expected host:port"):
        require_cluster(address)

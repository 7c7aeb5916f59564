"""An address that nothing answers at is refused in seconds, before anything is prepared."""

import socket

import pytest

from orchestrator.reach import require_cluster
from orchestrator.spec_file import BadInput


@pytest.mark.parametrize("address", [None, "local", "auto"])
def test_a_local_ray_is_not_asked_for(address: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    require_cluster(address)


def test_what_answers_is_let_through_and_what_does_not_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{server.getsockname()[1]}"
        with pytest.raises(BadInput, match=rf"no Ray answers at {address} \(RAY_ADDRESS\): Connection refused"):
            monkeypatch.setenv("RAY_ADDRESS", address)
            require_cluster(None)
        server.listen()
        require_cluster(address)
        require_cluster(f"ray://{address}")


@pytest.mark.parametrize("address", ["here:there", "host:0", "host:70000", "http://host"])
def test_what_is_no_address(address: str) -> None:
    with pytest.raises(BadInput, match="expected host:port"):
        require_cluster(address)

"""Whether the cluster of a spec answers, asked before anything is prepared: Ray itself tries for minutes."""

import os
import socket

from orchestrator.spec_file import BadInput

TIMEOUT_S = 5.0
CLIENT_PORT = 10001
GCS_PORT = 6379


def require_cluster(address: str | None) -> None:
    """BadInput when nothing listens at the address of the spec or of RAY_ADDRESS; no address is a local Ray."""
    source = "cluster.address" if address else "RAY_ADDRESS"
    address = address or os.environ.get("RAY_ADDRESS")
    if not address or address in ("local", "auto"):
        return
    client = address.startswith("ray://")
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host:
        host, port = port, str(CLIENT_PORT if client else GCS_PORT)
    if not port.isdigit() or not 0 < int(port) < 65536:
        raise BadInput(
            f"{source} {address!r}: expected host:port, as `ray start --head` prints it; nothing was started"
        )
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=TIMEOUT_S).close()
    except OSError as error:
        raise BadInput(
            f"no Ray answers at {address} ({source}): {error.strerror or error}; start one there with "
            f"`ray start --head`, or leave {source} out to have a local one; nothing was started"
        ) from error

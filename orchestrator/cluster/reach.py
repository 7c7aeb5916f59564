"""Whether the cluster of a spec answers, asked before anything is prepared: Ray itself tries for minutes."""

import os
import socket

from orchestrator.cluster.versions import require_same_versions
from orchestrator.spec.file import NOTHING, BadInput

TIMEOUT_S = 5.0
GCS_PORT = 6379


def require_cluster(address: str | None, given_as: str = "cluster.address") -> None:
    """BadInput when nothing listens at the address of the spec or of RAY_ADDRESS; no address is a local Ray."""
    source = given_as if address else "RAY_ADDRESS"
    address = address or os.environ.get("RAY_ADDRESS")
    if not address or address in ("local", "auto"):
        return
    if address.startswith("ray://"):
        raise BadInput(
            f"{address} ({source}): Ray's client does not see the nodes one by one, and each has a meter; on a machine "
            "of the cluster give HOST:PORT as `ray start --head` prints it, or from anywhere: hoofprint submit SPEC "
            f"--address http://HOST:8265; {NOTHING}"
        )
    host, _, port = address.rpartition(":")
    if not host:
        host, port = port, str(GCS_PORT)
    if not port.isdigit() or not 0 < int(port) < 65536:
        raise BadInput(
            f"{source} {address!r}: expected host:port, as `ray start --head` prints it; nothing was started"
        )
    what_next = f"start one there with `ray start --head`, or leave {source} out to have a local one"
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=TIMEOUT_S).close()
    except OSError as error:
        raise BadInput(
            f"no Ray answers at {address} ({source}): {error.strerror or error}; {what_next}; nothing was started"
        ) from error
    # With TLS the greeting needs Ray's certificates: what answers is then left for Ray to find out.
    if os.environ.get("RAY_USE_TLS", "0") in ("", "0") and not _speaks_grpc(f"{host}:{port}"):
        raise BadInput(
            f"what answers at {address} ({source}) is not Ray: it does not speak gRPC; {what_next}; nothing was started"
        )
    require_same_versions(f"{host}:{port}", source)


def _speaks_grpc(target: str) -> bool:
    """Ray's port does; a web server or a Redis on the same port would keep `ray.init` waiting for minutes."""
    import grpc

    with grpc.insecure_channel(target, options=[("grpc.enable_http_proxy", 0)]) as channel:
        try:
            grpc.channel_ready_future(channel).result(timeout=TIMEOUT_S)
        except grpc.FutureTimeoutError:
            return False
    return True

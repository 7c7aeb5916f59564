"""Whether Ray and Python here are those of a cluster to be joined. Ray checks it too, but only when it is joined, after
the corpus was prepared."""

import json
import os
import platform
from typing import Any

from orchestrator.spec.file import NOTHING, BadInput

TIMEOUT_S = 5.0


def require_same_versions(address: str, source: str) -> None:
    """BadInput when the cluster at `address` (host:port of its head) has another Ray or Python than this process.

    A cluster that does not tell (it wants a token, or certificates) is left for Ray to refuse.
    """
    from ray import __version__ as ray_version

    theirs = versions_of(address)
    if theirs is None:
        return
    different = []
    for what, there, here in (
        ("Ray", theirs.get("ray_version"), ray_version),
        ("Python", _compared(theirs.get("python_version")), _compared(platform.python_version())),
    ):
        if there not in (None, here):
            different.append(f"{what} {there} there and {here} here")
    if different:
        raise BadInput(
            f"the cluster at {address} ({source}) has other versions: {', '.join(different)}; "
            "use the same image or environment on both sides, or run the driver there: hoofprint submit SPEC "
            f"--address http://HOST:8265; {NOTHING}"
        )


def _compared(version: str | None) -> str | None:
    """What of a Python's version must agree: all of it, unless Ray was told that 3.11 is 3.11."""
    if version is None or os.environ.get("RAY_DEFAULT_PYTHON_VERSION_MATCH_LEVEL", "patch") != "minor":
        return version
    return ".".join(version.split(".")[:2])


def versions_of(address: str) -> dict[str, Any] | None:
    """What the cluster's head says of itself: {ray_version, python_version, ...}; None where it does not say.

    By a plain call to the head's table of keys: Ray's own client ends the process when it talks to something else.
    """
    import grpc
    from ray.core.generated.gcs_service_pb2 import InternalKVGetRequest
    from ray.core.generated.gcs_service_pb2_grpc import InternalKVGcsServiceStub

    request = InternalKVGetRequest(namespace=b"cluster", key=b"CLUSTER_METADATA")
    with grpc.insecure_channel(address, options=[("grpc.enable_http_proxy", 0)]) as channel:
        try:
            answer = InternalKVGcsServiceStub(channel).InternalKVGet(request, timeout=TIMEOUT_S)
            said = json.loads(answer.value)
        except (grpc.RpcError, ValueError):
            return None
    return said if isinstance(said, dict) else None

"""Which GPUs a program may use: CUDA_VISIBLE_DEVICES as indices, UUIDs (also abbreviated), MIG UUIDs, or empty.

NVML ignores that variable, and indices count in PCI order there as CUDA's do with CUDA_DEVICE_ORDER=PCI_BUS_ID; CUDA's
own default order is by speed, which differs only where the GPUs of a node do, and then a warning says so.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from typing import Any


def choose(
    gpus: Collection[str] | str | None, handles: Mapping[str, Any], warnings: list[str]
) -> dict[str, dict[str, float]]:
    """{uuid: {MIG instance: its share of the GPU}} of those that are meant, {} for the whole GPU; what is not there
    is a warning. See `mig_share`.
    """
    if gpus is None or gpus == "all":
        return {uuid: {} for uuid in handles}
    if gpus == "visible":
        text = os.environ.get("CUDA_VISIBLE_DEVICES")
        if text is None:
            return {uuid: {} for uuid in handles}
        names, where = [part.strip() for part in text.split(",") if part.strip()], "CUDA_VISIBLE_DEVICES"
        if not names and handles:
            warnings.append(f"CUDA_VISIBLE_DEVICES is empty: none of this node's {len(handles)} GPUs is metered")
    else:
        names, where = [gpus] if isinstance(gpus, str) else list(gpus), "gpus"
    chosen: dict[str, dict[str, float]] = {}
    for name in names:
        uuid, instance, share = _resolve(name, handles)
        if uuid is None:
            warnings.append(f"{where} names {name}, which is not on this node (or is not to be seen from here)")
            if where == "CUDA_VISIBLE_DEVICES" and name.lstrip("-").isdigit():
                break  # CUDA stops at the first index that is not there
            continue
        if instance is None:
            chosen[uuid] = {}
            continue
        if share is None:
            warnings.append(
                f"{instance}: NVML does not tell what part of its GPU it is, so all of GPU {uuid} is counted"
            )
            share = 1.0
        instances = chosen.setdefault(uuid, {instance: share})
        if instances:  # empty where the whole GPU is named too
            instances[instance] = share
    if len(names) > 1 and any(name.isdigit() for name in names):
        _warn_of_order(handles, warnings)
    return chosen


def share_text(uuid: str, instances: Mapping[str, float]) -> str:
    """What of a GPU is attributed to those of its MIG instances that are meant, and by what rule."""
    share, names = min(1.0, sum(instances.values())), " and ".join(instances)
    return (
        f"of GPU {uuid}, which is metered whole, {share:.0%} is attributed to {names} (MIG, by compute slices: a "
        "stated rule, not a measurement)"
    )


def _resolve(name: str, handles: Mapping[str, Any]) -> tuple[str | None, str | None, float | None]:
    """(UUID of the GPU or None, MIG instance or None, share or None where it is not told)."""
    if name.lstrip("-").isdigit():
        index, uuids = int(name), list(handles)
        return (uuids[index] if 0 <= index < len(uuids) else None), None, 1.0
    if name.startswith("MIG-"):
        return _mig_parent(name, handles)
    found = [uuid for uuid in handles if uuid.startswith(name) or uuid.startswith(f"GPU-{name}")]
    return (found[0] if len(found) == 1 else None), None, 1.0


def _mig_parent(name: str, handles: Mapping[str, Any]) -> tuple[str | None, str | None, float | None]:
    """(UUID of the GPU that the instance is a part of, the instance's full name, its share of the GPU)."""
    import pynvml

    if name.startswith("MIG-GPU-"):  # drivers before R470 name it MIG-<GPU uuid>/<instance>/<compute instance>
        uuid = name.removeprefix("MIG-").partition("/")[0]
        name_of = {uuid: handles[uuid]} if uuid in handles else {}
    else:
        name_of = dict(handles)
    for uuid, handle in name_of.items():
        try:
            count = pynvml.nvmlDeviceGetMaxMigDeviceCount(handle)
        except pynvml.NVMLError:
            continue
        for index in range(count):
            try:
                instance = pynvml.nvmlDeviceGetMigDeviceHandleByIndex(handle, index)
                own = pynvml.nvmlDeviceGetUUID(instance)
            except pynvml.NVMLError:
                continue  # an empty slot
            if own == name or own.startswith(name):
                return uuid, own, mig_share(instance)
    return None, None, 1.0


def mig_share(instance: Any) -> float | None:
    """The instance's compute slices over the seven that a MIG GPU has; None where NVML does not tell them.

    No counter splits a GPU's energy over its instances. The rule follows the slices, not the activity: energy that
    nobody used is shared by what each has reserved.
    """
    import pynvml

    try:
        slices = pynvml.nvmlDeviceGetAttributes(instance).gpuInstanceSliceCount
    except pynvml.NVMLError:
        return None
    return min(1.0, max(slices, 1) / 7)


def _warn_of_order(handles: Mapping[str, Any], warnings: list[str]) -> None:
    import pynvml

    try:
        names = {pynvml.nvmlDeviceGetName(handle) for handle in handles.values()}
    except pynvml.NVMLError:
        return
    if len(names) > 1 and os.environ.get("CUDA_DEVICE_ORDER") != "PCI_BUS_ID":
        warnings.append(
            "CUDA_VISIBLE_DEVICES holds indices on a node with different GPUs, where CUDA orders them by speed: set "
            "CUDA_DEVICE_ORDER=PCI_BUS_ID, or name them by UUID"
        )

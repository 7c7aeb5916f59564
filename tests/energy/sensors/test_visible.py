"""Which GPUs are meant: CUDA_VISIBLE_DEVICES in every form that CUDA takes, under the real pynvml."""

import json
import subprocess
import sys
from collections.abc import Callable

import pytest

A, B, C = (f"GPU-{letter * 8}-0000-0000-0000-000000000000" for letter in "abc")
MIG = "MIG-11111111-2222-3333-4444-555555555555"
INSTANCES = f"{MIG}:2:28:10000,MIG-22222222-0:3:42:20000,MIG-33333333-0:0:14:5000"  # of the last no slices are told
GPUS = f"gpu uuid={A}\ngpu uuid={B}\ngpu uuid={C} mig={INSTANCES}\n"
CODE = """
import json
from energy import Meter
meter = Meter(host=False)
print(json.dumps({
    "devices": {s["uuid"]: s.get("share", 1.0) for s in meter.sensors}, "warnings": meter.warnings,
    "instances": {s["uuid"]: s.get("instances") for s in meter.sensors},
}))
"""


def answer(nvml_env: Callable[[str], dict[str, str]], value: str | None) -> dict:
    environment = {key: text for key, text in nvml_env(GPUS).items() if key != "CUDA_VISIBLE_DEVICES"}
    if value is not None:
        environment["CUDA_VISIBLE_DEVICES"] = value
    done = subprocess.run([sys.executable, "-c", CODE], env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def visible(nvml_env: Callable[[str], dict[str, str]], value: str | None) -> tuple[dict[str, float], str]:
    told = answer(nvml_env, value)
    return told["devices"], " ".join(told["warnings"])


@pytest.mark.parametrize(
    ("value", "devices"),
    [
        (None, [A, B, C]),
        ("", []),
        ("1", [B]),
        ("2,0", [A, C]),
        (B, [B]),
        (f"{A},{B}", [A, B]),
        ("GPU-bbbb", [B]),
        ("0,7,1", [A]),  # CUDA stops at the first index that is not there
        ("-1", []),
    ],
)
def test_devices_by_index_and_uuid(nvml_env, value: str | None, devices: list[str]) -> None:
    found, warnings = visible(nvml_env, value)
    assert list(found) == devices and set(found.values()) <= {1.0}
    assert ("not on this node" in warnings) == (value in ("0,7,1", "-1"))
    assert ("none of this node's 3 GPUs is metered" in warnings) == (value == "")


def test_an_ambiguous_or_unknown_uuid_is_said(nvml_env) -> None:
    for name in ("GPU-", "GPU-dddd"):
        found, warnings = visible(nvml_env, name)
        assert found == {} and name in warnings


@pytest.mark.parametrize("names", [MIG, MIG[:12], f"{MIG},{A}"])
def test_a_mig_instance_has_a_stated_share_of_its_gpu(nvml_env, names: str) -> None:
    found, warnings = visible(nvml_env, names)
    assert found[C] == pytest.approx(2 / 7) and (A in found) == (A in names)
    assert "a stated rule, not a measurement" in warnings


def test_an_instance_whose_part_is_not_told_is_all_of_its_gpu_and_says_so(nvml_env) -> None:
    found, warnings = visible(nvml_env, "MIG-33333333-0")
    assert (
        found == {C: 1.0}
        and f"MIG-33333333-0: NVML does not tell what part of its GPU it is, so all of GPU {C}" in warnings
    )


def test_instances_are_named_in_full_and_never_more_than_their_gpu(nvml_env) -> None:
    other = "MIG-22222222-0"
    told = answer(nvml_env, f"{MIG[:12]},{MIG},{other}")  # one of them twice
    assert told["instances"][C] == pytest.approx({MIG: 2 / 7, other: 3 / 7})
    assert told["devices"][C] == pytest.approx(5 / 7)
    told = answer(nvml_env, f"{MIG},{C}")
    assert told["instances"][C] is None and told["devices"][C] == 1.0 and told["warnings"] == []

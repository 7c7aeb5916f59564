"""What a run says of itself while it goes on, for the tests of whoever shows it."""

from __future__ import annotations

from typing import Any


def live_document(now: float, step: int = 800, **changes: Any) -> dict[str, Any]:
    """live.json of a run of 900 steps on two nodes at this step; one GPU is lost, and one node silent."""

    def gpu(number: int, power_w: float | None, missing: str | None = None) -> dict[str, Any]:
        told = {"uuid": f"GPU-{number}", "name": "NVIDIA A100-SXM4-80GB", "kind": "gpu", "counted": True}
        return told | {"missing": missing, "power_w": power_w, "energy_j": 4.3e5}

    words = {"limit": "3.00 kWh", "spent": "2.40 kWh", "forecast": "3.20 kWh", "of": "facility energy"}
    budget = {
        "key": "energy", "quantity": "energy_facility_kwh", "limit": 3.0, "spent": 2.4, "share": 0.8, "forecast": 3.2,
        "held_back": 0.01, "stops_at_step": 870, "state": "over", "words": words,
    }  # fmt: skip
    document = {
        "schema": 1, "run_id": "now", "host": "head", "pid": 4711, "updated_unix_s": now, "attempt": 2,
        "started_unix_s": now - 3600, "phase": "train_step", "step": step, "total_steps": 900, "tokens": step * 4096,
        "total_tokens": 900 * 4096, "loss": 2.345, "validation_loss": 2.5, "validation_step": 750,
        "checkpoint_step": 750, "step_s": 2.0, "tokens_per_s": 2048.0, "mfu": 0.41, "mfu_convention": "PaLM",
        "peak_flops": 5e15, "power_w": 6200.0, "joule_per_token": 3.03, "energy_it_kwh": 2.2,
        "energy_facility_kwh": 2.4, "carbon_tco2eq": 0.000924, "pue": 1.09, "intensity_g_per_kwh": 385.0,
        "forecast": {
            "ends_unix_s": now + 200, "energy_it_kwh": 2.55, "energy_facility_kwh": 2.78, "carbon_tco2eq": 0.00107,
        },
        "budget": [budget],
        "stragglers": [{"rank": 5, "data_wait_s": 12.0, "window_s": 60.0, "cause": "waits for data"}],
        "nodes": [
            {"node": "n1", "power_w": 3300.0, "energy_j": 4e6, "read_unix_s": now, "missing": ["GPU-7"],
             "devices": [gpu(n, 412.0) for n in range(7)] + [gpu(7, None, "GPU is lost")]},
            {"node": "n2", "power_w": None, "energy_j": 3.9e6, "read_unix_s": now - 60, "missing": [], "devices": []},
        ],
        "events": [{"time_unix_s": now - 100, "text": "checkpoint at step 750"}],
        "history": {"loss": [9.0, 4.0, 2.4], "power_w": [6100.0, 6300.0, 6200.0]},
    }  # fmt: skip
    return document | changes

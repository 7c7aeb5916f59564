"""The names that Grafana asks for, as Ray really exports them: those of the meters and those of the training."""

import json
import re
import socket
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
# A driver as `hoofprint run` is one: it publishes until its node's exporter has it all, and prints what is exported.
DRIVER = """
import json, sys, time, urllib.request
import ray
from prometheus_client.parser import text_string_to_metric_families

port = int(sys.argv[1])
ray.init(address="local", num_cpus=1, include_dashboard=False, _metrics_export_port=port, log_to_driver=False,
         _system_config={"metrics_report_interval_ms": 500})
from orchestrator.cluster.ray_metrics import RayMetrics
from orchestrator.cluster.training_metrics import TRAINING, TrainingMetrics
from orchestrator.live.progress import RunProgress

progress = RunProgress(total_steps=10, batch_tokens=100, started_unix_s=time.time(), flop_per_token=1e3, peak_flops=1e6)
for step in (1, 2):
    progress.feed({"event": "step", "step": step, "loss": 2.5, "seconds": 0.5, "time_unix_s": time.time()})
progress.validation, progress.power_w = (2, 3.5), 400.0
device = {"uuid": "G", "name": "A", "node": "n1", "kind": "gpu", "method": "counter", "boundary": "gpu",
          "energy_j": 10.0, "power_w": 50.0, "missing": None}
training, meter = TrainingMetrics("run-1"), RayMetrics("n1", "run-1")
found = {}
until = time.monotonic() + 120
while time.monotonic() < until and not all(f"ray_{each.name}" in found for each in TRAINING):
    training.publish(progress)
    device["energy_j"] += 1
    meter.publish([device], {"overhead": {"cpu_s": device["energy_j"], "readings": device["energy_j"]}, "warnings": []})
    time.sleep(0.2)
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
            text = answer.read().decode()
    except OSError:
        continue
    found = {sample.name: [sample.value, sorted(sample.labels)]
             for family in text_string_to_metric_families(text) for sample in family.samples
             if sample.labels.get("run") == "run-1"}
print(json.dumps(found))
"""


def test_grafana_asks_for_what_ray_exports() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-c", DRIVER, str(port)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    exported = json.loads(done.stdout.splitlines()[-1])
    board = json.loads((ROOT / "dashboards" / "grafana" / "hoofprint.json").read_text(encoding="utf-8"))
    asked = [target["expr"] for panel in board["panels"] for target in panel["targets"]]
    for expr in asked:
        for name, selector in re.findall(r"\$\{prefix\}(hoofprint_\w+)\{([^}]*)\}", expr):
            assert f"ray_{name}" in exported, expr
            assert set(re.findall(r"(\w+)=?[=!~]", selector)) <= set(exported[f"ray_{name}"][1]), expr
    training = {name.removeprefix("ray_hoofprint_training_"): value for name, (value, _) in exported.items()
                if "_training_" in name}  # fmt: skip
    assert training == {
        "step": 2, "planned_steps": 10, "tokens": 200, "loss_nats": 2.5, "validation_loss_nats": 3.5,
        "tokens_per_second": 200.0, "mfu_ratio": 0.2, "joules_per_token": 2.0,
    }  # fmt: skip
    assert all(f"hoofprint_training_{name}" in " ".join(asked) for name in training), "each has its panel"

"""The cluster page, from what meters and driver of live runs write: what is known, what is not, and who stands out."""

import csv
import fcntl
import io
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from energy_fakes import ROOT
from live_document import live_document
from record_fakes import MODEL, make_run
from server_fakes import START, Client, serve

from dashboards.server import catalog as catalog_module
from dashboards.server import cluster as cluster_module
from energy.runs import RunFolder

EVIL = '<img src=x onerror="alert(1)">'
A100 = "NVIDIA A100-SXM4-80GB"


@pytest.fixture(autouse=True)
def seen_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (catalog_module, cluster_module):
        monkeypatch.setattr(module, "LOOK_EVERY_S", 0.0)
        monkeypatch.setattr(module, "REST", 0)


@pytest.fixture
def live(tmp_path: Path) -> Iterator[Any]:
    """Makes runs that a process works on, until the test ends."""
    locks = []

    def start(name: str, **changes: Any) -> RunFolder:
        run = make_run(tmp_path / name, meter=False, status="running", ended_unix_s=None, start=START, **changes)
        lock = os.open(run.path / ".lock", os.O_RDWR | os.O_CREAT)
        fcntl.flock(lock, fcntl.LOCK_EX)
        locks.append(lock)
        return run

    yield start
    for lock in locks:
        os.close(lock)


def gpu(uuid: str, power_w: float | None, missing: str | None = None, name: str = A100, **more: Any) -> dict[str, Any]:
    told = {"uuid": uuid, "name": name, "kind": "gpu", "missing": missing, "power_w": power_w, "energy_j": 1e6}
    return told | {"counted": True} | more


def write_node(
    run: RunFolder, node: str, devices: list[dict[str, Any]] | None, age_s: float = 0.0, **more: Any
) -> None:
    """live/<node>.json as a meter replaces it."""
    power_w = sum(device["power_w"] or 0.0 for device in devices or [])
    figures = {"node": node, "meter_pid": 1, "time_unix_s": time.time() - age_s, "power_w": power_w, "energy_j": 1e6}
    figures |= {"missing": [device["uuid"] for device in devices or [] if device["missing"]]}
    path = run.path / "live" / f"{node}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(figures | ({} if devices is None else {"devices": devices}) | more))
    os.utime(path, (time.time() - age_s,) * 2)


def write_live(run: RunFolder, **changes: Any) -> None:
    document = live_document(
        time.time(), **({"attempt": 1, "nodes": [], "stragglers": [], "tokens_per_s": 8000.0} | changes)
    )
    (run.path / "live.json").write_text(json.dumps(document))


def test_power_over_limit_health_and_energy_per_token_of_each_node(tmp_path: Path, live: Any) -> None:
    run = live("train")
    write_node(run, "n1", [gpu("GPU-1", 399.0), gpu("GPU-2", 301.0)])
    write_node(run, "n2", [gpu("GPU-3", 350.0), gpu("GPU-4", None, "GPU is lost")])
    write_node(run, "n3", [gpu("GPU-5", 350.0), gpu("GPU-6", 350.0), gpu("x", 60.0, name="RAPL", kind="cpu")])
    write_live(run)
    with serve(tmp_path) as client:
        (found,) = client.ask("/cluster.json").json()["runs"]
        page = client.text("/cluster")
    nodes = {node["node"]: node for node in found["nodes"]}
    assert found["power_w"] == pytest.approx(399 + 301 + 350 + 760)
    # each of the six GPUs does a sixth of 8000 tokens/s
    assert nodes["n1"]["joule_per_token"] == pytest.approx(700 / (8000 / 3))
    assert nodes["n2"]["joule_per_token"] == pytest.approx(350 / (8000 / 3))
    assert nodes["n3"]["against_median"] == pytest.approx(760 / 700)
    assert [device["limit_w"] for device in nodes["n3"]["devices"]] == [400.0, 400.0, None]
    assert 'class="h9 full" title="NVIDIA A100-SXM4-80GB GPU-1: 399 W, 99.8 % of its rated 400 W"' in page
    assert 'class="h7" title="NVIDIA A100-SXM4-80GB GPU-2: 301 W, 75.2 % of its rated 400 W"' in page
    assert "1 of 2 not read: GPU-4 (GPU is lost)" in page and "3 of 3 read" in page
    assert 'class="unread" title="NVIDIA A100-SXM4-80GB GPU-4: not read: GPU is lost"' in page
    assert "1 of 2 GPUs at their limit" in page
    assert "6" in re.search(r"<dt>GPUs</dt><dd class=\"value\">(\d+)</dd>", page)[1]  # type: ignore[index]
    assert "5 read, 1,750 W together" in page


def test_the_straggler_has_a_name(tmp_path: Path, live: Any) -> None:
    run = live("train")
    write_node(run, "n1", [gpu("GPU-1", 390.0), gpu("GPU-2", 392.0), gpu("GPU-3", 391.0)])
    write_node(run, "n2", [gpu("GPU-4", 250.0), gpu("GPU-5", 395.0), gpu("GPU-6", 388.0), gpu("x", 500.0, kind="cpu")])
    waits = {"data_wait_s": 12.0, "window_s": 60.0, "cause": "waits for data"}
    write_live(run, stragglers=[{"rank": 4, **waits}, {"rank": 5, **waits}, {"rank": 6, **waits}])
    for rank, attempt in ((4, 1), (5, 7)):
        event = {"attempt": attempt, "event": "devices", "uuids": [f"GPU-{rank + 1}"]}
        run.metrics_file(rank).write_text(json.dumps(event) + "\n{torn")
    with serve(tmp_path) as client:
        (found,) = client.ask("/cluster.json").json()["runs"]
    assert found["stragglers"] == [
        "rank 4 on n2 waits for data: 12 s of the last 60 s",
        "rank 5, on a node that is not known, waits for data: 12 s of the last 60 s",  # of another attempt
        "rank 6, on a node that is not known, waits for data: 12 s of the last 60 s",
        f"GPU-4 on n2 draws 250 W, the median {A100} of this run 390 W",
        "n2 takes 13 % more energy for a token than the median node of this run",
    ]


def test_what_is_not_known_is_shown_as_such(tmp_path: Path, live: Any) -> None:
    run = live("train")
    write_node(run, "silent", [gpu("GPU-1", 390.0)], age_s=42)
    write_node(run, "older", None, power_w=100.0)
    write_node(run, "unlisted", [gpu("GPU-2", 390.0, name="Foo GPU 9000")])
    write_node(run, "speaks", [gpu("GPU-3", 300.0)])
    write_node(run, "bare", [])
    (run.path / "live" / "deep.json").write_text("[" * 100_000)
    (run.path / "live" / "huge.json").write_text(f'{{"time_unix_s": 1{"0" * 400}, "power_w": 1}}')
    (run.path / "live" / "torn.json").write_text('{"node": "to')
    (run.path / "live" / "odd.json").write_text('{"time_unix_s": "now", "power_w": 1}')
    write_live(run, tokens_per_s=None)
    early = live("early")
    with serve(tmp_path) as client:
        page = client.text("/cluster")
        by_name = {each["run"]: each for each in client.ask("/cluster.json").json()["runs"]}
        rows = list(csv.DictReader(io.StringIO(client.text("/cluster.csv"))))
    nodes = {node["node"]: node for node in by_name["train"]["nodes"]}
    assert nodes["silent"]["power_w"] is None and nodes["silent"]["silent"] and re.search(r"silent for 4\d\.\d s", page)
    assert nodes["older"]["power_w"] == 100.0 and nodes["older"]["devices"] is None
    assert nodes["bare"]["power_w"] is None, "no device was read, which is not 0 W"
    assert "its devices are not told" in page and "Foo GPU 9000: limit unknown" in page
    assert 'class="nolimit" title="Foo GPU 9000 GPU-2: 390 W, limit unknown"' in page
    assert '<span class="quiet limitless">power limit unknown</span>' in page
    assert "100 % of its limit" in page and "limit unknown: watts without a colour" in page
    assert all(node["joule_per_token"] is None and node["against_median"] is None for node in nodes.values())
    assert all(f"live/{name}.json cannot be read" in page for name in ("torn", "odd", "deep", "huge"))
    assert "Its meters have not written yet" in page and by_name[early.path.name]["power_w"] is None
    assert "of 2 the power is not known" in page and "at least: of 2 nodes and 1 run it is not known" in page
    assert ">at least 790 W ·" in page and by_name["train"]["power_lacks"] == ["bare", "silent"]
    assert '<dt>GPUs</dt><dd class="value">3</dd><dd class="quiet">2 read, 690 W together' in page
    (last,) = nodes["silent"]["devices"]  # what it said is not of now
    assert (last["uuid"], last["power_w"], last["missing"]) == ("GPU-1", None, "its node is silent")
    assert "The run had no preflight: whether its GPUs are throttled" in page  # what nobody asked for is not claimed
    assert {row["node"]: row["power_w"] for row in rows}["unlisted"] == "390.0"
    assert next(row for row in rows if row["node"] == "older")["uuid"] == ""


def test_limits_in_force_and_throttling_are_known_from_the_preflight(tmp_path: Path, live: Any) -> None:
    run = live("train")
    write_node(run, "n1", [gpu("GPU-1", 245.0), gpu("GPU-2", 300.0), gpu("GPU-3", 100.0)])
    write_live(run)
    states = [{"uuid": "GPU-1", "power_limit_w": 250.0}, {"uuid": "GPU-2", "power_limit_w": None}, {"uuid": "GPU-3"}]
    said = {"node": "n1", "gpu": "GPU-2", "said": f"throttled at work: HW thermal slowdown {EVIL}", "todo": "cool it"}
    whole = {"node": "n1", "gpu": None, "said": "no counter", "todo": ""}
    document = {"time_unix_s": START, "nodes": [{"node": "n1", "gpus": states}], "findings": [said, whole]}
    (run.path / "preflight.json").write_text(json.dumps(document))
    with serve(tmp_path) as client:
        page = client.text("/cluster")
        (found,) = client.ask("/cluster.json").json()["runs"]
        (run.path / "preflight.json").write_text('{"nodes": [{}]}')
        broken = client.text("/cluster")
    limits = [(device["limit_w"], device["limit_source"]) for device in found["nodes"][0]["devices"]]
    assert limits == [(250.0, "preflight"), (400.0, "rated power"), (400.0, "rated power")]
    assert 'class="h9 full" title="NVIDIA A100-SXM4-80GB GPU-1: 245 W, 98.0 % of its power limit of 250 W"' in page
    assert "250 W in force, 400 W rated" in page and "2025-06-15 15:06 UTC" in page
    assert "</strong> GPU-2 on n1: throttled at work: HW thermal slowdown &lt;img" in page and "n1: no counter" in page
    assert "preflight.json cannot be read" in broken and "400 W rated" in broken


def test_a_shared_node_has_only_the_gpus_of_the_run(tmp_path: Path, live: Any) -> None:
    for number, name in enumerate(("one", "two")):
        run = live(name, model=MODEL | {"params": 10**9 * (1 + number)})
        both = [gpu("GPU-1", 300.0), gpu("GPU-2", 200.0)]
        write_node(run, "n1", both)
        write_live(run, nodes=[{"node": "n1", "power_w": 1.0, "devices": [both[number]], "missing": []}])
    with serve(tmp_path) as client:
        one, two = client.ask("/cluster.json").json()["runs"]
        page = client.text("/cluster")
        only = client.text("/cluster?run=two")
    assert (one["power_w"], two["power_w"]) == (300.0, 200.0)
    assert one["nodes"][0]["joule_per_token"] == pytest.approx(300 / 8000)
    assert one["nodes"][0]["against_median"] is None, "models of other sizes are no fleet"
    assert re.search(r"<dt>Nodes</dt><dd class=\"value\">1</dd>", page) and "2 read, 500 W together" in page
    assert "All 2 live runs" in only and "/run/one/" not in only and "/run/two/" in only
    assert re.search(r"<dt>Power now</dt><dd class=\"value\">500 W</dd>", page)


@pytest.mark.parametrize(("whole_w", "power_w"), [(900.0, [700.0, 600.0]), (320.0, [300.0, 200.0])])
def test_what_is_of_a_whole_node_is_not_of_others_and_counted_once(
    tmp_path: Path, live: Any, whole_w: float, power_w: list[float]
) -> None:
    """Of 320 W without the 300 W of others' GPU too little is left to be believed."""
    both = [gpu("GPU-1", 300.0, counted=False), gpu("GPU-2", 200.0, counted=False)]
    bmc = gpu("bmc", whole_w, kind="node", name="BMC")
    for number, name in enumerate(("one", "two")):
        run = live(name)
        write_node(run, "n1", [*both, bmc], power_w=whole_w)
        write_live(run, nodes=[{"node": "n1", "power_w": 1.0, "devices": [both[number], bmc], "missing": []}])
    live("alone")
    with serve(tmp_path) as client:
        found = {run["run"]: run["power_w"] for run in client.ask("/cluster.json").json()["runs"]}
        page = client.text("/cluster")
    assert found == {"alone": None, "one": power_w[0], "two": power_w[1]}
    together_w = 900 if whole_w == 900.0 else 500
    assert re.search(rf"<dt>Power now</dt><dd class=\"value\">{together_w} W</dd><dd class=\"quiet\">at least", page)


def test_live_runs_only_and_by_themselves(tmp_path: Path, live: Any) -> None:
    make_run(tmp_path / "ended", meter=False)
    make_run(tmp_path / "gone", meter=False, status="running", ended_unix_s=None)
    with serve(tmp_path) as client:
        assert "No run goes on now" in client.text("/cluster")
        assert "gone: its process ended without a word" in client.text("/cluster/now")
        run = live("begins")
        write_node(run, "n1", [gpu("GPU-1", 100.0)])
        now = client.text("/cluster/now")
        assert "/run/begins/" in now and "<html" not in now and "/run/ended/" not in now
        said = ["and comes last without one" in client.text(f"/?sort={key}") for key in ("energy", "name")]
        assert said == [True, False]
        assert "and comes last without one" not in client.text("/?sort=energy&q=ended")
        (run.path / "live.json").write_text(json.dumps(live_document(time.time()) | {"schema": 99}))
        assert "schema 99" in client.text("/cluster") and "100 W" in client.text("/cluster")
        (run.path / "live.json").write_text(json.dumps({"schema": 1, "updated_unix_s": time.time(), "stragglers": 7}))
        assert "live.json is not understood" in client.text("/cluster")
        run.update_run(status="completed", ended_unix_s=START + 1)
        assert "No run goes on now" in client.text("/cluster")
        assert "no such run goes on" in client.text(f"/cluster?run={quote(EVIL)}")
        for path in ("/cluster/", "/cluster/../secret", "/cluster/now/more", "/cluster.exe", "/cluster/%2e%2e/list"):
            assert client.ask(path).status == 404


def test_nothing_of_a_file_is_markup_or_leads_out(tmp_path: Path, live: Any) -> None:
    runs = tmp_path / "runs"
    runs.mkdir()
    run = live(f"runs/={EVIL}".replace("src=x ", ""))
    write_node(run, "<b>n1", [gpu(EVIL, 100.0, name=EVIL), gpu("GPU-2", None, EVIL)])
    write_live(run, phase=EVIL, stragglers=[{"rank": 1, "data_wait_s": 2.0, "window_s": 60.0, "cause": EVIL}])
    (tmp_path / "secret.json").write_text(json.dumps({"node": "secret", "time_unix_s": time.time(), "power_w": 4711.0}))
    (run.path / "live" / "out.json").symlink_to(tmp_path / "secret.json")
    with serve(runs) as client:
        for path in ("/cluster", "/cluster/now", f"/cluster?run={quote(EVIL)}"):
            answer = client.ask(path)
            assert answer.status == 200 and b"<img" not in answer.body and b"<b>" not in answer.body
            assert b" style=" not in answer.body and not re.search(rb"<script(?! src=\"/static/)", answer.body)
        page = client.text("/cluster")
        rows = list(csv.DictReader(io.StringIO(client.text("/cluster.csv"))))
    assert "&lt;img" in page and "4,711" not in page and "live/out.json cannot be read (a link that leads" in page
    assert rows[0]["run"].startswith("'=")


def test_a_node_of_many_devices_is_dense_and_many_nodes_are_cut(tmp_path: Path, live: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(cluster_module, "MOST_NODES", 3)
    run = live("train")
    for node in range(5):
        write_node(run, f"n{node}", [gpu(f"GPU-{node}-{k}", 300.0) for k in range(20)])
    with serve(tmp_path) as client:
        page = client.text("/cluster")
        assert len(client.ask("/cluster.json").json()["runs"][0]["nodes"]) == 5
    assert page.count('<ul class="cells dense"><li') == 3 and "2 more nodes are in the JSON" in page


def test_the_page_of_a_client_without_scripts_is_whole(tmp_path: Path) -> None:
    with serve(tmp_path) as client:
        _pages_link_to_each_other(client)


def _pages_link_to_each_other(client: Client) -> None:
    for path in ("/", "/compare", "/cluster", "/plan", "/total"):
        page = client.text(path)
        assert page.count('aria-current="page"') == 1
        assert [f'href="{each}"' in page for each in ("/", "/compare", "/cluster", "/plan", "/total")] == [True] * 5


def test_a_command_that_is_measured_is_shown_while_it_goes_on(tmp_path: Path) -> None:
    runs, flag = tmp_path / "runs", tmp_path / "end"
    runs.mkdir()
    waits = f"import os, time\nwhile not os.path.exists({str(flag)!r}): time.sleep(0.05)"
    command = [
        sys.executable,
        "-m",
        "orchestrator",
        "measure",
        "--runs",
        str(runs),
        "--name",
        "job",
        "--",
        sys.executable,
    ]
    process = subprocess.Popen([*command, "-c", waits], cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        with serve(runs) as client:
            until = time.monotonic() + 60
            while not (shown := client.ask("/cluster.json").json()["runs"]) or not shown[0]["nodes"]:
                assert time.monotonic() < until and process.poll() is None
                time.sleep(0.1)
            node = shown[0]["nodes"][0]
            assert shown[0]["run"] == "job" and node["devices"] and not node["silent"]
            page, run, row = client.text("/cluster"), client.text("/run/job/"), client.text("/list")
            assert "a command that is measured" in page and "tokens/s</p>" not in page
            assert "A command that is measured" in run and "IT energy so far" in run and "Power now" in run
            assert f'<span class="host">{node["node"]}</span>' in run
            assert re.search(r's-running">running</span><br><span class="quiet sofar">\S+ W</span>', row)
            flag.touch()
            assert process.wait(60) == 0
            assert not (runs / "job" / "live").exists(), "what was of then is not there any more"
            assert client.ask("/cluster.json").json()["runs"] == []
            assert "A command that is measured" not in client.text("/run/job/state")
    finally:
        process.kill()
        process.wait()

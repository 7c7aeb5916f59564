"""The list of a folder whose runs take long to read: what is there at once, what is said of the rest."""

from __future__ import annotations

import json
import os
import re
import shutil
import threading
from pathlib import Path

import pytest
from server_fakes import START, recorded, serve

from dashboards.server import catalog, cluster
from energy import human
from energy.records import total as total_module


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Storage that gives two runs, and the others once the event is set."""
    go_on, entry, taken = threading.Event(), catalog.read_entry, []

    def read(path: Path) -> catalog.Entry:
        taken.append(path.name)
        if len(taken) > 2 and threading.current_thread().name == "catalog":
            assert go_on.wait(60)
        return entry(path)

    monkeypatch.setattr(catalog, "read_entry", read)
    monkeypatch.setattr(catalog, "TOLD_EVERY_S", 0.0)
    monkeypatch.setattr(catalog, "WAIT_S", 0.05)
    return go_on


def test_what_was_read_is_shown_and_the_rest_is_counted(tmp_path: Path, slow: threading.Event) -> None:
    model = recorded(tmp_path / "run-0")
    for number in range(1, 6):
        shutil.copytree(model.path, tmp_path / f"run-{number}")
    for number in range(6):
        os.utime(tmp_path / f"run-{number}", (1e9 + number,) * 2)
    (tmp_path / "foreign").mkdir()
    os.utime(tmp_path / "foreign", (1e9,) * 2)
    with serve(tmp_path) as client:
        for _ in range(100):
            page = client.text("/")
            if "2 runs so far" in page:
                break
        assert "5 folders are still being read" in page and "2 runs so far" in page
        assert "/run/run-5/" in page and "/run/run-4/" in page and "/run/run-0/" not in page  # the newest first
        assert "5 folders are still to be read" in client.ask("/cluster.json").json()["not_shown"][0]
        assert client.ask("/run/run-0/").status == 200, "one that is asked for is read before its turn"
        assert client.ask("/run/none/").status == 404
        assert "it has no run.json" in client.ask("/run/foreign/").text
        total = client.text("/total")
        assert "these are sums of 2 runs so far" in total and "5 folders are still being read" in total
        assert ">2 runs, failed and development ones included." in total and "each joule once" not in total
        found: list[int] = []
        wanting = threading.Thread(target=lambda: found.append(len(client.ask("/runs.json").json()["runs"])))
        wanting.start()
        wanting.join(0.2)
        assert wanting.is_alive(), "who asks for all waits for all"
        slow.set()
        wanting.join(60)
        assert found == [6]
        page = client.text("/")
        assert "still being read" not in page and "6 runs" in page and "foreign: not a run" in page
        assert client.ask("/total.json").json()["total"]["runs"] == 6


def test_the_total_does_not_wait_for_what_runs_share_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, start in (("a", START), ("b", START + 65), ("later", START + 1000)):
        recorded(tmp_path / name, start=start)
    _, whole = total_module.project_total(tmp_path)
    go_on, read = threading.Event(), total_module.first_devices
    opened: list[str] = []

    def slowly(path: Path) -> set[str]:
        opened.append(path.parts[-3])
        assert len(opened) < 2 or go_on.wait(60)
        return read(path)

    monkeypatch.setattr(total_module, "first_devices", slowly)
    monkeypatch.setattr(catalog, "WAIT_S", 0.05)
    monkeypatch.setattr(catalog, "LOOK_EVERY_S", 0.0)
    monkeypatch.setattr(catalog, "REST", 0)
    with serve(tmp_path) as client:
        client.ask("/runs.json")
        for _ in range(100):
            if len(opened) == 2:
                break
            client.text("/total/now")
        page = client.text("/total/now")
        twice = human.human_energy(whole["total"]["energy_it_kwh"] + whole["overlap"]["energy_it_kwh"])
        assert "(1 of 2 runs): until that is known it is in the sums twice" in page and "metered twice" not in page
        assert page.count(f'<td class="n">{twice}</td>') >= 1 and "each joule once" not in page
        go_on.set()
        assert client.ask("/total.json").json() == json.loads(json.dumps(whole))
        page = client.text("/total")
        assert "until that is known" not in page and "metered twice" in page and "each joule once" in page
        assert "times</strong> the energy of the final ones" in page
        assert sorted(opened) == ["a", "b"], "a run that was metered alone is not opened"
        recorded(tmp_path / "c", start=START + 100)
        for _ in range(100):
            if client.ask("/total.json").json()["total"]["runs"] == 4:
                break
        assert sorted(opened) == ["a", "b", "c"], "and no ledger twice"


@pytest.mark.parametrize(
    ("start", "end", "device", "shared"), [(50, 150, "GPU-1", True), (100, 150, "GPU-1", False), (50, 90, "B", False)]
)
def test_the_week_says_where_runs_may_have_the_same_joules(start: int, end: int, device: str, shared: bool) -> None:
    def entry(begun: int, ended: int, uuid: str) -> catalog.Entry:
        return catalog.Entry(
            "run", Path("run"), "completed", "final", start_unix_s=float(begun), end_unix_s=float(ended),
            energy_it_kwh=1.0, devices=frozenset({uuid}),
        )  # fmt: skip

    found = catalog.week([entry(start, end, device), entry(0, 100, "GPU-1"), entry(20, 30, "C")], 200.0)
    assert (found["shared"], found["energy_it_kwh"]) == (shared, 3.0)


def test_a_look_that_fails_does_not_end_looking(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recorded(tmp_path / "one")
    monkeypatch.setattr(catalog, "LOOK_EVERY_S", 0.0)
    monkeypatch.setattr(catalog, "REST", 0)
    monkeypatch.setattr(threading, "excepthook", lambda _: None)
    runs = catalog.Catalog(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(catalog, "read_entry", lambda _: 1 / 0)
        with pytest.raises(RuntimeError, match="failed"):
            runs.listing(whole=True)
    assert [entry.name for entry in runs.listing(whole=True).entries] == ["one"]


@pytest.fixture
def seen_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (catalog, cluster):
        monkeypatch.setattr(module, "LOOK_EVERY_S", 0.0)
        monkeypatch.setattr(module, "REST", 0)


def test_a_folder_that_cannot_be_read_is_not_an_empty_one(tmp_path: Path, seen_at_once: None) -> None:
    runs = tmp_path / "runs"
    recorded(runs / "one")
    paths = ("/runs.json", "/runs.csv", "/total.json", "/total.csv", "/total.html", "/cluster.json", "/cluster.csv",
             "/compare.json?run=one&run=two", "/compare?run=one&run=two", "/compare-steps.json?run=one&run=two",
             "/run/one/", "/run/one/state", "/run/one/power.json", "/run/one/footprint.json")  # fmt: skip
    with serve(runs) as client:
        assert client.ask("/run/one/").status == client.ask("/runs.json").status == 200
        runs.rename(tmp_path / "away")
        for path in paths:
            answer = client.ask(path)
            assert answer.status == 503 and "The runs folder cannot be read." in answer.text, path
            assert "No such file or directory" in answer.text and "no run" not in answer.text, path
        for path in ("/", "/list", "/total", "/cluster", "/cluster/now"):
            assert "The runs folder cannot be read." in client.text(path)
        (tmp_path / "away").rename(runs)
        assert [run["name"] for run in client.ask("/runs.json").json()["runs"]] == ["one"]
        assert client.ask("/run/one/").status == client.ask("/cluster.json").status == 200


@pytest.mark.parametrize("told", ["1" + "0" * 400, "[" * 100_000])
@pytest.mark.parametrize("file", ["run.json", "footprint.json"])
def test_one_folder_of_another_shape_takes_no_page_down(
    tmp_path: Path, seen_at_once: None, file: str, told: str
) -> None:
    recorded(tmp_path / "good")
    odd = recorded(tmp_path / "odd", start=START + 1000, uuid="B").path / file
    document = json.loads(odd.read_text())
    (document if file == "run.json" else document["energy"]).update(created_unix_s="?", energy_it_kwh="?")
    odd.write_text(json.dumps(document).replace('"?"', told))
    is_figure = file == "footprint.json" and told.isdecimal()
    said = "not a number in its files: energy_it_kwh" if is_figure else "odd: cannot be read|record unreadable"
    with serve(tmp_path) as client:
        page = client.text("/")
        assert "/run/good/" in page and re.search(said, page)
        assert "good" in [run["name"] for run in client.ask("/runs.json").json()["runs"]]
        assert client.ask("/total.json").json()["total"]["runs"] in (1, 2)
        for path in ("/total", "/cluster", "/cluster.json", "/run/good/"):
            assert client.ask(path).status == 200
        assert client.ask("/run/odd/").status in (200, 404, 422)

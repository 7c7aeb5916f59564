"""Figures of a run from its page: every one in every form, the bytes of `hoofprint plot`, and what is not drawn."""

import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest
from figure_sample import copy_sample, declare
from server_fakes import Client, recorded, serve

from dashboards.figures import FIGURES, Source, make_figure
from dashboards.server import figure_files
from energy.runs import RunFolder

EVIL = "a'; rm -rf b <i>"
BEGINS = {"svg": b"<?xml", "png": b"\x89PNG", "pdf": b"%PDF"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    runs = tmp_path_factory.mktemp("runs")
    declare(copy_sample(runs / "whole"))
    recorded(runs / EVIL)
    return runs


@pytest.fixture(scope="module")
def client(folder: Path) -> Iterator[Client]:
    with serve(folder, prefix="/team") as client:
        yield client


def test_every_figure_of_a_run_is_offered() -> None:
    assert set(figure_files.OF_A_RUN) == {name for name, entry in FIGURES.items() if entry.make is not None}


def test_the_page_gives_what_the_command_writes(client: Client, folder: Path) -> None:
    page = client.text("/team/run/whole/")
    links = re.findall(r'href="(/team/run/whole/figure/[^"]+)"', page)
    assert len(links) == len(figure_files.OF_A_RUN) * 3
    source = Source(RunFolder(folder / "whole"))
    for link in links:
        name, _, form = link.rpartition("/")[2].rpartition(".")
        if name != "gpu-heat" and (form != "svg" or name not in ("power", "places", "fan")):
            continue  # each is drawn in each form by test_figures; here some are, for the time it takes
        answer = client.ask(link)
        assert answer.status == 200 and answer.body.startswith(BEGINS[form]), link
        assert answer.headers["Content-Disposition"] == f'attachment; filename="whole-{name}.{form}"'
        assert answer.headers["Content-Type"].startswith(figure_files.FORMS[form])
        assert answer.body == make_figure(name, source).file(form)
    source.x = "tokens"
    assert client.ask("/team/run/whole/figure/loss.svg?x=tokens").body == make_figure("loss", source).file("svg")


def test_what_is_not_there_is_said_and_not_drawn(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    evil = f"/team/run/{quote(EVIL, safe='')}/"
    missing = client.ask(f"{evil}figure/fan.svg")
    assert missing.status == 404 and "it has no plan (plan.json)" in missing.text
    assert missing.headers["Content-Type"].startswith("text/plain")
    for name in ("nonsense.svg", "power.gif", "power", ".svg", "llama-paper.svg", "..%2fpower.svg", "../run.json"):
        assert client.ask(f"/team/run/whole/figure/{name}").status == 404, name
    wrong = client.ask("/team/run/whole/figure/loss.svg?x=nonsense")
    assert wrong.status == 404 and "energy, tokens, flop, hours" in wrong.text
    monkeypatch.setattr(figure_files, "LARGEST_LEDGERS", 10)
    large = client.ask(f"{evil}figure/power.pdf")
    assert large.status == 413 and "rm -rf" in large.text and "--figure power -o power.pdf" in large.text
    assert "/a'\"'\"'; rm" in large.text, "the command is safe to paste"

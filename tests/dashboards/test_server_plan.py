"""The plan page: the same plan as on the command line, the same faults, and nothing started, read or written."""

import functools
import json
import os
import re
import shutil
import socket
from collections.abc import Iterator
from html import unescape
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, quote, urlencode, urlsplit

import pytest
from click.testing import CliRunner
from server_fakes import Answer, Client, recorded, serve

from dashboards.server import Planning
from dashboards.server.forms import LARGEST_FORM
from dashboards.server.specs import Specs, tangled
from orchestrator.cli import cli
from orchestrator.plan import PlanOptions, make_plan
from orchestrator.plan.asked import plan_asked
from orchestrator.spec.file import load_experiment

EXPERIMENTS = Path(__file__).parents[2] / "experiments"
EVIL = '<img src=x onerror="alert(1)">'
TOKEN = "t0ken-0123456789-abcdef"


def planning(specs: Path, runs: Path) -> Planning:
    return Planning(specs, functools.partial(plan_asked, runs_dir=runs))


@pytest.fixture(scope="module")
def specs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("experiments")
    for name in ("llama_7b.yaml", "laptop.yaml"):
        shutil.copy(EXPERIMENTS / name, folder / name)
    text = (folder / "llama_7b.yaml").read_text()
    (folder / "team").mkdir()
    (folder / "team" / "budget.yml").write_text(f"{text}  budget:\n    energy: 20 MWh\n")
    (folder / "wrong.yaml").write_text(
        text.replace("n_layers: 32", "n_layrs: 32").replace("seed: 1", f"seed: '{EVIL}'")
    )
    (folder / "ray_cluster.yaml").write_text("cluster_name: no experiment\n")
    (folder.parent / "outside").mkdir(exist_ok=True)
    (folder.parent / "outside" / "secret.yaml").write_text(text.replace("name: llama-7b", "name: secret"))
    (folder / "link.yaml").symlink_to(folder.parent / "outside" / "secret.yaml")
    return folder


@pytest.fixture(scope="module")
def client(specs: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    runs = tmp_path_factory.mktemp("runs")
    with serve(runs, planning=planning(specs, runs)) as client:
        yield client


def send(client: Client, fields: dict[str, str], path: str = "/plan", **headers: str) -> Answer:
    """As a browser sends the form of the page itself."""
    sent = {"Content_Type": "application/x-www-form-urlencoded", "Sec_Fetch_Site": "same-origin"} | headers
    return client.ask(path, "POST", urlencode(fields).encode(), **{k: v for k, v in sent.items() if v})


def test_the_plan_is_that_of_the_command_line(client: Client, specs: Path, tmp_path: Path) -> None:
    found = client.ask("/plan.json?spec=llama_7b.yaml&set=training.tokens%3D2T&set=cluster.nodes%3D64&budget=50+MWh")
    experiment = load_experiment(specs / "llama_7b.yaml", ["training.tokens=2T", "cluster.nodes=64"])
    expected = make_plan(experiment, tmp_path, PlanOptions(budget="50 MWh"))
    told = found.json()
    assert {key: told[key] for key in expected} == json.loads(json.dumps(expected))
    page = client.text("/plan?spec=llama_7b.yaml&set=training.tokens%3D2T&set=cluster.nodes%3D64&budget=50+MWh")
    for words in ("512 × A100-SXM4-80GB", "LLaMA paper, 7B on 2,048", "PUE 1.1: the LLaMA paper, section 6",
                  "checkpointing none", "72 of 80 GB usable", "Budget of 50 MWh", "over the budget", "twice the size",
                  "Nothing was started.", "training.tokens=2T\ncluster.nodes=64</textarea>"):  # fmt: skip
        assert words in page, words
    row = re.search(r"Facility energy \(MWh\)<span.*?</th><td[^>]*>([\d.]*)</td><td[^>]*><strong>([\d.]+)", page)
    assert row and float(row[2]) == pytest.approx(expected["energy_facility_kwh"] / 1000, rel=0.005)
    assert float(row[1]) == pytest.approx(expected["low"]["energy_facility_kwh"] / 1000, rel=0.005)
    start = f"hoofprint run {specs}/llama_7b.yaml --set training.tokens=2T --set cluster.nodes=64</pre>"
    assert start in page


def test_experiments_are_listed_and_nothing_else(client: Client, specs: Path) -> None:
    page = client.text("/plan")
    assert re.findall(r"<option>([^<]*)</option>", page) == [
        "laptop.yaml",
        "llama_7b.yaml",
        "team/budget.yml",
        "wrong.yaml",
    ]
    assert "holds" in client.text("/plan?spec=team%2Fbudget.yml&set=training.tokens%3D100B")
    assert "too small for" in client.text("/plan?spec=team%2Fbudget.yml")
    for name in ("link.yaml", "ray_cluster.yaml", "../outside/secret.yaml", "/etc/passwd", "team", "laptop.yaml\0",
                 str(specs / "laptop.yaml"), "team/../laptop.yaml", "\udcff"):  # fmt: skip
        named = quote(name.encode("utf-8", "surrogateescape"), safe="")
        for path in (f"/plan?spec={named}", f"/plan.json?spec={named}"):
            answer = client.ask(path)
            assert answer.status == 404 and "There is no experiment" in answer.text and "root:" not in answer.text
    assert client.ask("/plan.json").status == 404 and client.ask("/plan/laptop.yaml").status == 404


def test_faults_are_those_of_the_terminal(client: Client, specs: Path) -> None:
    answer = client.ask("/plan?spec=wrong.yaml&set=training.tokns%3D2T&set=cluster.accelerator%3DA100")
    with pytest.raises(ValueError) as fault:
        load_experiment(specs / "wrong.yaml", ["training.tokns=2T", "cluster.accelerator=A100"])
    shown = re.search(r'<pre class="faults"[^>]*>(.*?)</pre>', answer.text, re.DOTALL)
    assert answer.status == 200 and shown
    told = unescape(re.sub(r"<[^>]*>", "", shown[1])).rstrip("\n")
    assert told == str(fault.value)
    assert "wrong.yaml:8:3: model.n_layrs: unknown key n_layrs; did you mean n_layers?\n" in told
    assert "\n      n_layrs: 32\n      ^\n" in told and "nothing was started" in told
    assert b"<img" not in answer.body and "&lt;img" in answer.text
    json_fault = client.ask("/plan.json?spec=wrong.yaml")
    assert json_fault.status == 422 and "did you mean n_layers" in json_fault.text
    for query, words in (("budget=lots", "--budget: expected"), ("set=nonsense", "--set nonsense: expected key=value"),
                         ("set=cluster.accelerator%3DB999", "unknown accelerator"),
                         ("set=training.tokens%3D1e400", "training.tokens")):  # fmt: skip
        bad = client.ask(f"/plan?spec=llama_7b.yaml&{query}")
        assert bad.status == 200 and words in bad.text and "othing was started" in bad.text, query


def test_a_carbon_of_zero_is_a_row(client: Client) -> None:
    page = client.text("/plan?spec=llama_7b.yaml&set=energy.intensity%3D0")
    assert "Carbon, CO₂eq (t)" in page and "0 g/kWh" in page


def test_a_typed_spec(client: Client, specs: Path) -> None:
    text = (specs / "llama_7b.yaml").read_text().replace("name: llama-7b", "name: mine").replace("\n", "\r\n")
    page = send(client, {"yaml": text, "set": "training.tokens=2T\r\n\r\n# more\r\n", "budget": "", "spec": ""})
    assert page.status == 200 and "<h2>mine</h2>" in page.text and "2.00 T tokens" in page.text
    assert "Save the spec as spec.yaml" in page.text and "hoofprint run spec.yaml --set training.tokens=2T" in page.text
    assert "name: mine\n" in page.text  # it stands in the form again
    wrong = send(client, {"yaml": text.replace("dim:", "dims:"), "spec": "llama_7b.yaml"})
    assert wrong.status == 200 and "spec.yaml:7:3: model.dims: unknown key dims; did you mean dim?" in wrong.text
    broken = send(client, {"yaml": "a: [1,\r\nb: 2"})
    assert broken.status == 200 and "not valid YAML" in broken.text and "spec.yaml:2:" in broken.text
    assert "Choose an experiment, or paste a spec." in send(client, {"yaml": "  "}).text
    evil = send(client, {"yaml": f"name: </textarea><script>{EVIL}", "set": EVIL, "budget": f'"{EVIL}', "spec": EVIL})
    assert evil.status == 200 and b"<img" not in evil.body and evil.text.count("</textarea>") == 2
    assert not re.search(r"<script(?! src=\"/static/)", evil.text)


def test_an_experiment_as_it_is_has_an_address_of_its_own(client: Client, specs: Path) -> None:
    text = (specs / "laptop.yaml").read_text().replace("\n", "\r\n")
    fields = {"spec": "laptop.yaml", "yaml": text, "set": "training.tokens=2M\r\nseed=3", "budget": "5 kWh"}
    answer = send(client, fields)
    assert answer.status == 303
    place = urlsplit(answer.headers["Location"])
    assert place.path == "/plan" and place.netloc == "" and place.fragment == "plan"
    assert parse_qsl(place.query) == [("spec", "laptop.yaml"), ("set", "training.tokens=2M"), ("set", "seed=3"),
                                      ("budget", "5 kWh")]  # fmt: skip
    page = client.text(f"{place.path}?{place.query}")
    assert "2.00 M tokens" in page and 'value="5 kWh"' in page
    long = send(client, fields | {"set": "\r\n".join(f"seed={'9' * 300}{k}" for k in range(20))})
    assert long.status == 200  # too long for an address: answered where it was asked


@pytest.mark.parametrize(
    "headers",
    [
        {"Sec_Fetch_Site": "cross-site"}, {"Sec_Fetch_Site": "same-site"}, {"Sec_Fetch_Site": "none"},
        {"Sec_Fetch_Site": ""},
        {"Sec_Fetch_Site": "", "Origin": "https://evil.example"}, {"Sec_Fetch_Site": "", "Origin": "null"},
        {"Sec_Fetch_Site": "cross-site", "Origin": "http://127.0.0.1"},
    ],
)  # fmt: skip
def test_a_form_of_another_page_is_not_taken(client: Client, headers: dict[str, str]) -> None:
    answer = send(client, {"yaml": "name: x"}, **headers)
    assert answer.status == 403 and "not sent by a page of this dashboard" in answer.text


def test_a_form_of_a_browser_that_says_only_the_origin_is_taken(client: Client) -> None:
    origin = f"http://{client.host}:{client.port}"
    assert send(client, {"yaml": "name: x"}, Sec_Fetch_Site="", Origin=origin).status == 200  # it is read
    assert client.ask("/plan").headers["Referrer-Policy"] == "same-origin"  # or it would say "null"


def test_what_is_no_form_or_too_large_is_not_read(client: Client) -> None:
    large = send(client, {"yaml": "x" * (LARGEST_FORM + 1)})
    assert large.status == 413 and "command line" in large.text and large.headers["Connection"] == "close"
    assert "larger than 32 kB" in send(client, {"yaml": "x: " + "y" * 32_000}).text
    assert send(client, {"yaml": "a: 1"}, Content_Type="text/plain").status == 415
    assert send(client, {"yaml": "a: 1"}, Content_Type="multipart/form-data; boundary=x").status == 415
    assert send(client, {f"f{k}": "" for k in range(50)}).status == 400
    assert client.ask("/plan", "POST", b"yaml=%ff", Content_Type="application/x-www-form-urlencoded",
                      Sec_Fetch_Site="same-origin").status == 400  # fmt: skip
    assert "more than 40" in send(client, {"yaml": "a: 1", "set": "a=1\n" * 41}).text
    assert "longer than 400" in send(client, {"yaml": "a: 1", "set": "a=" + "1" * 400}).text
    for path in ("/", "/plan.json", "/plan/", "/compare", "/run/x/", "/cluster"):
        answer = send(client, {"yaml": "a: 1"}, path)
        assert answer.status == 405 and answer.headers["Allow"] == "GET, HEAD", path
    for method in ("PUT", "OPTIONS", "DELETE"):
        answer = client.ask("/plan?x=1", method)
        assert answer.status == 405 and answer.headers["Allow"] == "GET, HEAD, POST", method
    head = b"POST /plan HTTP/1.1\r\nHost: localhost\r\nSec-Fetch-Site: same-origin\r\n"
    head += b"Content-Type: application/x-www-form-urlencoded\r\n"
    for length, status in ((b"", b"411"), (b"Content-Length: -1\r\n", b"411"), (b"Content-Length: x\r\n", b"411"),
                           (b"Content-Length: " + b"9" * 5000 + b"\r\n", b"411"),
                           (b"Transfer-Encoding: chunked\r\n", b"411")):  # fmt: skip
        with socket.create_connection((client.host, client.port), timeout=30) as line:
            line.sendall(head + length + b"\r\n0\r\n\r\n")
            assert b"".join(iter(lambda line=line: line.recv(65536), b"")).startswith(b"HTTP/1.1 " + status)  # type: ignore[misc]


def test_yaml_that_stands_for_gigabytes_is_not_taken(client: Client) -> None:
    lines = (f"{chr(98 + k)}: &{chr(98 + k)} [{f'*{chr(97 + k)}, ' * 9}]\n" for k in range(20))
    bomb = "a: &a [1, 1]\n" + "".join(lines)
    for answer in (send(client, {"yaml": bomb}), send(client, {"yaml": "a: 1", "set": "b=[&x 1, *x]"})):
        assert answer.status == 200 and "are not taken here" in answer.text
    assert "nested deeper" in send(client, {"yaml": "[" * 5000}).text
    assert tangled("a: {b: [1, {c: 2}]}") == "" and tangled("a: [") == ""


def test_no_file_that_the_page_names_is_read(client: Client, specs: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret.csv"
    secret.write_text("root:x:0:0\n")
    text = (specs / "llama_7b.yaml").read_text()
    cleaned = re.sub(r"  intensity.*\n", "", text)
    typed = send(client, {"yaml": f"{cleaned}  grid_series: {secret}\n"})
    changed = client.ask(f"/plan?spec=laptop.yaml&set={quote(f'energy.grid_series={secret}', safe='')}")
    pipe = tmp_path / "tokenizer.model"
    os.mkfifo(pipe)  # whoever reads it waits for ever
    weights = send(client, {"yaml": text.replace("{vocab_size: 32000}", f"{{path: {pipe}}}")})
    option = client.ask(f"/plan?spec=llama_7b.yaml&set={quote(f'data.tokenizer.path={pipe}', safe='')}")
    for answer in (typed, changed, weights, option):
        assert answer.status == 200 and "experiment&#39;s own file only" in answer.text and "root:" not in answer.text


def test_nothing_is_written_or_started(specs: Path, tmp_path: Path) -> None:
    recorded(tmp_path / "one")
    before = {path: path.stat().st_mtime_ns for folder in (specs, tmp_path) for path in folder.rglob("*")}
    with serve(tmp_path, planning=planning(specs, tmp_path)) as client:
        assert client.ask("/plan?spec=laptop.yaml").status == 200
        assert send(client, {"yaml": (specs / "llama_7b.yaml").read_text(), "spec": ""}).status == 200
    assert {path: path.stat().st_mtime_ns for folder in (specs, tmp_path) for path in folder.rglob("*")} == before


def test_under_a_prefix_and_with_a_token(specs: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"planning": planning(specs, tmp_path), "prefix": "/team"}
    with serve(tmp_path, "0.0.0.0", token=TOKEN, **options) as client:
        fields = {"spec": "laptop.yaml", "yaml": ""}
        assert send(client, fields).status == 401
        assert send(client, fields, f"/team/plan?token={TOKEN}").status == 401  # a form never carries it in the address
        answer = send(client, fields, "/team/plan", Authorization=f"Bearer {TOKEN}")
        assert answer.status == 303 and answer.headers["Location"].startswith("/team/plan?spec=laptop.yaml")
        page = client.ask("/team/plan?spec=laptop.yaml", Authorization=f"Bearer {TOKEN}").text
        addresses = re.findall(r'(?:href|src|action)="([^"#][^"]*)"', page)
        assert len(addresses) > 8 and all(each.startswith("/team/") for each in addresses)
    with serve(tmp_path, planning=planning(specs, tmp_path)) as client:
        assert send(client, fields, Host="evil.example").status == 403


def test_without_experiments_or_without_a_planner(tmp_path: Path) -> None:
    with serve(tmp_path, planning=planning(tmp_path / "none", tmp_path)) as client:
        page = client.text("/plan")
        assert "none in the folder" in page and "No such file or directory" in page
    with serve(tmp_path, planning=planning(tmp_path, tmp_path)) as client:
        assert "paste one below" in client.text("/plan")
    with serve(tmp_path) as client:
        assert "was started without" in client.text("/plan") and send(client, {"yaml": "a: 1"}).status == 200
    wrong = CliRunner().invoke(cli, ["dashboard", "--runs", str(tmp_path), "--experiments", str(tmp_path / "none")])
    assert wrong.exit_code == 2 and "no such folder" in wrong.output
    found, left_out = Specs(tmp_path / "none").listed()
    assert found == {} and "No such file" in left_out

"""The command line as another program sees it."""

import errno
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from tiny import write_spec

from energy.factors import preset_factors
from energy.factors.tables import number
from energy.schemas import record_schema
from orchestrator.cli import cli, main

LAPTOP = Path(__file__).parents[3] / "experiments" / "laptop.yaml"
HOOFPRINT = [sys.executable, "-c", "from orchestrator.cli import main; main()"]


def hoofprint(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*HOOFPRINT, *arguments], capture_output=True, text=True, timeout=120)


def test_estimate_is_the_papers_formula() -> None:
    done = hoofprint("estimate", "--gpu-hours", "1022362", "--preset", "llama_paper", "--json")
    assert done.returncode == 0
    result = json.loads(done.stdout)
    assert result["energy_facility_kwh"] == pytest.approx(449839.28)
    assert result["carbon_tco2eq"] == pytest.approx(173.188, abs=1e-3)


def test_estimate_guesses_nothing() -> None:
    done = hoofprint("estimate", "--gpu", "A100-80GB", "--gpu-hours", "100")
    assert done.returncode == 2
    assert "--pue" in done.stderr and "--intensity-g-per-kwh" in done.stderr


@pytest.mark.parametrize("command", [["--help"], ["published"], ["estimate", "--help"]])
def test_light_commands_import_nothing_heavy(command: list[str]) -> None:
    code = (
        "import sys; from orchestrator.cli import cli\n"
        f"try: cli({command!r})\nexcept SystemExit: pass\n"
        "print([m for m in ('torch', 'ray', 'pandas', 'matplotlib') if m in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stderr.strip() == "[]"


def test_a_bad_spec_is_exit_code_2_without_a_traceback(tmp_path: Path) -> None:
    spec = tmp_path / "bad.yaml"
    spec.write_text(LAPTOP.read_text().replace("n_layers", "n_layer"))
    done = hoofprint("run", str(spec), "--runs", str(tmp_path / "runs"))
    assert done.returncode == 2
    assert "did you mean n_layers?" in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "runs").exists()


def test_a_missing_data_folder_is_named() -> None:
    done = hoofprint("run", str(LAPTOP.parent / "llama_7b.yaml"))
    assert done.returncode == 2
    assert done.stderr.count("no such file or folder") == 7


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--set", "cluster.address=127.0.0.1:1"], "no Ray answers at 127.0.0.1:1 (cluster.address)"),
        (["--set", "data.tokenizer.path=not_a_tokenizer"], "not_a_tokenizer: expected a tokenizer file"),
        (["--set", "data.sources.0.path=empty"], "empty is empty"),
        (["--set", "data.sources.0.path=blank"], "no document with text"),
        (["--set", "data.sources.0.path=small"], "set data.tokenizer.vocab_size"),
        (["--set", "training.batch_tokens=1M", "--set", "training.tokens=4M"], "make training.batch_tokens smaller"),
        (["--set", "model.sequence_length=16384", "--set", "training.batch_tokens=16384"], "is less than one batch"),
        (
            [
                *("--set=model.sequence_length=16384", "--set=training.batch_tokens=16384"),
                "--set=training.tokens=16384",
            ],
            "raise data.validation_fraction",
        ),
        (["--resume", "nowhere"], "not a run"),
        (["--resume", "x", "--name", "y"], "leave --name out"),
        (["--name", "a/b"], "plain folder name"),
        (["--name", ""], "plain folder name"),
        (["--runs", "spec.yaml"], "Directory 'spec.yaml' is a file"),
        (["--set", "data.cache=spec.yaml"], "spec.yaml is a file, expected a folder"),
        (["--name", "taken"], "exists; give another --name"),
    ],
)
def test_what_cannot_start_leaves_nothing(
    arguments: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_spec(tmp_path)
    monkeypatch.chdir(tmp_path)
    for name, text in (("not_a_tokenizer", "hello"), ("blank/a.txt", ""), ("small/a.txt", "a b")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    (tmp_path / "empty").mkdir()
    (tmp_path / "runs" / "taken").mkdir(parents=True)
    monkeypatch.setattr(sys, "argv", ["hoofprint", "run", "spec.yaml", "--json", "--runs", "runs", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    out, err = capsys.readouterr()
    assert (ended.value.code, out) == (2, "")
    assert said in err and "Traceback" not in err
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["taken"]


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "cache/x"), 1, "No space left on device: cache/x; free some"),
        (KeyError("x"), 1, "unexpected KeyError: 'x'\n-v shows where"),
        (BrokenPipeError(), 1, ""),
        (KeyboardInterrupt(), 130, "stopped"),
        (ValueError("bad"), 1, "unexpected ValueError: bad"),
    ],
)
@pytest.mark.parametrize("verbose", [False, True])
def test_failures_are_messages_and_exit_codes(
    error: BaseException,
    code: int,
    said: str,
    verbose: bool,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    def fail(**_: bool) -> None:
        raise error

    monkeypatch.setattr(cli.commands["schema"], "callback", fail)
    monkeypatch.setattr(sys, "argv", ["hoofprint", "schema"])
    if verbose:
        monkeypatch.setattr(sys, "argv", ["hoofprint", "schema", "-v"])
    with pytest.raises(SystemExit) as ended:
        main()
    err = capfd.readouterr().err
    assert ended.value.code == code and said in err
    assert ("Traceback" in err) == (verbose and not isinstance(error, BrokenPipeError | KeyboardInterrupt))


@pytest.mark.parametrize("name", cli.commands)
def test_every_command_can_show_where(name: str) -> None:
    assert sum("-v" in param.opts and "--verbose" in param.opts for param in cli.commands[name].params) == 1


@pytest.mark.parametrize(
    ("fail", "code", "said"),
    [
        (lambda **_: preset_factors("paper"), 2, "hoofprint: unknown preset 'paper'"),
        (lambda **_: number("one"), 1, "unexpected ValueError: could not convert"),
        (lambda **_: [*zip([1], [], strict=True)], 1, "unexpected ValueError: zip"),
    ],
    ids=["what the user did", "what our own code let Python raise", "what another module raised"],
)
def test_a_fault_of_the_program_is_not_put_down_to_the_user(
    fail: Callable[[bool], object],
    code: int,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(cli.commands["schema"], "callback", fail)
    monkeypatch.setattr(sys, "argv", ["hoofprint", "schema"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == code and said in capfd.readouterr().err


def test_the_schema_of_a_record() -> None:
    done = hoofprint("schema", "--record")
    assert done.returncode == 0 and json.loads(done.stdout) == record_schema()


def test_an_unknown_run_has_no_report(tmp_path: Path) -> None:
    done = hoofprint("report", str(tmp_path))
    assert done.returncode == 2 and "no run.json" in done.stderr

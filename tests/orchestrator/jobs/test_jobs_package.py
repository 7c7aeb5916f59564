"""What travels with a job: the code as a wheel has it, small local data, and a command that the cluster can run."""

import ast
import shlex
import subprocess
import sys
from importlib import metadata
from pathlib import Path, PurePosixPath

import pytest
from tiny import write_spec

from orchestrator.driver.revision import SHIPPED, code_revision
from orchestrator.jobs import inside as inside_job
from orchestrator.jobs import package as jobs_package
from orchestrator.jobs import start as jobs_start
from orchestrator.jobs.package import command, local_data, working_directory
from orchestrator.spec.file import BadInput, load_experiment

RELATIVE = "data.sources.0.path=text"


@pytest.fixture
def spec(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return write_spec(tmp_path)


def test_relative_paths_travel_and_absolute_ones_are_the_clusters(spec: Path, tmp_path: Path) -> None:
    tokenizer = "data.tokenizer.path=/shared/tokenizer.model"
    assert local_data(load_experiment(spec, [RELATIVE, tokenizer])) == (
        [Path("text")],
        [Path("/shared/tokenizer.model")],
    )
    assert local_data(load_experiment(spec)) == ([], [tmp_path / "text"])


def test_what_cannot_travel_is_named_all_at_once(spec: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "model").mkdir()
    wrong = [
        "data.sources.0.path=nowhere",
        "data.tokenizer.path=/t",
        "model.init_from=model",
        "energy.grid_series=../" + tmp_path.name,
    ]
    with pytest.raises(BadInput) as refused:
        local_data(load_experiment(spec, wrong))
    said = str(refused.value)
    assert "data.sources.0.path: no such file or folder: nowhere" in said
    assert "model.init_from: model has the name of a package" in said
    assert "leads out of this folder" in said and said.endswith("nothing was started")
    with pytest.raises(BadInput, match=r"data.sources.0.path: \. is this whole folder"):
        local_data(load_experiment(spec, ["data.sources.0.path=."]))
    monkeypatch.setattr(jobs_package, "TRAVELS_BYTES", 1000)
    with pytest.raises(BadInput, match="too much to travel with a job .* give its absolute path"):
        local_data(load_experiment(spec, [RELATIVE]))


def test_the_working_directory_is_an_installed_hoofprint(spec: Path, tmp_path: Path) -> None:
    with working_directory(spec, [Path("text")]) as folder:
        [found] = metadata.distributions(path=[str(folder)])
        assert (found.metadata["Name"], found.version) == ("hoofprint", metadata.version("hoofprint"))
        assert found.requires == metadata.requires("hoofprint")
        assert (folder / "spec.yaml").read_bytes() == spec.read_bytes()
        assert sorted(path.name for path in (folder / "text").iterdir()) == sorted(
            path.name for path in (tmp_path / "text").iterdir()
        )
        said = subprocess.run(
            [sys.executable, "-m", "orchestrator.jobs.start", "--version"], cwd=folder, capture_output=True, text=True
        )
        assert said.returncode == 0 and metadata.version("hoofprint") in said.stdout, said.stderr
        told = next(folder.glob("*.dist-info")) / "METADATA"
        head, body = told.read_text().split("\n\n", 1)
        told.write_text(f"{head}\nRequires-Dist: no-such-thing>=3\nRequires-Dist: ray<2\n\n{body}")
        lacks = subprocess.run(
            [sys.executable, "-m", "orchestrator.jobs.start", "--version"], cwd=folder, capture_output=True, text=True
        )
        assert lacks.returncode == 2 and lacks.stdout == ""
        assert "lacks no-such-thing>=3 (not there), ray<2 (there is " in lacks.stderr
        assert "nothing was started" in lacks.stderr and "--install" in lacks.stderr
    assert not folder.exists()


def test_the_start_can_tell_an_older_python_what_it_wants() -> None:
    source = Path(jobs_start.__file__).read_text(encoding="utf-8")
    ast.parse(source, feature_version=(3, 6))
    assert jobs_start.too_old((3, 9, 1)) == "the cluster's Python is 3.9 and hoofprint needs 3.11 or later"
    assert jobs_start.too_old((3, 11, 0)) is None


def test_the_command_survives_a_shell_and_means_the_clusters_own_ray(spec: Path) -> None:
    given = [
        "energy.pue=1.2",
        "energy.pue_source=the building's meter, 2025",
        "data.cache=cache",
        "cluster.address=a:1",
    ]
    written = command(spec, load_experiment(spec, given), given, PurePosixPath("/shared/runs"), "one", resume=False)
    first, *words = shlex.split(written)
    assert (first, words[:5]) == ("exec", ["python", "-m", "orchestrator.jobs.start", "run", "spec.yaml"])
    assert words[5:9] == ["--runs", "/shared/runs", "--name", "one"]
    overrides = [value for key, value in zip(words[9::2], words[10::2], strict=True) if key == "--set"]
    assert overrides == [*given, "cluster.address=null", "data.cache=/shared/runs/.corpus"]
    experiment = load_experiment(spec, overrides)
    assert experiment.cluster.address is None and experiment.energy.pue_source == "the building's meter, 2025"
    again = command(spec, load_experiment(spec), [], PurePosixPath("/shared/runs"), "one", resume=True)
    assert "--resume /shared/runs/one" in again and "--name" not in again and "data.cache" not in again


def test_the_environment_of_the_job(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SHIPPED, "abc")
    assert code_revision() == "abc"
    env = jobs_package.runtime_env(Path("/there"), install=False, variables={"NCCL_DEBUG": "INFO"})
    assert env["working_dir"] == "/there" and "pip" not in env
    wanted = {"NCCL_DEBUG": "INFO", SHIPPED: "abc", inside_job.STOP_WAIT: str(inside_job.STOP_WAIT_S)}
    assert wanted.items() <= env["env_vars"].items()
    installed = jobs_package.runtime_env(Path("/there"), install=True, variables={})["pip"]
    assert any(each.startswith("torch>=") for each in installed)
    assert not any(each.startswith("ray") for each in installed)


def test_a_run_inside_a_job_must_outlive_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    unpacked = tmp_path / "working_dir_files" / "_ray_pkg_1"
    unpacked.mkdir(parents=True)
    monkeypatch.chdir(unpacked)
    inside_job.require_lasting(Path("runs"))  # no job: whoever runs there knows why
    assert inside_job.doubts(Path("cache")) == []
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", '{"metadata": {"job_submission_id": "a"}}')
    with pytest.raises(BadInput, match="--runs runs lies in the job's working directory"):
        inside_job.require_lasting(Path("runs"))
    inside_job.require_lasting(tmp_path / "runs")
    cache, stop = inside_job.doubts(Path("cache"))
    assert "data.cache cache lies in the job's" in cache and "leaves this job 3 s to end" in stop
    monkeypatch.setenv(inside_job.STOP_WAIT, "600")
    assert inside_job.doubts(tmp_path) == []

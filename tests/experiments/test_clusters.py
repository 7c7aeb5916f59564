"""The deployment files: by the validators of those who will read them, and the scripts by running them.

KubeRay publishes its schema in no package. The fields of a RayJob are checked against those of its types (`RayJobSpec`,
`RayClusterSpec`, `HeadGroupSpec` and `WorkerGroupSpec` in ray-operator/apis/ray/v1 of ray-project/kuberay); the pods in
it, which are most of it, against the schema of Kubernetes.
"""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import kubernetes_validate
import pytest
import yaml

ROOT = Path(__file__).parents[2]
CLUSTERS = ROOT / "experiments" / "clusters"
BIN = Path(sys.executable).parent
CONSTRAINTS = dict(
    line.split("==") for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").split() if "==" in line
)
# Field: type, as KubeRay's Go types declare them in JSON; those that have no default there are required.
RAY_JOB = {
    "entrypoint": str,
    "runtimeEnvYAML": str,
    "jobId": str,
    "submissionMode": str,
    "backoffLimit": int,
    "activeDeadlineSeconds": int,
    "shutdownAfterJobFinishes": bool,
    "ttlSecondsAfterFinished": int,
    "suspend": bool,
    "metadata": dict,
    "clusterSelector": dict,
    "submitterPodTemplate": dict,
    "submitterConfig": dict,
    "rayClusterSpec": dict,
}
RAY_CLUSTER = {
    "rayVersion": str,
    "headGroupSpec": dict,
    "workerGroupSpecs": list,
    "enableInTreeAutoscaling": bool,
    "autoscalerOptions": dict,
}
HEAD_GROUP = {"serviceType": str, "rayStartParams": dict, "template": dict}
WORKER_GROUP = {
    "groupName": str,
    "replicas": int,
    "minReplicas": int,
    "maxReplicas": int,
    "numOfHosts": int,
    "rayStartParams": dict,
    "template": dict,
}


def load(name: str) -> Any:
    return yaml.safe_load((CLUSTERS / name).read_text(encoding="utf-8"))


def has_only(value: dict[str, Any], fields: dict[str, type], required: set[str]) -> None:
    assert required <= value.keys() <= fields.keys()
    for key, given in value.items():
        assert type(given) is fields[key], key


def groups(job: dict[str, Any]) -> list[dict[str, Any]]:
    cluster = job["spec"]["rayClusterSpec"]
    return [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]


def test_the_ray_job_has_the_fields_of_kuberay() -> None:
    job = load("rayjob.yaml")
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    assert job.keys() == {"apiVersion", "kind", "metadata", "spec"}
    has_only(job["spec"], RAY_JOB, {"entrypoint", "rayClusterSpec"})
    has_only(job["spec"]["rayClusterSpec"], RAY_CLUSTER, {"rayVersion", "headGroupSpec"})
    head, *workers = groups(job)
    has_only(head, HEAD_GROUP, {"rayStartParams", "template"})
    for group in workers:
        has_only(group, WORKER_GROUP, WORKER_GROUP.keys() - {"numOfHosts"})
    for group in groups(job):
        assert all(type(value) is str for value in group["rayStartParams"].values())  # a map of strings


def test_the_pods_of_the_ray_job_are_pods() -> None:
    for group in groups(load("rayjob.yaml")):
        assert group["template"].keys() <= {"metadata", "spec"}
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"}, "spec": group["template"]["spec"]}
        kubernetes_validate.validate(pod, "1.30", strict=True)
        [container] = pod["spec"]["containers"]
        mounted, there = container["volumeMounts"], pod["spec"]["volumes"]
        assert {mount["name"] for mount in mounted} == {volume["name"] for volume in there}
        assert not any("hostPath" in volume for volume in there)  # a pod does not start on a node that lacks it
        mounted[0]["readonly"] = True  # a name that is wrong, deep inside
        with pytest.raises(kubernetes_validate.ValidationError):
            kubernetes_validate.validate(pod, "1.30", strict=True)


def test_the_ray_job_runs_what_the_image_has_and_stops_in_order() -> None:
    from ray.job_submission import JobDetails

    from orchestrator.jobs.inside import STOP_WAIT, STOP_WAIT_S
    from orchestrator.jobs.server import find
    from orchestrator.spec.file import load_experiment

    job = load("rayjob.yaml")
    assert yaml.safe_load(job["spec"]["runtimeEnvYAML"]) == {"env_vars": {STOP_WAIT: str(STOP_WAIT_S)}}
    script, spec, runs, run, *options = job["spec"]["entrypoint"].split()
    here = [Path(path.replace("/opt/hoofprint", str(ROOT))) for path in (script, spec)]
    assert os.access(here[0], os.X_OK) and runs == "/shared/runs" and run
    submitted = {key: job["spec"][key] for key in ("entrypoint", "metadata")}  # as KubeRay hands them on to Ray
    details = JobDetails(type="SUBMISSION", submission_id="llama-7b-x2k9p", status="RUNNING", **submitted)
    server: Any = SimpleNamespace(list_jobs=lambda: [details], get_address=lambda: "http://head:8265")
    assert find(server, run).runs_dir == runs
    experiment = load_experiment(here[1], [option for option in options if option != "--set"])
    workers = job["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    limits = [group["template"]["spec"]["containers"][0]["resources"]["limits"] for group in workers]
    gpus = sum(group["replicas"] * int(limit["nvidia.com/gpu"]) for group, limit in zip(workers, limits, strict=True))
    assert gpus == experiment.cluster.workers


def test_the_cluster_launcher_takes_the_file() -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = prepare_config(load("ray_cluster.yaml"))
    validate_config(config)
    nodes = config["available_node_types"]
    assert not any("/sys/" in option for option in config["docker"]["run_options"])  # its links would lead nowhere
    row = next(line for line in (CLUSTERS / "README.md").read_text(encoding="utf-8").splitlines() if "| AWS" in line)
    assert "ray down" in row or not nodes["a100x8"]["min_workers"]  # what Ray does not give back, somebody has to
    assert config["max_workers"] == sum(node["max_workers"] for name, node in nodes.items() if name != "head")
    assert nodes["a100x8"]["resources"]["GPU"] == 8
    assert {node["node_config"]["ImageId"] for node in nodes.values()} == {"YOUR_AMI"}  # else Ray takes an old one
    before = "; ".join(config["initialization_commands"])
    assert before.index("sudo mount") < before.index("sudo install -d -o 1000 -g 100 /shared")
    with pytest.raises(Exception, match="initialisation_commands"):
        validate_config(prepare_config(load("ray_cluster.yaml") | {"initialisation_commands": []}))


def test_everything_names_the_versions_that_are_tested() -> None:
    image = re.search(r"rayproject/ray:(\S+)-py311", (CLUSTERS / "Dockerfile").read_text(encoding="utf-8"))
    assert image is not None and image[1] == CONSTRAINTS["ray"]
    assert load("rayjob.yaml")["spec"]["rayClusterSpec"]["rayVersion"] == CONSTRAINTS["ray"]
    version = re.search(r'^version = "(.+)"', (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE)
    assert version is not None
    images = {group["template"]["spec"]["containers"][0]["image"] for group in groups(load("rayjob.yaml"))}
    assert images == {load("ray_cluster.yaml")["docker"]["image"]} == {f"YOUR_REGISTRY/hoofprint:{version[1]}"}


@pytest.mark.parametrize("script", sorted(path.name for path in CLUSTERS.glob("*.sh")))
def test_scripts_are_clean_and_can_be_run(script: str) -> None:
    assert os.access(CLUSTERS / script, os.X_OK)
    checked = subprocess.run([BIN / "shellcheck", CLUSTERS / script], capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout


def copied() -> list[tuple[list[str], str]]:
    """(sources, target) of each COPY of the Dockerfile."""
    lines = [line.split() for line in (CLUSTERS / "Dockerfile").read_text(encoding="utf-8").splitlines()]
    words = [[word for word in line[1:] if not word.startswith("--")] for line in lines if line[:1] == ["COPY"]]
    return [(each[:-1], each[-1]) for each in words]


def test_the_image_is_built_of_what_is_there(tmp_path: Path) -> None:
    """hadolint reads the Dockerfile; pip builds the package from what it copies, and all of the code is in it."""
    checked = subprocess.run([BIN / "hadolint", CLUSTERS / "Dockerfile"], capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout
    let_in = set((CLUSTERS / "Dockerfile.dockerignore").read_text(encoding="utf-8").split())
    for sources, target in copied():
        for source in sources:
            assert f"!{source}" in let_in, source
            if (ROOT / source).is_dir():
                shutil.copytree(ROOT / source, tmp_path / target, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(ROOT / source, tmp_path / target)
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    built = subprocess.run([*build, "-w", str(tmp_path / "out"), str(tmp_path)], capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    [wheel] = (tmp_path / "out").glob("*.whl")
    shutil.unpack_archive(wheel, tmp_path / "wheel", "zip")
    for room in ("orchestrator", "model", "energy", "dashboards"):
        code = {path.relative_to(ROOT) for path in (ROOT / room).rglob("*.py")}
        assert code and all((tmp_path / "wheel" / path).exists() for path in code), room


STAND_IN = """#!/usr/bin/env bash
echo "$(basename "$0") $*" >> "$LOG"
{does}
"""
STAND_INS = {
    "srun": '[ "$SRUN_CPUS_PER_TASK" = 64 ] || exit 9; while [ "${1#--}" != "$1" ]; do shift; done; exec "$@"',
    "scontrol": '[ "$1" != show ] || printf "node-a\\nnode-b\\n"',
    "hostname": '[ "${1-}" = -I ] && echo "fe80::1 127.0.1.1 169.254.3.1 ${HAS-10.0.0.1 172.17.0.1}" || echo node-a',
    "getent": '[ "$*" = "ahostsv4 node-a" ] && echo "${NAMED-127.0.1.1} STREAM node-a"',
    "ray": "trap 'exit 0' TERM; while :; do sleep 0.1; done",
    "python": 'cat > /dev/null; until [ "$(grep -c "^ray " "$LOG")" -ge 2 ]; do sleep 0.05; done; exit "${MISSED-0}"',
    "hoofprint": """
case $1 in
  run)
    mkdir -p "$HOOFPRINT_RUNS/x"
    printf '{\\n  "status": "running"\\n}\\n' > "$HOOFPRINT_RUNS/x/run.json"
    while [ "${ENDS-}" = by-stop ] && [ ! -e "$HOOFPRINT_RUNS/x/stop" ]; do sleep 0.1; done
    printf '{\\n  "status": "%s"\\n}\\n' "${STATUS-completed}" > "$HOOFPRINT_RUNS/x/run.json"
    exit "${CODE-0}";;
  stop) [ -z "${NO_STOP-}" ] && touch "$HOOFPRINT_RUNS/x/stop";;
esac""",
}


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """Commands that note how they were called, in the place of SLURM's, Ray's and ours."""
    bin = tmp_path / "bin"
    bin.mkdir()
    for name, does in STAND_INS.items():
        (bin / name).write_text(STAND_IN.replace("{does}", does), encoding="utf-8")
        (bin / name).chmod(0o755)
    return os.environ | {
        "PATH": f"{bin}:{os.environ['PATH']}",
        "LOG": str(tmp_path / "log"),
        "HOOFPRINT_RUNS": str(tmp_path / "runs"),
        "HOOFPRINT_HEAD_START_S": "0",
        "SLURM_JOB_ID": "7",
        "SLURM_JOB_NODELIST": "node-[a-b]",
        "SLURM_SUBMIT_DIR": str(ROOT),
        "SLURM_GPUS_ON_NODE": "8",
        "SLURM_CPUS_PER_TASK": "64",
    }


def called(environment: dict[str, str], name: str) -> list[str]:
    log = Path(environment["LOG"])
    lines = log.read_text(encoding="utf-8").splitlines() if log.exists() else []
    return [line for line in lines if line.split()[0] == name]


def slurm(environment: dict[str, str]) -> "subprocess.Popen[str]":
    command = [str(CLUSTERS / "slurm.sh"), "spec.yaml", "x", "--set", "cluster.nodes=2"]
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize(("typed_in", "node"), [(ROOT, {}), (CLUSTERS, {"NAMED": "10.0.0.1", "HAS": "10.9.9.9"})])
def test_slurm_starts_a_cluster_and_the_run_in_it(
    typed_in: Path, node: dict[str, str], environment: dict[str, str]
) -> None:
    process = slurm(environment | node | {"SLURM_SUBMIT_DIR": str(typed_in)})
    _, said = process.communicate(timeout=60)
    assert process.returncode == 0, said
    runs = environment["HOOFPRINT_RUNS"]
    assert sorted(called(environment, "ray")) == [
        "ray start --block --address=10.0.0.1:6379 --num-gpus=8",
        "ray start --head --block --node-ip-address=10.0.0.1 --port=6379 --disable-usage-stats --num-gpus=8",
    ]
    assert called(environment, "python") == ["python - 2"]
    assert called(environment, "hoofprint") == [f"hoofprint run spec.yaml --runs {runs} --name x --set cluster.nodes=2"]
    assert "\n#SBATCH --mem=0\n" in (CLUSTERS / "slurm.sh").read_text(
        encoding="utf-8"
    )  # all of it: --exclusive gives a share
    on = [line for line in called(environment, "srun") if "ray start" in line]
    assert any("--nodes=1 --ntasks=1 --nodelist=node-a" in line for line in on)
    assert any("--nodes=1 --ntasks=1 --exclude=node-a" in line for line in on)
    assert not list(Path(runs).glob(".ray-token-*"))  # of the job, and gone with it
    assert [line.split()[1] for line in called(environment, "scontrol")] == ["show"]


def test_slurm_ends_what_it_started_where_nodes_do_not_join(environment: dict[str, str]) -> None:
    process = slurm(environment | {"MISSED": "7"})
    process.communicate(timeout=60)  # until nobody writes there: both of Ray's processes have ended
    assert process.returncode == 7
    assert len(called(environment, "ray")) == 2
    assert not list(Path(environment["HOOFPRINT_RUNS"]).glob(".ray-token-*"))


def test_slurm_starts_no_ray_where_no_address_can_be_reached(environment: dict[str, str]) -> None:
    process = slurm(environment | {"HAS": "fd00::1"})
    _, said = process.communicate(timeout=60)
    assert process.returncode == 1 and "node-a has no IPv4 address" in said
    assert not called(environment, "ray") and not list(Path(environment["HOOFPRINT_RUNS"]).glob(".ray-token-*"))


@pytest.mark.parametrize("wrong", ["SLURM_SUBMIT_DIR", "HOOFPRINT_CLUSTERS"])
def test_slurm_starts_nothing_without_its_other_script(wrong: str, environment: dict[str, str], tmp_path: Path) -> None:
    process = slurm(environment | {wrong: str(tmp_path)})
    _, said = process.communicate(timeout=60)
    assert process.returncode == 2 and str(tmp_path) in said and "nothing was started" in said
    assert {path.name for path in tmp_path.iterdir()} == {"bin"}  # no folder of runs, no command called


def told_while_it_runs(environment: dict[str, str], what: signal.Signals) -> "tuple[subprocess.Popen[str], str]":
    """The script, ended, and what it said: the run is stopped on request, and a signal came once it had begun."""
    process = slurm(environment | {"ENDS": "by-stop", "STATUS": "stopped", "CODE": "130"})
    while not (Path(environment["HOOFPRINT_RUNS"]) / "x" / "run.json").exists():
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(what)
    return process, process.communicate(timeout=60)[1]


@pytest.mark.parametrize("asked", [True, False])
def test_slurm_ends_without_another_turn_where_it_is_told_to(asked: bool, environment: dict[str, str]) -> None:
    """SIGTERM to the script stops the run in order, or, where it cannot be asked, ends whoever started it."""
    process, said = told_while_it_runs(environment | {"NO_STOP": "" if asked else "1"}, signal.SIGTERM)
    assert process.returncode == (0 if asked else 128 + signal.SIGTERM), said
    assert [line.split()[1] for line in called(environment, "hoofprint")] == ["run", "stop"]
    assert [line.split()[1] for line in called(environment, "scontrol")] == ["show"]
    run = Path(environment["HOOFPRINT_RUNS"]) / "x" / "run.json"
    assert ('"stopped"' in run.read_text(encoding="utf-8")) == asked


def test_slurm_stops_the_run_before_its_time_is_over_and_goes_on_with_it(environment: dict[str, str]) -> None:
    process, said = told_while_it_runs(environment, signal.SIGUSR1)
    assert process.returncode == 0, said
    runs = environment["HOOFPRINT_RUNS"]
    assert f"hoofprint stop x --runs {runs} --no-wait" in called(environment, "hoofprint")
    assert called(environment, "scontrol")[-1] == "scontrol requeue 7"

    again = slurm(environment)
    _, said = again.communicate(timeout=60)
    assert again.returncode == 0, said
    resumed = f"hoofprint run spec.yaml --runs {runs} --resume {runs}/x --set cluster.nodes=2"
    assert called(environment, "hoofprint")[-1] == resumed
    assert len(called(environment, "scontrol")) == 3  # complete: it is not queued a second time


def test_a_pod_ends_when_its_ranks_have_left(environment: dict[str, str], tmp_path: Path) -> None:
    from orchestrator.cluster.meters import RANK_CLASS

    pod = load("rayjob.yaml")["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]["template"]["spec"]
    *shell, script = pod["containers"][0]["lifecycle"]["preStop"]["exec"]["command"]
    assert f"--deadline-remaining-seconds {pod['terminationGracePeriodSeconds']}" in script
    rank = tmp_path / "proc" / "7" / "cmdline"
    rank.parent.mkdir(parents=True)
    rank.write_text(f"ray::{RANK_CLASS}.work\0", encoding="utf-8")
    ray = tmp_path / "bin" / "ray"
    ray.write_text(STAND_IN.replace("{does}", "exit 1"), encoding="utf-8")  # a head that is gone already
    process = subprocess.Popen([*shell, script.replace("/proc/", f"{tmp_path}/proc/")], env=environment)
    while not called(environment, "ray"):
        assert process.poll() is None
        time.sleep(0.05)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.3)
    rank.unlink()
    process.wait(60)
    assert called(environment, "ray")[0].startswith("ray drain-node --reason DRAIN_NODE_REASON_PREEMPTION ")


@pytest.mark.parametrize(("code", "ends"), [(0, 0), (1, 1), (2, 2), (3, 0), (130, 0)])
def test_a_scheduler_repeats_only_what_failed(code: int, ends: int, environment: dict[str, str]) -> None:
    script, runs = str(CLUSTERS / "run_or_resume.sh"), environment["HOOFPRINT_RUNS"]
    environment |= {"CODE": str(code), "STATUS": "failed" if ends else "completed"}
    first = subprocess.run([script, "spec.yaml", runs, "x"], env=environment, timeout=60)
    assert first.returncode == ends
    subprocess.run([script, "spec.yaml", runs, "x"], env=environment, timeout=60, capture_output=True)
    resumed = [f"hoofprint run spec.yaml --runs {runs} --resume {runs}/x"] if ends else []
    assert called(environment, "hoofprint")[1:] == resumed

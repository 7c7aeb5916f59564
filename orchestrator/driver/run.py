"""The driver of a run: data, Ray, meters, training, and in every case the record and the report at the end."""

import json
import os
import socket
import time
import traceback
from functools import partial
from pathlib import Path
from typing import Any

from energy.runs import STOP_FILE, RunFolder, replace_file, write_json
from orchestrator.budget.before import require_budget
from orchestrator.budget.watch import BudgetSpent
from orchestrator.checkpoints.saved import newest_complete
from orchestrator.cluster.reach import require_cluster
from orchestrator.data.prepare import prepare_corpus
from orchestrator.driver import attempts as attempt_files
from orchestrator.driver.accounting import (
    accounting_of,
    ask_for_series,
    keep_series_file,
    model_figures,
    not_asked_for,
)
from orchestrator.driver.attempts import Claim
from orchestrator.driver.endings import advice, cause
from orchestrator.driver.head_watch import let_ranks_end
from orchestrator.driver.run_lock import RunTaken
from orchestrator.driver.run_status import RunStatus, code
from orchestrator.driver.stops import Stops
from orchestrator.driver.training import Command, train
from orchestrator.jobs import inside as inside_job
from orchestrator.models.folder import initial_weights
from orchestrator.preflight.before_run import before_preparing
from orchestrator.screens.run import RayLog, RunScreen
from orchestrator.spec.experiment import Experiment
from orchestrator.spec.file import BadInput, dump_experiment

PLAN = "plan.json"
RAY_LOG = Path("logs") / "ray.log"


def run_experiment(
    experiment: Experiment,
    runs_dir: Path,
    screen: RunScreen,
    run_id: str | None = None,
    resume: Path | None = None,
    spec: Path | None = None,
    profile_steps: int = 0,
) -> tuple[RunFolder, int]:
    """Trains and accounts; the run folder and the exit code (0 done, 3 stopped by its budget, 130 by Ctrl-C, 1 failed).

    BadInput when the run cannot start; then nothing of it is left, and a resumed run is as it was.
    """
    # What a second look would find is refused first: building the corpus may take an hour.
    if resume:
        existing, changed = attempt_files.resumable(experiment, resume)
    else:
        inside_job.require_lasting(runs_dir)
        path = attempt_files.run_path(runs_dir, run_id or f"{experiment.name}-{time.strftime('%Y%m%d-%H%M%S')}")
    require_cluster(experiment.cluster.address)
    before_preparing(experiment, (existing.path if resume else path).name)
    for doubt in [*experiment.doubts, *inside_job.doubts(experiment.data.cache)]:
        screen.note(f"note: {doubt}")
    prepared = prepare_corpus(experiment, screen.progress)
    weights = None
    if not resume or newest_complete(existing.path / "checkpoints") is None:  # else nobody reads them again
        weights = initial_weights(experiment, prepared.tokenizer_path, prepared.vocab_size)
    if resume:
        claim = Claim(existing, screen.note)
    else:
        claim = attempt_files.claim_new(path)
    try:
        if resume:
            (claim.folder.path / STOP_FILE).unlink(missing_ok=True)  # of the command before; what comes now is for this
            attempt_files.require_same_data(claim.folder, prepared.tokenizer_path, prepared.description)
            if attempt_files.settle(claim.folder):
                screen.note(f"the attempt before was lost: {attempt_files.LOST}")
            if changed:
                screen.note(f"changed since the run was started: {', '.join(changed)}")
            require_budget(experiment, claim.folder)
        command = Command(
            experiment=experiment,
            claim=claim,
            prepared=prepared,
            weights=weights,
            spec=spec,
            fresh=not resume,
            profile_steps=profile_steps,
        )
        return _run(command, screen)
    finally:
        claim.release()


def _run(command: Command, screen: RunScreen) -> tuple[RunFolder, int]:
    experiment, folder, spec = command.experiment, command.folder, command.spec
    previous = {} if command.fresh else folder.read_run()
    before = None if command.fresh else attempt_files.Before(folder)
    attempts = [*previous.get("attempts", []), {"started_unix_s": command.started_unix_s, "status": "running"}]
    attempts[-1] |= {"attempt": len(attempts), **code()}
    ending = RunStatus(command.claim, attempts, screen)
    try:
        _open_folder(command, previous, attempts)
    except (OSError, ValueError):
        command.claim.free_space()
        attempt_files.undo(folder, before)
        raise
    over: BudgetSpent | None = None
    stop_file, trained = folder.path / STOP_FILE, partial(attempt_files.has_trained, folder)

    def without_ray(said: str) -> None:
        """On a thread: no call to Ray returns any more, not that of the main thread either."""
        try:
            command.claim.require_held()
            let_ranks_end(folder)
            ending.write("failed", said)
            screen.failed([f"the run failed: {said}", *advice(said, folder.path, spec)], folder.path / RAY_LOG)
            _account(experiment, folder, screen)
        except RunTaken as taken:
            screen.failed([str(taken)])
        finally:
            screen.release()
            os._exit(1)

    with Stops(stop_file, screen, lambda: ending.write("stopped"), lambda: trained(ending.attempt)) as stops:
        with RayLog(folder.path / RAY_LOG) as log:
            try:
                complete = train(command, ending, screen, stops, without_ray)
                ending.write("completed" if complete else "stopped")
            except BudgetSpent as spent:
                over = spent
                ending.write("budget", budget=spent.document)
            except BadInput:
                attempt_files.undo(folder, before)
                raise
            except (KeyboardInterrupt, SystemExit):  # the latter from Ray's own handler of SIGTERM, while it starts
                ending.write("stopped")
            except Exception as error:
                log.append(traceback.format_exc())
                ending.write("failed", cause(error))
        accounted = _account(experiment, folder, screen)
    if over is not None:
        more = ["--set", over.option]
        screen.failed([over.in_words, *advice("", folder.path, spec, more)])
    elif ending.status != "completed":
        what = f"the run failed: {ending.error}" if ending.error else "the run was stopped"
        screen.failed([what, *advice(ending.error or "", folder.path, spec)], folder.path / RAY_LOG)
    return folder, {"completed": 0 if accounted else 1, "stopped": 130, "budget": 3}.get(ending.status or "", 1)


def _open_folder(command: Command, previous: dict[str, Any], attempts: list[dict[str, Any]]) -> None:
    """Writes what is known before the start; previous: run.json of the attempts before."""
    experiment, folder, prepared = command.experiment, command.folder, command.prepared
    command.claim.hold_space()
    for old in folder.path.glob("live/*.json"):  # of the attempt before
        old.unlink(missing_ok=True)
    (folder.path / "tokenizer.model").write_bytes(prepared.tokenizer_path.read_bytes())
    described = _describe(experiment, folder, prepared, attempts)
    if command.weights is not None:
        weights = command.weights
        described["initial_weights"] = {"path": str(weights.checkpoint), "imported": weights.imported}
    replace_file(folder.path / "experiment.yaml", dump_experiment(experiment))
    # of the attempts before, until this one has its machines
    kept = {key: previous.get(key, described[key]) for key in ("hosts", "meters", "device_type", "world_size")}
    folder.write_run(previous | described | kept)
    keep_series_file(experiment, folder)
    if command.fresh:
        _write_plan(experiment, folder, prepared.vocab_size)


def _describe(experiment: Experiment, folder: RunFolder, prepared: Any, attempts: list[dict]) -> dict[str, Any]:
    config = experiment.llama_config(prepared.vocab_size)
    return {
        "run_id": folder.path.name,
        "name": experiment.name,
        "status": "running",
        "purpose": experiment.purpose,
        "created_unix_s": attempts[0]["started_unix_s"],
        "ended_unix_s": None,
        "error": None,
        "budget": None,  # what stopped it, if a budget does
        **code(),
        "attempts": attempts,
        "hosts": [socket.gethostname()],
        "world_size": experiment.cluster.workers,
        "device_type": None,
        "model": model_figures(config),
        "data": prepared.description,
        "planned_tokens": experiment.planned_tokens,
        **accounting_of(experiment),
        "grid_notes": not_asked_for(experiment),
        "training": {},  # what `auto` becomes is the ranks' decision: see keep_choices
        "meters": [],
    }


def _write_plan(experiment: Experiment, folder: RunFolder, vocab_size: int) -> None:
    """What is expected, from earlier runs beside this one or published figures, while nothing of it is known yet."""
    from orchestrator.plan import PlanOptions, make_plan

    plan = make_plan(experiment, folder.path.parent, PlanOptions(strict=False, vocab_size=vocab_size))
    write_json(folder.path / PLAN, {"plan": plan, "outcome": None})


def _compare_with_plan(folder: RunFolder, footprint: dict[str, Any]) -> None:
    """Puts what happened, and why it differs, beside the plan. A run from before there were plans has none."""
    from orchestrator.plan import compare

    file = folder.path / PLAN
    if file.exists():
        plan = json.loads(file.read_text(encoding="utf-8"))["plan"]
        write_json(file, {"plan": plan, "outcome": compare(plan, footprint)})


def _account(experiment: Experiment, folder: RunFolder, screen: RunScreen) -> bool:
    """Writes record and report; False, and what to do, when they could not be written."""
    from dashboards.report import write_report
    from energy.records.record import write_record

    try:
        ask_for_series(experiment, folder)
        footprint = write_record(folder)
        _compare_with_plan(folder, footprint)
        html, _ = write_report(folder)
    except Exception as error:  # whatever it is, the run's files are there and the report can be had from them
        screen.failed(
            [f"the report could not be written: {cause(error)}", f"write it later: hoofprint report {folder.path}"]
        )
        return False
    screen.closing(folder, footprint, html)
    return True

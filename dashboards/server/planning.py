"""The plan page: an experiment of a folder, or a typed spec, with some keys changed, and what it will take.

What is asked is in the address where it fits there; a typed spec is sent as a form. Nothing is started, and nothing is
kept.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from jinja2 import Environment

from dashboards.server.answers import as_json, html, plain_name
from dashboards.server.plan_view import view
from dashboards.server.specs import LARGEST_SPEC, Specs, tangled
from dashboards.server.web import Arguments, Response, text

MOST_CHANGES, LONGEST_CHANGE = 40, 400
LONGEST_ADDRESS = 3000  # a longer question is answered where it was asked
# (experiment's file, typed spec in its place, changes "key=value", budget) -> the plan (`hoofprint plan --json`) with
# `start_with`; ValueError with the words of the command line. It starts nothing.
MakePlan = Callable[[Path | None, str | None, Sequence[str], str | None], Mapping[str, Any]]


@dataclass(frozen=True)
class Planning:
    """What the plan page needs: the folder of the experiments, and what makes the plan of one."""

    specs: Path
    make_plan: MakePlan


@dataclass(frozen=True)
class Question:
    """spec: name of an experiment in the folder, or ""; typed: a spec in its place, or ""."""

    spec: str = ""
    typed: str = ""
    changes: tuple[str, ...] = ()
    budget: str = ""

    @classmethod
    def of(cls, given: Arguments) -> Question:
        lines = [line.strip() for each in given.every("set") for line in each.splitlines()]
        changes = tuple(line for line in lines if line and not line.startswith("#"))
        typed = given.get("yaml", "").replace("\r\n", "\n")
        return cls(given.get("spec", ""), typed, changes, given.get("budget", "").strip())

    @property
    def query(self) -> str:
        pairs = [("spec", self.spec), *(("set", change) for change in self.changes), ("budget", self.budget)]
        return urlencode([pair for pair in pairs if pair[1]], errors="surrogateescape")


class Plan:
    """Answers /plan and /plan.json."""

    def __init__(self, planning: Planning | None, environment: Environment, base: str) -> None:
        self._planning, self._environment, self._base = planning, environment, base
        self._specs = None if planning is None else Specs(planning.specs)
        self._working = threading.Lock()  # one plan at a time: they take a core each

    def respond(self, what: str, arguments: Arguments) -> Response:
        """what: "" for the page, ".json" for the plan alone."""
        question = Question.of(arguments)
        listed, _ = self._listed()
        if question.spec and question.spec not in listed:
            fault = f"There is no experiment “{question.spec}” in the folder."
            return text(404, fault) if what else self._page(question, None, fault, 404)
        if not question.spec:
            return text(404, "name an experiment: plan.json?spec=NAME") if what else self._page(question, None, "")
        plan, fault = self._plan(question, listed)
        if what:
            name = f"{plain_name(Path(question.spec).stem)}-plan.json"
            return text(422, fault) if plan is None else as_json(plan, name)
        return self._page(question, plan, fault)

    def submit(self, form: Arguments) -> Response:
        """A form of the page. An experiment as its file has it is answered at an address of its own."""
        question = Question.of(form)
        listed, _ = self._listed()
        if question.spec in listed and question.typed.strip() in ("", _read(listed[question.spec]).strip()):
            asked = Question(question.spec, "", question.changes, question.budget)
            if len(asked.query) <= LONGEST_ADDRESS:
                return Response(303, b"", headers={"Location": f"{self._base}/plan?{asked.query}#plan"})
            question = asked
        if not question.spec and not question.typed.strip():
            return self._page(question, None, "Choose an experiment, or paste a spec.")
        plan, fault = self._plan(question, listed)
        return self._page(question, plan, fault)

    def _listed(self) -> tuple[dict[str, Path], str]:
        return ({}, "") if self._specs is None else self._specs.listed()

    def _plan(self, question: Question, listed: Mapping[str, Path]) -> tuple[Mapping[str, Any] | None, str]:
        """(the plan, "") or (None, what is wrong, as the command line says it)."""
        if self._planning is None:
            return None, "This dashboard was started without what makes a plan."
        fault = _not_taken(question)
        if fault:
            return None, f"{fault}\n\nnothing was started"
        path = listed.get(question.spec)
        typed = question.typed if question.typed.strip() else None
        try:
            with self._working:
                return self._planning.make_plan(path, typed, question.changes, question.budget or None), ""
        except (ValueError, ArithmeticError, RecursionError) as error:
            said = str(error) or type(error).__name__
            return None, said if "nothing was started" in said else f"{said}\n\nnothing was started"

    def _page(self, question: Question, plan: Mapping[str, Any] | None, fault: str, status: int = 200) -> Response:
        listed, left_out = self._listed()
        shown = question.typed
        if not shown.strip() and question.spec in listed:
            shown = _read(listed[question.spec])
        context = {
            "question": question,
            "typed": bool(question.typed.strip()),
            "yaml": shown,
            "changes": "\n".join(question.changes),
            "specs": [*listed],
            "directory": "" if self._planning is None else str(self._planning.specs),
            "left_out": left_out,
            "can_plan": self._planning is not None,
            "fault": fault,
            "plan": None if plan is None else view(plan),
        }
        page = html(self._environment.get_template("plan.html.j2").render(**context), status)
        # Without a word of where a form comes from, the browser would not say that it comes from here.
        return Response(page.status, page.body, headers={"Referrer-Policy": "same-origin"})


def _not_taken(question: Question) -> str:
    """Why a question is not answered at all; "" where it is."""
    if len(question.typed.encode("utf-8", "replace")) > LARGEST_SPEC:
        return f"the spec is larger than {LARGEST_SPEC // 1000} kB: use hoofprint plan for this one"
    if len(question.changes) > MOST_CHANGES:
        return f"{len(question.changes)} changes are more than {MOST_CHANGES}: put them into the spec"
    long = next((change for change in question.changes if len(change) > LONGEST_CHANGE), None)
    if long is not None:
        return f"a change is longer than {LONGEST_CHANGE} letters: {long[:60]}…"
    told = ((tangled(change.partition("=")[2]), f"the change {change}: ") for change in question.changes)
    return next((where + why for why, where in [(tangled(question.typed), ""), *told] if why), "")


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""  # deleted since it was listed: what is wrong is said when it is planned

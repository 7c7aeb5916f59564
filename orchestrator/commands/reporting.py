"""Commands around the record of a run: report in every format, and verify."""

import sys
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from orchestrator.commands import JSON, RUNS, print_json
from orchestrator.commands.named import named_run, open_run
from orchestrator.commands.printing import printed, require_place

if TYPE_CHECKING:
    from energy.records.verify import Verification
    from energy.runs import RunFolder

FILES = ("html", "markdown", "pdf")  # made from the run's report; the others from its record alone
FORMATS = (*FILES, "json", "csv", "huggingface", "eu-form", "cyclonedx", "spdx", "sci", "latex", "sentence")
WIDTH = 79

RUN = click.argument("run", type=click.Path(path_type=Path, file_okay=False))


@click.command()
@RUN
@RUNS
@click.option(
    "--format", "form", type=click.Choice(FORMATS), help="One form of the report, instead of writing them all."
)
@click.option("-o", "--output", type=click.Path(path_type=Path, dir_okay=False),
              help="Where to; default: stdout, and of a PDF report.pdf in RUN.")  # fmt: skip
@click.option("--write", "card", type=click.Path(path_type=Path, exists=True, dir_okay=False), metavar="README.md",
              help="Put the huggingface format into this model card: its emissions key and our section.")  # fmt: skip
@click.option("--reason", help="Why the record is corrected; kept in records.jsonl with the hash of the one before.")
@JSON
def report(
    run: Path, runs_dir: Path, form: str | None, output: Path | None, card: Path | None, reason: str | None,
    as_json: bool,
) -> None:  # fmt: skip
    """Writes the record and the report of RUN again, from its files alone.

    RUN is a run's folder, or its name in --runs.
    With --format one form of it goes to stdout or to a file: html, markdown and pdf for people, the others for the
    forms that ask for them. A record that comes out otherwise than before is a new entry in records.jsonl, and the one
    before is kept under records/. Where files that it was computed from are missing, it needs a --reason.
    """
    _require_sense(form, output, card, as_json)
    from energy.runs import RunFolder

    folder = RunFolder(open_run(run, runs_dir).path.resolve())
    record = _record(folder, reason)
    if card is not None:
        _write_card(card, record)
    elif form is None:
        from dashboards.report import write_report

        html, markdown = write_report(folder)
        if as_json:
            print_json(record)
        else:
            click.echo(f"{html}\n{markdown}")
    elif form in FILES:
        _give_file(folder, form, output)
    else:
        from energy.export import render

        _give(render(record, form), output)


def _require_sense(form: str | None, output: Path | None, card: Path | None, as_json: bool) -> None:
    if card is not None and (form not in (None, "huggingface") or output is not None):
        raise click.UsageError("--write edits a model card in the huggingface format: leave --format and -o out")
    if output is not None and form is None:
        raise click.UsageError("-o needs --format: it is for one form of the report")
    if as_json and (form is not None or card is not None):
        raise click.UsageError("--json prints the record; with --format take --format json")
    require_place(form, output)


def _note(text: str) -> None:
    click.echo(text, err=True)


def _record(folder: "RunFolder", reason: str | None) -> dict[str, Any]:
    """The record, brought up to date; where the folder cannot be written, the one that lies there."""
    import json

    from energy.records.record import FILE_NAME, read_entries, write_record
    from energy.runs import MEASURE
    from orchestrator.driver.attempts import settle_if_dead

    try:
        if settle_if_dead(folder):
            todo = "" if folder.read_run().get("kind") == MEASURE else "; go on with it by --resume"
            _note(f"the run was lost: its process ended without a word{todo}")
        before = len(read_entries(folder.path)[0])
        record = write_record(folder, reason)
    except OSError as error:
        path = folder.path / FILE_NAME
        if not path.exists() or reason is not None:
            raise
        _note(f"the record is the one that lies there: it cannot be written again ({error.strerror or error})")
        return json.loads(path.read_text(encoding="utf-8"))
    found, _ = read_entries(folder.path)
    entries = len(found)
    if reason is not None and entries == before:
        _note(f"nothing has changed: the record is the one of entry {entries}, and no correction is entered")
    elif entries > 1 and entries > before:
        _note(f"the record has changed (entry {entries} in records.jsonl): {found[-1]['reason']}")
    if record["run"]["status"] == "running":
        _note("the run is still at work: the record is of what lies there so far")
    if not folder.ledgers():
        _note("the run has no ledger (energy/*.ledger): nothing was metered, its energy is not known")
    return record


def _give(text: str, output: Path | None) -> None:
    if output is None:
        click.echo(text, nl=False)
        return
    from energy.runs import replace_file

    replace_file(output, text)
    click.echo(output)


def _give_file(folder: "RunFolder", form: str, output: Path | None) -> None:
    from dashboards.report import write_report

    html, markdown = write_report(folder)
    if form == "markdown":
        _give(markdown.read_text(encoding="utf-8"), output)
    elif form == "html":
        _give(html.read_text(encoding="utf-8"), output)
    else:
        from energy.runs import replace_file

        output = output or html.with_suffix(".pdf")
        replace_file(output, printed(html))
        click.echo(output)


def _write_card(card: Path, record: dict[str, Any]) -> None:
    """Bytes in, bytes out: line ends and all else of the card stay as they are."""
    from energy.export.huggingface import card_faults, write_card

    try:
        old = card.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise click.UsageError(f"{card} is not UTF-8 (byte {error.start}): it is left alone") from None
    new = write_card(old, record)
    for fault in card_faults(old, record):
        _note(f"{card} before: {fault}")
    if new != old:
        from energy.runs import replace_file

        replace_file(card, new)
    click.echo(card)


@click.command()
@RUN
@RUNS
@JSON
def verify(run: Path, runs_dir: Path, as_json: bool) -> None:
    """Recomputes the record of RUN from its ledgers and compares; looks at every hash and every sum.

    RUN is a run's folder, or its name in --runs.
    Exit code 0: all of it holds; 1: something does not, and is named by file and field; 2: nothing to verify. A record
    that says of itself that a figure is implausible holds (0): what it says is shown, and --json has it as implausible.
    """
    from energy.records.verify import verify_run
    from energy.run_version import require_known
    from energy.runs import RunFolder

    path = named_run(run, runs_dir)
    if not path.is_dir():
        raise click.UsageError(f"{path}: no such folder; `hoofprint runs --runs DIR` lists the runs there")
    require_known(path)
    result = verify_run(RunFolder(path.resolve()))
    if as_json:
        print_json(result.as_json())
    else:
        for line in lines_of(result):
            click.echo(line)
    sys.exit(0 if result.ok else 1)


def lines_of(result: "Verification") -> list[str]:
    """Each check with a tick or with what is wrong or implausible, and what it comes to, in 80 columns."""
    marks = {True: click.style("✓", fg="green"), False: click.style("✗", fg="red"), None: click.style("–", dim=True)}
    lines = []
    for check in result.checks:
        # What was looked at stands behind a tick; behind a cross stands what is wrong.
        note = check.note if check.ok is not False else ""
        mark = click.style("!", fg="yellow") if check.ok and check.doubts else marks[check.ok]
        if note and 4 + len(check.name) + len(note) <= WIDTH:
            lines.append(f"{mark} {check.name}: {click.style(note, dim=True)}")
        else:
            lines.append(f"{mark} {check.name}")
            lines += [click.style(line, dim=True) for line in _wrapped(note)] if note else []
        for text in (*check.faults, *(f"implausible: {doubt}" for doubt in check.doubts)):
            lines += _wrapped(text)
    wrong = sum(check.ok is False for check in result.checks)
    end = "verified" if not wrong else f"{wrong} of {len(result.checks)} do not hold"
    doubts = len(result.implausible)
    if doubts:
        end += f", but {'one figure is' if doubts == 1 else f'{doubts} figures are'} implausible, as the record says"
    lines.append(f"{result.run}: {end}")
    return lines


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(text, WIDTH, initial_indent="  ", subsequent_indent="    ", break_on_hyphens=False)

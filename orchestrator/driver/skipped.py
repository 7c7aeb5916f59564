"""The steps that changed nothing because their loss was not finite, from rank 0's metrics into run.json and the record.

They stand with their tokens and sequences in `data`: the run passed over them, so that they are within
`tokens_trained`, and learnt nothing from them.
"""

from typing import Any

from energy.runs import RunFolder

NAMED = 1000  # of so many the sequences are named; a run that skips more has other troubles


def keep_skipped(folder: RunFolder) -> None:
    """Puts `steps_skipped`, `tokens_skipped` and `skipped` into run.json's data, where any step was skipped.

    A step that a later attempt did again counts as what it came to at last.
    """
    events = [event for event in folder.events() if event.get("event") in ("step", "skipped")]
    last = {event["step"]: event for event in events}
    reached = events[-1]["step"] if events else 0
    skipped = [last[step] for step in sorted(last) if last[step]["event"] == "skipped" and step <= reached]
    data: dict[str, Any] = dict(folder.read_run().get("data") or {})
    before = dict(data)
    for key in ("steps_skipped", "tokens_skipped", "skipped"):
        data.pop(key, None)
    if skipped:
        keys = ("step", "reason", "first_sequence", "last_sequence")
        data |= {
            "steps_skipped": len(skipped),
            "tokens_skipped": sum(event["tokens"] for event in skipped),
            "skipped": [{key: event[key] for key in keys} for event in skipped[:NAMED]],
        }
    if data != before:
        folder.update_run(data=data)

"""What a run computes with, as its ranks decided: taken from rank 0's metrics into run.json, and said in one line."""

from typing import Any

from energy.runs import RunFolder

Choices = dict[str, Any]


def keep_choices(folder: RunFolder, attempt: int) -> Choices | None:
    """Puts what the ranks of `attempt` compute with into run.json as `training`; None while they have not said."""
    told = [event for event in folder.events() if event.get("event") == "choices"]
    said = [event for event in told if event.get("attempt") == attempt]
    if not said:
        return None
    choices = {key: value for key, value in said[-1].items() if key not in ("event", "attempt")}
    # A run may go on with another: what the attempts before computed twice stays as it was.
    kept = {str(event["attempt"]): event["activation_checkpointing"] for event in told}
    folder.update_run(training=choices, checkpointing_of_attempts=kept)
    return choices


def in_words(choices: Choices) -> str:
    """For the screen: what is kept and recomputed, which attention, how the ranks are laid out."""
    layout = choices["layout"]
    more = {"replicas": "replicas", "tensor": "tensor parallel"}
    grid = [f"shards {layout['shards']}", *(f"{name} {layout[key]}" for key, name in more.items() if layout[key] > 1)]
    words = [
        f"activation checkpointing {choices['activation_checkpointing']} ({choices['why']})",
        f"attention {choices['attention']}",
        f"{choices['dtype']}{', compiled' if choices['compile'] else ''}",
        " x ".join(grid),
    ]
    if choices["gradient_reduction"] == "each_micro_batch":
        words.append("gradients reduced with each micro-batch")
    if choices["weight_gathering"] == "once_per_step" and layout["shards"] > 1:
        words.append("weights gathered once a step")
    return "; ".join(words)

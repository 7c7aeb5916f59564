"""Whether a storage takes copies, asked in a process of its own, which can be given up when no answer comes.

pyarrow's S3 cannot: a process that has asked it does not even end before it was answered.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

_ABOVE = Path(__file__).parents[2]  # the rooms lie in it


def refusal_here(uri: str, run_id: str | None, limit_s: float) -> str | None:
    """Why no copies can be written to `uri` from this machine with this environment, in words; None where they can.

    Without a run's id only whether there is such a kind of storage.
    """
    path = os.pathsep.join(filter(None, (str(_ABOVE), os.environ.get("PYTHONPATH"))))
    try:
        asked = subprocess.run(
            [sys.executable, "-P", "-m", "orchestrator.checkpoints.probe", uri, *([run_id] if run_id else [])],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=limit_s,
            env=os.environ | {"PYTHONPATH": path},
        )
    except subprocess.TimeoutExpired:
        return f"checkpoint.copy_to {uri} does not answer within {limit_s:g} s: see whether it can be reached from here"
    if asked.returncode != 0:
        said = asked.stderr.strip().splitlines() or [f"exit code {asked.returncode}"]
        return f"checkpoint.copy_to {uri} could not be tried: {said[-1]}"
    refusal: str | None = json.loads(asked.stdout.splitlines()[-1])
    return refusal


def _ask(uri: str, run_id: str | None = None) -> str | None:
    from orchestrator.checkpoints.copies import Copies, require_kind

    try:
        if run_id is None:
            require_kind(uri)
        else:
            Copies(uri, run_id).require_writable()
    except ValueError as refusal:
        return str(refusal)
    return None


if __name__ == "__main__":
    print(json.dumps(_ask(*sys.argv[1:])))

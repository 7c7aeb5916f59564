"""Which revision of the code runs, also where the code came without its repository."""

import os
import subprocess
from pathlib import Path

SHIPPED = "HOOFPRINT_CODE_REVISION"  # in the environment of a job whose code travelled with it


def code_revision() -> str | None:
    """The commit of the code that runs, with a mark when the tree was changed; None outside a checkout."""
    if shipped := os.environ.get(SHIPPED):
        return shipped
    here = Path(__file__).resolve().parent
    command = ["git", "-C", str(here), "describe", "--always", "--dirty", "--abbrev=40"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None

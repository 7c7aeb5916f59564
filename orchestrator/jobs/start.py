"""The first thing that a submitted job runs on the cluster: whether the cluster has what the code needs.

    python -m orchestrator.jobs.start run SPEC ...

Then it is `hoofprint` with the rest of the arguments. Until the checks are done it keeps to what an older Python reads
(3.6 and later) and imports nothing of ours, so that what is wrong is told in words and not by a syntax error.
"""

import sys

PYTHON = (3, 11)
BAD_INPUT = 2


def too_old(version):
    """What to say of a Python of this version; None where it will do."""
    if tuple(version[:2]) >= PYTHON:
        return None
    return f"the cluster's Python is {version[0]}.{version[1]} and hoofprint needs {PYTHON[0]}.{PYTHON[1]} or later"


def unmet(requirements, installed):
    """Each requirement that the cluster does not meet, with what is there instead.

    installed: the version of a distribution by name, or None.
    """
    from packaging.requirements import Requirement

    lacking = []
    for text in requirements:
        requirement = Requirement(text)
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        there = installed(requirement.name)
        if there is None or not requirement.specifier.contains(there, prereleases=True):
            lacking.append(f"{requirement} ({'not there' if there is None else 'there is ' + there})")
    return lacking


def main():
    """Ends with exit code 2, and every lack at once, before anything is started; else runs the command line."""
    fault = too_old(sys.version_info)
    if fault is None:
        from importlib import metadata

        def installed(name):
            try:
                return metadata.version(name)
            except metadata.PackageNotFoundError:
                return None

        lacking = unmet(metadata.requires("hoofprint") or [], installed)
        fault = "the cluster lacks " + ", ".join(lacking) if lacking else None
    if fault is not None:
        sys.stderr.write(
            f"hoofprint: {fault}; nothing was started\n"
            "  use an image that has it (experiments/clusters/Dockerfile), or let the job install it: "
            "hoofprint submit --install\n"
        )
        sys.exit(BAD_INPUT)
    from orchestrator.cli import main as command_line

    command_line()


if __name__ == "__main__":
    main()

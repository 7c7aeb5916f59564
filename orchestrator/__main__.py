"""`python -m orchestrator`: the command line where no `hoofprint` is installed, only the code."""

from orchestrator.cli import main

main()

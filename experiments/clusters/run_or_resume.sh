#!/usr/bin/env bash
# Starts a run, or goes on with it where it has begun: the one command that a scheduler can repeat after a failure.
#   run_or_resume.sh SPEC RUNS_DIR RUN [more options of hoofprint run]
# A run that was stopped on purpose (exit code 130, or 3 by a budget) ends with 0, so that no scheduler starts it again;
# a complete one too.
set -uo pipefail
if [ "$#" -lt 3 ]; then
  echo "usage: $0 SPEC RUNS_DIR RUN [options of hoofprint run]" >&2
  exit 2
fi
spec=$1 runs=$2 run=$3
shift 3

status=$(sed -n 's/^  "status": "\([a-z]*\)".*/\1/p' "$runs/$run/run.json" 2>/dev/null)
if [ "$status" = completed ]; then
  echo "$runs/$run is complete" >&2
  exit 0
elif [ -n "$status" ]; then
  begin=(--resume "$runs/$run")
else
  begin=(--name "$run")
fi

# A stop goes to this shell too: it waits for the run, which checkpoints and reports first.
trap : TERM INT
hoofprint run "$spec" --runs "$runs" "${begin[@]}" "$@"
code=$?
case $code in
  3 | 130) exit 0 ;;
  *) exit "$code" ;;
esac

#!/usr/bin/env bash
# A Ray cluster of whole SLURM nodes for one run. Submit it again, or let SLURM requeue it, and the run goes on.
#   sbatch --nodes=4 experiments/clusters/slurm.sh SPEC RUN [more options of hoofprint run]
# in the root of the repository, or `sbatch slurm.sh ...` in this folder; elsewhere HOOFPRINT_CLUSTERS must name this folder.
# Set HOOFPRINT_RUNS to a folder that every node reaches (default: ./runs), and activate an environment with hoofprint
# before sbatch. SPEC counts its workers as GPUs: give --set cluster.nodes=4 with --nodes=4.
#SBATCH --job-name=hoofprint
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --exclusive
#SBATCH --mem=0
#SBATCH --time=24:00:00
#SBATCH --signal=B:USR1@900
#SBATCH --requeue
#SBATCH --open-mode=append
set -euo pipefail
if [ "$#" -lt 2 ]; then
  echo "usage: sbatch $0 SPEC RUN [options of hoofprint run]" >&2
  exit 2
fi
spec=$1 run=$2
shift 2
# SLURM runs a copy of this file from its spool folder: the other script is found from where sbatch was typed.
beside=${SLURM_SUBMIT_DIR:-$PWD}
[ -x "$beside/run_or_resume.sh" ] || beside+=/experiments/clusters
beside=${HOOFPRINT_CLUSTERS:-$beside}
if [ ! -x "$beside/run_or_resume.sh" ]; then
  echo "$beside has no run_or_resume.sh that can be run: type sbatch beside slurm.sh or in the root of the repository," \
    "or set HOOFPRINT_CLUSTERS to the folder of both; nothing was started" >&2
  exit 2
fi
runs=${HOOFPRINT_RUNS:-$PWD/runs}
mkdir -p "$runs"

# Whoever reaches Ray's port can run code as you: a token of this job's own keeps the other users of the network out.
export RAY_AUTH_MODE=token
export RAY_AUTH_TOKEN_PATH="$runs/.ray-token-$SLURM_JOB_ID"
cluster=()
clean_up() {
  kill -TERM "${cluster[@]}" 2> /dev/null || true
  wait "${cluster[@]}" 2> /dev/null || true
  rm -f "$RAY_AUTH_TOKEN_PATH"
  cluster=()
}
trap clean_up EXIT
(umask 077 && head -c 32 /dev/urandom | od -An -tx1 | tr -d ' \n' > "$RAY_AUTH_TOKEN_PATH")

# Since SLURM 22.05 srun does not take it from sbatch, and may bind Ray, with all that it starts, to one CPU.
export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK
mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
head=${nodes[0]}
# The address of the head's name, else the first that it has: IPv4, and one that others reach (Debian writes 127.0.1.1 into
# /etc/hosts; 169.254 is how a machine talks to its own management controller).
# shellcheck disable=SC2016 # for the shell on the head
its_addresses='getent ahostsv4 "$(hostname)"; hostname -I | tr " " "\n"'
ip=$(srun --overlap --nodes=1 --ntasks=1 --nodelist="$head" bash -c "$its_addresses" |
  awk '!found && $1 ~ /^[0-9]+\.[0-9.]+$/ && $1 !~ /^(127|169\.254)\./ { print $1; found = 1 }')
if [ -z "$ip" ]; then
  echo "$head has no IPv4 address that other nodes can reach (getent ahostsv4, hostname -I); nothing was started" >&2
  exit 1
fi
address=$ip:6379
# The other nodes need no --node-ip-address: Ray takes the address from which they reach the head.
srun --overlap --nodes=1 --ntasks=1 --nodelist="$head" ray start --head --block --node-ip-address="$ip" --port=6379 \
  --disable-usage-stats --num-gpus="${SLURM_GPUS_ON_NODE:-8}" &
cluster=("$!")
if [ "${#nodes[@]}" -gt 1 ]; then
  others=$((${#nodes[@]} - 1))
  sleep "${HOOFPRINT_HEAD_START_S:-10}"
  srun --overlap --nodes="$others" --ntasks="$others" --exclude="$head" \
    ray start --block --address="$address" --num-gpus="${SLURM_GPUS_ON_NODE:-8}" &
  cluster+=("$!")
fi
export RAY_ADDRESS=$address
python - "${#nodes[@]}" << 'PYTHON'
import sys
import time

import ray

wanted, until = int(sys.argv[1]), time.monotonic() + 600
while True:
    try:
        ray.init(log_to_driver=False, logging_level="ERROR")
        there = sum(node["Alive"] for node in ray.nodes())
        ray.shutdown()
    except (ConnectionError, RuntimeError):
        there = 0
    if there >= wanted:
        break
    if time.monotonic() > until:
        sys.exit(f"{there} of {wanted} nodes have joined Ray in ten minutes")
    time.sleep(2)
PYTHON

out_of_time=
# shellcheck disable=SC2329 # by the traps below
ask_to_stop() {
  # Without a run folder yet there is nothing to lose: the run itself is ended.
  hoofprint stop "$run" --runs "$runs" --no-wait || pkill -TERM --parent "$driver" || true
}
# 15 minutes before the time limit (--signal): checkpoint, record and report, and then another turn of this job. TERM, by
# `scancel --batch --signal=TERM`: no other turn. A plain scancel, and a preemption, end Ray at once.
trap 'out_of_time=yes; ask_to_stop' USR1
trap ask_to_stop TERM
"$beside/run_or_resume.sh" "$spec" "$runs" "$run" "$@" &
driver=$!
code=0
while kill -0 "$driver" 2> /dev/null; do
  code=0
  wait "$driver" || code=$? # a signal ends the wait, not the run
done

clean_up
if [ -n "$out_of_time" ] && ! grep -qs '^  "status": "completed"' "$runs/$run/run.json"; then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"

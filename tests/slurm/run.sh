#!/usr/bin/env bash
# A rendered job on a real SLURM of two virtual nodes: preempted, queued again, finished; cancelled; failing.
#
# usage: tests/slurm/run.sh       PYTHON=.venv/bin/python picks an interpreter that has csfm_jax's dependencies
#
# Needs root and Debian's packages: apt-get install --no-install-recommends slurm-wlm munge
# Exits with 0 when all is as expected, 1 when not, 2 when something that it needs is missing.
#
# Nothing of it stays: configuration, key, spool and logs are in a temporary folder; /etc/hosts is overlaid in a mount
# namespace of its own (SLURM names nodes, and JAX must find the first by its name); every daemon lives in a process
# namespace that ends with this script. Three to eight minutes on two cores.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)

missing=()
[ "$(id -u)" -eq 0 ] || missing+=("root")
for tool in munged slurmctld slurmd sbatch unshare; do
  command -v "$tool" >/dev/null || missing+=("$tool")
done
if [ ${#missing[@]} -gt 0 ]; then
  echo "tests/slurm/run.sh: not run; missing: ${missing[*]}" >&2
  echo "expected root, and: apt-get install --no-install-recommends slurm-wlm munge" >&2
  exit 2
fi
if [ -z "${CSFM_SLURM_TEST:-}" ]; then
  CSFM_SLURM_TEST=$(mktemp -d)
  export CSFM_SLURM_TEST
  trap 'rm -rf "$CSFM_SLURM_TEST"' EXIT
  unshare --mount --pid --fork --kill-child --mount-proc "${BASH_SOURCE[0]}"
  exit
fi
cd "$CSFM_SLURM_TEST"

say() { printf '\n== %s\n' "$*"; }
fail() {
  echo "FAILED: $*" >&2
  tail -n 40 ./*.log >&2 || true
  exit 1
}
# until_true SECONDS COMMAND...: gives up after so long
until_true() {
  local end=$((SECONDS + $1))
  shift
  until "$@"; do
    [ "$SECONDS" -lt "$end" ] || fail "waited in vain for: $*"
    sleep 0.2
  done
}

start_slurm() {
  printf '127.0.0.1 localhost n0 n1 %s\n' "$(hostname)" >hosts
  mount --bind hosts /etc/hosts
  mkdir -p munge spool/n0 spool/n1 state
  head -c 128 /dev/urandom >munge/key
  chmod 700 munge
  chmod 600 munge/key
  munged --force --key-file="$PWD/munge/key" --socket="$PWD/munge/socket" --pid-file="$PWD/munge/pid" \
    --log-file="$PWD/munge/log" --seed-file="$PWD/munge/seed"
  cat >slurm.conf <<CONF
ClusterName=test
SlurmctldHost=localhost
SlurmctldPort=17000
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket=$PWD/munge/socket
CryptoType=crypto/munge
StateSaveLocation=$PWD/state
SlurmdSpoolDir=$PWD/spool/%n
SlurmctldPidFile=$PWD/slurmctld.pid
SlurmdPidFile=$PWD/slurmd-%n.pid
SlurmctldLogFile=$PWD/slurmctld.log
SlurmdLogFile=$PWD/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
ReturnToService=2
KillWait=60
NodeName=n[0-1] NodeHostname=localhost NodeAddr=127.0.0.1 Port=[17001-17002] CPUs=2 RealMemory=1000
PartitionName=test Nodes=ALL Default=YES MaxTime=INFINITE State=UP
CONF
  export SLURM_CONF=$PWD/slurm.conf
  slurmctld
  slurmd -N n0
  slurmd -N n1
  until_true 60 nodes_idle
}
nodes_idle() { [ "$(sinfo --noheader --states=IDLE --format=%D)" = 2 ]; }

make_run() {
  mkdir -p bin
  # the csfm of this checkout, whatever is installed
  printf '#!/bin/sh\nPYTHONPATH=%q exec %q -m csfm_jax.cli "$@"\n' "$root" "$(command -v "${PYTHON:-python3}")" >bin/csfm
  chmod +x bin/csfm
  export PATH=$PWD/bin:$PATH JAX_COMPILATION_CACHE_DIR=$PWD/compiled JAX_DISABLE_MOST_OPTIMIZATIONS=true
  cat >long.py <<CONFIG
from tests.tiny import get_config as tiny


def get_config():
    c = tiny()
    c.training.steps, c.training.log_every, c.training.save_every, c.training.eval_every = 400, 1, 50, 1000
    return c
CONFIG
  csfm prepare --source=simulated:subjects=24,seed=0 --output=stores
}

# submit NAME STORES: renders, submits; sets $job
submit() {
  csfm launch render --target=slurm --nodes=2 --gpus=0 --cpus=1 --time=30 --name="$1" --config=long.py \
    --workdir="$1" --stores="$2" --output="rendered-$1"
  job=$(sbatch --parsable "rendered-$1/train.sbatch")
}
last_step() { tail -n 1 "$1/metrics.jsonl" 2>/dev/null | sed -n 's/.*"step": *\([0-9]*\).*/\1/p'; }
reached() { [ "$(last_step "$1")" -ge "$2" ] 2>/dev/null; }
field() { scontrol show job "$job" | tr ' ' '\n' | sed -n "s/^$1=//p" | head -n 1; }
state_is() { [ "$(field JobState)" = "$1" ]; }
ended() { case $(field JobState) in COMPLETED | FAILED | CANCELLED | TIMEOUT | NODE_FAIL) ;; *) return 1 ;; esac }

say "SLURM $(slurmctld -V)"
start_slurm
sinfo
make_run

say "a run that is preempted is queued again and finishes"
submit whole stores
until_true 180 reached whole 20
scancel --signal=USR1 --batch "$job"
until_true 90 state_is PENDING
stopped_at=$(last_step whole)
echo "queued again at step $stopped_at"
[ "$stopped_at" -lt 400 ] || fail "it was over before it was preempted"
[ -e "whole/checkpoints/$stopped_at.manifest.json" ] || fail "no checkpoint of step $stopped_at"
# SLURM itself waits two minutes, so that a node does not refuse the job as the one that it has just ended
sleep 5
scontrol update JobId="$job" StartTime=now
until_true 240 ended
cat "whole-$job.log"
[ "$(field JobState) $(field ExitCode) $(field Restarts)" = "COMPLETED 0:0 1" ] ||
  fail "found $(field JobState), exit $(field ExitCode), $(field Restarts) restarts; expected COMPLETED, 0:0, 1"
grep -q "steps: $stopped_at done of 400" "whole-$job.log" || fail "it did not go on from step $stopped_at"
grep -q "devices: 2 x cpu" "whole-$job.log" || fail "it did not run on both nodes"
sed 's/.*"step": *\([0-9]*\).*/\1/' whole/metrics.jsonl | diff - <(seq 400) || fail "not every step exactly once"

say "SIGTERM to the processes alone, as a partition that preempts with a grace time sends it"
submit grace stores
until_true 180 reached grace 20
scancel --signal=TERM "$job"
until_true 90 state_is PENDING
scancel "$job"

say "a run that is cancelled stays so, and has saved"
submit cancelled stores
until_true 180 reached cancelled 20
scancel "$job"
until_true 90 state_is CANCELLED
sleep 2
state_is CANCELLED || fail "found $(field JobState); expected CANCELLED"
[ -e "cancelled/checkpoints/$(last_step cancelled).manifest.json" ] || fail "cancelled without a checkpoint"

say "a run that fails is not queued again, and its exit code is the job's"
submit failing no-such-stores
until_true 120 ended
[ "$(field JobState) $(field ExitCode) $(field Restarts)" = "FAILED 2:0 0" ] ||
  fail "found $(field JobState), exit $(field ExitCode), $(field Restarts) restarts; expected FAILED, 2:0, 0"
say "all as expected"

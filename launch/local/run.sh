#!/usr/bin/env bash
# @{processes} processes of one run on this machine. SIGTERM or Ctrl-C stops and saves; the same command goes on.
set -uo pipefail

# A run without its accelerator ends with an error; left to itself, JAX would go on with the CPU.
export JAX_PLATFORMS=@{platforms}
export XLA_FLAGS=@{xla_flags}" ${XLA_FLAGS:-}" # csfm_jax/platform_flags.py has the reasons; your own come last, and count
export XLA_PYTHON_CLIENT_MEM_FRACTION=${XLA_PYTHON_CLIENT_MEM_FRACTION:-@{gpu_memory}}
# JAX learns from SLURM's variables who takes part; here this script says it.
export SLURM_JOB_ID=$$ SLURM_STEP_NODELIST=localhost SLURM_NTASKS=@{processes}
device_ids=(
  @{device_ids}
)

train=(
  @{train}
)

running=()
trap 'kill -TERM "${running[@]}" 2>/dev/null' TERM INT
for ((i = 0; i < @{processes}; i++)); do
  SLURM_PROCID=$i SLURM_LOCALID=$i JAX_LOCAL_DEVICE_IDS=${device_ids[i]} "${train[@]}" &
  running+=($!)
done

# The exit code is that of the first process that fails; the others cannot go on without it.
result=0
while [ ${#running[@]} -gt 0 ]; do
  wait -n # for the end of one of them, or a signal
  left=()
  for pid in "${running[@]}"; do
    if kill -0 "$pid" 2>/dev/null; then
      left+=("$pid")
    elif wait "$pid"; code=$?; [ "$code" -ne 0 ] && [ "$result" -eq 0 ]; then
      result=$code
    fi
  done
  running=("${left[@]}")
  [ "$result" -eq 0 ] || [ ${#running[@]} -eq 0 ] || kill -KILL "${running[@]}" 2>/dev/null
done
exit "$result"

# shellcheck shell=bash
# Sourced by the other scripts: `on_workers COMMAND...` runs a command on every worker of every slice at once.
nodes=(
  csfm-base
)

on_workers() {
  local remote node pids=() failed=0
  remote=$(printf '%q ' "$@")
  for node in "${nodes[@]}"; do
    gcloud compute tpus tpu-vm ssh "$node" \
      --project=my-lab --zone=us-west4-a --worker=all --command="$remote" &
    pids+=($!)
  done
  for pid in "${pids[@]}"; do wait "$pid" || failed=1; done
  return "$failed"
}

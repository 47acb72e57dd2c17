#!/usr/bin/env bash
# Asks for @{slices} x @{topology} (@{chips} chips) and waits until they are there, however long the queue.
set -euo pipefail
create=(
  gcloud compute tpus queued-resources create @{name}
  --project=@{project}
  --zone=@{zone}
  --accelerator-type=@{type}
  --runtime-version=@{runtime}
  --node-id=@{single_node}
  --node-count=@{several_nodes}
  --node-prefix=@{node_prefix}
  --scopes=https://www.googleapis.com/auth/cloud-platform
  @{spot_flag}
)
"${create[@]}"
describe=(gcloud compute tpus queued-resources describe @{name} --project=@{project} --zone=@{zone})
while state=$("${describe[@]}" --format='value(state.state)') && [ "$state" != ACTIVE ]; do
  case $state in
    FAILED | SUSPENDING | SUSPENDED)
      echo "found state $state; delete.sh, then create.sh asks again" >&2
      exit 1
      ;;
  esac
  echo "$(date +%T) $state"
  sleep "${POLL_SECONDS:-30}"
done
echo "ACTIVE; next: setup.sh, then run.sh"

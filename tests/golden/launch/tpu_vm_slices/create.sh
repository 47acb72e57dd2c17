#!/usr/bin/env bash
# Asks for 2 x v5p:4x4x4 (128 chips) and waits until they are there, however long the queue.
set -euo pipefail
create=(
  gcloud compute tpus queued-resources create csfm-base
  --project=my-lab
  --zone=us-west4-a
  --accelerator-type=v5p-128
  --runtime-version=v2-alpha-tpuv5
  --node-count=2
  --node-prefix=csfm-base
  --scopes=https://www.googleapis.com/auth/cloud-platform
)
"${create[@]}"
describe=(gcloud compute tpus queued-resources describe csfm-base --project=my-lab --zone=us-west4-a)
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

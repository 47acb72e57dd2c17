#!/usr/bin/env bash
# Asks for 1 x v5e:16x16 (256 chips) and waits until they are there, however long the queue.
set -euo pipefail
create=(
  gcloud compute tpus queued-resources create csfm-base
  --project=my-lab
  --zone=us-west4-a
  --accelerator-type=v5litepod-256
  --runtime-version=v2-alpha-tpuv5-lite
  --node-id=csfm-base
  --scopes=https://www.googleapis.com/auth/cloud-platform
  --spot
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

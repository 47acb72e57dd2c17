#!/usr/bin/env bash
# Submits 2 x v5e:8x8 (128 chips). xpk writes the JobSet; the chips are named here and nowhere else.
set -euo pipefail
train=(
  csfm
  train
  --config=csfm_base
  --workdir=gs://lab/runs/base
  --distributed
  --stopped-code=75
  --config.data.stores=gs://lab/stores
  --config.mesh.replica=-1
  --config.mesh.data=1
)
create=(
  xpk workload create
  --workload=csfm-base
  --cluster=pods
  --project=my-lab
  --zone=us-west4-a
  --tpu-type=v5litepod-64
  --num-slices=2
  --docker-image=us-docker.pkg.dev/lab/images/csfm:1
  # every preemption counts as one
  --max-restarts=100
  # what csfm train has to finish its step and save after SIGTERM
  --termination-grace-period-seconds=300
  # exit code of a run that a signal stopped
  --restart-on-exit-codes=75
)
# exec: xpk passes SIGTERM to the shell that runs the command, which is then csfm itself
"${create[@]}" --command="exec $(printf '%q ' "${train[@]}")"

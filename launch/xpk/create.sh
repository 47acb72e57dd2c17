#!/usr/bin/env bash
# Submits @{slices} x @{topology} (@{chips} chips). xpk writes the JobSet; the chips are named here and nowhere else.
set -euo pipefail
train=(
  @{train}
)
create=(
  xpk workload create
  --workload=@{name}
  --cluster=@{cluster}
  --project=@{project}
  --zone=@{zone}
  --tpu-type=@{type}
  --num-slices=@{slices}
  --docker-image=@{image}
  # every preemption counts as one
  --max-restarts=100
  # what csfm train has to finish its step and save after SIGTERM
  --termination-grace-period-seconds=300
  # exit code of a run that a signal stopped
  --restart-on-exit-codes=@{stopped_code}
  @{one_process_flag}
  @{spot_flag}
)
# exec: xpk passes SIGTERM to the shell that runs the command, which is then csfm itself
"${create[@]}" --command="exec $(printf '%q ' "${train[@]}")"

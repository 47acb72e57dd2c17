#!/usr/bin/env bash
# Follows the output of the first worker, which is the one that speaks. Ctrl-C ends the watching, not the training.
set -euo pipefail
exec gcloud compute tpus tpu-vm ssh @{first_node} \
  --project=@{project} --zone=@{zone} --worker=0 --command="sudo docker logs --follow --tail=100 "@{name}

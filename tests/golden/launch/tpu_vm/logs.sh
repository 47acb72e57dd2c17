#!/usr/bin/env bash
# Follows the output of the first worker, which is the one that speaks. Ctrl-C ends the watching, not the training.
set -euo pipefail
exec gcloud compute tpus tpu-vm ssh csfm-base \
  --project=my-lab --zone=us-west4-a --worker=0 --command="sudo docker logs --follow --tail=100 "csfm-base

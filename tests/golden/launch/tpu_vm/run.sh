#!/usr/bin/env bash
# Starts training on every worker and returns; watch it with logs.sh. It goes on where the run stopped.
set -euo pipefail
# shellcheck source=/dev/null
source "$(dirname "${BASH_SOURCE[0]}")/workers.sh"
train=(
  csfm
  train
  --config=csfm_base
  --workdir=gs://lab/runs/base
  --distributed
  --stopped-code=75
  --config.data.stores=gs://lab/stores
)
# What an earlier run left is removed; one that still runs is not, and `docker run` then says so.
on_workers sudo docker container prune --force
# The host's network: JAX finds the other workers through the machine's metadata server. A worker that fails takes the
# others with it; each is started again, at most ten times, and all go on from the last checkpoint. The host's shared
# memory: worker processes hand batches over in it, and a container's own is 64 MB.
on_workers sudo docker run --detach --init --name csfm-base --privileged --network=host --ipc=host \
  --restart=on-failure:10 --log-opt max-size=100m us-docker.pkg.dev/lab/images/csfm:1 "${train[@]}"

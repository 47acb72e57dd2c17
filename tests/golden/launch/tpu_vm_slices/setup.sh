#!/usr/bin/env bash
# Pulls the image on every worker. Again after every create.sh: a new machine is empty.
set -euo pipefail
# shellcheck source=/dev/null
source "$(dirname "${BASH_SOURCE[0]}")/workers.sh"
on_workers sudo gcloud auth configure-docker --quiet us-docker.pkg.dev
on_workers sudo docker pull us-docker.pkg.dev/lab/images/csfm:1

#!/usr/bin/env bash
# Builds the image and pushes it to where the machines pull it from.      usage: build.sh CHECKOUT_OF_CSFM_JAX
set -euo pipefail
checkout=$1
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
docker build --build-context source="$checkout" --tag us-docker.pkg.dev/lab/images/csfm:1 "$here"
docker push us-docker.pkg.dev/lab/images/csfm:1

#!/usr/bin/env bash
# Every worker finishes its step, saves, and ends; run.sh goes on from there.
set -euo pipefail
# shellcheck source=/dev/null
source "$(dirname "${BASH_SOURCE[0]}")/workers.sh"
on_workers sudo docker stop --time=300 csfm-base

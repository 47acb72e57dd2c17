#!/usr/bin/env bash
# Ends the workload; the run's folder stays, and create.sh goes on from its last checkpoint.
set -euo pipefail
exec xpk workload delete --workload=csfm-base --cluster=pods --project=my-lab --zone=us-west4-a

#!/usr/bin/env bash
# Ends the workload; the run's folder stays, and create.sh goes on from its last checkpoint.
set -euo pipefail
exec xpk workload delete --workload=@{name} --cluster=@{cluster} --project=@{project} --zone=@{zone}

#!/usr/bin/env bash
# Gives the machines back; the run's folder and its stores stay where they are.
set -euo pipefail
gcloud compute tpus queued-resources delete csfm-base --project=my-lab --zone=us-west4-a --force --quiet

#!/usr/bin/env bash
# Every stage once: prepare, inspect, pretrain, interrupt and resume, evaluate, draw, export.
# usage: demo.sh RUN_FOLDER [RECORDINGS]      A stage whose result is there is not done again.
set -euo pipefail
run=$1 recordings=${2:-}
stores=$run/stores work=$run/csfm_nano
mkdir -p "$run"

say() { printf '\n== %s\n' "$*"; }
step() { tail -n 1 "$work/metrics.jsonl" 2>/dev/null | sed -n 's/.*"step": *\([0-9]*\).*/\1/p'; }
reached() { local now; now=$(step); [ -n "$now" ] && [ "$now" -ge "$1" ]; }

if [ -n "$recordings" ]; then
  source=$recordings steps=2500 drawn=$recordings labels='superclass/*'
  # subjects of recordings that are not a public dataset are hashed with a secret of one's own, made once
  key=(--new-key="$run/site.key"); [ -e "$run/site.key" ] && key=(--key-file="$run/site.key")
else
  source=simulated:subjects=240 steps=650 drawn=simulated:subjects=1,seed=3 labels='rhythm/*,heart_rate' key=()
fi
stopped=75 # what a run that a signal has stopped ends with: the stages after it would read what is half trained
train=(csfm train --config=csfm_nano --workdir="$work" --config.data.stores="$stores" --config.training.steps="$steps"
  --stopped-code="$stopped")

say "recordings -> store"
csfm prepare --source="$source" --output="$stores" --keep-reports ${key[@]+"${key[@]}"}

say "what the store holds, and how its windows pack"
csfm data "$stores" --config=csfm_nano

say "pretraining"
if [ -z "$(step)" ]; then
  # the first run is stopped on purpose, as a scheduler would; the same command then goes on where it stopped
  "${train[@]}" & training=$!
  until reached 100 || ! kill -0 $training 2>/dev/null; do sleep 1; done
  kill -TERM $training 2>/dev/null && say "SIGTERM: it saves and stops; the same command resumes"
  wait $training || [ $? -eq "$stopped" ]
fi
"${train[@]}"

say "evaluation: linear probe against the same network at random initialisation"
probe=$(ls -d "$stores"/ptbxl* 2>/dev/null | paste -sd,) || true
if [ -n "$recordings" ] && [ -z "$probe" ]; then
  echo "no PTB-XL among these recordings; csfm evaluate --labels=... probes whatever labels yours have"
elif [ ! -e "$run/probe.json" ]; then
  csfm evaluate --checkpoint="$work" --store="${probe:-$stores}" --labels="$labels" --output="$run/probe.json"
fi

say "reconstruction on ECG paper"
[ -e "$run/reconstruction.png" ] || csfm show --checkpoint="$work" --input="$drawn" --output="$run/reconstruction.png"

say "export to PyTorch"
[ -e "$run/pytorch/manifest.json" ] || csfm export --checkpoint="$work" --output="$run/pytorch"
if python -c 'import torch' 2>/dev/null; then
  python "$run/pytorch/csfm_torch.py" --selfcheck
else
  echo "PyTorch is not installed; with it: python $run/pytorch/csfm_torch.py --selfcheck"
fi
say "done: $run"

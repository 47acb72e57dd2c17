#!/usr/bin/env bash
# A study of csfm_nano on real recordings: pretrained on train subjects, then compared with baselines.
# usage: evaluate.sh RUN_FOLDER RECORDINGS [--config.x.y=... of the fine-tunings, in place of those below]
# A stage that is done is not done again.
# RECORDINGS holds PTB-XL, and for the alarms the training set of the CinC Challenge 2015, as downloaded.
set -euo pipefail
run=$1 recordings=$2
shift 2
stores=$run/stores work=$run/csfm_nano
pretraining=${PRETRAINING:---config.training.steps=2500}
sources=${STUDY_STORES:-ptbxl*} alarms=${ALARM_STORES:-cinc2015*}
workers=${WORKERS:-0} # processes that measure features for trees
# A network of this size wants ten times the recipe's rate, and learns some hundred recordings by heart soon after that:
# docs/evaluation.md. Sixteen rows, for the baselines' sake, whose step of 64 takes two cores ten seconds.
[ $# -gt 0 ] || set -- --config.data.rows=16 --config.training.steps=150 --config.training.eval_every=25 \
  --config.training.keep_best=first --config.optimizer.learning_rate=1e-3
mkdir -p "$run"

say() { printf '\n== %s\n' "$*"; }

say "recordings -> store"
key=()
# subjects of recordings that are not a public dataset are hashed with a secret of one's own, made once
case $recordings in simulated*) ;; *) key=(--new-key="$run/site.key"); [ -e "$run/site.key" ] && key=(--key-file="$run/site.key") ;; esac
csfm prepare --source="$recordings" --output="$stores" ${key[@]+"${key[@]}"}

say "pretraining, on train subjects"
csfm train --config=csfm_nano --workdir="$work" --config.data.stores="$stores" $pretraining

. "$(dirname "$0")/held.sh"
models=linear:$work,attention:$work,finetuned:$work,scratch:csfm_nano,random:csfm_nano
failed=0

store=$(held "$sources")
if [ -n "$store" ]; then
  others=$(held "${OTHER_STORES:-code15* sph* echonext*}")
  say "the study: superclasses, sex and age, with twelve leads and fewer; sex and age at other hospitals"
  csfm evaluate --tasks="${STUDY_TASKS:-ptbxl_superclass,ptbxl_sex,ptbxl_age}" --store="$store" --workdir="$run/ptbxl" \
    --models="$models,benchmark_s4,benchmark_net1d,trees" --sensors="${STUDY_SENSORS:-all,6,3,2,1}" \
    --label-fractions="${LABEL_FRACTIONS:-1/64}" --similarity="linear:$work,finetuned:$work" \
    --workers="$workers" ${others:+--elsewhere="$others"} "$@" || failed=$?
fi
store=$(held "$alarms")
if [ -n "$store" ]; then
  say "false alarms, with ECG, pulse and both"
  csfm evaluate --tasks="${ALARM_TASKS:-cinc2015_false_alarm}" --store="$store" --workdir="$run/alarms" \
    --models="$models,trees" --sensors=all,ecg,ppg,ecg+ppg --workers="$workers" "$@" || failed=$?
fi
say "look at $run/*/report.html"
exit $failed

#!/usr/bin/env bash
# Studies of csfm_nano: pretrained on train subjects, then compared with baselines on test subjects; and pretrained
# without the studied people's sources, then compared in folds of these people.
# usage: evaluate.sh RUN_FOLDER RECORDINGS [--config.x.y=... of the fine-tunings, in place of those below]
# A stage that is done is not done again. A signal ends it with code 75, and what it has begun goes on next time.
# RECORDINGS holds PTB-XL, for the alarms the training set of the CinC Challenge 2015, and for the folds other sources
# of ECGs, as downloaded; or it is a simulated cohort.
set -euo pipefail
run=$1 recordings=$2
shift 2
stores=$run/stores
read -r -a pretraining <<<"${PRETRAINING:---config.training.steps=2500}"
read -r -a folds_pretraining <<<"${FOLDS_PRETRAINING:---config.training.steps=1500}"
folds=${FOLDS:-5} # 0 leaves them out: as many times the fine-tunings
workers=${WORKERS:-0} # processes that measure features for trees
# A network of this size wants ten times the recipe's rate, and learns some hundred recordings by heart soon after that:
# docs/evaluation.md. Sixteen rows, for the baselines' sake, whose step of 64 takes two cores ten seconds.
[ $# -gt 0 ] || set -- --config.data.rows=16 --config.training.steps=150 --config.training.eval_every=25 \
  --config.training.keep_best=first --config.optimizer.learning_rate=1e-3
fine_tuning=("$@")
mkdir -p "$run"
# shellcheck source=launch/held.sh
. "$(dirname "$0")/held.sh"

say() { printf '\n== %s\n' "$*"; }

pretrain() { # NAME, STORES, and words
  csfm train --config=csfm_nano --workdir="$run/$1" --config.data.stores="$2" --stopped-code="$stopped" "${@:3}"
}

study() { # NAME, pretraining, and words
  local work=$run/$2
  csfm evaluate --workdir="$run/$1" --workers="$workers" --tasks="$tasks" --store="$studied" \
    --models="linear:$work,attention:$work,finetuned:$work,scratch:csfm_nano,random:csfm_nano,$baselines" \
    --stopped-code="$stopped" "${@:3}" "${fine_tuning[@]}" || ended $?
}

say "recordings -> store"
key=()
# subjects of recordings that are not a public dataset are hashed with a secret of one's own, made once
case $recordings in simulated*) ;; *) key=(--new-key="$run/site.key"); [ -e "$run/site.key" ] && key=(--key-file="$run/site.key") ;; esac
csfm prepare --source="$recordings" --output="$stores" ${key[@]+"${key[@]}"}

studied=$(held "${STUDY_STORES:-ptbxl* simulated* cinc2015*}")
tasks=${STUDY_TASKS:-$(tasks_of "$studied" 'ptbxl*/ptbxl_superclass,ptbxl_sex,ptbxl_age' \
  'simulated*/simulated_rhythm,simulated_heart_rate' 'cinc2015*/cinc2015_false_alarm')}
sensors=${STUDY_SENSORS:-all}
if [ -z "${STUDY_SENSORS:-}" ]; then # what no recording of any task has is refused
  case $tasks in *ptbxl_* | *simulated_*) sensors+=,6,3,2,1 ;; esac
  case $tasks in *cinc2015_* | *simulated_*) sensors+=,ecg,ppg,ecg+ppg ;; esac
fi
baselines=${BASELINES:-benchmark_s4,benchmark_net1d,trees}
if [ -z "$studied" ] || [ -z "$tasks" ]; then
  say "nothing was studied: $stores holds neither PTB-XL nor alarms; name stores and their tasks in STUDY_STORES and STUDY_TASKS"
  exit 1
fi

say "pretraining, on train subjects"
pretrain csfm_nano "$stores" "${pretraining[@]}"

others=$(held "${OTHER_STORES:-code15* sph* echonext*}")
say "the study: $tasks, with all sensors and fewer${others:+; sex and age at other hospitals}"
study fixed csfm_nano --sensors="$sensors" --label-fractions="${LABEL_FRACTIONS:-1/64}" \
  --similarity="linear:$run/csfm_nano,finetuned:$run/csfm_nano" ${others:+--elsewhere="$others"}

# whoever is tested in a fold is of a source that the encoder has seen nothing of
sources=$(held "${FOLDS_STORES:-cinc2021* code15* sph* bidmc* mitdb*}")
if [ "$folds" = 0 ]; then
  say "folds are left out, as FOLDS=0 says"
elif [ -z "$sources" ]; then
  say "folds are left out: $stores holds no other source to pretrain on; name some in FOLDS_STORES"
else
  say "pretraining for folds, on train subjects of other sources"
  pretrain csfm_nano_others "$sources" "${folds_pretraining[@]}"
  say "the study in $folds folds: $tasks"
  study folds csfm_nano_others --sensors="$sensors" --folds="$folds"
fi
say "look at $run/*/report.html"
exit $failed

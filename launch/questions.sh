#!/usr/bin/env bash
# Questions that CSFM's paper leaves to its readers, in small: what to hide, from how many sources, with which sensors,
# and what twelve leads bring to one. csfm_nano is pretrained in several ways for equally many steps; each is read by a
# linear probe and compared, patient by patient, with its question's default.
# usage: questions.sh RUN_FOLDER [--config.x.y=... of every pretraining]
# RUN_FOLDER/stores are those of evaluate.sh. A stage that is done is not done again, and a signal ends it with code 75,
# as there. STEPS=500 for each of the eleven pretrainings is about half an hour on two cores. Another number of steps
# needs another QUESTIONS folder.
set -euo pipefail
run=$1
shift
overrides=("$@")
stores=$run/stores work=${QUESTIONS:-$run/questions} steps=${STEPS:-500}
source=${SOURCE:-ptbxl} twelve=${TWELVE_LEADS:-ptbxl* code15* cinc2021* sph* echonext*}
for word in "$@"; do case $word in --config.training.steps=*) steps=${word#*=} ;; esac; done
# equal programs are compiled once, whatever is hidden
export JAX_COMPILATION_CACHE_DIR=$work/compilation_cache
mkdir -p "$JAX_COMPILATION_CACHE_DIR"
# shellcheck source=launch/held.sh
. "$(dirname "$0")/held.sh"

say() { printf '\n== %s\n' "$*"; }

pretrain() { # NAME, STORES, and how it differs from the default
  local name=$1 from=$2
  shift 2
  say "pretraining: $name"
  csfm train --config=csfm_nano --workdir="$work/$name" --config.data.stores="$from" \
    --config.tokens.modalities='("ecg", "ppg")' --config.training.steps="$steps" \
    --config.optimizer.warmup_steps=$((steps / 5)) --config.training.save_every=100 --stopped-code="$stopped" "$@" \
    ${overrides[@]+"${overrides[@]}"}
}

study() { # NAME, STORES, TASKS, words, pretrainings: the first is what the others are compared with
  local name=$1 from=$2 tasks=$3 more models='' one
  read -r -a more <<<"$4"
  shift 4
  say "$name: $*"
  for one in "$@"; do models+=linear:$work/$one,; done
  csfm evaluate --tasks="$tasks" --store="$from" --workdir="$work/$name" --stopped-code="$stopped" "${more[@]}" \
    --models="${models}random:$work/$1" || ended $?
}

but() { # STORES: all stores without these
  comm -23 <(held '*' | tr , '\n' | sort) <(tr , '\n' <<<"$1" | sort) | paste -sd, -
}

# how often each of several stores' recordings are taken, so that an epoch has as many windows as the first store's
weights() {
  python - "$@" <<'PYTHON'
import json, sys
manifests = [json.load(open(f"{store}/manifest.json", encoding="utf-8")) for store in sys.argv[1:]]
counts = [manifest["totals"]["splits"]["train"] for manifest in manifests]
for manifest in manifests:
    print(f"--config.data.weights.{manifest['name']}={counts[0] / sum(counts):.4f}")
PYTHON
}

only() { # the one way of hiding, or several; three quarters of all that is hidden are whole, so that nothing is random
  local way
  for way in random channel time modality; do
    case " $* " in *" $way "*) echo "--config.data.mask.weights.$way=1" ;; *) echo "--config.data.mask.weights.$way=0" ;; esac
  done
  echo --config.data.mask.structured=0.75
}

ecg_stores=$(held "${ECG_STORES:-ptbxl* simulated*}") pulse_stores=$(held "${PULSE_STORES:-cinc2015* vtac* simulated*}")
ecg_tasks=${ECG_TASKS:-$(tasks_of "$ecg_stores" 'ptbxl*/ptbxl_superclass,ptbxl_sex,ptbxl_age' 'simulated*/simulated_rhythm,simulated_heart_rate')}
pulse_tasks=${PULSE_TASKS:-$(tasks_of "$pulse_stores" 'cinc2015*/cinc2015_false_alarm' 'vtac*/vtac_false_alarm' 'simulated*/simulated_rhythm,simulated_heart_rate')}
one=$(held "$source") several=$(held "$twelve")
read_on_ecg=(default)

pretrain default "$stores"
for way in time channel "time channel"; do
  name=hiding_${way/ /_and_}
  # shellcheck disable=SC2046,SC2086
  pretrain "$name" "$stores" $(only $way)
  read_on_ecg+=("$name")
done
# one lead of every window, another one each time
pretrain one_lead "$stores" --config.data.augment.drop=1 --config.data.augment.probability=1
pretrain ecg "$stores" --config.tokens.modalities='("ecg",)'
read_on_ecg+=(one_lead ecg)
if [ -n "$one" ] && [ "$several" != "$one" ]; then
  # the store that is taken alone comes first, and is weighed once
  mapfile -t from < <(tr , '\n' <<<"$one,$several" | awk '!seen[$0]++')
  words=$(weights "${from[@]}")
  # shellcheck disable=SC2086
  pretrain several_sources "$(IFS=,; echo "${from[*]}")" $words
  pretrain one_source "$one"
  read_on_ecg+=(several_sources one_source)
else
  say "no second source of twelve leads: one source against several is left out"
fi
read_on_pulse=(default ecg ppg) pulse_words=--sensors=all,ecg,ppg elsewhere=$stores
if [ -n "$pulse_stores" ] && [ -n "$(held "${PULSE_SOURCES:-bidmc*}")" ]; then
  # so few people have alarms that they are read in folds, by networks that have seen none of them
  read_on_pulse=(default_elsewhere ecg_elsewhere ppg_elsewhere) pulse_words+=" --folds=5" elsewhere=$(but "$pulse_stores")
  pretrain default_elsewhere "$elsewhere"
  pretrain ecg_elsewhere "$elsewhere" --config.tokens.modalities='("ecg",)'
fi
if [ -n "$pulse_stores" ]; then
  # a pulse has few tokens: as many windows a row as fill it
  pretrain "${read_on_pulse[2]}" "$elsewhere" --config.tokens.modalities='("ppg",)' --config.data.row_windows=30
fi

if [ -n "$ecg_stores" ]; then
  study read_on_ecg "$ecg_stores" "$ecg_tasks" --sensors=all,1 "${read_on_ecg[@]}"
fi
if [ -n "${from:-}" ]; then # with the difference of the two, and sex and age of the other sources' people as well
  study sources "$several" "$ecg_tasks" --sensors=all,1 several_sources one_source
fi
if [ -n "$pulse_stores" ]; then
  study read_on_pulse "$pulse_stores" "$pulse_tasks" "$pulse_words" "${read_on_pulse[@]}"
else
  say "no store with ECG and PPG that a task reads: whether both are better than one is left out"
fi
say "look at $work/*/report.html"
exit $failed

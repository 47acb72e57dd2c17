# shellcheck shell=bash disable=SC2034,SC2154
# Sourced by evaluate.sh and questions.sh, which set $stores: a folder of stores, or of a single source the store itself.

stopped=75 # what a command that a signal has stopped ends with: the next one would read what it left unfinished
failed=0   # the last failure of a study, whose other figures stand

ended() { # CODE of a study
  [ "$1" -ne "$stopped" ] || exit "$1"
  failed=$1
}

name_of() { sed -n 's/^"name": "\(.*\)",*$/\1/p' "$1/manifest.json"; } # STORE

# held PATTERNS: the stores in $stores whose names match one of the patterns, joined by commas
held() {
  local pattern patterns store
  read -r -a patterns <<<"$*" # words, before the shell takes them for files here
  for pattern in ${patterns[@]+"${patterns[@]}"}; do
    for store in "$stores" "$stores"/*; do
      [ -e "$store/manifest.json" ] || continue
      # shellcheck disable=SC2254
      case $(name_of "$store") in $pattern) echo "$store" ;; esac
    done
  done | paste -sd, -
}

# tasks_of STORES PATTERN/TASKS...: the tasks of those of STORES (as held tells them) whose names match
tasks_of() {
  local of store pair found=''
  IFS=, read -r -a of <<<"$1"
  shift
  for pair in "$@"; do
    for store in ${of[@]+"${of[@]}"}; do
      # shellcheck disable=SC2254
      case $(name_of "$store") in ${pair%%/*}) found+=${pair#*/}, && break ;; esac
    done
  done
  echo "${found%,}"
}

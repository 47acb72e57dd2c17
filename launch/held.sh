# shellcheck shell=bash disable=SC2154
# Sourced by evaluate.sh and questions.sh. held PATTERNS: the stores in $stores whose names match one of the patterns,
# joined by commas; of a single source, $stores is the store itself.
held() {
  local pattern patterns store name
  read -r -a patterns <<<"$*" # words, before the shell takes them for files here
  for pattern in "${patterns[@]}"; do
    if [ -e "$stores/manifest.json" ]; then
      name=$(sed -n 's/^"name": "\(.*\)",*$/\1/p' "$stores/manifest.json")
      # shellcheck disable=SC2254
      case $name in $pattern) echo "$stores" ;; esac
    else
      for store in "$stores"/$pattern; do [ ! -e "$store/manifest.json" ] || echo "$store"; done
    fi
  done | paste -sd, -
}

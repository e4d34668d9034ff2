#!/usr/bin/env bash
# kathleen, a test set: a finished model without and with the list of names: run.sh --corpus DIR --model DIR [--use none,phrases]
set -euo pipefail
corpus='' model='' workdir=exp/kathleen use=none,phrases
options=()
while [ $# -gt 0 ]; do
  case "$1" in
    --corpus) corpus=$(realpath "${2:?--corpus needs a folder}"); shift 2 ;;
    --model) model=$(realpath "${2:?--model needs a folder}"); shift 2 ;;
    --workdir) workdir=$(realpath -m "${2:?--workdir needs a folder}"); shift 2 ;;
    --use) use=${2:?--use needs none, phrases, classes, with commas between}; shift 2 ;;
    *) options+=("$1"); shift ;;
  esac
done
cd "$(dirname "$0")/../.."
[ -n "$corpus" ] && [ -n "$model" ] || { echo "run.sh: give --corpus DIR and --model DIR" >&2; exit 2; }
[ -x .venv/bin/python ] || make install
data=$workdir/data
.venv/bin/python -m recipes.corpora kathleen --corpus "$corpus" --out "$data" "${options[@]}"
hypotheses=()
for system in ${use//,/ }; do
  .venv/bin/asr transcribe "$data/test/wav.scp" --model "$model" --entities "$data/entities.yaml" \
    --set "biasing=$system" --out "$workdir/$system" --format jsonl
  cp "$workdir/$system/results.jsonl" "$workdir/$system.jsonl"
  hypotheses+=("$workdir/$system.jsonl")
done
.venv/bin/asr score "$data/test/tagged" "${hypotheses[@]}" \
  --entities "$data/entities.yaml" --report "$workdir/report.html" --json "$workdir/RESULTS.json"

#!/usr/bin/env bash
# your own recordings from audio to the table: run.sh --corpus DIR [--stage N] [--stop-stage M] [--config FILE] [--set key=value]
set -euo pipefail
cd "$(dirname "$0")/../.."
config=egs/own/conf/ctc.yaml
workdir=exp/own
options=()
while [ $# -gt 0 ]; do
  case "$1" in
    --config) config=${2:?--config needs a file}; shift 2 ;;
    --workdir) workdir=${2:?--workdir needs a folder}; shift 2 ;;
    *) options+=("$1"); shift ;;
  esac
done
[ -x .venv/bin/python ] || make install
exec .venv/bin/python -m recipes "$config" --workdir "$workdir" "${options[@]}"

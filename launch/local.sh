#!/usr/bin/env bash
# One machine: all its chips, or its CPU.
#
#   launch/local.sh [--dry-run] --config experiments/llm/kd.py --workdir runs/kd [...]
#
# Everything but --dry-run goes to python -m distill_jax.train.
set -euo pipefail

dry_run=
train=("${PYTHON:-python}" -m distill_jax.train)
while (($#)); do
  case $1 in
    --help) sed -n '2,/^set/s/^# \{0,1\}//p' "$0"; exit ;;
    --dry-run) dry_run=1; shift ;;
    *) train+=("$1"); shift ;;
  esac
done

if [[ $dry_run ]]; then
  printf '%q ' "${train[@]}"; echo
else
  exec "${train[@]}"
fi

#!/usr/bin/env bash
# A Cloud TPU VM, or all the VMs of a slice that was made without GKE.
#
#   launch/tpu_vm.sh --name my-tpu --zone us-west4-a [--project p] [--folder distill_jax] [--dry-run]
#     --config ... --workdir ...
#
#   --folder  where this repository is on the VM
#
# The rest goes to python3 -m distill_jax.train, on every VM.
set -euo pipefail

name='' zone='' project='' folder=distill_jax dry_run=
train=(python3 -m distill_jax.train --processes -1)
while (($#)); do
  case $1 in
    --help) sed -n '2,/^set/s/^# \{0,1\}//p' "$0"; exit ;;
    --dry-run) dry_run=1; shift ;;
    --name) name=$2; shift 2 ;;
    --zone) zone=$2; shift 2 ;;
    --project) project=$2; shift 2 ;;
    --folder) folder=$2; shift 2 ;;
    *) train+=("$1"); shift ;;
  esac
done
[[ $name && $zone ]] || { echo "error: --name and --zone are needed" >&2; exit 2; }

run=(gcloud compute tpus tpu-vm ssh "$name" --zone "$zone" ${project:+--project "$project"}
  --worker all --command "cd $(printf %q "$folder") && exec $(printf '%q ' "${train[@]}")")
if [[ $dry_run ]]; then
  printf '%q ' "${run[@]}"; echo
else
  exec "${run[@]}"
fi

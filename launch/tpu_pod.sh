#!/usr/bin/env bash
# A TPU pod slice, or several, on GKE through xpk (pip install xpk).
#
#   launch/tpu_pod.sh --cluster c --name kd --tpu v5litepod-256 --image gcr.io/p/distill_jax
#     [--slices 1] [--restarts 10] [--project p] [--zone z] [--dry-run] --config ... --workdir ...
#
#   --image     a container with this package and its [tpu] extra
#   --slices    more than one needs --config.mesh.slices to match
#   --restarts  how often a preempted or failed job starts again, and so resumes
#
# The rest goes to python -m distill_jax.train, on every host.
set -euo pipefail

cluster='' name='' tpu='' image='' slices=1 restarts=10 place=() dry_run=
train=(python -m distill_jax.train --processes -1)
while (($#)); do
  case $1 in
    --help) sed -n '2,/^set/s/^# \{0,1\}//p' "$0"; exit ;;
    --dry-run) dry_run=1; shift ;;
    --cluster) cluster=$2; shift 2 ;;
    --name) name=$2; shift 2 ;;
    --tpu) tpu=$2; shift 2 ;;
    --image) image=$2; shift 2 ;;
    --slices) slices=$2; shift 2 ;;
    --restarts) restarts=$2; shift 2 ;;
    --project | --zone) place+=("$1" "$2"); shift 2 ;;
    *) train+=("$1"); shift ;;
  esac
done
[[ $cluster && $name && $tpu && $image ]] ||
  { echo "error: --cluster, --name, --tpu and --image are needed" >&2; exit 2; }

run=(xpk workload create --cluster "$cluster" ${place[@]+"${place[@]}"} --workload "$name"
  --tpu-type "$tpu" --num-slices "$slices" --docker-image "$image" --max-restarts "$restarts"
  --termination-grace-period-seconds 120 --command "$(printf '%q ' "${train[@]}")")
if [[ $dry_run ]]; then
  printf '%q ' "${run[@]}"; echo
else
  exec "${run[@]}"
fi

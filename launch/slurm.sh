#!/usr/bin/env bash
# A SLURM cluster: one process for each GPU.
#
#   launch/slurm.sh [--nodes 1] [--gpus 8] [--time 24:00:00] [--jobs 1] [--sbatch --partition=p]
#     [--dry-run] --config ... --workdir ...
#
#   --gpus    of each node
#   --jobs    how many jobs of --time follow one another; each resumes the one before
#   --sbatch  a further word for sbatch; may be repeated
#
# The rest goes to python -m distill_jax.train. SIGTERM comes two minutes before the time is up.
set -euo pipefail

nodes=1 gpus=8 time=24:00:00 jobs=1 more=() dry_run=
train=("${PYTHON:-python}" -m distill_jax.train --processes -1)
while (($#)); do
  case $1 in
    --help) sed -n '2,/^set/s/^# \{0,1\}//p' "$0"; exit ;;
    --dry-run) dry_run=1; shift ;;
    --nodes) nodes=$2; shift 2 ;;
    --gpus) gpus=$2; shift 2 ;;
    --time) time=$2; shift 2 ;;
    --jobs) jobs=$2; shift 2 ;;
    --sbatch) more+=("$2"); shift 2 ;;
    *) train+=("$1"); shift ;;
  esac
done

run=(sbatch --job-name distill_jax --nodes "$nodes" --ntasks-per-node "$gpus"
  --gpus-per-node "$gpus" --time "$time" --array "1-$jobs%1" --signal TERM@120 --requeue
  --open-mode append ${more[@]+"${more[@]}"} --wrap "srun --kill-on-bad-exit $(printf '%q ' "${train[@]}")")
if [[ $dry_run ]]; then
  printf '%q ' "${run[@]}"; echo
else
  exec "${run[@]}"
fi

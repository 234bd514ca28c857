#!/usr/bin/env bash
# Several processes on one machine's CPU, as a rehearsal of a pod: real jax.distributed, real
# collectives, simulated devices.
#
#   launch/processes.sh [--count 2] [--devices 1] [--port 9876] [--dry-run] --config ... --workdir ...
#
#   --count    processes
#   --devices  simulated devices of each
#   --port     of the first process, where the others find it
#
# The rest goes to python -m distill_jax.train. If a process fails, the others are stopped.
set -euo pipefail

count=2 devices=1 port=9876 dry_run=
train=(-m distill_jax.train)
while (($#)); do
  case $1 in
    --help) sed -n '2,/^set/s/^# \{0,1\}//p' "$0"; exit ;;
    --dry-run) dry_run=1; shift ;;
    --count) count=$2; shift 2 ;;
    --devices) devices=$2; shift 2 ;;
    --port) port=$2; shift 2 ;;
    *) train+=("$1"); shift ;;
  esac
done

# XLA's default order of a CPU's thunks leaves collectives of one group unordered, and gloo aborts
# ("collective mismatch") when two devices meet in different ones.
flags="--xla_force_host_platform_device_count=$devices"
flags+=" --xla_cpu_enable_concurrency_optimized_scheduler=false"
# More threads than devices, or one that waits for a product's helpers while all others wait in a
# collective stands still.
run=(env JAX_PLATFORMS=cpu PJRT_NPROC=$((4 * devices)) "XLA_FLAGS=$flags"
  "${PYTHON:-python}" "${train[@]}" --coordinator "localhost:$port" --processes "$count")
started=()

stop() { # a minute to save, then no mercy
  kill "${started[@]}" 2>/dev/null || true
  for ((tenths = 0; tenths < 600; tenths++)); do
    [[ $(jobs -pr) ]] || return 0
    sleep 0.1
  done
  kill -KILL "${started[@]}" 2>/dev/null || true
}

[[ $dry_run ]] || trap stop EXIT
for ((i = 0; i < count; i++)); do
  if [[ $dry_run ]]; then
    printf '%q ' "${run[@]}" --process "$i"; echo
  else
    "${run[@]}" --process "$i" &
    started+=($!)
  fi
done
for _ in ${started[@]+"${started[@]}"}; do
  wait -n
done

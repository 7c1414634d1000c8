#!/usr/bin/env bash
# Several processes on CPUs over gloo. Accelerate's own MULTI_CPU launch expects an MPI host file and otherwise starts one
# process in silence, so torchrun starts them; mstdistill refuses to run where fewer came up than were promised.
#   launch_configs/multi_cpu.sh 2 train av-digits
set -euo pipefail
processes="$1"
shift
export ACCELERATE_USE_CPU=true OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
exec torchrun --nproc_per_node "$processes" -m mstdistill "$@"

#!/usr/bin/env bash
# DeepSpeed's ZeRO on CPUs over gloo, to try a stage without GPUs: the same digits as one process, nothing saved or gained.
# It needs DeepSpeed: pip install -e '.[deepspeed]'
#   launch_configs/deepspeed_cpu.sh 2 3 train av-digits        2 processes, ZeRO-3
set -euo pipefail
processes="${1:?usage: deepspeed_cpu.sh PROCESSES STAGE train RECIPE ...}"
stage="${2:?usage: deepspeed_cpu.sh PROCESSES STAGE train RECIPE ...}"
shift 2
config="$(dirname "$0")/deepspeed_zero$stage.yaml"
[ -f "$config" ] || { echo "deepspeed_cpu.sh: ZeRO has stages 1, 2 and 3, not $stage" >&2; exit 2; }
# told of a CPU in its own way, Accelerate would drop DeepSpeed: GPUs are hidden instead
unset ACCELERATE_USE_CPU
export DS_ACCELERATOR=cpu CUDA_VISIBLE_DEVICES="" OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
exec accelerate launch --config_file "$config" --num_processes "$processes" --main_process_port 0 -m mstdistill "$@"

#!/usr/bin/env bash
# A suite as a SLURM job: every task is a worker, all share one folder; a job that ends early or is requeued loses nothing.
# Submit it from the checkout:
#
#   sbatch --ntasks=8 --gpus-per-task=1 --cpus-per-task=8 scripts/reproduce_slurm.sh paper /shared/paper
#
# Add as many jobs as you like, at any time, with the same folder. Tables: mstdistill reproduce paper --out /shared/paper --tables
#SBATCH --job-name=mstdistill
#SBATCH --requeue
#SBATCH --open-mode=append
set -euo pipefail
suite="${1:?usage: sbatch scripts/reproduce_slurm.sh SUITE FOLDER [key=value ...]}"
folder="${2:?usage: sbatch scripts/reproduce_slurm.sh SUITE FOLDER [key=value ...]}"
shift 2
# SLURM runs a copy of this file, so its own folder says nothing
cd "${SLURM_SUBMIT_DIR:-.}"
[ ! -x .venv/bin/python ] || export PATH="$PWD/.venv/bin:$PATH"
export OMP_NUM_THREADS="${SLURM_CPUS_PER_TASK:-1}"
# srun doesn't take --cpus-per-task from sbatch
exec srun --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}" mstdistill reproduce "$suite" "$@" --out "$folder" --worker

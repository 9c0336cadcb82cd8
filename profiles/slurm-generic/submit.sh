#!/bin/sh
# submit.sh GPUS OPTION... JOBSCRIPT: sbatch, with the kind of GPU where the job names one. The
# jobscript knows; Snakemake's submit command cannot say what only some jobs have.
gpus=$1
shift
for script; do :; done
kind=$(sed -n 's/^# properties = .*"gpu_model": "\([^"]*\)".*/\1:/p' "$script")
mkdir -p .snakemake/slurm_logs
exec sbatch --gpus "$kind$gpus" "$@"

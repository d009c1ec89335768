#!/bin/bash
# Pre-train on several hosts of a SLURM cluster: sbatch examples/slurm.sh
# Five minutes before its time is up, or when it is preempted, the job saves, and goes back into the
# queue; its next start, on whichever hosts, goes on from the last checkpoint.
#SBATCH --job-name=sjepa
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=32
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=B:USR1@300

first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)

# The last line but one is what you would change; the run folder must be on a disk that all hosts see.
srun torchrun \
  --nnodes="$SLURM_JOB_NUM_NODES" --nproc-per-node=8 --max-restarts=3 \
  --rdzv-backend=c10d --rdzv-id="$SLURM_JOB_ID" --rdzv-endpoint="$first:29500" \
  -m -- sjepa_fast.train \
  sjepa-ntu60-xsub --data.root stores/ntu60 --run runs/ntu60 \
  --resume auto &
step=$!

requeue() {
  trap '' USR1 TERM
  # Every trainer finishes its step and saves; then the job may end.
  kill -TERM "$step"
  wait "$step"
  scontrol requeue "$SLURM_JOB_ID"
  exit 0
}
trap requeue USR1 TERM

wait "$step"

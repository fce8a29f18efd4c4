#!/bin/bash
# maskmill label on Slurm: one Ray over all nodes of the job, gone when it ends.
#
#   sbatch --nodes 4 slurm.sh --config label.yaml --set compute.actors=16
#
# All words go to `maskmill label`. Set compute.actors to nodes × GPUs of a node. Submitted again it
# labels what is missing; --requeue does so by itself when a node fails.
#SBATCH --job-name=maskmill-label
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --exclusive
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=32
#SBATCH --time=24:00:00
#SBATCH --requeue
# SIGTERM so many seconds before the time is up: finished videos are committed, the rest is left.
#SBATCH --signal=TERM@120
set -euo pipefail

port=6379
nodes=$(scontrol show hostnames "$SLURM_JOB_NODELIST")
head=${nodes%%$'\n'*}
# Seconds that the head waits for the other nodes.
export RAY_SYMMETRIC_RUN_CLUSTER_WAIT_TIMEOUT=300

# Ray's launcher does not pass SIGTERM on, and Slurm kills what is left when the launcher dies of it;
# the job itself gets the signal all the same.
exec srun --ntasks-per-node=1 --kill-on-bad-exit=1 bash -c 'trap "" TERM; exec "$@"' ray \
  ray symmetric-run --address "$head:$port" --min-nodes "$SLURM_JOB_NUM_NODES" \
  --num-cpus "$SLURM_CPUS_PER_TASK" --num-gpus "$SLURM_GPUS_ON_NODE" \
  --disable-usage-stats -- maskmill label "$@"

set -euo pipefail
! command -v gcloud || sudo gcloud auth configure-docker --quiet @{registry}
sudo docker pull @{image}
train=(
  @{train}
)
# SkyPilot tells a node its number and the others' addresses. JAX asks SLURM's variables for the same, so they say it.
coordinator=$(head -n 1 <<<"$SKYPILOT_NODE_IPS")
exec sudo docker run --rm --init --gpus=all --network=host --ipc=host \
  --env=JAX_COORDINATOR_ADDRESS="$coordinator:8476" \
  --env=JAX_LOCAL_DEVICE_IDS=@{device_ids} \
  --env=SLURM_JOB_ID=0 --env=SLURM_STEP_NODELIST="$coordinator" --env=SLURM_NTASKS=@{nodes} \
  --env=SLURM_PROCID="$SKYPILOT_NODE_RANK" --env=SLURM_LOCALID=0 \
  @{image} "${train[@]}"

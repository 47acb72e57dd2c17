set -euo pipefail
sudo gcloud auth configure-docker --quiet @{registry}
sudo docker pull @{image}
train=(
  @{train}
)
# SkyPilot runs this on every host of the slice; JAX finds the others through the machine's metadata server.
exec sudo docker run --rm --init --privileged --network=host --ipc=host @{image} "${train[@]}"

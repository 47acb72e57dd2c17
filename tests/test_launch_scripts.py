"""Rendered scripts, run: against programs that stand for the scheduler's, and once for real. See tests/slurm/run.sh."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from launch_jobs import HOSTILE, IMAGE, job

from csfm_jax import launching

ROOT = Path(__file__).resolve().parents[1]


class FakeCloud:
    """A `gcloud` that writes down its words and says what states the resource goes through."""

    def __init__(self, folder: Path, states: str):
        (folder / "bin").mkdir()
        (folder / "states").write_text(states)
        gcloud = folder / "bin" / "gcloud"
        gcloud.write_text(
            f"""#!{sys.executable}
import json, sys, pathlib
folder = pathlib.Path({str(folder)!r})
with open(folder / "calls", "a") as file:
    file.write(json.dumps(sys.argv[1:]) + chr(10))
if "describe" in sys.argv:
    state, _, rest = (folder / "states").read_text().partition(" ")
    (folder / "states").write_text(rest or state)
    print(state)
"""
        )
        gcloud.chmod(0o755)
        self.folder = folder
        self.environment = os.environ | {"PATH": f"{folder / 'bin'}:{os.environ['PATH']}", "POLL_SECONDS": "0"}

    def run(self, script: str) -> tuple[int, list[list[str]]]:
        (self.folder / "calls").write_text("")
        done = subprocess.run(["bash", self.folder / script], env=self.environment, capture_output=True, text=True)
        return done.returncode, [json.loads(line) for line in (self.folder / "calls").read_text().splitlines()]


def flags(words):
    return dict(word.split("=", 1) for word in words if word.startswith("--") and "=" in word)


@pytest.fixture
def cloud(tmp_path):
    def make(case, states="ACTIVE", **more):
        fake = FakeCloud(tmp_path, states)
        for name, text in launching.render(job(case, **more)).items():
            (tmp_path / name).write_text(text)
        return fake

    return make


def test_tpu_vm_create_waits_in_the_queue(cloud):
    code, calls = cloud("tpu_vm", "WAITING_FOR_RESOURCES PROVISIONING ACTIVE").run("create.sh")
    assert code == 0 and len(calls) == 4
    assert calls[0][:5] == ["compute", "tpus", "queued-resources", "create", "csfm-base"] and "--spot" in calls[0]
    assert flags(calls[0]) == {
        "--project": "my-lab",
        "--zone": "us-west4-a",
        "--accelerator-type": "v5litepod-256",
        "--runtime-version": "v2-alpha-tpuv5-lite",
        "--node-id": "csfm-base",
        "--scopes": "https://www.googleapis.com/auth/cloud-platform",
    }


def test_tpu_vm_create_ends_when_the_request_failed(cloud):
    code, calls = cloud("tpu_vm", "WAITING_FOR_RESOURCES FAILED").run("create.sh")
    assert code == 1 and len(calls) == 3


def test_tpu_vm_runs_on_all_workers_of_all_slices(cloud):
    workdir = f"gs://{HOSTILE}"
    fake = cloud("tpu_vm_slices", target="tpu_vm", workdir=workdir)
    code, calls = fake.run("create.sh")
    assert code == 0 and flags(calls[0])["--node-count"] == "2" and "--node-id" not in flags(calls[0])
    code, calls = fake.run("run.sh")
    assert code == 0 and [words[:4] for words in calls] == [["compute", "tpus", "tpu-vm", "ssh"]] * 4
    started = [words for words in calls if "docker run" in flags(words)["--command"]]
    assert {words[4] for words in started} == {"csfm-base-0", "csfm-base-1"}
    for words in started:
        assert flags(words)["--worker"] == "all"
        # what a worker's shell makes of the text
        shown = subprocess.run(
            ["bash", "-c", 'sudo() { printf "%s\\n" "$@"; }\n' + flags(words)["--command"]],
            capture_output=True,
            text=True,
            check=True,
            cwd=fake.folder,
        ).stdout.splitlines()
        image = shown.index(IMAGE["image"])
        assert shown[:2] == ["docker", "run"] and "--network=host" in shown[:image]
        assert shown[image + 1 : image + 3] == ["csfm", "train"] and f"--workdir={workdir}" in shown[image:]
    assert not (fake.folder / "owned").exists()
    for script, expected in [("setup.sh", "docker pull"), ("stop.sh", "docker stop")]:
        code, calls = fake.run(script)
        assert code == 0 and sum(expected in flags(words)["--command"] for words in calls) == 2
    code, calls = fake.run("delete.sh")
    assert code == 0 and calls[0][:5] == ["compute", "tpus", "queued-resources", "delete", "csfm-base"]


def put(folder: Path, name: str, text: str) -> None:
    """A program on the PATH of `bench`."""
    (folder / "bin").mkdir(exist_ok=True)
    (folder / "bin" / name).write_text(text)
    (folder / "bin" / name).chmod(0o755)


def start(folder: Path, script: str, **more: str) -> subprocess.Popen:
    """Runs a script with the programs of `put` before all others."""
    environment = os.environ | {"PATH": f"{folder / 'bin'}:{os.environ['PATH']}"} | more
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    return subprocess.Popen(["bash", folder / script], env=environment, cwd=folder, **pipes)


def wait_for(condition) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.fixture
def slurm_job(tmp_path):
    """The rendered SLURM script, and a SLURM of fakes: `csfm` is run as it is, cluster commands are written down."""
    (tmp_path / "job.sh").write_text(launching.render(job("slurm"))["train.sbatch"])
    (tmp_path / "state").write_text("RUNNING")
    put(tmp_path, "srun", '#!/bin/bash\nwhile [[ $1 == --* ]]; do shift; done\necho $$ >pid\nexec "$@"\n')
    put(tmp_path, "squeue", "#!/bin/bash\n[ $(cat state) != RUNNING ] || echo 7\n")
    put(tmp_path, "scontrol", '#!/bin/bash\necho "scontrol $*" >>calls\n')
    put(tmp_path, "scancel", '#!/bin/bash\necho "scancel $*" >>calls\nkill -TERM $(cat pid)\n')
    (tmp_path / "calls").write_text("")

    def run(csfm: str, *signals: signal.Signals) -> tuple[int, list[str]]:
        put(tmp_path, "csfm", f"#!/bin/bash\n{csfm}\n")
        process = start(tmp_path, "job.sh", SLURM_JOB_ID="7", SLURM_JOB_NODELIST="n[0-3]")
        for number in signals:
            wait_for((tmp_path / "ready").exists)
            process.send_signal(number)
        process.communicate(timeout=60)
        return process.returncode, (tmp_path / "calls").read_text().splitlines()

    return run


SAVES = "trap 'exit 75' TERM; touch ready; while :; do sleep 0.05; done"


@pytest.mark.parametrize("code", [0, 2, 137])
def test_slurm_the_jobs_exit_code_is_that_of_the_training(slurm_job, code):
    assert slurm_job(f"exit {code}") == (code, [])


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM])
def test_slurm_a_job_that_is_asked_to_end_saves_and_is_queued_again(slurm_job, number):
    assert slurm_job(SAVES, number) == (0, ["scancel --signal=TERM 7", "scontrol requeue 7"])


def test_slurm_so_is_one_that_was_ended_before_it_had_anything_to_save(slurm_job):
    calls = ["scancel --signal=TERM 7", "scontrol requeue 7"]
    assert slurm_job("touch ready; exec sleep 60", signal.SIGUSR1) == (0, calls)


def test_slurm_and_one_whose_processes_alone_were_asked(slurm_job):
    assert slurm_job("exit 75") == (0, ["scontrol requeue 7"])


def test_slurm_a_run_that_finishes_while_it_is_asked_to_end_is_over(slurm_job):
    finishes = "trap 'exit 0' TERM; touch ready; while :; do sleep 0.05; done"
    assert slurm_job(finishes, signal.SIGUSR1) == (0, ["scancel --signal=TERM 7"])


def test_slurm_a_cancelled_job_is_not_queued_again(slurm_job, tmp_path):
    (tmp_path / "state").write_text("COMPLETING")
    assert slurm_job(SAVES, signal.SIGTERM) == (75, ["scancel --signal=TERM 7"])


@pytest.fixture
def local_job(tmp_path):
    (tmp_path / "run.sh").write_text(launching.render(job("local"))["run.sh"])

    def run(csfm: str) -> subprocess.Popen:
        put(tmp_path, "csfm", f"#!/bin/bash\n{csfm}\n")
        return start(tmp_path, "run.sh")

    return run


def test_local_processes_know_their_number_and_their_gpus(local_job):
    shows = "echo $SLURM_PROCID of $SLURM_NTASKS at $SLURM_STEP_NODELIST: $JAX_LOCAL_DEVICE_IDS $JAX_PLATFORMS"
    out, _ = local_job(shows).communicate(timeout=60)
    assert sorted(out.splitlines()) == ["0 of 2 at localhost: 0,1 cuda,cpu", "1 of 2 at localhost: 2,3 cuda,cpu"]


def test_local_a_signal_reaches_every_process(local_job, tmp_path):
    saves = "trap 'touch saved$SLURM_PROCID; exit 0' TERM; touch ready$SLURM_PROCID; while :; do sleep 0.05; done"
    process = local_job(saves)
    wait_for(lambda: (tmp_path / "ready0").exists() and (tmp_path / "ready1").exists())
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 0 and (tmp_path / "saved0").exists() and (tmp_path / "saved1").exists()


def test_local_one_failure_ends_all_with_its_code(local_job):
    process = local_job("[ $SLURM_PROCID = 0 ] || exit 3; trap '' TERM; exec sleep 600")
    process.communicate(timeout=60)
    assert process.returncode == 3


FOUR_STEPS = """
from tests.tiny import get_config as tiny

def get_config():
    c = tiny()
    c.optimizer.warmup_steps = 1
    c.training.steps, c.training.log_every, c.training.eval_every = 4, 1, 1000
    return c
"""


def test_local_processes_train(tiny_stores, tmp_path):
    """The rendered script for real: two processes find each other and train one run. See also tests/slurm/run.sh."""
    (tmp_path / "four_steps.py").write_text(FOUR_STEPS)
    places = dict(config=str(tmp_path / "four_steps.py"), workdir=str(tmp_path / "run"), stores=str(tiny_stores))
    (tmp_path / "run.sh").write_text(launching.render(launching.Job("local", **places, processes=2))["run.sh"])
    put(tmp_path, "csfm", f'#!/bin/sh\nexec {sys.executable} -m csfm_jax.cli "$@"\n')
    process = start(tmp_path, "run.sh", PYTHONPATH=str(ROOT), JAX_DISABLE_MOST_OPTIMIZATIONS="true")
    out, _ = process.communicate(timeout=500)
    assert process.returncode == 0, out
    for number in (0, 1):
        (line,) = [line for line in out.splitlines() if f"; process {number} (" in line]
        assert line.startswith("devices: 2 x cpu on 2 hosts")
        assert line.endswith(f"1 of them, rows {number + 1} to {number + 1} of 2")
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2, 3, 4]

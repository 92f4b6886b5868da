"""The files of docs/cluster: their commands parse, those for Slurm run with stubs of Slurm, and what they rely on is there.

Parts that share a dataset, and are killed: tests/jobs/test_process_pool.py; machines of Ray that come and go: test_faults.py.
"""

import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

import spinset
from jobs.failures import BAD_INPUT, FAULTS, INTERRUPTED
from manifests.dataset import Dataset
from manifests.verify import verify

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "docs" / "cluster"


def document(name: str) -> dict:
    return yaml.safe_load((FOLDER / name).read_text())


def pod(spec: dict) -> tuple[dict, dict]:
    """The spec of a pod template, and its only container."""
    (container,) = spec["template"]["spec"]["containers"]
    return spec["template"]["spec"], container


def command(name: str) -> list[str]:
    """The arguments of the only spinset command of a file."""
    if name == "indexed-job.yaml":
        container = pod(document(name)["spec"])[1]
        return [*container["command"], *container["args"]][1:]
    (found,) = re.findall(
        r"(?<![\w/.:-])spinset (generate .*?)(?: &)?$", (FOLDER / name).read_text().replace("\\\n", " "), re.M
    )
    return shlex.split(found.replace("$address", "node-0:6379"))


class Parsed(Exception):
    """Carries the config of a command that is not run."""


def parsed(arguments: list[str]):
    name, *rest = arguments

    def parse(what):
        raise Parsed(spinset._parse(name, rest, what))

    with pytest.raises(Parsed) as found:
        spinset.COMMANDS[name][0](parse)
    return found.value.args[0].config


@pytest.mark.parametrize(
    ("name", "environ", "begin"),
    [
        (
            "array.slurm",
            {"SLURM_ARRAY_TASK_ID": "4", "SLURM_ARRAY_TASK_MIN": "0", "SLURM_ARRAY_TASK_COUNT": "16"},
            0.25,
        ),
        ("indexed-job.yaml", {"JOB_COMPLETION_INDEX": "1"}, 0.5),
        ("skypilot.yaml", {"SKYPILOT_JOB_RANK": "6", "SKYPILOT_NUM_JOBS": "8"}, 0.75),
        ("ray.slurm", {}, 0.0),
        ("rayjob.yaml", {}, 0.0),
    ],
)
def test_the_command_parses_and_knows_its_part(name, environ, begin, monkeypatch):
    for variable in ("SLURM_ARRAY_TASK_ID", "SKYPILOT_JOB_RANK", "JOB_COMPLETION_INDEX"):
        monkeypatch.delenv(variable, raising=False)
    for variable, value in environ.items():
        monkeypatch.setenv(variable, value)
    config = parsed(command(name))
    assert (config.device, config.pool.gpus_per_worker, config.pool.begin) == ("cuda", 0.5, begin)
    assert bool(config.pool.part) == bool(environ) == (config.pool.ray == "local")


def test_what_the_indexed_job_relies_on():
    spec = document("indexed-job.yaml")["spec"]
    template, container = pod(spec)
    rules = spec["podFailurePolicy"]["rules"]
    assert spec["completionMode"] == "Indexed" and spec["backoffLimitPerIndex"] and template["restartPolicy"] == "Never"
    assert [rule["action"] for rule in rules] == ["Ignore", "FailJob", "FailIndex"]
    assert {rule["onExitCodes"]["containerName"] for rule in rules[1:]} == {container["name"]}
    codes = {rule["action"]: rule["onExitCodes"]["values"] for rule in rules[1:]}
    assert codes == {"FailJob": [BAD_INPUT], "FailIndex": [FAULTS]}


def test_what_the_rayjob_relies_on():
    spec = document("rayjob.yaml")["spec"]
    cluster = spec["rayClusterSpec"]
    (group,) = cluster["workerGroupSpecs"]
    assert f"ray=={cluster['rayVersion']}" in (ROOT / "constraints.txt").read_text().splitlines()
    assert cluster["headGroupSpec"]["rayStartParams"] == {"num-cpus": "0"}
    # All that may wait for a machine are workers of the pods that the autoscaler may start.
    pool, (_, container) = parsed(command("rayjob.yaml")).pool, pod(group)
    gpus = int(container["resources"]["limits"]["nvidia.com/gpu"])
    assert 1 <= group["minReplicas"] <= group["replicas"]
    assert pool.workers == group["maxReplicas"] * gpus / pool.gpus_per_worker


def test_the_image_has_the_version_of_this_clone():
    version = re.search(r'^version = "(.+)"', (ROOT / "pyproject.toml").read_text(), re.M)
    assert version
    assert set(re.findall(r"spinset-(.+?)-py3", (FOLDER / "Dockerfile").read_text())) == {version[1]}


@pytest.fixture
def start(tmp_path, monkeypatch):
    """Starts a script of Slurm, edited for a tiny dataset, on a machine where srun and scontrol are stubs."""
    stubs = tmp_path / "bin"
    stubs.mkdir()
    stub = {
        "srun": "while [[ $1 == --* ]]; do shift; done\nfor ((task = 1; task < ${TASKS:-1}; task++)); do\n"
        '    SLURM_PROCID=$task "$@" &\ndone\nSLURM_PROCID=0 exec "$@"',
        "scontrol": f'echo "$@" >> {tmp_path}/requeued',
        "spinset": f'exec "${{SPINSET:-{sys.executable}}}" -m spinset "$@"',
        "ray": f'exec {Path(sys.executable).with_name("ray")} "$@"',
    }
    for name, text in stub.items():
        (stubs / name).write_text(f"#!/bin/bash\n{text}\n")
        (stubs / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{stubs}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    tiny = "--identities 2 --identities-per-shard 1 --rig orbit-2 --resolution 32 --mesh.resolution 64 --workers 1"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    def start(name: str, **environ: str) -> subprocess.Popen[bytes]:
        text = (
            (FOLDER / name).read_text().replace("--device cuda --gpus-per-worker 0.5", "").replace(":6379", f":{port}")
        )
        (tmp_path / name).write_text(text.replace("/shared/heads --identities 10000", f"{tmp_path}/heads {tiny}"))
        environ = {**os.environ, "SLURM_CPUS_PER_TASK": "1", **environ}
        return subprocess.Popen(["bash", str(tmp_path / name)], env=environ, start_new_session=True)

    return start


def array(task: int) -> dict[str, str]:
    return {
        "SLURM_ARRAY_JOB_ID": "7",
        "SLURM_ARRAY_TASK_ID": str(task),
        "SLURM_ARRAY_TASK_MIN": "0",
        "SLURM_ARRAY_TASK_COUNT": "2",
    }


def test_two_tasks_of_the_array_make_one_dataset(start, tmp_path):
    tasks = [start("array.slurm", **array(task)) for task in range(2)]
    assert [task.wait() for task in tasks] == [0, 0]
    dataset = Dataset(str(tmp_path / "heads"))
    assert dataset.committed() == [0, 1] and not list(verify(dataset, deep=True))
    assert not (tmp_path / "requeued").exists()


def test_a_task_that_is_told_to_end_is_queued_again(start, tmp_path):
    (tmp_path / "told").write_text("#!/bin/bash\nexit 130\n")
    (tmp_path / "told").chmod(0o755)
    assert start("array.slurm", **array(0), SPINSET=str(tmp_path / "told")).wait() == INTERRUPTED
    assert (tmp_path / "requeued").read_text() == "requeue 7_0\n"


def test_ray_over_two_nodes_ends_at_the_signal(start, tmp_path):
    """Both nodes are this machine; SIGTERM reaches the script alone, as `--signal=B:TERM` says."""
    number = str(os.getpid())
    nodes = {"SLURM_JOB_ID": number, "TASKS": "2", "HOME": str(tmp_path)}
    job = start("ray.slurm", **nodes, RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S="0")
    try:
        while not list(tmp_path.glob("heads/work/generate/leases/*")):
            assert job.poll() is None
            time.sleep(0.1)
        job.terminate()
        assert job.wait() == INTERRUPTED
        assert (tmp_path / "requeued").read_text() == f"requeue {number}\n"
    finally:
        os.killpg(job.pid, signal.SIGTERM)  # as Slurm ends the steps of a job
        shutil.rmtree(f"/tmp/ray-{number}", ignore_errors=True)

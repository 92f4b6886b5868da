"""One check of --device for all commands."""

from dataclasses import replace

import pytest
import torch

from datagen.config import GenerateConfig, RemakeConfig
from filters.config import ScoreConfig
from infer.config import EvaluateConfig, HeadsConfig, ViewsConfig
from jobs import devices
from jobs.devices import check_device, gpu_index, require_device, usable_cores
from jobs.pool import PoolConfig
from manifests.errors import UserError
from train.data.config import LatentsConfig
from train.families.presets import PRESETS
from train.run.config import RayConfig
from train.run.launch_ray import launch
from train.run.parallel import process_group

CONFIGS = {
    "generate": lambda device: GenerateConfig("out", device=device),
    "repair": lambda device: RemakeConfig("out", device=device),
    "score": lambda device: ScoreConfig("out", device=device),
    "latents": lambda device: LatentsConfig("out", "vae", device=device),
    "train": lambda device: replace(PRESETS["small"].config, device=device),
    "views": lambda device: ViewsConfig("heads64", ("photo.png",), "out", device=device),
    "heads": lambda device: HeadsConfig("heads64", "out", device=device),
    "evaluate": lambda device: EvaluateConfig("heads64", "data", device=device),
}


@pytest.mark.parametrize("command", CONFIGS)
@pytest.mark.parametrize("device", ["tpu", "mps", "cuda:", "cuda:-1", "cuda:x", "CPU", ""])
def test_every_command_refuses_what_is_no_device(command, device):
    with pytest.raises(UserError, match=r"--device is '.*'; it must be cpu, cuda, or cuda:N for the GPU of index N"):
        CONFIGS[command](device)


@pytest.mark.parametrize("command", CONFIGS)
@pytest.mark.parametrize("device", ["cpu", "cuda", "cuda:0", "cuda:11"])
def test_every_command_takes_what_is_one(command, device):
    assert CONFIGS[command](device).device == device


def test_a_gpu_that_is_not_there(monkeypatch):
    require_device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for device in ("cuda", "cuda:1"):
        with pytest.raises(UserError, match=f"--device is {device}, but this machine has no usable CUDA device; use"):
            require_device(device)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    require_device("cuda:1")
    with pytest.raises(UserError, match="--device is cuda:2, but this machine has 2 CUDA devices, from cuda:0 on"):
        require_device("cuda:2")


def test_a_gpu_by_its_index_is_for_one_process(monkeypatch):
    assert [gpu_index(device) for device in ("cuda", "cuda:0", "cuda:12")] == [0, 0, 12]
    with pytest.raises(UserError, match="with --gpus-per-worker every worker is given its GPUs; give --device cuda"):
        check_device("cuda:1", 0.5)
    with pytest.raises(UserError, match="give --device cuda"):
        ScoreConfig("out", device="cuda:1", pool=PoolConfig(gpus_per_worker=1.0))
    with pytest.raises(UserError, match="Ray chooses the GPU of each worker; give --device cuda"):
        launch(CONFIGS["train"]("cuda:1"), RayConfig("local"))
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="each of 2 processes takes a GPU of its own"), process_group("cuda:1"):
        pass


@pytest.mark.parametrize(
    ("quota", "cores"), [("max 100000", 4), ("200000 100000", 2), ("50000 100000", 1), ("900000 100000", 4)]
)
def test_cores_are_those_of_the_process_and_of_its_container(tmp_path, monkeypatch, quota, cores):
    monkeypatch.setattr("os.sched_getaffinity", lambda process: {0, 1, 2, 3}, raising=False)
    monkeypatch.setattr(devices, "CPU_QUOTA", tmp_path / "cpu.max")
    assert usable_cores() == 4
    (tmp_path / "cpu.max").write_text(f"{quota}\n")
    assert usable_cores() == cores

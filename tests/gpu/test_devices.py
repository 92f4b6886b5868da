"""Faults of a device concern the worker, not the head; and ONNX models run on the device where onnxruntime can."""

import pytest
import torch

from datagen.config import GenerateConfig, MeshConfig
from datagen.generate import GenerateWorker, make_plan
from faces.models import load_arcface
from jobs.pool import PoolConfig
from jobs.units import Unit, WorkerIsBroken
from manifests.plan import write_plan
from manifests.storage import Storage
from weights.embedded import EMBEDDED


def test_memory_that_runs_out_breaks_the_worker_and_no_head(tmp_path, monkeypatch):
    config = GenerateConfig(
        str(tmp_path / "heads"),
        identities=1,
        rig="orbit-2",
        resolution=32,
        mesh=MeshConfig(64),
        pool=PoolConfig(inline=True),
    )
    plan = make_plan(config, config.source.open("cpu"))
    write_plan(Storage(config.out), plan)
    worker = GenerateWorker(config, plan, None)

    def head(seed: int):
        return torch.empty(1 << 50, dtype=torch.uint8, device="cuda")  # a petabyte: the allocator itself refuses

    monkeypatch.setattr(worker.source, "head", head)
    with pytest.raises(WorkerIsBroken, match="OutOfMemoryError at stage head"):
        list(worker.run(Unit(0)))
    assert not list((tmp_path / "heads" / "shards").glob("*.done.json"))


def test_the_embedded_recogniser_on_the_device():
    onnxruntime = pytest.importorskip("onnxruntime")
    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        pytest.skip("this onnxruntime has no CUDA provider; install onnxruntime-gpu")
    import numpy as np

    crops = np.random.default_rng(0).integers(0, 255, (4, 112, 112, 3), np.uint8)
    file = str(EMBEDDED / "arcface.onnx")
    last = f"cuda:{torch.cuda.device_count() - 1}"
    here, there = load_arcface(file, "cpu").embed(crops), load_arcface(file, last).embed(crops)
    assert np.abs(here - there).max() < 5e-3

"""What training uses on a device: autocast, fused AdamW, FSDP2 on one card, and a whole run that resumes."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from runs import SHAPE, tiny_config
from safetensors.torch import load_file
from small import small_plan, write_shard
from torch import nn

from manifests.dataset import Dataset
from manifests.plan import write_plan
from manifests.storage import Storage
from train.families.spinmeround.model import SpinMeRoundNetwork
from train.run.config import OptimizerConfig, TrainConfig
from train.run.optimizer import Optimizer, clip
from train.run.parallel import distribute, process_group
from train.run.trainer import run


def test_fused_adamw_is_adamw():
    ours, theirs = nn.Linear(64, 64, device="cuda"), nn.Linear(64, 64, device="cuda")
    theirs.load_state_dict(ours.state_dict())
    own = Optimizer(ours, OptimizerConfig(lr=1e-2))
    plain = torch.optim.AdamW(
        theirs.parameters(), 1e-2, OptimizerConfig().betas, weight_decay=OptimizerConfig().weight_decay
    )
    for step in range(5):
        x = torch.randn(8, 64, generator=torch.Generator().manual_seed(step)).to("cuda")
        for network in (ours, theirs):
            network(x).square().mean().backward()
        own.step(torch.tensor(1.0, device="cuda"), 1e-2)
        plain.step()
        plain.zero_grad()
    assert torch.allclose(ours.weight, theirs.weight, atol=1e-6)


def test_a_gradient_that_is_not_finite_changes_nothing():
    network = nn.Linear(4, 4, device="cuda")
    own, before = Optimizer(network, OptimizerConfig()), network.weight.detach().clone()
    network(torch.full((1, 4), float("nan"), device="cuda")).sum().backward()
    own.step(torch.tensor(float("nan"), device="cuda"), 1.0)
    assert torch.equal(network.weight, before)
    assert float(own.skipped) == 1


def gradients(sharded: bool, bf16: bool) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    network = SpinMeRoundNetwork(SHAPE).to("cuda")
    x, condition = torch.randn(2, 3, 8, 8, 8, device="cuda"), torch.randn(2, 3, network.condition, 8, 8, device="cuda")
    with process_group("cuda") as ranks:
        forward = distribute(network, ranks, sharded, bf16)
        with torch.autocast("cuda", torch.bfloat16, enabled=bf16):
            out = forward(x, condition, torch.zeros(2, device="cuda"), torch.randn(2, 1, 512, device="cuda"))
        out.float().square().mean().backward()
        clip(network.parameters(), 1.0)
        return {n: getattr(p.grad, "full_tensor", lambda p=p: p.grad)().clone() for n, p in network.named_parameters()}


def test_fsdp_on_one_card_has_the_gradients_of_one_process():
    alone, sharded = gradients(False, False), gradients(True, False)
    assert all(torch.allclose(sharded[name], grad, atol=1e-5, rtol=1e-3) for name, grad in alone.items())


def test_autocast_gradients_are_close_to_single_precision(record_property):
    exact, autocasting = gradients(False, False), gradients(False, True)
    apart = torch.stack([(autocasting[n] - g).norm() for n, g in exact.items()]).norm()
    relative = (apart / torch.stack([g.norm() for g in exact.values()]).norm()).item()
    record_property("relative error of bf16", f"{relative:.3f}")
    assert relative < 0.1


@pytest.fixture
def config(tmp_path) -> TrainConfig:
    rig = {"id": "orbit-4", "azimuth": [0.0, 90.0, 180.0, 270.0], "azimuth_jitter": 0.0, "elevation_jitter": 0.0}
    storage, plan = Storage(tmp_path / "heads"), small_plan(identities=6, rig=rig)
    write_plan(storage, plan)
    for shard in range(plan.shards):
        write_shard(storage, plan, shard, 4)
    loader = {"workers": 1, "pin_memory": True}
    config = tiny_config(Dataset(storage), tmp_path, device="cuda", precision="bf16")
    return replace(config, loader=replace(config.loader, **loader))


def test_a_run_from_pinned_memory_resumes_exactly(config, tmp_path):
    weights = "unet/diffusion_pytorch_model.safetensors"
    whole = load_file(Path(run(replace(config, out=str(tmp_path / "whole")))) / weights)
    run(replace(config, samples=16))
    resumed = load_file(Path(run(config)) / weights)
    # Sums of atomically added gradients differ in their last bits from run to run on a GPU.
    assert all(torch.allclose(resumed[name], weight, atol=1e-2) for name, weight in whole.items())

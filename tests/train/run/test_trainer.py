import json
import os
import signal
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import torch
from runs import SHAPE, alone, context, logged, on_ranks, tiny_config, weights
from safetensors.torch import save_file
from small import hide_normals

from datagen.generate import GenerateConfig, generate
from datagen.meshing import MeshConfig
from geometry.raymaps import RayMaps
from jobs.pool import PoolConfig
from manifests.dataset import Dataset
from train.data.sampling import MultiView, SingleView
from train.data.stream import LoaderConfig
from train.diffusion import precision
from train.diffusion.edm import NoiseLevels
from train.diffusion.objective import Objective
from train.embedded.folder import HEADS64
from train.networks.model import load_model
from train.networks.unet import UNetShape
from train.run.checkpoint import whole_ones
from train.run.config import TrainConfig
from train.run.ema import EmaConfig
from train.run.optimizer import OptimizerConfig
from train.run.run_folder import average
from train.run.trainer import run
from train.run.validate import QUANTILES


@pytest.fixture
def dataset(make) -> Dataset:
    return make(identities=6, views=4)


@pytest.fixture
def config(dataset, tmp_path) -> TrainConfig:
    return tiny_config(dataset, tmp_path)


def same(one: TrainConfig, other: TrainConfig) -> bool:
    there = weights(other)
    return all(torch.equal(weight, there[name]) for name, weight in weights(one).items())


def test_a_run_leaves_what_it_says(config, dataset):
    looks = replace(config.validation, data=config.loader.data, every=16, scenes=4, pictures=1, steps=2)
    model = load_model(run(replace(config, validation=looks)))
    out = Path(config.out)
    assert model.about.samples_seen == 32
    assert model.about.knows == "6 noise heads"
    assert model.about.conditions == (0, 1)
    assert not model.about.identity
    assert json.loads((out / "config.json").read_text())["samples"] == 32
    assert sorted(logged(config)) == list(range(4, 33, 4))
    assert len(logged(config, f"validation/loss/{QUANTILES[0]:+.2f}")) == 2
    assert sorted(p.name for p in (out / "samples").iterdir()) == ["000000000016.png", "000000000032.png"]
    assert len(list((out / "tensorboard").iterdir())) == 1
    about = json.loads((max(whole_ones(out / "checkpoints")) / "checkpoint.json").read_text())
    assert about["seen"] == 32
    assert about["dataset"]
    assert about["config"]["optim"]["lr"] == 1e-2
    assert not list(out.rglob("*.pkl"))
    assert not list(out.rglob("*.metadata"))


def test_a_run_that_is_done_only_writes_its_model_again(config):
    run(config)
    before = weights(config)
    lines = (Path(config.out) / "log.jsonl").read_text()
    run(config)
    assert (Path(config.out) / "log.jsonl").read_text() == lines
    assert all(torch.equal(weight, before[name]) for name, weight in weights(config).items())


ENDLESS = 10**6
"""Samples of a run that is to be struck while it goes on, however slow this machine is."""


def last_seen(config: TrainConfig) -> int:
    place = max(whole_ones(Path(config.out) / "checkpoints"))
    return json.loads((place / "checkpoint.json").read_text())["seen"]


def goes_on_as_if_nothing_had_been(broken: TrainConfig, straight: TrainConfig) -> None:
    """Eight more samples after the last checkpoint, against as many in one go."""
    broken, straight = (replace(config, samples=last_seen(broken) + 8) for config in (broken, straight))
    alone(broken)
    alone(straight)
    assert same(straight, broken)
    # What was struck may have logged steps after its last checkpoint.
    assert {seen: loss for seen, loss in logged(broken).items() if seen <= broken.samples} == logged(straight)


def test_killed_and_resumed_is_bit_for_bit_the_straight_run(config, tmp_path):
    """What SIGKILL leaves is the last whole checkpoint, and whatever was being written when it struck."""
    straight, broken = (replace(config, out=str(tmp_path / name), save_every=4) for name in ("straight", "broken"))
    process = context.Process(target=alone, args=(replace(broken, samples=ENDLESS),))
    process.start()
    while not whole_ones(Path(broken.out) / "checkpoints"):
        assert process.exitcode is None
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    goes_on_as_if_nothing_had_been(broken, straight)


def test_a_signal_to_all_processes_saves_and_the_same_command_goes_on(config, tmp_path):
    config = replace(config, loader=replace(config.loader, workers=1), save_every=ENDLESS)
    straight, stopped = (replace(config, out=str(tmp_path / name)) for name in ("straight", "stopped"))
    process = context.Process(target=alone, args=(replace(stopped, samples=ENDLESS),))
    process.start()
    while not (log := Path(stopped.out) / "log.jsonl").exists() or not log.read_text():
        assert process.exitcode is None
        time.sleep(0.005)
    for child in psutil.Process(process.pid).children(recursive=True):
        child.terminate()
    process.terminate()
    process.join(60)
    assert process.exitcode not in (None, 0)
    goes_on_as_if_nothing_had_been(stopped, straight)


def test_ranks_change_nothing_and_may_change(config, tmp_path):
    one, two, four, elastic = (replace(config, out=str(tmp_path / n)) for n in ("one", "two", "four", "elastic"))
    alone(one)
    on_ranks(two, 2)
    on_ranks(four, 4)
    for world, samples in ((2, 12), (4, 24), (1, 32)):
        on_ranks(replace(elastic, samples=samples), world)
    for other in (two, four, elastic):
        assert logged(other) == pytest.approx(logged(one), abs=1e-5)
        for name, weight in weights(one).items():
            assert torch.allclose(weight, weights(other)[name], atol=1e-4), name


def test_shards_of_the_network_train_as_its_copies_do(config, tmp_path):
    # With looks in between, for which the averages take the place of the weights.
    looks = replace(config.validation, data=config.loader.data, every=8, scenes=2, pictures=1, steps=1)
    config = replace(config, validation=looks)
    copies, shards, then = (replace(config, out=str(tmp_path / name)) for name in ("ddp", "fsdp", "then"))
    on_ranks(copies, 2)
    on_ranks(replace(shards, strategy="fsdp"), 2)
    assert logged(shards) == pytest.approx(logged(copies), abs=1e-5)
    looked = "validation/loss"
    assert logged(shards, looked) == pytest.approx(logged(copies, looked), abs=1e-5)
    # What shards saved, copies on one rank go on from.
    on_ranks(replace(then, samples=16, strategy="fsdp"), 2)
    alone(then)
    assert logged(then) == pytest.approx(logged(copies), abs=1e-5)


def test_micro_batches_make_no_difference(config, tmp_path):
    ones, fours = replace(config, out=str(tmp_path / "ones")), replace(config, out=str(tmp_path / "fours"), micro=4)
    alone(ones)
    alone(fours)
    assert logged(ones) == pytest.approx(logged(fours), abs=1e-5)


def test_activations_computed_twice_are_the_same(config, tmp_path):
    again = replace(config, out=str(tmp_path / "again"), checkpoint_activations=True)
    alone(config)
    alone(again)
    assert logged(config) == pytest.approx(logged(again), abs=1e-6)


def test_bf16_is_close(config, tmp_path):
    half = replace(config, out=str(tmp_path / "half"), precision="bf16")
    alone(config)
    alone(half)
    assert logged(half) == pytest.approx(logged(config), rel=0.05)


def test_it_overfits_one_identity(tmp_path):
    """8 views of one procedural head at 64 px, through the embedded autoencoder."""
    dataset = generate(
        GenerateConfig(
            str(tmp_path / "head"),
            identities=1,
            rig="orbit-8",
            resolution=64,
            mesh=MeshConfig(64),
            pool=PoolConfig(inline=True),
        )
    )
    loader = LoaderConfig(
        dataset.storage.url, MultiView(conditions=(1,)), batch=1, tail="exact", workers=0, random_background=0.0
    )
    config = replace(
        tiny_config(dataset, tmp_path),
        loader=loader,
        vae=str(HEADS64 / "vae"),
        model=replace(
            SHAPE,
            rays=RayMaps("geometric", 3, 3),
            scale_given=False,
            unet=UNetShape(channels=(32, 64), attention=(False, True), blocks=1, heads=2, context=512, groups=8),
        ),
        optim=OptimizerConfig(lr=3e-3, warmup=10, cooldown=0.5, weight_decay=0.0),
        objective=Objective(NoiseLevels(mean=2.0, std=0.5, shift="none"), drop=0.0),
        samples=200,
        log_every=20,
        save_every=200,
    )
    run(config)
    losses = list(logged(config).values())
    assert losses[-1] < 0.6 * losses[0]


def test_single_pictures_need_no_cameras(config, tmp_path):
    loader = replace(config.loader, recipe=SingleView(), members=("rgb",))
    first = replace(config, loader=loader, model=replace(SHAPE, rays=None, normals=False))
    network = load_model(run(first)).network
    assert network.unet.config.in_channels == network.unet.config.out_channels == 4
    # What it learned begins the multiview model: image and normals alike.
    second = replace(config, init=str(Path(first.out) / "model"), out=str(tmp_path / "second"))
    assert load_model(run(second)).network.unet.config.in_channels == 8 + SHAPE.rays.channels + 1


def test_averages_of_other_lengths_are_rebuilt(config, tmp_path):
    """From two averages and their snapshots, a third that was kept as well."""
    config = replace(config, ema=replace(config.ema, sigma_rel=(0.05, 0.15, 0.10)), snapshot_every=4)
    run(config)
    wanted = Path(config.out) / "ema" / "000000000032-0.1.safetensors"
    from safetensors.torch import load_file

    stored = load_file(wanted)
    for file in wanted.parent.glob("*-0.1.safetensors"):
        file.unlink()
    average(Path(config.out), tmp_path / "rebuilt", 0.10)
    rebuilt = load_model(tmp_path / "rebuilt").network.unet.state_dict()
    name = "conv_in.weight"
    assert torch.allclose(rebuilt[name], stored[name].float(), atol=2e-2)
    moved = (stored[name].float() - weights(config)[name]).abs().max()
    assert (rebuilt[name] - stored[name].float()).abs().max() < moved / 2


# Errors: one line, before the first step.


def test_another_runs_checkpoint_is_refused(config):
    run(config)
    with pytest.raises(ValueError, match=r"of a run with other settings \(optim.lr was 0.01, is 0.5\); give those"):
        run(replace(config, optim=replace(config.optim, lr=0.5)))


def test_another_precision_is_refused_by_the_option_that_goes_on(config, monkeypatch):
    """As when a run moves to a machine on which auto is something else."""
    monkeypatch.setattr(precision, "native_bf16", lambda device: True)
    run(replace(config, precision="auto"))
    assert json.loads((Path(config.out) / "config.json").read_text())["precision"] == "bf16"
    monkeypatch.setattr(precision, "native_bf16", lambda device: False)
    with pytest.raises(ValueError, match=r"\(precision was 'bf16', is 'fp32'\); give those \(--precision bf16\), or"):
        run(replace(config, precision="auto"))
    run(replace(config, precision="bf16"))


def test_the_precision_is_said_once_and_recorded(config, capsys, monkeypatch):
    monkeypatch.setattr(precision, "native_bf16", lambda device: False)
    run(replace(config, precision="auto", samples=4))
    assert capsys.readouterr().err.count("precision: fp32 (this CPU has no bf16 instructions)\n") == 1
    assert json.loads((Path(config.out) / "config.json").read_text())["precision"] == "fp32"


def test_batches_that_do_not_divide(config):
    with pytest.raises(
        ValueError, match=r"--loader.batch 4 does not divide among 1 ranks of --micro 3; take --micro 2"
    ):
        run(replace(config, micro=3))
    with pytest.raises(ValueError, match=r"among 3 ranks of --micro 1; take --loader.batch 6"):
        config.accumulation(3)


def test_a_member_that_is_not_there(config, monkeypatch):
    hide_normals(monkeypatch)
    with pytest.raises(ValueError, match=r"24 of 24 views have no normal"):
        run(config)


def test_latents_of_another_autoencoder(config):
    with pytest.raises(ValueError, match=r"has no latents, its name there would be .*; run spinset latents"):
        run(replace(config, latents=True))


def test_weights_that_are_missing(config, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"is not an autoencoder: it has no config.json"):
        run(replace(config, vae=str(tmp_path / "nowhere")))
    with pytest.raises(FileNotFoundError, match=r"--init is .*, which has no unet/diffusion_pytorch_model.safetensors"):
        run(replace(config, init=str(tmp_path / "nowhere")))
    arc = replace(SHAPE, identity=replace(SHAPE.identity, kind="arc2face", layers=1, heads=8))
    with pytest.raises(FileNotFoundError, match=r"--text-encoder is needed.*it is Arc2Face's encoder"):
        run(replace(config, model=arc, text_encoder=str(tmp_path / "nowhere")))
    with pytest.raises(ValueError, match=r"--vae is needed"):
        run(replace(config, vae=""))


def test_weights_of_another_shape(config, tmp_path):
    folder = tmp_path / "wrong" / "unet"
    folder.mkdir(parents=True)
    save_file({"conv_in.weight": torch.zeros(2, 4, 3, 3)}, folder / "diffusion_pytorch_model.safetensors")
    with pytest.raises(
        ValueError, match=r"conv_in.weight is \(2, 4, 3, 3\), this model's is .*; give a 4-channel UNet"
    ):
        run(replace(config, init=str(tmp_path / "wrong")))


def test_numbers_that_are_not_finite_are_found_before_the_first_step(config, tmp_path, make):
    """An autoencoder that answers NaN stands for latents that hold it."""
    from safetensors.torch import load_file

    file = Path(config.vae) / "diffusion_pytorch_model.safetensors"
    vae = load_file(file)
    vae["quant_conv.bias"] = torch.full_like(vae["quant_conv.bias"], float("nan"))
    save_file(vae, file)
    with pytest.raises(ValueError, match=r"identity \d, view \d holds numbers that are not finite; check the data"):
        run(config)
    assert not (Path(config.out) / "checkpoints").exists()


def test_steps_that_are_not_finite_are_skipped_and_then_end_the_run(config, monkeypatch):
    """The guard itself: gradients that overflow leave weights as they are."""
    from train.run import trainer

    real, calls = trainer.losses, []

    def losses(*args):
        calls.append(1)
        return real(*args) * (float("inf") if 4 < len(calls) <= 8 else 1.0)  # the four scenes of the second step

    monkeypatch.setattr(trainer, "losses", losses)
    run(config)
    assert logged(config, "skipped")[8] == 1
    assert logged(config, "skipped")[32] == 1
    assert all(torch.isfinite(weight).all() for weight in weights(config).values())
    calls.clear()
    monkeypatch.setattr(trainer, "losses", lambda *args: real(*args) * float("nan"))
    limit = replace(config.optim, max_skipped=3)
    with pytest.raises(ValueError, match=r"the gradients of 3 steps in a row were not finite, at 12 samples"):
        run(replace(config, out=config.out + "-nan", optim=limit))


@pytest.mark.parametrize(
    ("loader", "says"),
    [
        ({"as_uint8": True}, r"leave --loader.as-uint8"),
        ({"control": True}, r"leave --loader.as-uint8, --loader.no-decode, --loader.control"),
        ({"members": ("rgb",)}, r"--loader.members are \('rgb',\); this model takes normal and rgb"),
        ({"tail": "drop"}, r"--loader.tail at exact"),
    ],
)
def test_ways_of_loading_that_would_train_on_something_else(config, loader, says):
    with pytest.raises(ValueError, match=says):
        replace(config, loader=replace(config.loader, **loader))


def test_a_model_that_reads_its_inputs_otherwise_is_no_beginning(config, tmp_path):
    first = str(run(config))
    other = replace(config, init=first, model=replace(SHAPE, scale_given=False), out=str(tmp_path / "other"))
    with pytest.raises(ValueError, match=r"was trained with model.scale-given True, this run has False; give the same"):
        run(other)


def test_a_run_without_averages_is_looked_at_and_exported(config):
    looks = replace(config.validation, data=config.loader.data, every=16, scenes=2, pictures=0)
    run(replace(config, ema=EmaConfig(sigma_rel=()), validation=looks))
    assert len(logged(config, "validation/loss")) == 2


def test_a_longer_run_goes_on_where_the_shorter_ended(config, tmp_path):
    straight, longer = (replace(config, out=str(tmp_path / name)) for name in ("straight", "longer"))
    alone(straight)
    alone(replace(longer, samples=16))
    alone(longer)
    assert same(straight, longer)


def test_shapes_that_do_not_go_together():
    with pytest.raises(ValueError, match=r"unet.context is 12 and identity.width 512"):
        replace(SHAPE, unet=UNetShape(channels=(16,), attention=(True,), heads=2, groups=4, context=12))

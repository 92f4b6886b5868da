import json
import os
import signal
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import torch
from embeddings import write_embeddings
from runs import SHAPE, alone, context, logged, on_ranks, tiny_config, weights
from safetensors.torch import save_file
from small import hide_normals
from tiny_vae import write_vae

from datagen.config import GenerateConfig, MeshConfig
from datagen.generate import generate
from jobs.pool import PoolConfig
from manifests.dataset import Dataset
from manifests.errors import UserError
from train.data.config import LatentsConfig, LoaderConfig
from train.data.latents import make_latents
from train.data.sampling import MultiView, SingleView
from train.diffusion.config import NoiseLevels, Objective
from train.families import load_model
from train.families.presets import PRESETS
from train.networks import model
from train.networks.config import RayMaps, UNetShape
from train.run.config import EmaConfig, OptimizerConfig, TrainConfig
from train.run.optimizer import learning_rate
from train.run.parallel import check_devices, micro_batch
from train.run.run_folder import average, whole_ones
from train.run.trainer import run
from train.run.validate import QUANTILES
from weights.embedded import HEADS64


@pytest.fixture
def dataset(make) -> Dataset:
    return make(identities=6, views=4)


@pytest.fixture
def held_out(make) -> str:
    """Heads of other seeds."""
    return make(identities=6, views=4, name="held-out", seed=100).storage.url


@pytest.fixture
def config(dataset, tmp_path) -> TrainConfig:
    return tiny_config(dataset, tmp_path)


def same(one: TrainConfig, other: TrainConfig) -> bool:
    there = weights(other)
    return all(torch.equal(weight, there[name]) for name, weight in weights(one).items())


def test_a_run_leaves_what_it_says(config, dataset, held_out):
    looks = replace(config.validation, data=held_out, every=16, scenes=4, pictures=1, steps=2)
    model = load_model(run(replace(config, validation=looks)))
    out = Path(config.out)
    assert model.about.samples_seen == 32
    assert model.about.trained_on == "6 noise heads"
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
    one, two, elastic = (replace(config, out=str(tmp_path / n)) for n in ("one", "two", "elastic"))
    alone(one)
    on_ranks(two, 2)
    for world, samples in ((2, 12), (4, 24), (1, 32)):
        on_ranks(replace(elastic, samples=samples), world)
    for other in (two, elastic):
        assert logged(other) == pytest.approx(logged(one), abs=1e-5)
        for name, weight in weights(one).items():
            assert torch.allclose(weight, weights(other)[name], atol=1e-4), name


def test_shards_of_the_network_train_as_its_copies_do(config, tmp_path, held_out):
    # With looks in between, for which the averages take the place of the weights.
    looks = replace(config.validation, data=held_out, every=8, scenes=2, pictures=1, steps=1)
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
    ones, fours = (replace(config, out=str(tmp_path / name), micro=k) for name, k in (("ones", 1), ("fours", 4)))
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
        samples=100,
        log_every=10,
        save_every=100,
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
    monkeypatch.setattr(model, "native_bf16", lambda device: True)
    run(replace(config, precision="auto"))
    assert json.loads((Path(config.out) / "config.json").read_text())["precision"] == "bf16"
    monkeypatch.setattr(model, "native_bf16", lambda device: False)
    with pytest.raises(ValueError, match=r"\(precision was .bf16., is .fp32.\); give --precision bf16, another --out"):
        run(replace(config, precision="auto"))
    run(replace(config, precision="bf16"))


def test_the_precision_is_said_once_and_recorded(config, capsys, monkeypatch):
    monkeypatch.setattr(model, "native_bf16", lambda device: False)
    run(replace(config, precision="auto", samples=4))
    assert capsys.readouterr().err.count("precision: fp32 (this CPU has no bf16 instructions)") == 1
    assert json.loads((Path(config.out) / "config.json").read_text())["precision"] == "fp32"


def test_batches_that_do_not_divide():
    with pytest.raises(UserError, match=r"a batch of 4 does not divide among 3 ranks; take 3 or 6"):
        micro_batch(4, 1, 3)


@pytest.mark.parametrize(
    ("world", "micro", "fits"), [(1, 8, 8), (2, 8, 4), (4, 8, 2), (1, 3, 2), (2, 1, 1), (1, 99, 8)]
)
def test_a_micro_batch_fits_itself_to_the_ranks(world, micro, fits):
    assert micro_batch(8, micro, world) == fits


@pytest.mark.parametrize("preset", PRESETS.values(), ids=PRESETS)
def test_presets_fit_two_ranks(preset):
    assert micro_batch(preset.config.loader.batch, preset.config.micro, 2) <= preset.config.micro


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
    with pytest.raises(FileNotFoundError, match=r"--init is .*, which has no \*/diffusion_pytorch_model.safetensors"):
        run(replace(config, init=str(tmp_path / "nowhere")))
    arc = replace(SHAPE, identity=replace(SHAPE.identity, kind="arc2face", layers=1, heads=8))
    with pytest.raises(FileNotFoundError, match=r"--text-encoder is needed.*make it with spinset convert"):
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
        return real(*args) * (float("inf") if len(calls) == 2 else 1.0)  # the second step, of four scenes at once

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
        ({"control": True}, r"takes no pictures of another head from the same cameras; give --loader.no-control"),
        ({"members": ("rgb",)}, r"--loader.members are \('rgb',\); this model takes rgb and normal"),
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


def test_a_run_without_averages_is_looked_at_and_exported(config, held_out):
    looks = replace(config.validation, data=held_out, every=16, scenes=2, pictures=0)
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


# Situations of people who train.


def test_embeddings_made_anew_between_stop_and_resume_are_refused(config, dataset):
    write_embeddings(dataset, seed=1, width=512, views=4)
    config = replace(config, loader=replace(config.loader, embeddings="arcface"))
    run(replace(config, samples=16))
    write_embeddings(dataset, seed=2, width=512, views=4)
    with pytest.raises(UserError, match=r"other latents or embeddings; give those it was saved with"):
        run(config)
    write_embeddings(dataset, seed=1, width=512, views=4, recogniser="ab" * 32)
    assert load_model(run(config)).about.recogniser == "ab" * 32, "a model's folder names its recogniser"
    assert max(logged(config)) == 32


def test_another_autoencoder_under_the_same_path_is_refused_on_resume(config):
    run(replace(config, samples=16))
    write_vae(Path(config.vae), seed=7)
    with pytest.raises(UserError, match=r"was trained with other weights of --vae; give those"):
        run(config)


def test_only_what_is_refused_is_named(config, tmp_path, monkeypatch):
    """Another spelling of the folder is no reason."""
    run(config)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"other settings \(precision was .fp32., is .bf16.\); give --precision fp32"):
        run(replace(config, out="run", precision="bf16", log_every=2))


def test_a_finished_run_with_a_cooldown_is_continued_and_its_card_states_it(config, capsys):
    config = replace(config, samples=16, optim=replace(config.optim, cooldown=0.5))
    assert load_model(run(config)).about.history == ()
    longer = replace(config, samples=32)
    said = "--samples 32 instead of 16 from 16 samples on"
    assert load_model(run(longer)).about.history == (said,)
    assert said in capsys.readouterr().err
    assert said in (Path(config.out) / "log.jsonl").read_text()
    rates = logged(config, "lr")
    assert rates[16] == 0
    assert rates[20] == learning_rate(config.optim, 20, 32)
    # Once stated, not again; and fewer samples than were seen are a mistake.
    assert load_model(run(longer)).about.history == (said,)
    with pytest.raises(UserError, match=r"has seen 32 samples, --samples is 16; give more"):
        run(config)


def test_a_branch_takes_weights_moments_and_averages_over_and_may_have_other_settings(config, tmp_path):
    straight = replace(config, out=str(tmp_path / "straight"))
    alone(straight)
    origin = Path(straight.out) / "checkpoints" / "000000000016"
    # With the same settings it is bit for bit the rest of its origin: every part of the state was taken over.
    twin = replace(config, out=str(tmp_path / "twin"), branch=str(origin))
    alone(twin)
    assert same(straight, twin)
    assert min(logged(twin)) == 20
    other = replace(twin, out=str(tmp_path / "other"), optim=replace(config.optim, lr=1e-4))
    history = load_model(run(other)).about.history
    assert history == (f"branched from {origin} at 16 samples: optim.lr was 0.01, is 0.0001",)
    # The same command goes on with the branch's own checkpoints.
    assert load_model(run(replace(other, samples=40))).about.history[0] == history[0]


def test_a_branch_of_other_data_begins_their_order_and_says_so(config, held_out, tmp_path):
    run(replace(config, samples=16))
    branch = replace(
        config,
        loader=replace(config.loader, data=held_out),
        branch=str(Path(config.out) / "checkpoints" / "000000000016"),
        out=str(tmp_path / "branch"),
    )
    assert "their order begins at its start" in load_model(run(branch)).about.history[1]


def test_a_branch_of_nothing_is_refused(config, tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"--branch is .*nowhere, which has no checkpoint.json; give a checkpoint"
    ):
        run(replace(config, branch=str(tmp_path / "nowhere")))


def test_validation_on_training_heads_is_refused(config, make):
    looks = replace(config.validation, data=config.loader.data)
    with pytest.raises(UserError, match=r"6 of the 6 heads of --validation.data .* are trained on \(first: seed 0\)"):
        run(replace(config, validation=looks))
    # Another dataset of which some heads have the same seeds.
    overlapping = make(identities=4, views=4, name="overlapping", seed=4).storage.url
    with pytest.raises(UserError, match=r"2 of the 4 heads .* seed 4\); give heads of other seeds, .* --seed 6"):
        run(replace(config, validation=replace(looks, data=overlapping)))


def test_validation_pictures_that_are_too_small_are_refused_before_the_first_step(config, make):
    small = make(identities=4, views=4, name="small", seed=100, resolution=8).storage.url
    with pytest.raises(UserError, match=r"has 8 px, this run trains at 16 px; give one of at least that"):
        run(replace(config, validation=replace(config.validation, data=small)))
    assert not Path(config.out).exists()


def test_validation_averages_over_the_heads_there_are(config, held_out):
    looks = replace(config.validation, data=held_out, scenes=16, pictures=16, steps=1, every=32)
    run(replace(config, samples=4, validation=looks))
    assert len(logged(config, "validation/loss")) == 1


def test_the_weights_of_the_lowest_validation_loss_are_kept(config, held_out):
    looks = replace(config.validation, data=held_out, every=4, scenes=2, pictures=0)
    run(replace(config, validation=looks))
    losses = logged(config, "validation/loss")
    best = load_model(Path(config.out) / "best").about
    assert best.validation_loss == min(losses.values())
    assert losses[best.samples_seen] == best.validation_loss


def test_a_second_trainer_is_refused_and_harms_nothing(config):
    """The first is stopped in the middle, so that it holds its folder for as long as is needed."""
    process = context.Process(target=alone, args=(replace(config, samples=ENDLESS, save_every=4),))
    process.start()
    while not whole_ones(Path(config.out) / "checkpoints"):
        assert process.exitcode is None
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGSTOP)
    before = sorted(Path(config.out).rglob("*"))
    with pytest.raises(UserError, match=r"another process trains into .*; wait for it, stop it, or give another --out"):
        run(config)
    assert sorted(Path(config.out).rglob("*")) == before
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    run(replace(config, samples=last_seen(config) + 4))


def test_a_checkpoint_that_one_rank_cannot_write_stops_all_ranks(config):
    """Neither waits for the other until its time is up."""
    with pytest.raises(RuntimeError) as stopped:
        on_ranks(config, 2, without_room=1)
    assert str(stopped.value).count("checkpoints/000000000016 could not be written") == 2
    assert not whole_ones(Path(config.out) / "checkpoints")


def test_stray_files_among_the_checkpoints_are_left_alone(config):
    stray = Path(config.out) / "checkpoints" / ".DS_Store"
    stray.parent.mkdir(parents=True)
    stray.write_text("")
    run(config)
    assert stray.exists()


def test_the_screen_tells_what_runs_and_where_it_goes_on(config, capsys):
    run(replace(config, samples=8))
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("train: 1 rank on cpu, precision: fp32 (set by --precision; this CPU has ")
    assert lines[0].endswith("), 2 steps of 4 samples, 4 at once on each rank; loading")
    # An estimate after the first micro-batch, whatever --log-every is.
    assert lines[1].startswith("train: 0 of 8, ")
    assert lines[1].endswith(" left")
    assert "gradient norm" in lines[-1]
    assert "lr 0.01" in lines[-1]
    run(config)
    assert f"train: {config.out}/checkpoints/000000000008 loaded, at 8 of 32 samples" in capsys.readouterr().err


def test_the_gradient_norm_is_logged(config):
    run(config)
    norms = logged(config, "grad_norm")
    assert sorted(norms) == list(range(4, 33, 4))
    assert all(norm > 0 for norm in norms.values())


def test_a_stop_within_a_step_saves_the_step_before_and_takes_the_whole_step_again(
    config, tmp_path, monkeypatch, capfd
):
    """SIGINT in the second micro-batch of the fourth step: its other micro-batches are not waited for."""
    from train.run import trainer

    straight, stopped = (
        replace(config, out=str(tmp_path / name), snapshot_every=12, micro=1) for name in ("straight", "stopped")
    )
    alone(straight)
    real, calls = trainer.losses, []

    def losses(*args):
        calls.append(1)
        if len(calls) == 14:
            os.kill(os.getpid(), signal.SIGINT)
        return real(*args)

    monkeypatch.setattr(trainer, "losses", losses)
    with pytest.raises(KeyboardInterrupt):
        alone(stopped)
    assert len(calls) == 14
    said = capfd.readouterr().err
    assert "stopping after this micro-batch; Ctrl-C again stops at once, without saving" in said
    assert "stopped; saved at 12 of 32 samples, the same command goes on" in said
    # What was due at the step that was saved is there.
    assert last_seen(stopped) == 12
    assert (Path(stopped.out) / "ema" / "000000000012-0.05.safetensors").exists()
    alone(stopped)
    assert same(straight, stopped)
    assert logged(stopped) == logged(straight)


def test_latents_of_three_channels_are_no_pictures(config, dataset, tmp_path):
    vae = tmp_path / "three"
    write_vae(vae, latent_channels=3)
    make_latents(LatentsConfig(dataset.storage.url, str(vae), pool=PoolConfig(inline=True)))
    run(replace(config, vae=str(vae), latents=True, samples=8))
    assert load_model(Path(config.out) / "model").network.latents == 6


@pytest.mark.parametrize(("local", "devices"), [(1, 1), (4, 4)])
def test_two_ranks_on_one_gpu_are_refused(local, devices):
    with pytest.raises(
        UserError, match=rf"rank {local} .* no GPU, there are {devices}; start at most {devices} processes"
    ):
        check_devices(local, devices)


def test_a_rig_with_another_lens_is_refused(make, tmp_path):
    """FaceLift's cameras stand closer; ray maps and sampled views assume PanoHead's."""
    rig = {"id": "facelift-6", "azimuth": [0.0, 120.0, 240.0], "azimuth_jitter": 0.0, "elevation_jitter": 0.0}
    dataset = make(identities=6, views=3, rig={**rig, "radius": 0.678, "focal": 1.0723})
    with pytest.raises(
        UserError, match=r"has the rig facelift-6, whose cameras stand at 0.678 .* trained with 2.7 and 4.2647"
    ):
        run(tiny_config(dataset, tmp_path))

"""The stages of a small DiffPortrait model: each trains its own part and leaves the others as they are."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from runs import logged, tiny_config
from safetensors.torch import load_file

from manifests.errors import MissingFile, UserError
from spinset import main
from train.data.loader import open_loader
from train.data.sampling import Portraits, SingleView
from train.families import load_model
from train.families.diffportrait.presets import SMALL, SMALL_BASE, back_generator, stages
from train.families.presets import PRESETS
from train.networks.config import UNetShape
from train.networks.unet import run_unet
from train.run.trainer import open_model, run

SHAPE = UNetShape((16, 16), (True, True), blocks=1, heads=2, context=8, joint_from=2, groups=4)


@pytest.fixture
def tiny(make, tmp_path):
    """Turns a preset into a run of three steps on six noise heads of eight views."""
    dataset = make(identities=6, views=8)

    def tiny(config, name: str, start: str = "", **changes):
        recipe = config.loader.recipe
        if isinstance(recipe, Portraits):
            recipe = replace(recipe, count=min(recipe.count, 3), min_turn=100.0, strides=(1, 2))
        own = tiny_config(dataset, tmp_path, name)
        loader = replace(own.loader, recipe=recipe, members=("rgb",), control=config.loader.control, batch=2)
        model = replace(config.model, unet=SHAPE)
        init = str(tmp_path / start / "model") if start else ""
        changes = {"trained": config.trained, **changes}
        return replace(own, loader=loader, model=model, init=init, samples=6, **changes)

    return tiny


def weights(folder: str, part: str) -> dict[str, torch.Tensor]:
    return load_file(Path(folder) / "model" / part / "diffusion_pytorch_model.safetensors")


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_each_stage_trains_its_part(tiny, tmp_path):
    run(tiny(SMALL_BASE, "base"))
    first, second, third = stages(SMALL, "diffportrait3d").values()
    runs = []
    for stage, start, name in (
        (first, "base", "references"),
        (second, "references", "cameras"),
        (third, "cameras", "views"),
    ):
        config = tiny(stage, name, start)
        run(config)
        runs.append(config.out)
    base = weights(str(tmp_path / "base"), "unet")
    assert all(same(base, weights(out, "unet")) for out in runs)
    references = [weights(out, "reference") for out in runs]
    assert not same(references[0], {name: base[name] for name in references[0]})
    assert same(references[0], references[1]) and same(references[1], references[2])
    assert same(weights(runs[1], "control"), weights(runs[2], "control"))
    assert any(weights(runs[2], "temporal")[name].any() for name in weights(runs[2], "temporal") if "proj_out" in name)

    model = load_model(Path(runs[2]) / "model")
    assert model.config.temporal == "diffportrait3d" and model.about.samples_seen == 6
    assert model.about.conditions == (1,)


def test_the_small_unet_begins_as_that_of_heads64():
    """Its further channels are left out, and attention on the finest level does nothing yet."""
    model, _ = open_model(replace(SMALL_BASE, trained=("*",)), torch.device("cpu"))
    theirs = load_model("heads64")
    x, extra = torch.randn(2, 1, 12, 16, 16), torch.zeros(2, 1, 67, 16, 16)
    level, context = torch.tensor([0.3, -0.8]), torch.zeros(2, 1, 512)
    with torch.inference_mode():
        ours = run_unet(model.parts["unet"], x, level, context)
        expected = run_unet(theirs.parts["unet"], torch.cat([x, extra], 2), level, context)[:, :, :12]
    torch.testing.assert_close(ours, expected)
    ddpm = replace(SMALL_BASE, model=replace(SMALL_BASE.model, noise="ddpm"))
    with pytest.raises(UserError, match=r"is a model of the family 'spinmeround', this run trains 'diffportrait'"):
        open_model(ddpm, torch.device("cpu"))


def test_a_stage_resumes_bit_for_bit(tiny):
    config = back_generator(SMALL)
    whole, halves = tiny(config, "whole", trained=("*",)), tiny(config, "halves", trained=("*",))
    run(whole)
    run(replace(halves, samples=2))
    run(halves)
    for part in ("unet", "reference", "control"):
        assert same(weights(whole.out, part), weights(halves.out, part)), part
    assert logged(whole) == logged(halves)


def test_parts_are_read_by_diffusers(tiny):
    from diffusers import ControlNetModel, UNet2DConditionModel

    config = tiny(back_generator(SMALL), "run", trained=("*",))
    folder = run(config)
    for part, kind in (
        ("unet", UNet2DConditionModel),
        ("reference", UNet2DConditionModel),
        ("control", ControlNetModel),
    ):
        assert same(dict(kind.from_pretrained(folder / part).state_dict()), weights(config.out, part)), part


def test_a_stage_needs_the_stage_before(tiny):
    run(tiny(SMALL_BASE, "base"))
    cameras = stages(SMALL, "diffportrait360")["cameras"]
    with pytest.raises(MissingFile, match=r"has no reference/.*; this run does not train that part, so train it first"):
        run(tiny(cameras, "cameras", "base"))


def test_a_stage_starts_from_a_converted_model_without_a_card(tiny, tmp_path, capsys, monkeypatch):
    """As the folders of official UNets are, which spinset convert writes."""
    base = tiny(SMALL_BASE, "base")
    run(base)
    folder = tmp_path / "base" / "model"
    (folder / "model.json").unlink()
    config = tiny(stages(SMALL, "diffportrait3d")["references"], "references", "base")
    monkeypatch.setitem(
        PRESETS, "portraits64-3d-references", replace(PRESETS["portraits64-3d-references"], config=config)
    )
    assert main(["train", "portraits64-3d-references", "--init", str(folder)]) == 0
    assert capsys.readouterr().out.splitlines() == [f"model: {config.out}/model"]
    assert main(["train", "portraits64-3d-references", "--init", str(tmp_path / "nowhere")]) == 2
    assert "has no */diffusion_pytorch_model.safetensors" in capsys.readouterr().err


def test_one_command_runs_all_stages(tiny, make, tmp_path, monkeypatch, capsys):
    """Each from the model of the one before; and its model makes views."""
    names = ("portraits64-base", *(f"portraits64-360-{stage}" for stage in ("references", "cameras", "views")))
    for name in names:
        made = tiny(PRESETS[name].config, name)
        monkeypatch.setitem(PRESETS, name, replace(PRESETS[name], config=replace(made, out=str(tmp_path / "all"))))
    first = PRESETS[names[0]].config
    monkeypatch.setitem(PRESETS, "portraits64-360", replace(PRESETS["portraits64-360"], config=first))
    assert main(["train", "portraits64-360", "--samples", "4"]) == 0
    out = tmp_path / "all"
    printed = capsys.readouterr().out.splitlines()
    assert printed[:-1] == [f"model: {out}/{stage}/model" for stage in ("base", "references", "cameras", "views")]
    assert printed[-1] == f"next: spinset views {out}/views/model PHOTO --out DIR --control DATASET"
    base = weights(str(out / "base"), "unet")
    assert all(same(base, weights(str(out / stage), "unet")) for stage in ("references", "cameras", "views"))
    about = load_model(out / "views" / "model").about
    assert (about.samples_seen, about.conditions, len(about.turns)) == (4, (2,), 2)
    photo = tmp_path / "photo.png"
    Image.fromarray(np.full((64, 64, 4), 200, np.uint8)).save(photo)
    strangers = make(identities=2, views=8, name="strangers", seed=50).storage.url
    args = [str(out / "views" / "model"), str(photo), "--out", str(tmp_path / "views"), "--control", strangers]
    # The views of these noise heads are 120 degrees apart.
    assert (
        main(["views", *args, "--aligned", "--azimuths", "0", "120", "240", "--steps", "2", "--outputs", "sheet"]) == 0
    )
    assert (tmp_path / "views" / "sheet.png").is_file()


def test_strangers_can_be_of_another_dataset(tiny, make):
    pool = make(identities=3, views=8, name="strangers", seed=100).storage.url
    cameras = tiny(stages(SMALL, "diffportrait360")["cameras"], "run", trained=("*",))
    joined = replace(cameras.loader, control_data=pool)
    own, others = (next(iter(open_loader(loader))) for loader in (cameras.loader, joined))
    assert torch.equal(own.rgb, others.rgb) and own.control.shape == others.control.shape
    assert not torch.equal(own.control, others.control)
    run(replace(cameras, loader=joined))
    other = make(identities=3, views=6, name="other", seed=100).storage.url
    with pytest.raises(UserError, match=r"--loader.control-data is .* of rig orbit-6; .* has rig orbit-8"):
        run(replace(cameras, loader=replace(cameras.loader, control_data=other)))


def test_rays_take_the_place_of_strangers(tiny):
    """They need no pictures, and are not the same weights."""
    cameras = stages(SMALL, "diffportrait360")["cameras"]
    rays = replace(cameras, model=replace(cameras.model, control="rays"), loader=replace(cameras.loader, control=False))
    folder = run(tiny(rays, "rays", trained=("*",)))
    control = load_model(folder).parts["control"]
    assert control.config.conditioning_channels == 6
    with pytest.raises(UserError, match=r"was trained with model.control rays, this run has pictures"):
        run(tiny(cameras, "pictures", "rays"))


def test_control_pictures_need_to_be_loaded(tiny):
    cameras = stages(SMALL, "diffportrait360")["cameras"]
    config = tiny(cameras, "run")
    with pytest.raises(
        UserError, match=r"this model needs pictures of another head from the same cameras; give --loader.control"
    ):
        replace(config, loader=replace(config.loader, control=False))


def test_sharding_is_refused(tiny):
    """Its reference tokens come from within blocks whose weights are gathered for their own outputs only."""
    with pytest.raises(UserError, match=r"--strategy is fsdp, which cannot shard a model of the family diffportrait"):
        tiny(stages(SMALL, "diffportrait360")["views"], "run", strategy="fsdp")


def test_single_pictures_have_no_references(tiny):
    config = tiny(SMALL_BASE, "base")
    assert isinstance(config.loader.recipe, SingleView)
    model = load_model(run(config))
    assert list(model.parts) == ["unet"]

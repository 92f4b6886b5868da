"""The stages of a small DiffPortrait model: each trains its own part and leaves the others as they are."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from runs import logged, tiny_config
from safetensors.torch import load_file

from infer.config import SamplerConfig
from infer.views import open_sampler
from manifests.errors import UserError
from spinset import main
from train.data.sampling import Portraits, SingleView
from train.families import load_model
from train.families.diffportrait.presets import SMALL, SMALL_BASE, back_generator, stages
from train.families.presets import PRESETS
from train.networks.config import UNetShape
from train.run.trainer import run

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


@pytest.mark.parametrize("layout", ["diffportrait3d", "diffportrait360"])
def test_each_stage_trains_its_part(tiny, tmp_path, layout):
    run(tiny(SMALL_BASE, "base"))
    first, second, third = stages(SMALL, layout).values()
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
    assert model.config.temporal == layout and model.about.samples_seen == 6
    assert model.about.conditions == (1 + (layout == "diffportrait360"),)


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
    with pytest.raises(UserError, match=r"has no reference/.*; this run does not train that part, so train it first"):
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


def test_views_refuses_a_model_of_control_pictures(tiny):
    folder = run(tiny(stages(SMALL, "diffportrait360")["views"], "run", trained=("*",)))
    with pytest.raises(UserError, match=r"needs control pictures besides photos, which cannot be given yet"):
        open_sampler(str(folder), SamplerConfig(), "cpu")


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

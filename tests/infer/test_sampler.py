from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from runs import SHAPE
from tiny_vae import write_vae
from torch import Tensor, nn

from infer.config import SAMPLERS as OPTIONS
from infer.config import SamplerConfig
from infer.make import interpolate_identities
from infer.views import ViewSampler, inpaint_normals, plan_views, ring
from train.diffusion.process import SAMPLERS
from train.families.spinmeround.model import SpinMeRoundNetwork
from train.networks.config import About
from train.networks.model import Model, load_vae


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Model:
    """A model of random weights, which is a function of all it is given all the same."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        vae = load_vae(write_vae(tmp_path_factory.mktemp("model") / "vae"))
        model = SHAPE.build(vae, About("noise", 16))
        model.network.eval()
        return model


def sampler(model: Model, **changes) -> ViewSampler:
    return ViewSampler(model, SamplerConfig(**{"steps": 3, "precision": "fp32", **changes}))


@pytest.fixture
def count(model, monkeypatch) -> Callable[[], list[tuple[int, int]]]:
    """Scenes and views of every call of the network."""
    calls, forward = [], SpinMeRoundNetwork.forward

    def counted(self: nn.Module, x: Tensor, *args) -> Tensor:
        calls.append(tuple(x.shape[:2]))
        return forward(self, x, *args)

    monkeypatch.setattr(SpinMeRoundNetwork, "forward", counted)
    return lambda: calls


def person(seed: int = 0) -> Tensor:
    return torch.nn.functional.normalize(torch.randn(512, generator=torch.Generator().manual_seed(seed)), dim=0)


PHOTO = torch.randn(8, 2, 2, generator=torch.Generator().manual_seed(9))


def test_a_turntable_of_48_takes_nine_calls_of_both_branches_at_once(model, count):
    views = sampler(model).sample(plan_views(ring(48), np.zeros(48)), {0: PHOTO}, person())
    assert count() == [(2, 8)] * 9 * 3  # 50 steps as released, 3 here
    assert len(views) == 48
    assert views.rgb.shape == views.normal.shape == (48, 3, 16, 16)
    assert views.is_condition.tolist() == [True] + [False] * 47
    assert np.allclose(views.azimuth % 360, ring(48))


def test_the_given_view_comes_back_as_it_was(model):
    views = sampler(model).sample(plan_views(ring(8), np.zeros(8)), {0: PHOTO}, None)
    rgb, normal = model.decode(PHOTO[None, None])
    assert torch.allclose(views.rgb[0], rgb[0, 0], atol=1e-5)
    assert torch.allclose(views.normal[0], normal[0, 0], atol=1e-5)


@pytest.mark.parametrize("shared", [True, False])
def test_a_view_does_not_depend_on_what_else_is_asked_for(model, shared):
    """Views of one sector share a call, those of others do not meet; anchors are always made together."""
    model = replace(model, config=replace(model.config, shared_noise=shared))
    few = sampler(model).sample(plan_views(np.array([45.0, 100.0]), np.zeros(2)), {0: PHOTO}, person())
    more = sampler(model).sample(plan_views(np.array([-20.0, 100.0, 45.0]), np.zeros(3)), {0: PHOTO}, person())
    assert torch.allclose(few.rgb[0], more.rgb[2], atol=1e-5)
    assert torch.allclose(few.rgb[1], more.rgb[1], atol=1e-5)


def test_seeds_identities_and_photos_matter(model):
    plan = plan_views(ring(8), np.zeros(8))
    base = sampler(model).sample(plan, {0: PHOTO}, person()).rgb[1:]
    assert torch.equal(sampler(model).sample(plan, {0: PHOTO}, person()).rgb[1:], base)
    for other in (
        sampler(model, seed=1).sample(plan, {0: PHOTO}, person()),
        sampler(model).sample(plan, {0: PHOTO}, person(1)),
        sampler(model).sample(plan, {0: PHOTO + 1}, person()),
        sampler(model, scale=5.0).sample(plan, {0: PHOTO}, person()),
        sampler(model, sampler="heun").sample(plan, {0: PHOTO}, person()),
    ):
        assert not torch.allclose(other.rgb[1:], base, atol=1e-4)


def test_from_nothing_guidance_is_left_out(model, count):
    views = sampler(model).sample(plan_views(ring(8), np.zeros(8), photos=()), {}, None)
    assert count() == [(1, 8)] * 3
    assert not views.is_condition.any()


def test_models_without_normals(model):
    without_normals = replace(SHAPE, normals=False).build(model.vae, model.about)
    without_normals.network.eval()
    views = sampler(without_normals).sample(plan_views(ring(8), np.zeros(8)), {0: PHOTO[:4]}, None)
    assert views.normal is None


def test_normals_of_a_photo_are_made_by_the_model(model, count):
    found = inpaint_normals(model, PHOTO[:4], person(), steps=4)
    assert found.shape == (4, 2, 2)
    assert count() == [(1, 1)] * 4
    untied = inpaint_normals(model, PHOTO[:4], person(), strength=0.0, steps=4)
    assert not torch.allclose(found, untied, atol=1e-4)
    assert not torch.allclose(found, inpaint_normals(model, PHOTO[:4] + 1, person(), steps=4), atol=1e-4)


def test_half_precision_errs_less_than_the_number_of_steps(model):
    plan = plan_views(ring(8), np.zeros(8))

    def sampled(**changes) -> Tensor:
        return sampler(model, **changes).sample(plan, {0: PHOTO}, person()).rgb[1:]

    full, half, finer = sampled(), sampled(precision="bf16"), sampled(steps=6)
    assert half.dtype == torch.float32
    assert 0 < float((half - full).abs().mean()) < 0.2 * float((finer - full).abs().mean())


def test_identities_between_two_are_of_unit_length():
    path = interpolate_identities(person(0), person(1), np.array([0.0, 0.25, 1.0], np.float32))
    assert torch.allclose(path.norm(dim=1), torch.ones(3), atol=1e-6)
    assert torch.allclose(path[0], person(0), atol=1e-6)
    assert torch.allclose(path[2], person(1), atol=1e-6)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"steps": 0}, r"--steps is 0"),
        ({"scale": 0.5}, r"--scale is 0.5; it must be from 1 to 100"),
        ({"sampler": "dpm"}, r"--sampler is 'dpm'; it must be one of euler, heun, ddim"),
    ],
)
def test_settings_that_cannot_be(change, says):
    with pytest.raises(ValueError, match=says):
        SamplerConfig(**change)


def test_the_options_name_the_samplers_there_are():
    """The options are listed without importing torch."""
    assert tuple(SAMPLERS) == OPTIONS

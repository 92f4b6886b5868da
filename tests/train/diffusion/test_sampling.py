"""Sampling against the released sampling function, with the conditions of SpinMeRound."""

from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from geometry.cameras import spinmeround_rotation
from geometry.raymaps import ray_maps
from train.diffusion.process import EDM, append_dims, denoise, euler, guided, initial_latents, predict, sample
from train.families.spinmeround.model import NullCondition, SpinMeRoundConditions


class Toy:
    """The network of the golden cases: a matrix over channels, and the mean over all views of a scene."""

    def __init__(self, golden):
        self.W, self.bt, self.Wc, self.Wm = (golden[f"toy.{name}"] for name in ("W", "bt", "Wc", "Wm"))
        self.calls = []

    def __call__(self, x, c_noise, conditions):
        channels, context = conditions.channels, conditions.context
        self.calls.append((x, channels, c_noise, context))
        out = torch.einsum("oc,bvchw->bvohw", self.W, torch.cat([x, channels], 2))
        out = out + (self.bt * c_noise[:, None])[:, None, :, None, None]
        out = out + (context.mean(1) @ self.Wc.T)[:, None, :, None, None]
        return out + (x.mean((1, 3, 4)) @ self.Wm.T)[:, None, :, None, None]


@pytest.fixture(scope="module")
def released(golden):
    return load_file(golden / "spinmeround/spmr_sampling/stage1_and_normals_toy.safetensors")


@pytest.fixture(scope="module")
def rays(released):
    """As stored: octave 14 makes 16384 times as much of a rounding, and the toy network passes it on."""
    return released["stage1.condition_images"][:, :, :144]


def conditions_of(released, rays, given: bool) -> SpinMeRoundConditions:
    clean = torch.zeros(1, 4, 8, 16, 16)
    clean[:, 0] = released["stage1.z"]
    is_condition = torch.tensor([[given, False, False, False]])
    code = released["toy.enc.b"].reshape(-1, 1, 1).expand(-1, 16, 16)
    null = NullCondition(torch.cat([code, code]), released["ctx_empty"].reshape(5, 16))
    return SpinMeRoundConditions(clean, is_condition, rays, released["ctx_id"].reshape(1, 5, 16), null)


def noise_of(released) -> torch.Tensor:
    return released["init_noise"].reshape(1, 1, 8, 16, 16).expand(-1, 4, -1, -1, -1)


def test_channels_are_those_of_the_released_network(released):
    pitch, yaw = released["angles_pitch_yaw_deg"].float().unbind(-1)
    own = ray_maps(spinmeround_rotation(pitch, yaw, torch.zeros_like(yaw)), 16)[None]
    assert torch.allclose(conditions_of(released, own, True).channels, released["stage1.condition_images"], atol=1e-2)


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_stage_one_is_sampled_as_released(released, rays, scale):
    conditions, toy = conditions_of(released, rays, True), Toy(released)
    denoiser = guided(toy, EDM(), conditions, scale)
    out = sample(denoiser, conditions, noise_of(released), EDM().sigmas(10), shared_noise=True)
    assert torch.allclose(out[0], released[f"stage1.scale{scale}.n10.final"], atol=2e-5, rtol=2e-5)
    assert len(toy.calls) == 10  # both branches in one batch


@pytest.mark.parametrize("call", [0, 4, 9])
def test_the_inputs_of_the_network_are_the_released_ones(released, rays, call):
    conditions, toy = conditions_of(released, rays, True), Toy(released)
    sample(guided(toy, EDM(), conditions, 3.0), conditions, noise_of(released), EDM().sigmas(10), shared_noise=True)
    latents, channels, c_noise, context = toy.calls[call]
    stored = released[f"stage1.scale3.0.call{call}.net_input_latent_channels"]
    assert torch.allclose(latents.flatten(0, 1), stored, atol=2e-5, rtol=2e-5)
    assert torch.allclose(c_noise.repeat_interleave(4), released[f"stage1.scale3.0.call{call}.c_noise"], atol=1e-6)
    assert torch.allclose(channels.flatten(0, 1), released["stage1.net_input_cond_channels_8_153"], atol=1e-2)
    assert torch.equal(context.repeat_interleave(4, 0), released["stage1.context"])


def test_identity_alone_is_sampled_as_released(released, rays):
    conditions = conditions_of(released, rays, False)
    x = initial_latents(noise_of(released), 700.0, shared=True)
    out = euler(guided(Toy(released), EDM(), conditions, 3.5), x, EDM().sigmas(10))
    assert torch.allclose(out[0], released["identity_only.scale3.5.n10.final"], atol=2e-5, rtol=2e-5)


def some_conditions(b: int = 3, v: int = 4) -> SpinMeRoundConditions:
    g = torch.Generator().manual_seed(0)
    is_condition = torch.tensor([[True, False, False, False], [False] * 4, [True, True, True, False]])[:b, :v]
    draw = lambda *shape: torch.randn(*shape, generator=g)  # noqa: E731
    null = NullCondition(torch.full((8, 4, 4), 0.25), torch.zeros(2, 5))
    return SpinMeRoundConditions(draw(b, v, 8, 4, 4), is_condition, draw(b, v, 6, 4, 4), draw(b, 2, 5), null)


def mixing(x, c_noise, conditions):
    """A network that reads every condition."""
    return x * conditions.channels.mean(2, keepdim=True) + append_dims(conditions.context.mean((1, 2)), x)


def test_dropped_views_are_grey_without_a_direction():
    conditions = some_conditions()
    null, given = conditions.null(), conditions.is_condition
    assert torch.equal(null.clean[given], conditions.null_condition.latents.expand(4, -1, -1, -1))
    assert null.channels[given].abs().max() == 0  # rays and mask
    assert torch.equal(null.channels[~given], conditions.channels[~given])
    assert torch.equal(null.context, conditions.null_condition.context.expand(3, -1, -1))
    only_views = conditions.dropped(torch.tensor([[True, False], [False, False], [False, False]]))
    assert torch.equal(only_views.context, conditions.context)
    assert torch.equal(only_views.clean[1:], conditions.clean[1:])
    assert not torch.equal(only_views.clean[0, 0], conditions.clean[0, 0])


def test_given_views_enter_clean_and_scaled():
    conditions, inputs = some_conditions(), []

    def network(x, c_noise, conditions):
        inputs.append(x)
        return torch.zeros_like(x)

    sigma = torch.tensor([0.5, 2.0, 700.0])
    predict(network, EDM(), conditions, torch.full_like(conditions.clean, 9.0), sigma)
    c_in = EDM().scalings(sigma).c_in.reshape(3, 1, 1, 1, 1)
    assert torch.equal(inputs[0], torch.where(conditions.given, conditions.clean, 9.0) * c_in)


def test_guidance_of_one_is_the_conditional_branch_alone():
    conditions, x = some_conditions(), torch.randn(3, 4, 8, 4, 4, generator=torch.Generator().manual_seed(1))
    sigma = torch.tensor([0.5, 2.0, 7.0])
    alone = guided(mixing, EDM(), conditions, 1.0)(x, sigma)
    assert torch.equal(alone, denoise(mixing, EDM(), conditions, x, sigma))
    almost = guided(mixing, EDM(), conditions, 1.0 + 1e-6)(x, sigma)
    assert torch.allclose(alone, almost, atol=1e-4)


def test_guidance_has_no_effect_where_there_is_nothing_to_drop():
    conditions = some_conditions()
    context = conditions.null_condition.context.expand(3, -1, -1)
    conditions = replace(conditions, is_condition=torch.zeros_like(conditions.is_condition), context=context)
    x, sigma = torch.randn(3, 4, 8, 4, 4), torch.full((3,), 2.0)
    weak, strong = (guided(mixing, EDM(), conditions, scale)(x, sigma) for scale in (2.0, 7.0))
    assert torch.allclose(weak, strong, atol=1e-4)

from dataclasses import asdict, replace

import pytest
import torch
from conventions import spinmeround_rotation
from safetensors.torch import load_file

from geometry.raymaps import ray_maps
from train.diffusion.edm import edm_levels, euler, like, scalings
from train.diffusion.scene import Nothing, Scene, denoise, given_in, guided, predict, start, without
from train.networks.config import RayMaps


class Toy:
    """The network of the golden cases: a matrix over channels, and the mean over all views of a scene."""

    def __init__(self, golden):
        self.W, self.bt, self.Wc, self.Wm = (golden[f"toy.{name}"] for name in ("W", "bt", "Wc", "Wm"))
        self.calls = []

    def __call__(self, x, channels, c_noise, context):
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


def scene_of(released, rays, given: bool) -> Scene:
    clean = torch.zeros(1, 4, 8, 16, 16)
    clean[:, 0] = released["stage1.z"]
    is_condition = torch.tensor([[given, False, False, False]])
    return Scene(clean, is_condition, rays, released["ctx_id"].reshape(1, 5, 16))


def nothing_of(released) -> Nothing:
    code = released["toy.enc.b"].reshape(-1, 1, 1).expand(-1, 16, 16)
    return Nothing(torch.cat([code, code]), released["ctx_empty"].reshape(5, 16))


def test_channels_are_those_of_the_released_network(released):
    pitch, yaw = released["angles_pitch_yaw_deg"].float().unbind(-1)
    own = ray_maps(spinmeround_rotation(pitch, yaw, torch.zeros_like(yaw)), 16, **asdict(RayMaps()))[None]
    assert torch.allclose(scene_of(released, own, True).channels, released["stage1.condition_images"], atol=1e-2)


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_stage_one_is_sampled_as_released(released, rays, scale):
    scene, toy = scene_of(released, rays, True), Toy(released)
    x = start(released["init_noise"].reshape(1, 1, 8, 16, 16).expand(-1, 4, -1, -1, -1), 700.0, shared=True)
    out = given_in(scene, euler(guided(toy, scene, scale, nothing_of(released)), x, edm_levels(10)))
    assert torch.allclose(out[0], released[f"stage1.scale{scale}.n10.final"], atol=2e-5, rtol=2e-5)
    assert len(toy.calls) == 10  # both branches in one batch


@pytest.mark.parametrize("call", [0, 4, 9])
def test_the_network_sees_what_the_released_one_sees(released, rays, call):
    scene, toy = scene_of(released, rays, True), Toy(released)
    x = start(released["init_noise"].reshape(1, 1, 8, 16, 16).expand(-1, 4, -1, -1, -1), 700.0, shared=True)
    euler(guided(toy, scene, 3.0, nothing_of(released)), x, edm_levels(10))
    latents, channels, c_noise, context = toy.calls[call]
    stored = released[f"stage1.scale3.0.call{call}.net_input_latent_channels"]
    assert torch.allclose(latents.flatten(0, 1), stored, atol=2e-5, rtol=2e-5)
    assert torch.allclose(c_noise.repeat_interleave(4), released[f"stage1.scale3.0.call{call}.c_noise"], atol=1e-6)
    assert torch.allclose(channels.flatten(0, 1), released["stage1.net_input_cond_channels_8_153"], atol=1e-2)
    assert torch.equal(context.repeat_interleave(4, 0), released["stage1.context"])


def test_identity_alone_is_sampled_as_released(released, rays):
    scene = scene_of(released, rays, False)
    x = start(released["init_noise"].reshape(1, 1, 8, 16, 16).expand(-1, 4, -1, -1, -1), 700.0, shared=True)
    out = euler(guided(Toy(released), scene, 3.5, nothing_of(released)), x, edm_levels(10))
    assert torch.allclose(out[0], released["identity_only.scale3.5.n10.final"], atol=2e-5, rtol=2e-5)


def some_scene(b: int = 3, v: int = 4) -> Scene:
    g = torch.Generator().manual_seed(0)
    is_condition = torch.tensor([[True, False, False, False], [False] * 4, [True, True, True, False]])[:b, :v]
    draw = lambda *shape: torch.randn(*shape, generator=g)  # noqa: E731
    return Scene(draw(b, v, 8, 4, 4), is_condition, draw(b, v, 6, 4, 4), draw(b, 2, 5))


def some_nothing() -> Nothing:
    return Nothing(torch.full((8, 4, 4), 0.25), torch.zeros(2, 5))


def test_what_is_left_out_is_grey_from_nowhere():
    scene, nothing = some_scene(), some_nothing()
    yes, no = torch.ones(3, dtype=torch.bool), torch.zeros(3, dtype=torch.bool)
    bare = without(scene, yes, yes, nothing)
    given = scene.is_condition
    assert torch.equal(bare.clean[given], nothing.latents.expand(4, -1, -1, -1))
    assert bare.channels[given].abs().max() == 0  # rays and mask
    assert torch.equal(bare.channels[~given], scene.channels[~given])
    assert torch.equal(bare.context, nothing.context.expand(3, -1, -1))
    only_images = without(scene, torch.tensor([True, False, False]), no, nothing)
    assert torch.equal(only_images.context, scene.context)
    assert torch.equal(only_images.clean[1:], scene.clean[1:])
    assert not torch.equal(only_images.clean[0, 0], scene.clean[0, 0])


def test_given_views_enter_clean_and_scaled():
    scene, seen = some_scene(), []

    def network(x, channels, c_noise, context):
        seen.append(x)
        return torch.zeros_like(x)

    sigma = torch.tensor([0.5, 2.0, 700.0])
    predict(network, scene, torch.full_like(scene.clean, 9.0), sigma)
    c_in = scalings(sigma).c_in.reshape(3, 1, 1, 1, 1)
    assert torch.equal(seen[0], torch.where(scene.given, scene.clean, 9.0) * c_in)


def test_given_views_may_enter_as_they_are():
    scene, seen = replace(some_scene(), scale_given=False), []

    def network(x, channels, c_noise, context):
        seen.append(x)
        return torch.zeros_like(x)

    predict(network, scene, torch.full_like(scene.clean, 9.0), torch.tensor([0.5, 2.0, 700.0]))
    assert torch.equal(seen[0][scene.is_condition], scene.clean[scene.is_condition])
    assert not (seen[0][~scene.is_condition] == 9.0).any()


def test_guidance_of_one_is_the_conditional_branch_alone():
    scene, x = some_scene(), torch.randn(3, 4, 8, 4, 4, generator=torch.Generator().manual_seed(1))
    sigma = torch.tensor([0.5, 2.0, 7.0])

    def network(x, channels, c_noise, context):
        return x * channels.mean(2, keepdim=True) + like(context.mean((1, 2)), x)

    alone = guided(network, scene, 1.0, some_nothing())(x, sigma)
    assert torch.equal(alone, denoise(network, scene, x, sigma))
    almost = guided(network, scene, 1.0 + 1e-6, some_nothing())(x, sigma)
    assert torch.allclose(alone, almost, atol=1e-4)


def test_without_a_photo_or_a_person_guidance_has_nothing_to_do():
    scene, nothing = some_scene(), some_nothing()
    scene = replace(scene, is_condition=torch.zeros_like(scene.is_condition), context=nothing.context.expand(3, -1, -1))
    x, sigma = torch.randn(3, 4, 8, 4, 4), torch.full((3,), 2.0)

    def network(x, channels, c_noise, context):
        return x * channels.mean(2, keepdim=True) + like(context.mean((1, 2)), x)

    weak, strong = (guided(network, scene, scale, nothing)(x, sigma) for scale in (2.0, 7.0))
    assert torch.allclose(weak, strong, atol=1e-4)

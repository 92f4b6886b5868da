from dataclasses import replace

import pytest
import torch

from train.diffusion.config import NoiseLevels, Objective
from train.diffusion.edm import like, training_levels, v_target
from train.diffusion.objective import Draws, draw, gaussian, losses, losses_at
from train.diffusion.scene import Nothing, Scene

LIKE = torch.zeros(400, 2, 3, 2, 2)


def test_draws_depend_on_the_place_alone():
    whole = draw(Objective(), 5, range(6), LIKE[:6])
    for place in range(6):
        alone = draw(Objective(), 5, [place], LIKE[:1])
        for name in ("noise", "level", "drop_images", "drop_identity"):
            assert torch.equal(getattr(alone, name)[0], getattr(whole, name)[place]), name
    assert not torch.equal(draw(Objective(), 6, [0], LIKE[:1]).noise, whole.noise[:1])


def test_purposes_do_not_share_their_noise():
    one, other = (gaussian(0, purpose, [3], LIKE[:1]) for purpose in ("noise", "posterior"))
    assert not torch.equal(one, other)


def test_noise_is_normal_and_levels_follow_their_law():
    drawn = draw(Objective(), 0, range(400), LIKE)
    assert drawn.noise.mean().abs() < 0.05
    assert drawn.noise.std() == pytest.approx(1, abs=0.05)
    assert drawn.level.std() == pytest.approx(1, abs=0.1)


def test_a_share_is_dropped_jointly_or_apart():
    joint = draw(Objective(drop=0.15), 0, range(400), LIKE)
    assert torch.equal(joint.drop_images, joint.drop_identity)
    assert joint.drop_images.float().mean() == pytest.approx(0.15, abs=0.05)
    apart = draw(Objective(drop=0.5, drop_mode="independent"), 0, range(400), LIKE)
    assert (apart.drop_images != apart.drop_identity).float().mean() == pytest.approx(0.5, abs=0.1)


def scene() -> tuple[Scene, torch.Tensor, Nothing]:
    g = torch.Generator().manual_seed(0)
    latents = torch.randn(2, 3, 4, 2, 2, generator=g)
    given = torch.tensor([[True, False, False], [False, False, False]])
    rays, context = torch.randn(2, 3, 5, 2, 2, generator=g), torch.randn(2, 1, 6, generator=g)
    return Scene(latents, given, rays, context), latents, Nothing(torch.zeros(4, 2, 2), torch.zeros(1, 6))


def test_the_truth_has_no_loss_and_only_targets_count():
    own, latents, _ = scene()
    noise, sigma = torch.randn(2, 3, 4, 2, 2), torch.tensor([0.5, 3.0])
    truth = v_target(latents, noise, sigma)
    assert losses_at(lambda *args: truth, own, latents, noise, sigma).abs().max() < 1e-10
    wrong = truth.clone()
    wrong[0, 0] += 100  # a given view
    assert losses_at(lambda *args: wrong, own, latents, noise, sigma).abs().max() < 1e-10
    wrong[0, 1] += 1  # one of two targets
    assert torch.allclose(
        losses_at(lambda *args: wrong, own, latents, noise, sigma), torch.tensor([0.5, 0.0]), atol=1e-5
    )


def test_targets_enter_noisy_and_given_views_clean():
    own, latents, nothing = scene()
    draws = Draws(torch.randn(2, 3, 4, 2, 2), torch.tensor([0.3, -0.2]), *torch.zeros(2, 2, dtype=torch.bool))
    objective, seen = Objective(NoiseLevels(shift_views=0)), []

    def network(x, channels, c_noise, context):
        seen.append((x, c_noise))
        return torch.zeros_like(x)

    losses(network, own, latents, draws, objective, nothing)
    sigma = training_levels(objective.noise, draws.level, torch.tensor([2.0, 3.0]))
    x = torch.where(own.given, latents, latents + like(sigma, latents) * draws.noise)
    assert torch.allclose(seen[0][0], x * like((1 + sigma**2).rsqrt(), x))
    assert torch.allclose(seen[0][1], sigma.log() / 4)


def test_what_is_dropped_is_what_guidance_leaves_out():
    own, latents, nothing = scene()
    yes = torch.tensor([True, True])
    draws = Draws(torch.randn(2, 3, 4, 2, 2), torch.zeros(2), yes, yes)
    seen = []

    def network(x, channels, c_noise, context):
        seen.append((x, channels, context))
        return torch.zeros_like(x)

    losses(network, own, latents, draws, Objective(), nothing)
    x, channels, context = seen[0]
    assert x[0, 0].abs().max() == 0
    assert channels[0, 0].abs().max() == 0
    assert context.abs().max() == 0
    assert torch.equal(channels[0, 1:], own.channels[0, 1:])


def test_settings_that_cannot_be():
    with pytest.raises(ValueError, match=r"objective.drop is 1.5; it is a share from 0 to 1"):
        replace(Objective(), drop=1.5)

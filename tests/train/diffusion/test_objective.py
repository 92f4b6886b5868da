from dataclasses import replace

import pytest
import torch

from train.diffusion.config import NoiseLevels, Objective
from train.diffusion.process import DDPM, EDM, append_dims, draw, gaussian, guided, losses
from train.families.spinmeround.model import NullCondition, SpinMeRoundConditions

LIKE = torch.zeros(400, 2, 3, 2, 2)


def test_draws_depend_on_the_place_alone():
    whole = draw(Objective(), 5, range(6), LIKE[:6], 2)
    for place in range(6):
        alone = draw(Objective(), 5, [place], LIKE[:1], 2)
        for name in ("noise", "level", "drop"):
            assert torch.equal(getattr(alone, name)[0], getattr(whole, name)[place]), name
    assert not torch.equal(draw(Objective(), 6, [0], LIKE[:1], 2).noise, whole.noise[:1])


def test_purposes_do_not_share_their_noise():
    one, other = (gaussian(0, purpose, [3], LIKE[:1]) for purpose in ("noise", "posterior"))
    assert not torch.equal(one, other)


def test_noise_is_normal_and_levels_follow_their_law():
    drawn = draw(Objective(), 0, range(400), LIKE, 2)
    assert drawn.noise.mean().abs() < 0.05
    assert drawn.noise.std() == pytest.approx(1, abs=0.05)
    assert drawn.level.std() == pytest.approx(1, abs=0.1)


def test_a_share_is_dropped_jointly_or_apart():
    joint = draw(Objective(drop=0.15), 0, range(400), LIKE, 2)
    assert torch.equal(joint.drop[:, 0], joint.drop[:, 1])
    assert joint.drop[:, 0].float().mean() == pytest.approx(0.15, abs=0.05)
    apart = draw(Objective(drop=0.5, drop_mode="independent"), 0, range(400), LIKE, 2)
    assert (apart.drop[:, 0] != apart.drop[:, 1]).float().mean() == pytest.approx(0.5, abs=0.1)


def scene() -> tuple[SpinMeRoundConditions, torch.Tensor]:
    g = torch.Generator().manual_seed(0)
    latents = torch.randn(2, 3, 4, 2, 2, generator=g)
    given = torch.tensor([[True, False, False], [False, False, False]])
    rays, context = torch.randn(2, 3, 5, 2, 2, generator=g), torch.randn(2, 1, 6, generator=g)
    null = NullCondition(torch.zeros(4, 2, 2), torch.zeros(1, 6))
    return SpinMeRoundConditions(latents, given, rays, context, null), latents


@pytest.mark.parametrize("process", [EDM(), DDPM()])
def test_the_truth_has_no_loss_and_only_targets_count(process):
    own, latents = scene()
    noise, sigma = torch.randn(2, 3, 4, 2, 2), torch.tensor([0.5, 3.0])
    truth = process.target(latents, noise, sigma)
    assert losses(lambda *args: truth, process, own, latents, noise, sigma).abs().max() < 1e-10
    wrong = truth.clone()
    wrong[0, 0] += 100  # a given view
    assert losses(lambda *args: wrong, process, own, latents, noise, sigma).abs().max() < 1e-10
    wrong[0, 1] += 1  # one of two targets
    found = losses(lambda *args: wrong, process, own, latents, noise, sigma)
    assert torch.allclose(found, torch.tensor([0.5, 0.0]), atol=1e-5)


def test_targets_enter_noisy_and_given_views_clean():
    own, latents = scene()
    noise, inputs = torch.randn(2, 3, 4, 2, 2), []
    sigma = EDM(NoiseLevels(shift_views=0)).sample_sigma(torch.tensor([0.3, -0.2]), own.is_target.sum(1).float())

    def network(x, c_noise, conditions):
        inputs.append((x, c_noise))
        return torch.zeros_like(x)

    losses(network, EDM(), own, latents, noise, sigma)
    x = torch.where(own.given, latents, latents + append_dims(sigma, latents) * noise)
    assert torch.allclose(inputs[0][0], x * append_dims((1 + sigma**2).rsqrt(), x))
    assert torch.allclose(inputs[0][1], sigma.log() / 4)


def test_what_is_dropped_is_what_guidance_leaves_out():
    own, latents = scene()
    inputs = []

    def network(x, c_noise, conditions):
        inputs.append((x, conditions.channels, conditions.context))
        return torch.zeros_like(x)

    dropped = own.dropped(torch.ones(2, 2, dtype=torch.bool))
    losses(network, EDM(), dropped, latents, torch.randn(2, 3, 4, 2, 2), torch.ones(2))
    x, channels, context = inputs[0]
    assert x[0, 0].abs().max() == 0
    assert channels[0, 0].abs().max() == 0
    assert context.abs().max() == 0
    assert torch.equal(channels[0, 1:], own.channels[0, 1:])
    guided(network, EDM(), own, 3.0)(latents, torch.ones(2))
    assert torch.equal(inputs[1][1][:2], channels)
    assert torch.equal(inputs[1][2][:2], context)


def test_settings_that_cannot_be():
    with pytest.raises(ValueError, match=r"objective.drop is 1.5; it must be from 0 to 1"):
        replace(Objective(), drop=1.5)

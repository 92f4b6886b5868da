"""Properties of the network that need no released numbers, with random weights."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from train.diffusion.process import DDPM, guided
from train.families.diffportrait.config import DiffPortraitConfig
from train.families.diffportrait.model import DiffPortraitConditions, DiffPortraitNetwork
from train.networks.config import UNetShape

SHAPE = UNetShape((16, 32), (True, True), blocks=1, heads=2, context=8, joint_from=2, groups=4)


def draw(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


VIEWS, CONTROL = draw(1, 3, 4, 8, 8, seed=1), draw(1, 3, 3, 64, 64, seed=2)
FRONT, BACK = draw(1, 1, 4, 8, 8, seed=3), draw(1, 1, 4, 8, 8, seed=4)


@pytest.fixture(params=["diffportrait3d", "diffportrait360"])
def neutral(request) -> DiffPortraitNetwork:
    """As it is built: control and view-temporal layers end in zeros."""
    with torch.random.fork_rng():
        torch.manual_seed(5)
        return DiffPortraitNetwork(DiffPortraitConfig(SHAPE, temporal=request.param), 4, 8).eval()


@pytest.fixture
def network(neutral) -> DiffPortraitNetwork:
    """With every weight random, those of layers that start at zero as well."""
    g = torch.Generator().manual_seed(6)
    for weight in neutral.parameters():
        if not weight.any():
            torch.nn.init.normal_(weight, std=0.2, generator=g)
    return neutral


def conditions_of(
    references: list[Tensor], control: Tensor | None = None, null: bool = False
) -> DiffPortraitConditions:
    given = torch.cat(references, 1) if references else VIEWS[:, :0]
    targets = torch.arange(given.shape[1] + VIEWS.shape[1])[None] >= given.shape[1]
    return DiffPortraitConditions(given, control, draw(1, 2, 8, seed=7), targets, null)


def run(network, conditions: DiffPortraitConditions, views: Tensor = VIEWS) -> Tensor:
    given = conditions.references
    with torch.inference_mode():
        return network(torch.cat([torch.zeros_like(given), views], 1), torch.tensor([501.0]), conditions)[
            :, given.shape[1] :
        ]


def test_new_parts_change_nothing_before_they_are_trained(neutral):
    plain = run(neutral, conditions_of([]))
    assert torch.equal(run(neutral, conditions_of([], CONTROL)), plain)
    assert torch.allclose(run(neutral, conditions_of([FRONT], CONTROL, null=True)), plain, atol=1e-6)
    shuffled = [2, 0, 1]
    assert torch.allclose(run(neutral, conditions_of([]), VIEWS[:, shuffled]), plain[:, shuffled], atol=1e-5)


def test_references_control_and_the_order_of_views_count(network):
    one = run(network, conditions_of([FRONT]))
    for other in (
        conditions_of([]),
        conditions_of([BACK]),
        conditions_of([FRONT, BACK]),
        conditions_of([FRONT], CONTROL),
    ):
        assert (run(network, other) - one).abs().max() > 1e-3
    shuffled = [2, 0, 1]
    assert (run(network, conditions_of([FRONT]), VIEWS[:, shuffled]) - one[:, shuffled]).abs().max() > 1e-3


def test_the_order_of_references_does_not_count_but_a_second_copy_does(network):
    both = run(network, conditions_of([FRONT, BACK]))
    assert torch.allclose(run(network, conditions_of([BACK, FRONT])), both, atol=1e-5)
    twice, once = (run(network, conditions_of([FRONT] * count)) for count in (2, 1))
    assert (twice - once).abs().max() > 1e-3


def test_the_branches_of_guidance_differ_by_the_middle_layer_of_diffportrait3d_only(network):
    null, empty = conditions_of([FRONT], CONTROL, null=True), conditions_of([])
    same = torch.allclose(run(network, null), run(network, empty), atol=1e-6)
    assert same == (network.config.temporal == "diffportrait360")
    network.config = replace(network.config, symmetric=True)
    assert torch.allclose(run(network, null), run(network, empty), atol=1e-6)


def test_every_temporal_layer_learns(network):
    """In training, where conditions are never dropped, the middle layer of DiffPortrait3D runs too."""
    conditions = conditions_of([FRONT], CONTROL)
    views = torch.cat([torch.zeros_like(conditions.references), VIEWS], 1)
    network(views, torch.tensor([501.0]), conditions).square().sum().backward()
    for name, weight in network.temporal.named_parameters():
        assert weight.grad is not None, name


def test_guidance_at_scale_one_is_the_conditional_branch(network):
    conditions = conditions_of([FRONT], CONTROL)
    x, sigma = torch.cat([FRONT, VIEWS], 1), torch.tensor([2.0])
    with torch.inference_mode():
        one, two, three = (guided(network, DDPM(), conditions, scale)(x, sigma) for scale in (1.0, 2.0, 3.0))
    assert (two - one).abs().max() > 1e-3
    assert torch.allclose(three, one + 2 * (two - one), atol=1e-4)

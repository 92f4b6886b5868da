import pytest
import torch
from torch import nn

from train.run.config import OptimizerConfig
from train.run.optimizer import Optimizer, learning_rate


def test_rates_are_a_function_of_the_samples_seen():
    config = OptimizerConfig(lr=2.0, warmup=100, cooldown=0.25)
    assert [learning_rate(config, seen, 1000) for seen in (0, 50, 100, 700, 875, 1000)] == [0, 1, 2, 2, 1, 0]
    assert learning_rate(OptimizerConfig(lr=2.0, warmup=0), 1, 1000) == 2


def test_it_is_adamw():
    config = OptimizerConfig(lr=1e-2, weight_decay=0.1)
    ours, theirs = nn.Linear(4, 4), nn.Linear(4, 4)
    theirs.load_state_dict(ours.state_dict())
    own, plain = Optimizer(ours, config), torch.optim.AdamW(theirs.parameters(), 1e-2, weight_decay=0.1)
    for step in range(5):
        x = torch.randn(8, 4, generator=torch.Generator().manual_seed(step))
        ours(x).square().mean().backward()
        own.step(torch.tensor(1.0), 1e-2)
        theirs(x).square().mean().backward()
        plain.step()
        plain.zero_grad()
    assert torch.allclose(ours.weight, theirs.weight, atol=1e-7)
    assert own.steps == 5


@pytest.mark.parametrize("norm", [float("nan"), float("inf")])
def test_steps_that_are_not_finite_change_nothing(norm):
    network = nn.Linear(4, 4)
    own = Optimizer(network, OptimizerConfig())
    before = network.weight.detach().clone()
    network(torch.full((1, 4), norm)).sum().backward()
    own.step(torch.tensor(norm), 1.0)
    assert torch.equal(network.weight, before)
    assert own.steps == 0
    assert not any(moment.any() for moment in own.moments.values())
    assert (float(own.skipped), float(own.skipped_in_row)) == (1, 1)
    network(torch.ones(1, 4)).sum().backward()
    own.step(torch.tensor(1.0), 1e-3)
    assert (float(own.skipped), float(own.skipped_in_row)) == (1, 0)
    assert torch.isfinite(network.weight).all()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"lr": 0.0}, r"optim.lr is 0"),
        ({"cooldown": 2.0}, r"optim.cooldown is 2"),
        ({"max_skipped": 0}, r"optim.max-skipped is 0"),
    ],
)
def test_settings_that_cannot_be(change, says):
    with pytest.raises(ValueError, match=says):
        OptimizerConfig(**change)

import numpy as np
import pytest
import torch
from torch import nn

from train.run.config import EmaConfig
from train.run.optimizer import Ema, Snapshot, gamma_of, mixture, power_beta


def profile(gamma: float, steps: int) -> np.ndarray:
    """How much each step weighs in a power-function average, from its definition."""
    weights = np.zeros(steps)
    for step in range(steps):
        kept = (1 - 1 / (step + 1)) ** (gamma + 1)
        weights *= kept
        weights[step] += 1 - kept
    return weights


@pytest.mark.parametrize("sigma_rel", [0.05, 0.10, 0.25])
def test_an_average_is_as_wide_as_it_says(sigma_rel):
    weights, times = profile(gamma_of(sigma_rel), 4000), (np.arange(4000) + 0.5) / 4000
    assert weights.sum() == pytest.approx(1)
    mean = (weights * times).sum()
    assert np.sqrt((weights * (times - mean) ** 2).sum()) == pytest.approx(sigma_rel, rel=0.02)


def test_known_exponents():
    """EDM2, section 3.1: lengths of 0.05 and 0.10 are exponents of about 16.97 and 6.94."""
    assert gamma_of(0.05) == pytest.approx(16.97, abs=0.01)
    assert gamma_of(0.10) == pytest.approx(6.94, abs=0.01)


def test_the_first_step_is_all_there_is():
    assert power_beta(0.1, seen=8, batch=8) == 0


def test_averages_follow_their_profiles():
    network = nn.Linear(1, 1, bias=False)
    ema = Ema(network, EmaConfig(sigma_rel=(0.10,), half_life=8))
    values = np.random.default_rng(0).normal(size=50)
    for step, value in enumerate(values):
        nn.init.constant_(network.weight, value)
        ema.update(seen=4 * (step + 1), batch=4)
    kept = 0.5 ** (4 / 8)
    power, classic = (float(ema.averages[name]["weight"]) for name in ("power-0.1", "classic"))
    assert power == pytest.approx((profile(gamma_of(0.10), 50) * values).sum(), abs=1e-5)
    assert classic == pytest.approx(sum((1 - kept) * kept ** (49 - i) * v for i, v in enumerate(values)), abs=1e-5)


def test_the_classic_average_alone():
    network = nn.Linear(1, 1, bias=False)
    ema = Ema(network, EmaConfig(sigma_rel=(), half_life=4))
    nn.init.constant_(ema.averages["classic"]["weight"], 2.0)
    nn.init.constant_(network.weight, 4.0)
    ema.update(seen=100, batch=4)
    assert float(ema.averages["classic"]["weight"]) == 3


def test_the_batch_size_does_not_change_an_average():
    network = nn.Linear(1, 1, bias=False)
    small, large = Ema(network, EmaConfig()), Ema(network, EmaConfig())
    for seen in range(1, 4001):
        nn.init.constant_(network.weight, seen / 4000)
        small.update(seen, 1)
        if seen % 10 == 0:
            large.update(seen, 10)
    assert float(small.averages["power-0.05"]["weight"]) == pytest.approx(
        float(large.averages["power-0.05"]["weight"]), abs=0.01
    )


def test_the_batch_size_does_not_change_the_classic_average():
    network = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(network.weight)
    small, large = (Ema(network, EmaConfig(sigma_rel=(), half_life=100)) for _ in range(2))
    nn.init.ones_(network.weight)
    for _ in range(100):
        small.update(seen=1, batch=1)
    large.update(seen=100, batch=100)
    for ema in (small, large):
        assert float(ema.averages["classic"]["weight"]) == pytest.approx(0.5)


def test_a_skipped_step_moves_no_average():
    network = nn.Linear(3, 3)
    ema = Ema(network, EmaConfig(half_life=10))
    before = {name: average["weight"].clone() for name, average in ema.averages.items()}
    nn.init.ones_(network.weight)
    ema.update(seen=8, batch=4, skipped=torch.tensor(1.0))
    assert all(torch.equal(ema.averages[name]["weight"], weight) for name, weight in before.items())
    ema.update(seen=12, batch=4, skipped=torch.tensor(0.0))
    assert not any(torch.equal(ema.averages[name]["weight"], weight) for name, weight in before.items())


def test_weights_come_back_bit_for_bit():
    network = nn.Linear(3, 3)
    ema = Ema(network, EmaConfig())
    before = network.weight.detach().clone()
    ema.averages["power-0.05"]["weight"].zero_()
    with ema.in_place():
        assert not network.weight.any()
    assert torch.equal(network.weight, before)
    assert not ema.averages["power-0.05"]["weight"].any()


def test_other_lengths_are_mixed_from_snapshots():
    """The mixture of the snapshots' profiles is close to the profile that was asked for."""
    steps, kept = 1000, [0.05, 0.10]
    snapshots = [Snapshot(length, seen) for seen in range(100, steps + 1, 100) for length in kept]
    for wanted in (0.05, 0.07, 0.15):
        shares = mixture(snapshots, wanted, steps)
        stored = [np.pad(profile(gamma_of(s.sigma_rel), s.seen), (0, steps - s.seen)) for s in snapshots]
        mixed = sum(share * p for share, p in zip(shares, stored, strict=True))
        aim = profile(gamma_of(wanted), steps)
        assert np.abs(mixed - aim).sum() < 0.05, wanted


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"sigma_rel": (0.3,)}, "--ema.sigma-rel is 0.3; it must be from 0.001 to 0.28"),
        ({"half_life": -1}, "--ema.half-life is -1"),
    ],
)
def test_settings_that_cannot_be(change, says):
    with pytest.raises(ValueError, match=says):
        EmaConfig(**change)

import math

import numpy as np
import pytest
import torch
from hashed import hashed
from safetensors.torch import load_file

from train.diffusion.config import NoiseLevels
from train.diffusion.edm import ddpm_levels, edm_levels, euler, heun, like, scalings, training_levels, v_target


@pytest.fixture(scope="module")
def samplers(golden):
    return load_file(golden / "spinmeround/samplers/linear_denoiser_trajectories.safetensors")


def test_scalings_are_the_official_ones(golden):
    stored = load_file(golden / "spinmeround/scaling/scaling.safetensors")
    found = scalings(stored["sigma"])
    for name in ("c_skip", "c_out", "c_in", "c_noise"):
        assert torch.allclose(getattr(found, name), stored[f"v_edmnoise.{name}"], rtol=1e-6, atol=0), name


@pytest.mark.parametrize("most", [80, 700])
def test_edm_levels_are_the_official_ones(golden, most):
    stored = load_file(golden / "spinmeround/schedules/schedules.safetensors")
    wanted = stored[f"edm_n50_smin0.002_smax{most}_rho7_f32_with_zero"].double()
    assert torch.allclose(edm_levels(50, most=float(most)), wanted, rtol=5e-6, atol=0)


@pytest.mark.parametrize("steps", [10, 50, 100])
def test_ddpm_levels_are_the_official_ones(golden, steps):
    stored = load_file(golden / "spinmeround/schedules/schedules.safetensors")
    assert torch.allclose(ddpm_levels(steps), stored[f"ddpm_n{steps}_f32_with_zero"].double(), atol=1e-5)


def test_ddpm_levels_are_those_of_numpys_formula_at_every_number_of_steps():
    """A plain numpy transcription of the schedule; exact arithmetic rounds 34 of the 1,000 numbers of steps otherwise."""
    betas = np.linspace(0.00085**0.5, 0.0120**0.5, 1000, dtype=np.float64) ** 2
    kept = np.cumprod(1 - betas)
    table = np.sqrt((1 - kept) / kept)
    for steps in range(1, 1001):
        times = np.linspace(999, 0, steps, endpoint=False).astype(int)
        found = ddpm_levels(steps).numpy()
        assert found[-1] == 0
        np.testing.assert_allclose(found[:-1], table[times], rtol=1e-9, err_msg=str(steps))


def test_ddpm_levels_round_as_the_official_schedule_where_exact_arithmetic_does_not():
    """Some times of 99, 185 and 198 steps are integers that numpy's floating-point product just misses."""
    table = ddpm_levels(1000)
    for steps in (99, 185, 198):
        found = [999 - int((table == level).nonzero()) for level in ddpm_levels(steps)[:-1]]
        exact = [(999 * (steps - k)) // steps for k in range(steps)]
        assert {b - a for a, b in zip(found, exact, strict=True)} == {0, 1}


@pytest.mark.parametrize("steps", [0, 1001])
def test_more_ddpm_steps_than_levels_are_refused(steps):
    with pytest.raises(ValueError, match=rf"--steps is {steps}; .* give 1 to 1000"):
        ddpm_levels(steps)


@pytest.mark.parametrize("method", [euler, heun])
@pytest.mark.parametrize(("name", "levels"), [("edm700", edm_levels(50)), ("ddpm", ddpm_levels(50))])
def test_samplers_follow_the_official_path(samplers, method, name, levels):
    calls = []

    def denoise(x, sigma):
        calls.append((x, float(sigma[0])))
        return x / like(1 + sigma**2, x)

    x = hashed("noise_2x4x4x4", (2, 4, 4, 4), 1.7320508) * math.sqrt(1 + float(levels[0]) ** 2)
    out = method(denoise, x, levels)
    stored = f"{method.__name__}.{name}.n50"
    assert len(calls) == (50 if method is euler else 99)
    assert torch.allclose(out, samplers[f"{stored}.final"], rtol=2e-5, atol=2e-5)
    assert torch.allclose(
        torch.stack([x for x, _ in calls]), samplers[f"{stored}.denoiser_input_x"], rtol=2e-5, atol=2e-5
    )
    assert torch.allclose(torch.tensor([s for _, s in calls]), samplers[f"{stored}.denoiser_sigma"], rtol=1e-5)


def test_levels_shift_with_the_number_of_views(samplers):
    z, targets = samplers["lognormal.rand"], torch.full((16,), 5.0)
    plain = training_levels(NoiseLevels(shift="none"), z, targets)
    assert torch.allclose(plain, samplers["lognormal.sigma_p0.7_1.6"], rtol=2e-5)
    for views in (5, 7, 8):
        fixed = training_levels(NoiseLevels(shift_views=views), z, targets)
        assert torch.allclose(fixed, samplers[f"lognormal.sigma_shift_sqrtN{views}"], rtol=2e-5)
    counted = training_levels(NoiseLevels(shift_views=0), z, targets)
    assert torch.allclose(counted, samplers["lognormal.sigma_shift_sqrtN5"], rtol=2e-5)
    assert torch.allclose(training_levels(NoiseLevels(shift="N"), z, targets), plain * 7, rtol=1e-5)


def test_edm_loss_is_the_square_of_what_v_misses():
    """Weight (1 + sigma^2) / sigma^2 times the denoising error, against the plain difference of F and v."""
    g = torch.Generator().manual_seed(0)
    clean, noise, raw = (torch.randn(5, 8, 4, 4, generator=g, dtype=torch.float64) for _ in range(3))
    sigma = torch.tensor([0.002, 0.3, 1.0, 20.0, 700.0], dtype=torch.float64)
    c_skip, c_out, _, _ = scalings(sigma)
    x = clean + like(sigma, clean) * noise
    denoised = like(c_skip, x) * x + like(c_out, x) * raw
    edm = like((1 + sigma**2) / sigma**2, x) * (denoised - clean).square()
    plain = (raw - v_target(clean, noise, sigma)).square()
    # D - clean loses digits at low noise.
    assert torch.allclose(edm, plain, rtol=1e-6, atol=1e-9)


def test_laws_that_cannot_be():
    with pytest.raises(ValueError, match=r"noise.std is 0"):
        NoiseLevels(std=0.0)

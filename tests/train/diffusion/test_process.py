import math

import numpy as np
import pytest
import torch
from hashed import hashed
from safetensors.torch import load_file

from train.diffusion.config import NoiseLevels
from train.diffusion.process import DDPM, EDM, append_dims, ddim, euler, heun


@pytest.fixture(scope="module")
def samplers(golden):
    return load_file(golden / "spinmeround/samplers/linear_denoiser_trajectories.safetensors")


def test_scalings_are_the_official_ones(golden):
    stored = load_file(golden / "spinmeround/scaling/scaling.safetensors")
    found = EDM().scalings(stored["sigma"])
    for name in ("c_skip", "c_out", "c_in", "c_noise"):
        assert torch.allclose(getattr(found, name), stored[f"v_edmnoise.{name}"], rtol=1e-6, atol=0), name


@pytest.mark.parametrize("most", [80, 700])
def test_edm_levels_are_the_official_ones(golden, most):
    stored = load_file(golden / "spinmeround/schedules/schedules.safetensors")
    wanted = stored[f"edm_n50_smin0.002_smax{most}_rho7_f32_with_zero"].double()
    assert torch.allclose(EDM(sigma_max=float(most)).sigmas(50), wanted, rtol=5e-6, atol=0)


@pytest.mark.parametrize("steps", [10, 50, 100])
def test_ddpm_levels_are_the_official_ones(golden, steps):
    stored = load_file(golden / "spinmeround/schedules/schedules.safetensors")
    assert torch.allclose(DDPM().legacy_sigmas(steps), stored[f"ddpm_n{steps}_f32_with_zero"].double(), atol=1e-5)


def test_ddpm_levels_are_those_of_numpys_formula_at_every_number_of_steps():
    """A plain numpy transcription of the schedule; exact arithmetic rounds 34 of the 1,000 numbers of steps otherwise."""
    betas = np.linspace(0.00085**0.5, 0.0120**0.5, 1000, dtype=np.float64) ** 2
    kept = np.cumprod(1 - betas)
    table = np.sqrt((1 - kept) / kept)
    for steps in range(1, 1001):
        times = np.linspace(999, 0, steps, endpoint=False).astype(int)
        found = DDPM().legacy_sigmas(steps).numpy()
        assert found[-1] == 0
        np.testing.assert_allclose(found[:-1], table[times], rtol=1e-9, err_msg=str(steps))


def test_ddpm_levels_round_as_the_official_schedule_where_exact_arithmetic_does_not():
    """Some times of 99, 185 and 198 steps are integers that numpy's floating-point product just misses."""
    table = DDPM().legacy_sigmas(1000)
    for steps in (99, 185, 198):
        found = [999 - int((table == level).nonzero()) for level in DDPM().legacy_sigmas(steps)[:-1]]
        exact = [(999 * (steps - k)) // steps for k in range(steps)]
        assert {b - a for a, b in zip(found, exact, strict=True)} == {0, 1}


@pytest.mark.parametrize("steps", [0, 1001])
def test_more_ddpm_steps_than_levels_are_refused(steps):
    with pytest.raises(ValueError, match=rf"--steps is {steps}; .* give 1 to 1000"):
        DDPM().legacy_sigmas(steps)


@pytest.mark.parametrize("method", [euler, heun])
@pytest.mark.parametrize(("name", "levels"), [("edm700", EDM().sigmas(50)), ("ddpm", DDPM().legacy_sigmas(50))])
def test_samplers_follow_the_official_path(samplers, method, name, levels):
    calls = []

    def denoise(x, sigma):
        calls.append((x, float(sigma[0])))
        return x / append_dims(1 + sigma**2, x)

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
    plain = EDM(NoiseLevels(shift="none")).sample_sigma(z, targets)
    assert torch.allclose(plain, samplers["lognormal.sigma_p0.7_1.6"], rtol=2e-5)
    for views in (5, 7, 8):
        fixed = EDM(NoiseLevels(shift_views=views)).sample_sigma(z, targets)
        assert torch.allclose(fixed, samplers[f"lognormal.sigma_shift_sqrtN{views}"], rtol=2e-5)
    counted = EDM(NoiseLevels(shift_views=0)).sample_sigma(z, targets)
    assert torch.allclose(counted, samplers["lognormal.sigma_shift_sqrtN5"], rtol=2e-5)
    assert torch.allclose(EDM(NoiseLevels(shift="N")).sample_sigma(z, targets), plain * 7, rtol=1e-5)


def test_edm_loss_is_the_square_of_what_v_misses():
    """Weight (1 + sigma^2) / sigma^2 times the denoising error, against the plain difference of F and v."""
    g = torch.Generator().manual_seed(0)
    clean, noise, raw = (torch.randn(5, 8, 4, 4, generator=g, dtype=torch.float64) for _ in range(3))
    sigma = torch.tensor([0.002, 0.3, 1.0, 20.0, 700.0], dtype=torch.float64)
    c_skip, c_out, _, _ = EDM().scalings(sigma)
    x = clean + append_dims(sigma, clean) * noise
    denoised = append_dims(c_skip, x) * x + append_dims(c_out, x) * raw
    edm = append_dims((1 + sigma**2) / sigma**2, x) * (denoised - clean).square()
    plain = (raw - EDM().target(clean, noise, sigma)).square()
    # D - clean loses digits at low noise.
    assert torch.allclose(edm, plain, rtol=1e-6, atol=1e-9)


def test_laws_that_cannot_be():
    with pytest.raises(ValueError, match=r"noise.std is 0"):
        NoiseLevels(std=0.0)


@pytest.fixture(scope="module")
def ddpm(golden):
    return load_file(golden / "families/ddpm/ddpm.safetensors")


def variance_preserving(x, sigma):
    """The state x_t of DDPM for x = z + sigma n."""
    return x / (1 + sigma**2) ** 0.5


def test_ddpm_noises_data_as_the_official_code(ddpm):
    clean, noise = hashed("ddpm.proxy_latent", (4, 4, 8, 8), 1.7), hashed("ddpm.proxy_noise", (4, 4, 8, 8), 3**0.5)
    table = DDPM().table
    for name, times in (("q_sample_999", [999] * 4), ("q_sample_mixed_t", [0, 21, 501, 999])):
        sigma = append_dims(table[times].float(), clean)
        assert torch.allclose(variance_preserving(clean + sigma * noise, sigma), ddpm[name], atol=1e-5), name


def test_ddpm_levels_and_timesteps_belong_together(ddpm):
    sigmas = DDPM().sigmas(50)
    stored = ddpm["ddim50.timesteps"].flip(0)
    assert torch.equal(DDPM().timestep(sigmas[:-1].float()), stored.float())
    alphas = 1 / (1 + sigmas**2)
    assert torch.allclose(alphas[:-1].flip(0), ddpm["ddim50.alphas"].double(), atol=1e-6)
    assert torch.allclose(alphas[1:].flip(0), ddpm["ddim50.alphas_prev"].double(), atol=1e-6)


def test_ddpm_training_levels_are_uniform_timesteps():
    process, normal = DDPM(), torch.randn(20_000, generator=torch.Generator().manual_seed(0))
    timestep = process.timestep(process.sample_sigma(normal, torch.ones(20_000)))
    assert timestep.min() < 5 and timestep.max() > 994
    assert torch.histc(timestep, 10, 0, 1000).div(2_000).sub(1).abs().max() < 0.1


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_ddim_follows_the_official_path(ddpm, eta):
    """With the analytic denoiser of a Gaussian, classifier-free guidance of 3, and the official noise of each step."""
    mu, process = hashed("ddpm.mu", (4, 4, 8, 8), 1.5), DDPM()
    states, cleans = [], []

    def epsilon(x, alpha, mean, sd):
        return (1 - alpha).sqrt() * (x - alpha.sqrt() * mean) / (alpha * sd**2 + 1 - alpha)

    def denoise(x, sigma):
        s = append_dims(sigma, x)
        alpha, state = 1 / (1 + s**2), variance_preserving(x, s)
        unconditional, conditional = epsilon(state, alpha, 0 * mu, 1.0), epsilon(state, alpha, mu, 0.5)
        clean = x - s * (unconditional + 3 * (conditional - unconditional))
        states.append(state)
        cleans.append(clean)
        return clean

    sigmas = process.sigmas(50)
    x = hashed("ddim.xT", (4, 4, 8, 8), 3**0.5) * (1 + sigmas[0] ** 2).sqrt().float()
    out = ddim(denoise, x, sigmas, eta, lambda step: hashed(f"ddim.noise.{step:02d}", (4, 4, 8, 8), 3**0.5))
    states.append(variance_preserving(out, sigmas[-1]).float())
    name = f"ddim50.eta{eta}.cfg3"
    kept = (0, 1, 2, 9, 24, 39, 47, 48, 49)
    assert torch.allclose(torch.stack([states[k + 1] for k in kept]), ddpm[f"{name}.x"], atol=1e-4)
    assert torch.allclose(torch.stack([cleans[k] for k in kept]), ddpm[f"{name}.pred_x0"], atol=1e-4)


def test_ddim_without_noise_is_eulers_method():
    def denoise(x, sigma):
        return x / append_dims(1 + sigma**2, x)

    x = torch.randn(2, 4, 4, dtype=torch.float64) * 100
    for process in (EDM(), DDPM()):
        sigmas = process.sigmas(20)
        assert torch.allclose(ddim(denoise, x, sigmas), euler(denoise, x, sigmas))


@pytest.mark.parametrize("steps", [0, 1001, 501])
def test_ddpm_step_counts_that_the_schedule_does_not_have(steps):
    with pytest.raises(ValueError, match=rf"--steps is {steps}"):
        DDPM().sigmas(steps)

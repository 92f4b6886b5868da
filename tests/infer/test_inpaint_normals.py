import pytest
import torch
from safetensors.torch import load_file

from infer.config import INPAINT_STRENGTH
from infer.views import guide_towards
from train.diffusion.process import DDPM, append_dims, euler


@pytest.fixture(scope="module")
def released(golden):
    return load_file(golden / "spinmeround/spmr_sampling/stage1_and_normals_toy.safetensors")


def test_the_guidance_is_the_gradient_of_the_mean_square():
    g = torch.Generator().manual_seed(0)
    believed, known = (torch.randn(1, 1, 8, 64, 64, generator=g) for _ in range(2))
    mask = torch.zeros_like(known)
    mask[:, :, :4] = 1
    believed.requires_grad_()
    (gradient,) = torch.autograd.grad((mask * (believed - known).square()).mean(), believed)
    for name, weight in (("released", 1e5), ("paper", 1e4)):
        assert torch.allclose(
            guide_towards(believed, known, mask, INPAINT_STRENGTH[name]), believed - weight * gradient, atol=1e-4
        )


@pytest.mark.parametrize(
    ("weight", "strength"), [(0, 0.0), (625, INPAINT_STRENGTH["paper"]), (6250, INPAINT_STRENGTH["released"])]
)
def test_in_painting_follows_the_released_path(released, weight, strength):
    """With a denoiser that shrinks towards nothing; at 16 x 16 cells a weight of 6250 is the released pull."""
    known, mask = released["normals.gt_x0"][None], released["normals.visibility"][None]
    seen = []

    def denoise(x, sigma):
        seen.append(x)
        return guide_towards(x / append_dims(1 + sigma**2, x), known, mask, strength)

    levels = DDPM().legacy_sigmas(50)
    noise = released["init_noise"].reshape(1, 1, 8, 16, 16)
    x = noise * (1 + levels[0] ** 2).sqrt().float()
    out = euler(denoise, x, levels)
    assert torch.allclose(out[0], released[f"normals_linear.ddpm50.w{weight}.final"], atol=2e-5, rtol=2e-5)
    steps = torch.stack([seen[i][0, :, :, :4, :4] for i in (0, 1, 10, 25, 49)])
    stored = released[f"normals_linear.ddpm50.w{weight}.x_at_steps_0_1_10_25_49"]
    assert torch.allclose(steps, stored, atol=2e-5, rtol=2e-5)

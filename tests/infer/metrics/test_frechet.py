"""FID: the distance, its fronts and backs, and the network on random weights."""

import numpy as np
import pytest
import torch
from scipy import linalg
from torchvision.models import inception_v3

from infer.metrics.frechet import build_inception, fid_figures, frechet, load_inception
from infer.metrics.metric_weights import INCEPTION


def features(n: int, shift: float = 0.0, seed: int = 0) -> np.ndarray:
    draw = np.random.default_rng(seed)
    return (draw.normal(size=(n, 6)) @ draw.normal(size=(6, 6)) + shift).astype(np.float32)


def test_the_distance_of_gaussians():
    a, b = features(200), features(300, 0.5, seed=1)
    root = linalg.sqrtm(np.cov(a.T) @ np.cov(b.T)).real
    expected = np.square(a.mean(0) - b.mean(0)).sum() + np.trace(np.cov(a.T) + np.cov(b.T) - 2 * root)
    assert frechet(a, b) == pytest.approx(expected, rel=1e-4)
    assert frechet(a, a) == pytest.approx(0, abs=1e-4)


def test_fronts_and_backs_alone():
    azimuth = np.arange(40) * 9.0
    front = (azimuth <= 90) | (azimuth >= 270)
    true = features(40)
    generated = true + np.where(front, 0, 3)[:, None].astype(np.float32)
    rows = {row.name: row for row in fid_figures(generated, true, azimuth, azimuth)}
    assert rows["fid_front"].value == pytest.approx(0, abs=1e-3) and rows["fid_front"].count == front.sum() == 21
    assert rows["fid_back"].value == pytest.approx(6 * 9, rel=1e-3) and rows["fid_back"].count == 19
    assert 0 < rows["fid"].value < rows["fid_back"].value and rows["fid"].count == 40


def test_too_few_views_are_a_reason():
    rows = fid_figures(features(6), features(6), np.zeros(6), np.array([0.0, 20.0, 30.0, 40.0, 50.0, 180.0]))
    assert rows[2].value is None and rows[2].reason.endswith("there are 0 generated and 1 true views")
    assert rows[0].value is not None
    # Five views do not span six features.
    assert (
        rows[1].value is None
        and rows[1].reason == "it needs 6 views of each kind, and there are 6 generated and 5 true views"
    )


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=rf"{INCEPTION.name}; .* torch-fidelity's .*{INCEPTION.sha256}"):
        load_inception(str(tmp_path))


@pytest.fixture(scope="module")
def state() -> dict[str, torch.Tensor]:
    with torch.device("meta"):
        shapes = inception_v3(weights=None, num_classes=1008, aux_logits=False, init_weights=False).state_dict()
    draw, made = torch.Generator().manual_seed(0), {}
    for name, like in shapes.items():
        ones = name.endswith(("running_var", "bn.weight"))
        made[name] = torch.ones(like.shape) if ones else torch.zeros(like.shape, dtype=like.dtype)
        if like.ndim > 1:
            made[name] = torch.randn(like.shape, generator=draw) * (2 / like[0].numel()) ** 0.5
    return made


def test_the_network_sees_255_steps_at_299_pixels(state):
    inception = build_inception(state)
    pictures = torch.rand(2, 3, 40, 40, generator=torch.Generator().manual_seed(1))
    found = inception(pictures)
    assert found.shape == (2, 2048) and found.std() > 0.01
    nudged = (pictures * 255).round() / 255
    np.testing.assert_allclose(inception(nudged), found, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="these pictures reach from -1"):
        inception(pictures * 0 - 1)


def test_pooling_is_that_of_the_graph_fid_was_defined_with(state):
    net = build_inception(state).net
    x = torch.rand(1, 192, 5, 5, generator=torch.Generator().manual_seed(2))
    counted = torch.nn.functional.avg_pool2d(x, 3, 1, 1)
    inside = torch.nn.functional.avg_pool2d(x, 3, 1, 1, count_include_pad=False)
    corrected, convolution = net.get_submodule("Mixed_5b").branch_pool
    torch.testing.assert_close(corrected(counted), inside)
    torch.testing.assert_close(net.get_submodule("Mixed_5b")(x)[:, -32:], convolution(inside))
    last, x = net.get_submodule("Mixed_7c"), torch.rand(1, 2048, 3, 3)
    largest = last.block.branch_pool(torch.nn.functional.max_pool2d(x, 3, 1, 1))
    torch.testing.assert_close(last(x)[:, -192:], largest)
    assert last(x).shape == (1, 2048, 3, 3)

"""LPIPS and DISTS on backbones of random weights: what is computed, and what is said when a file is not there."""

import hashlib
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor
from torchvision import models

from infer.metrics.metric_weights import (
    ALEXNET,
    INCEPTION,
    VGG16,
    WeightsFile,
    read_tensors,
    read_weights,
    weights_folder,
)
from infer.metrics.perceptual import build_dists, build_lpips, load_dists, load_lpips, picture_metrics


def random_state(network: str) -> dict[str, Tensor]:
    """Weights of a torchvision network's convolutions, without the making of its large classifier."""
    with torch.device("meta"):
        shapes = getattr(models, network)(weights=None).features.state_dict()
    draw = torch.Generator().manual_seed(0)
    return {
        f"features.{k}": torch.randn(s.shape, generator=draw) * (2 / s[0].numel()) ** 0.5 for k, s in shapes.items()
    }


def features(network: str, state: dict[str, Tensor]) -> torch.nn.Sequential:
    with torch.device("meta"):
        layers = getattr(models, network)(weights=None).features
    layers.load_state_dict({k.removeprefix("features."): v for k, v in state.items()}, assign=True)
    return layers


@pytest.fixture
def pair() -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(1)
    return torch.rand(5, 3, 64, 64, generator=draw), torch.rand(5, 3, 64, 64, generator=draw)


@pytest.mark.parametrize(("backbone", "network"), [("alex", "alexnet"), ("vgg", "vgg16")])
def test_lpips_is_the_published_formula(backbone, network, pair):
    import torchmetrics.functional.image.lpips as library

    state, ends = random_state(network), {"alex": (1, 4, 7, 9, 11), "vgg": (3, 8, 15, 22, 29)}[backbone]
    heads = list(read_tensors(Path(library.__file__).parent / "lpips_models" / f"{backbone}.pth").values())
    expected, (x, y) = torch.zeros(5), (
        (2 * p - 1 - torch.tensor([-0.030, -0.088, -0.188]).view(3, 1, 1)) / torch.tensor([0.458, 0.448, 0.450]).view(3, 1, 1)
        for p in pair
    )  # fmt: skip
    for i, layer in enumerate(features(network, state)[: ends[-1] + 1]):
        x, y = layer(x), layer(y)
        if i in ends:
            apart = (torch.nn.functional.normalize(x) - torch.nn.functional.normalize(y)).square()
            expected += (apart * heads[ends.index(i)]).sum(1).mean((1, 2)).detach()
    found = build_lpips(backbone, state)(*pair)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-4)
    assert found.min() > 0.001


def test_dists_is_torchmetrics_own_on_the_same_backbone(pair, monkeypatch):
    from torchmetrics.functional.image import dists

    state = random_state("vgg16")
    found = build_dists(state)
    # Its constructor would fetch weights: hand it the layers instead.
    monkeypatch.setattr(dists, "vgg16", lambda weights: SimpleNamespace(features=features("vgg16", state)))
    torch.testing.assert_close(found(*pair), dists.DISTSNetwork()(*pair))
    torch.testing.assert_close(found(pair[0], pair[0]), torch.zeros(5), atol=1e-5, rtol=0)


def test_gradients_pass_through_the_comparison():
    """Inversion descends along it."""
    pictures = torch.rand(2, 3, 64, 64, requires_grad=True)
    build_lpips("vgg", random_state("vgg16")).compare(pictures, torch.rand(2, 3, 64, 64)).sum().backward()
    assert pictures.grad is not None
    assert (pictures.grad.flatten(1).abs().sum(1) > 0).all()


def test_lpips_of_equal_pictures_is_zero_and_pairs_are_independent(pair):
    measure = build_lpips("alex", random_state("alexnet"))
    assert measure(pair[0], pair[0]).abs().max() == 0
    alone = torch.cat([measure(a[None], b[None]) for a, b in zip(*pair, strict=True)])
    torch.testing.assert_close(measure(*pair), alone, atol=1e-6, rtol=1e-4)
    with pytest.raises(ValueError, match="metrics read 0 to 1"):
        measure(pair[0] * 2 - 1, pair[1])


def test_a_file_that_is_not_there_is_named_with_its_hash_and_folder(tmp_path):
    for load, file in ((lambda f: load_lpips("alex", f), ALEXNET), (load_dists, VGG16)):
        with pytest.raises(FileNotFoundError, match=rf"{tmp_path}/{file.name}; .* put torchvision's .*{file.sha256}"):
            load(str(tmp_path))


def test_another_file_under_the_name_is_refused_unopened(tmp_path):
    (tmp_path / VGG16.name).write_bytes(b"not it")
    with pytest.raises(ValueError, match=rf"that of torchvision's VGG16_Weights.IMAGENET1K_V1 is {VGG16.sha256}"):
        load_lpips("vgg", str(tmp_path))


def test_the_right_file_is_read_and_pickles_of_more_than_tensors_are_not(tmp_path):
    torch.save({"features.0.weight": torch.ones(2)}, tmp_path / "right.pth")
    right = hashlib.sha256((tmp_path / "right.pth").read_bytes()).hexdigest()
    found = read_weights(WeightsFile("right.pth", right, "here"), str(tmp_path))
    assert found["features.0.weight"].tolist() == [1, 1]
    torch.save({"path": tmp_path}, tmp_path / "code.pth")
    code = hashlib.sha256((tmp_path / "code.pth").read_bytes()).hexdigest()
    with pytest.raises(Exception, match="Weights only load failed"):
        read_weights(WeightsFile("code.pth", code, "here"), str(tmp_path))


def test_names_and_hashes_are_the_publishers(monkeypatch, tmp_path):
    assert models.AlexNet_Weights.IMAGENET1K_V1.url.endswith("/" + ALEXNET.name)
    assert models.VGG16_Weights.IMAGENET1K_V1.url.endswith("/" + VGG16.name)
    for file in (ALEXNET, VGG16, INCEPTION):
        assert file.name.removesuffix(".pth").endswith("-" + file.sha256[:8]) and len(file.sha256) == 64
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    assert weights_folder() == tmp_path / "hub" / "checkpoints"


def test_the_kit_measures_what_it_can_and_says_why_not_the_rest(tmp_path):
    kit = picture_metrics(64, str(tmp_path))
    true = torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    columns = kit(true * 0.9, true)
    assert {name: column.shape for name, column in columns.items()} == dict.fromkeys(("l2", "psnr", "ssim"), (3,))
    assert list(kit.missing) == ["lpips_alex", "lpips_vgg", "dists"]
    assert ALEXNET.name in kit.missing["lpips_alex"] and str(tmp_path) in kit.missing["lpips_alex"]
    assert VGG16.name in kit.missing["lpips_vgg"] and VGG16.name in kit.missing["dists"]
    small = picture_metrics(8, str(tmp_path))
    assert small.missing["ssim"] == "pictures of 8 pixels are too small for it; it takes 11 or more"
    assert "it takes 32 or more" in small.missing["dists"]

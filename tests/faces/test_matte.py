"""The background: the face parser's network and its files, one colour, and what is refused."""

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torchvision.models import resnet18

from faces.config import MatteConfig
from faces.matte import BiSeNet, ResNetTrunk, emptiness, load_bisenet, parsed_alpha, uniform_alpha

NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


def official_shapes() -> dict[str, tuple[int, ...]]:
    """Names and shapes in 79999_iter.pth, by the public listing of zllrunning's model.py and resnet.py."""
    found: dict[str, tuple[int, ...]] = {}

    def conv(name: str, inputs: int, outputs: int, kernel: int) -> None:
        found[f"{name}.weight"] = (outputs, inputs, kernel, kernel)

    def norm(name: str, width: int) -> None:
        found.update({f"{name}.{part}": () if part == "num_batches_tracked" else (width,) for part in NORM})

    def conv_norm(name: str, inputs: int, outputs: int, kernel: int) -> None:
        conv(f"{name}.conv", inputs, outputs, kernel)
        norm(f"{name}.bn", outputs)

    conv("cp.resnet.conv1", 3, 64, 7)
    norm("cp.resnet.bn1", 64)
    for layer, (inputs, outputs) in enumerate(((64, 64), (64, 128), (128, 256), (256, 512)), 1):
        for block in (0, 1):
            name = f"cp.resnet.layer{layer}.{block}"
            conv(f"{name}.conv1", inputs if block == 0 else outputs, outputs, 3)
            norm(f"{name}.bn1", outputs)
            conv(f"{name}.conv2", outputs, outputs, 3)
            norm(f"{name}.bn2", outputs)
        if layer > 1:
            conv(f"cp.resnet.layer{layer}.0.downsample.0", inputs, outputs, 1)
            norm(f"cp.resnet.layer{layer}.0.downsample.1", outputs)
    for name, inputs in (("cp.arm16", 256), ("cp.arm32", 512)):
        conv_norm(f"{name}.conv", inputs, 128, 3)
        conv(f"{name}.conv_atten", 128, 128, 1)
        norm(f"{name}.bn_atten", 128)
    conv_norm("cp.conv_head32", 128, 128, 3)
    conv_norm("cp.conv_head16", 128, 128, 3)
    conv_norm("cp.conv_avg", 512, 128, 1)
    conv_norm("ffm.convblk", 256, 256, 1)
    conv("ffm.conv1", 256, 64, 1)
    conv("ffm.conv2", 64, 256, 1)
    for name, inputs, inner in (("conv_out", 256, 256), ("conv_out16", 128, 64), ("conv_out32", 128, 64)):
        conv_norm(f"{name}.conv", inputs, inner, 3)
        conv(f"{name}.conv_out", inner, 19, 1)
    return found


@pytest.fixture(scope="module")
def parser() -> BiSeNet:
    torch.manual_seed(0)
    return BiSeNet().eval()


def test_the_official_file_s_names_and_shapes(parser):
    assert {name: tuple(value.shape) for name, value in parser.state_dict().items()} == official_shapes()
    assert sum(p.numel() for p in parser.parameters()) == 13_300_416


def test_the_trunk_is_torchvision_s_resnet18():
    torch.manual_seed(0)
    theirs = resnet18(weights=None).eval()
    ours = ResNetTrunk().eval()
    ours.load_state_dict({k: v for k, v in theirs.state_dict().items() if not k.startswith("fc.")})
    x = torch.randn(1, 3, 96, 64)
    with torch.no_grad():
        stem = theirs.maxpool(theirs.relu(theirs.bn1(theirs.conv1(x))))
        eighth = theirs.layer2(theirs.layer1(stem))
        sixteenth = theirs.layer3(eighth)
        for found, expected in zip(ours.features(x), (eighth, sixteenth, theirs.layer4(sixteenth)), strict=True):
            torch.testing.assert_close(found, expected)


def test_a_full_picture_is_parsed(parser):
    """At its full size, with random weights."""
    rgb = np.random.default_rng(0).integers(0, 256, (512, 512, 3), np.uint8)
    classes = parser.classes(torch.from_numpy(rgb))
    assert classes.shape == (512, 512) and int(classes.max()) < 19
    np.testing.assert_array_equal(parsed_alpha(parser, rgb) == 255, classes.numpy() > 0)


@pytest.mark.parametrize(("change", "expected"), [(10.0, 0), (-10.0, 255)])
def test_the_first_class_is_the_background(parser, change, expected):
    changed = BiSeNet().eval()
    changed.load_state_dict(parser.state_dict())
    with torch.no_grad():
        changed.conv_out.conv_out.weight[0] += change  # features are not negative
    rgb = np.random.default_rng(0).integers(0, 256, (64, 96, 3), np.uint8)
    assert (parsed_alpha(changed, rgb) == expected).all()


def test_official_files_load_as_they_are(parser, tmp_path):
    torch.save(parser.state_dict(), tmp_path / "79999_iter.pth")
    save_file(parser.state_dict(), tmp_path / "parser.safetensors")
    x = torch.randn(1, 3, 64, 64)
    for name in ("79999_iter.pth", "parser.safetensors"):
        loaded = load_bisenet(tmp_path / name)
        with torch.no_grad():
            assert torch.equal(loaded(x), parser(x))


class Evil:
    """What a pickle could do."""

    def __reduce__(self):
        return eval, ("1 / 0",)


def test_wrong_files_are_named_in_one_line(parser, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"matte.parser: there is no file .*; give the face-parsing weights"):
        load_bisenet(tmp_path / "none.pth")
    whole = parser.state_dict()
    files: dict[str, object] = {
        "evil.pth": Evil(),
        "list.pth": [1, 2],
        "part.pth": {k: v for k, v in whole.items() if "ffm" not in k},
        "more.pth": {**whole, "extra.weight": torch.zeros(1)},
        "shape.pth": {**whole, "conv_out.conv_out.weight": torch.zeros(11, 256, 1, 1)},
    }
    for name, value in files.items():
        torch.save(value, tmp_path / name)
    (tmp_path / "text.pth").write_text("hello")
    (tmp_path / "empty.pth").write_bytes(b"")
    (tmp_path / "text.safetensors").write_text("hello")
    for name in (*files, "text.pth", "empty.pth", "text.safetensors"):
        with pytest.raises(ValueError, match=f"{name} does not hold the weights of the face parser") as error:
            load_bisenet(tmp_path / name)
        assert "\n" not in str(error.value) and len(str(error.value)) < 400, name


def disc(background: tuple[int, int, int] = (250, 250, 250), noise: int = 0) -> np.ndarray:
    """A dark disc that holds a patch of the background's colour, and a dark stem down to the border."""
    y, x = np.mgrid[:128, :128]
    rgb = np.full((128, 128, 3), background, np.uint8)
    rgb[(x - 64) ** 2 + (y - 60) ** 2 < 40**2] = (90, 60, 40)
    rgb[80:, 50:78] = (90, 60, 40)
    rgb[50:60, 60:70] = background
    if noise:
        rgb = (rgb + np.random.default_rng(0).integers(-noise, noise + 1, rgb.shape)).clip(0, 255).astype(np.uint8)
    return rgb


@pytest.mark.parametrize(("background", "noise"), [((255, 255, 255), 0), ((250, 250, 250), 5), ((40, 160, 60), 5)])
def test_a_background_of_one_colour(background, noise):
    rgb = disc(background, noise)
    alpha = uniform_alpha(rgb)
    y, x = np.mgrid[:128, :128]
    expected = ((x - 64) ** 2 + (y - 60) ** 2 < 40**2) | ((y >= 80) & (x >= 50) & (x < 78))
    np.testing.assert_array_equal(alpha == 255, expected)
    assert alpha[55, 65] == 255, "what is enclosed stays, whatever its colour"


def test_a_background_of_many_colours_is_refused():
    noise = np.random.default_rng(0).integers(0, 256, (128, 128, 3), np.uint8)
    with pytest.raises(ValueError, match=r"its background is not of one colour; give face-parsing weights"):
        uniform_alpha(noise)


def test_nothing_left_is_said():
    alpha = np.zeros((100, 100), np.uint8)
    assert emptiness(alpha) == "only 0.0% of it is left once its background is taken away"
    alpha[:50] = 255
    assert emptiness(alpha) == ""


def test_one_way_to_find_the_background():
    with pytest.raises(ValueError, match=r"--matte.parser and --matte.uniform are two ways"):
        MatteConfig(parser="79999_iter.pth", uniform=True)

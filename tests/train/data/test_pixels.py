"""From stored pictures to tensors: exact, over any background, and never from a damaged picture."""

import io

import numpy as np
import pytest
import torch
from PIL import Image
from small import members_of

from manifests.dataset import Dataset
from manifests.errors import DamagedData
from manifests.index import open_index
from manifests.reader import Reader
from train.data.sources import EncodedSource, PixelSource, over


def pixels_of(dataset: Dataset, resolution: int = 16, **kwargs) -> PixelSource:
    return PixelSource(Reader(dataset, open_index(dataset)), dataset.plan.resolution, resolution, **kwargs)


def by_pillow(dataset: Dataset, member: str) -> torch.Tensor:
    """The readable twin: v h w c."""
    datas = [data for shard in dataset.committed() for data in members_of(dataset, shard, member)]
    pictures = np.stack([np.atleast_3d(np.asarray(Image.open(io.BytesIO(data)))) for data in datas])
    return torch.from_numpy(pictures)


WHITE = np.ones((2, 3), np.float32)
ROWS = np.array([[0, 4], [9, 2]])


@pytest.mark.parametrize("member", ["rgb", "normal", "alpha"])
def test_pixels_are_those_pillow_decodes(make, member):
    dataset = make()
    expected = by_pillow(dataset, member)[torch.from_numpy(ROWS)].movedim(-1, 2)
    raw = pixels_of(dataset, as_uint8=True).read(ROWS, WHITE, (member,))[member]
    assert raw.dtype == torch.uint8 and torch.equal(raw, expected)
    scaled = pixels_of(dataset).read(ROWS, WHITE, (member,))[member]
    assert torch.allclose(scaled, expected / 127.5 - 1, atol=1e-6)


@pytest.mark.parametrize("members", [("rgb",), ("normal", "rgb"), ("rgb", "alpha")])
def test_a_background_is_composited_for_its_sample_alone(make, members):
    dataset = make()
    colour = np.array([0.2, 0.6, 0.0], np.float32)
    found = pixels_of(dataset).read(ROWS, np.stack([colour, WHITE[1]]), members)
    assert tuple(found) == members
    rgb, alpha = (by_pillow(dataset, m)[torch.from_numpy(ROWS)].movedim(-1, 2) / 255 for m in ("rgb", "alpha"))
    expected = (rgb[0] + (1 - alpha[0]) * (torch.from_numpy(colour)[:, None, None] - 1)).clamp(0, 1)
    assert torch.allclose(found["rgb"][0], expected * 2 - 1, atol=1e-5)
    assert torch.allclose(found["rgb"][1], rgb[1] * 2 - 1, atol=1e-6)
    plain = pixels_of(dataset).read(ROWS, WHITE, members)
    assert all(torch.equal(found[m], plain[m]) for m in members if m != "rgb")


def test_a_head_over_white_comes_to_lie_over_the_colour():
    """Planted: a red disc of varying alpha over white must equal the same disc over the colour."""
    alpha = torch.rand(1, 1, 1, 8, 8)
    red, colour = torch.tensor([1.0, 0, 0])[:, None, None], torch.tensor([[0.1, 0.5, 0.9]])
    white = alpha * red + (1 - alpha)
    expected = alpha * red + (1 - alpha) * colour[0, :, None, None]
    assert torch.allclose(over(white * 255, alpha * 255, colour) / 255, expected, atol=1e-6)


def test_alpha_is_read_only_where_it_is_needed(make):
    dataset = make()
    plain, coloured = pixels_of(dataset), pixels_of(dataset)
    plain.read(ROWS, WHITE, ("rgb",))
    coloured.read(ROWS, np.array([[0, 0, 0], [1, 1, 1]], np.float32), ("rgb",))
    index = plain.reader.index
    assert coloured.reader.needed - plain.reader.needed == index.size["alpha"][ROWS[0]].sum()


def test_smaller_pictures_are_averaged_not_picked(make):
    dataset = make(resolution=32)
    found = pixels_of(dataset, 8).read(ROWS, WHITE, ("normal",))["normal"]
    whole = pixels_of(dataset, 32).read(ROWS, WHITE, ("normal",))["normal"]
    assert found.shape == (2, 2, 3, 8, 8)
    assert found.mean().item() == pytest.approx(whole.mean().item(), abs=0.02)
    assert found.std() < 0.4 * whole.std()


def damage(dataset: Dataset, row: int, member: str, kind: str) -> None:
    index = open_index(dataset)
    offset, size = int(index.offset[member][row]), int(index.size[member][row])
    with open(dataset.storage.path(dataset.file(int(index.shard[row]), ".tar")), "r+b") as tar:
        if kind == "zeroed":
            tar.seek(offset)
            tar.write(bytes(size))
        elif kind == "half":
            tar.seek(offset + size // 2)
            tar.write(bytes(size - size // 2))
        else:
            tar.seek(offset)
            out = io.BytesIO()
            Image.new("RGB", (8, 4)).save(out, "PNG")
            tar.write(out.getvalue())


@pytest.mark.parametrize("kind", ["zeroed", "half", "other"])
@pytest.mark.parametrize("member", ["normal", "alpha"])
def test_damaged_pictures_are_named(make, member, kind):
    dataset = make(resolution=32)
    damage(dataset, 4, member, kind)
    problem = "is 8 x 4 px, the dataset has 32" if kind == "other" else "does not decode"
    with pytest.raises(DamagedData, match=rf"^shards/heads-000000.tar, 0000001_v001.{member}.png {problem}; ") as error:
        pixels_of(dataset, 32).read(ROWS, WHITE, (member,))
    assert error.value.row == 4 and "\n" not in str(error.value)


def test_a_damaged_jpeg_is_named(make):
    dataset = make(resolution=32)
    damage(dataset, 4, "rgb", "zeroed")
    with pytest.raises(DamagedData, match=r"0000001_v001.rgb.jpg does not decode"):
        pixels_of(dataset, 32).read(ROWS, WHITE, ("rgb",))


def test_encoded_members_are_the_stored_bytes(make):
    dataset = make()
    index = open_index(dataset)
    data = EncodedSource(Reader(dataset, index)).read(ROWS, WHITE, ("rgb", "json"))["data"]
    stored = [d for shard in dataset.committed() for d in members_of(dataset, shard, "rgb")]
    assert data["rgb"] == [stored[r] for r in ROWS.ravel()]
    assert len(data["json"]) == 4

"""Every odd file a person may give: each is read as documented here, or refused in one line that says why."""

import io
import os
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms

from infer.photo import LARGEST, read_photo
from manifests.errors import UserError

RED, GREEN, WHITE = (200, 30, 40), (30, 180, 60), (255, 255, 255)
Make = Callable[[Path], Any]


def picture(width: int = 96, height: int = 80, mode: str = "RGB") -> Image.Image:
    """Red on the left, green on the right, and a white corner up on the left."""
    image = Image.new("RGB", (width, height), RED)
    image.paste(GREEN, (width // 2, 0, width, height))
    image.paste(WHITE, (0, 0, width // 4, height // 4))
    return image.convert(mode)


def saved(suffix: str, mode: str = "RGB", size: tuple[int, int] = (96, 80), **options: Any) -> Make:
    return lambda folder: _written(folder / f"photo.{suffix}", picture(*size, mode), **options)


def _written(path: Path, image: Image.Image, **options: Any) -> Path:
    image.save(path, **options)
    return path


def with_alpha(suffix: str, alpha: np.ndarray | int = 0, mode: str = "RGBA", **options: Any) -> Make:
    def make(folder: Path) -> Path:
        image = picture()
        values = np.full((80, 96), 255, np.uint8)
        values[:, :48] = alpha
        image.putalpha(Image.fromarray(values))
        return _written(folder / f"photo.{suffix}", image.convert(mode), **options)

    return make


def cut_off(suffix: str, share: float, **options: Any) -> Make:
    """A file that ends early, as downloads do; of noise, so that its pixels fill it evenly."""

    def make(folder: Path) -> Path:
        noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (160, 160, 3), np.uint8))
        path = _written(folder / f"photo.{suffix}", noise, **options)
        path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
        return path

    return make


def damaged(suffix: str, at: float, **options: Any) -> Make:
    """A file with 64 bytes overwritten."""

    def make(folder: Path) -> Path:
        path = cut_off(suffix, 1.0, **options)(folder)
        data = bytearray(path.read_bytes())
        start = int(at * len(data))
        data[start : start + 64] = b"\xff" * 64
        path.write_bytes(data)
        return path

    return make


def content(name: str, data: bytes) -> Make:
    def make(folder: Path) -> Path:
        (folder / name).write_bytes(data)
        return folder / name

    return make


def png(width: int, height: int, body: bytes = b"") -> bytes:
    """A PNG of that size by its header, with whatever body."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def floats(*values: float) -> Make:
    def make(folder: Path) -> Path:
        grey = np.resize(np.array(values, np.float32), (80, 96))
        return _written(folder / "photo.tiff", Image.fromarray(grey))

    return make


def integers(suffix: str, dtype: type, most: int) -> Make:
    def make(folder: Path) -> Path:
        grey = np.zeros((80, 96), dtype)
        grey[:, 48:] = most
        return _written(folder / f"photo.{suffix}", Image.fromarray(grey))

    return make


def profiled(suffix: str, profile: bytes, mode: str = "RGB") -> Make:
    return saved(suffix, mode, icc_profile=profile)


def srgb() -> bytes:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def oriented(orientation: int, suffix: str = "jpg") -> Make:
    def make(folder: Path) -> Path:
        exif = Image.Exif()
        exif[0x0112] = orientation
        options = {"quality": 95, "subsampling": 0} if suffix == "jpg" else {}
        return _written(folder / f"photo.{suffix}", picture(), exif=exif, **options)

    return make


def animated(suffix: str, frames: int = 3, **options: Any) -> Make:
    def make(folder: Path) -> Path:
        others = [Image.new("RGB", (96, 80), (0, 0, 10 * n)) for n in range(1, frames)]
        return _written(folder / f"photo.{suffix}", picture(), save_all=True, append_images=others, **options)

    return make


def folder_named(name: str) -> Make:
    def make(folder: Path) -> Path:
        (folder / name).mkdir()
        return folder / name

    return make


def link_to(target: str) -> Make:
    def make(folder: Path) -> Path:
        saved("png")(folder)
        (folder / "link.png").symlink_to(target)
        return folder / "link.png"

    return make


def pipe(folder: Path) -> Path:
    os.mkfifo(folder / "pipe.jpg")
    return folder / "pipe.jpg"


def unreadable(folder: Path) -> Path:
    path = saved("png")(folder)
    path.chmod(0)
    if os.access(path, os.R_OK):
        pytest.skip("this user may read every file, such as root")
    return path


def renamed(name: str, suffix: str = "jpg") -> Make:
    return lambda folder: saved(suffix)(folder).rename(folder / name)


def text_bomb() -> bytes:
    """A PNG whose comment unpacks to a thousand times its size."""
    plain = io.BytesIO()
    picture().save(plain, "PNG")
    packed = b"Comment\x00\x00" + zlib.compress(b"\x00" * 20_000_000, 9)
    chunk = struct.pack(">I", len(packed)) + b"zTXt" + packed + struct.pack(">I", zlib.crc32(b"zTXt" + packed))
    data = plain.getvalue()
    return data[:33] + chunk + data[33:]


def transparent(folder: Path) -> Path:
    return _written(folder / "photo.png", Image.new("RGBA", (96, 80), (1, 2, 3, 0)))


HEIC = struct.pack(">I", 24) + b"ftypheic" + bytes(200)
SVG = b"<svg xmlns='http://www.w3.org/2000/svg' width='96' height='80'></svg>"

REFUSED: dict[str, tuple[Make, str]] = {
    "nothing there": (lambda folder: folder / "none.jpg", "there is no file .*none.jpg"),
    "below a file": (lambda folder: saved("png")(folder) / "a.png", "there is no file .*a.png"),
    "a broken link": (link_to("gone.png"), "there is no file .*link.png"),
    "a name with a zero byte": (lambda folder: folder / "a\0b.png", r"there is no file '.*a\\x00b.png'"),
    "a name of two lines": (content("a\nb.jpg", b"hello"), r"'.*a\\nb.jpg' is not a picture"),
    "a name that is too long": (lambda folder: folder / ("a" * 300 + ".png"), "cannot be read: File name too long"),
    "a link to itself": (link_to("link.png"), "cannot be read: Too many levels of symbolic links"),
    "a folder": (folder_named("photo.jpg"), "photo.jpg is a folder; give one picture"),
    "a pipe": (pipe, "pipe.jpg is not a file; give a picture file"),
    "not allowed": (unreadable, "cannot be read: Permission denied"),
    "no bytes": (content("photo.jpg", b""), "photo.jpg is empty"),
    "one byte": (content("photo.jpg", b"\xff"), "not a picture that is known here, or cut off"),
    "text": (content("photo.jpg", b"I am no picture\n" * 50), "not a picture that is known here"),
    "a web page": (content("photo.png", b"<!doctype html><html></html>"), "not a picture that is known here"),
    "SVG": (content("photo.svg", SVG), "not a picture that is known here.*JPEG, PNG"),
    "PDF": (content("photo.pdf", b"%PDF-1.7\n" + bytes(100)), "not a picture that is known here"),
    "EPS": (saved("eps"), "not a picture that is known here"),
    "HEIC, cut off": (content("photo.heic", HEIC), "damaged|not a picture that is known here, or cut off"),
    "zeros": (content("photo.png", bytes(5000)), "not a picture that is known here"),
    "noise": (content("photo.jpg", np.random.default_rng(0).bytes(5000)), "not a picture that is known here"),
    "JPEG, its first bytes": (content("photo.jpg", b"\xff\xd8\xff\xe0\x00\x10JFIF"), "not a picture|damaged"),
    "JPEG, cut off at a hundredth": (cut_off("jpg", 0.01), "not a picture|damaged"),
    "JPEG, cut off at a half": (cut_off("jpg", 0.5), "photo.jpg is damaged or cut off: image file is truncated"),
    "JPEG, cut off at 0.95": (cut_off("jpg", 0.95), "photo.jpg is damaged or cut off: image file is truncated"),
    "progressive JPEG, cut off": (cut_off("jpg", 0.5, progressive=True), "damaged or cut off: image file is truncated"),
    "PNG, its signature": (content("photo.png", b"\x89PNG\r\n\x1a\n"), "not a picture|damaged"),
    "PNG, cut off at a hundredth": (cut_off("png", 0.001), "not a picture|damaged"),
    "PNG, cut off at a half": (cut_off("png", 0.5), "photo.png is damaged or cut off"),
    "PNG, cut off at 0.95": (cut_off("png", 0.95), "photo.png is damaged or cut off"),
    "PNG, overwritten": (damaged("png", 0.5), "photo.png is damaged or cut off"),
    "PNG without pixels": (content("photo.png", png(96, 80)), "photo.png is damaged or cut off"),
    "WebP, cut off": (cut_off("webp", 0.5), "not a picture|damaged"),
    "AVIF, cut off": (cut_off("avif", 0.5), "not a picture|damaged"),
    "GIF, cut off": (cut_off("gif", 0.3), "photo.gif is damaged or cut off"),
    "TIFF, cut off": (cut_off("tiff", 0.5), "not a picture|damaged"),
    "BMP, cut off": (cut_off("bmp", 0.5), "photo.bmp is damaged or cut off"),
    "JPEG 2000, cut off": (cut_off("jp2", 0.02), "not a picture|damaged"),
    "1 x 1": (saved("png", size=(1, 1)), r"is 1 x 1 px; its shorter side must have 64 or more$"),
    "63 px": (saved("jpg", size=(200, 63)), r"is 200 x 63 px; its shorter side must have 64 or more$"),
    "20000 x 1": (
        saved("png", size=(20000, 1)),
        "is 20000 x 1 px; its shorter side must have 64 or more, once its longer",
    ),
    "20000 x 100": (saved("png", size=(20000, 100)), "is 20000 x 100 px; .*once its longer side is scaled to 4096"),
    "PNG that claims 60000 x 60000": (content("photo.png", png(60000, 60000)), "decoded safely; make it 178 MP"),
    "BMP that claims 30000 x 30000": (
        content("photo.bmp", b"BM" + struct.pack("<IHHIIiiHHIIiiII", 54, 0, 0, 54, 40, 30000, 30000, 1, 24, *[0] * 6)),
        "more pixels than are decoded safely",
    ),
    "PNG whose comment is a bomb": (content("photo.png", text_bomb()), "photo.png is damaged"),
    "all transparent": (transparent, "photo.png is fully transparent"),
    "floats above 1": (floats(0.0, 3.5), "has pixels from 0 to 3.5; greys from 0 to 1 work"),
    "floats below 0": (floats(-1.0, 0.5), "has pixels from -1 to 0.5; greys from 0 to 1 work"),
    "NaN": (floats(0.2, float("nan")), "has pixels from nan to nan; greys from 0 to 1 work"),
    "infinite": (floats(0.2, float("inf")), "has pixels from 0.2 to inf; greys from 0 to 1 work"),
    "32 bit integers": (
        integers("tiff", np.int32, 2_000_000),
        "has pixels from 0 to 2e[+]06; greys from 0 to 65535 work",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_in_one_line(case, tmp_path):
    make, says = REFUSED[case]
    path = make(tmp_path)
    with pytest.raises((ValueError, FileNotFoundError), match=says) as error:
        read_photo(path)
    assert isinstance(error.value, UserError)
    assert str(error.value).isprintable() and len(str(error.value)) < 600


@dataclass(frozen=True)
class Read:
    """What a file is read as: the mean colours of its left and right part."""

    left: tuple[int, int, int] = RED
    right: tuple[int, int, int] = GREEN
    size: tuple[int, int] = (96, 80)
    alpha: tuple[int, int] | None = None
    notes: str = ""
    near: int = 4


GREY = {"left": (81, 81, 81), "right": (121, 121, 121)}
FRAMES = "3 frames or pages: the first was taken"
HALF = np.full((80, 48), 128, np.uint8)
STEP = {"left": (0, 0, 0), "right": (255, 255, 255)}

READ: dict[str, tuple[Make, Read]] = {
    "JPEG": (saved("jpg", quality=95), Read()),
    "upper case": (renamed("PHOTO.JPG"), Read(near=8)),
    "no suffix": (renamed("photo"), Read(near=8)),
    "another suffix": (renamed("photo.png"), Read(near=8)),
    "a name of other letters": (renamed("f\u00f6t\u00f6 \u4eba.jpg"), Read(near=8)),
    "a link": (link_to("photo.png"), Read()),
    "progressive": (saved("jpg", progressive=True, quality=95), Read()),
    "PNG": (saved("png"), Read()),
    "WebP": (saved("webp", lossless=True), Read()),
    "AVIF": (saved("avif", quality=95), Read(near=8)),
    "TIFF": (saved("tiff"), Read()),
    "TIFF of JPEG": (saved("tiff", compression="jpeg"), Read(near=12)),
    "BMP": (saved("bmp"), Read()),
    "JPEG 2000": (saved("jp2"), Read()),
    "PPM": (saved("ppm"), Read()),
    "GIF": (saved("gif"), Read()),
    "grey": (saved("png", "L"), Read(**GREY)),
    "grey JPEG": (saved("jpg", "L", quality=95), Read(**GREY)),
    "black and white": (saved("png", "1"), Read(**GREY)),
    "grey with alpha": (with_alpha("png", 0, "LA"), Read(**GREY, alpha=(0, 255))),
    "palette": (saved("png", "P"), Read(near=30)),
    "palette with transparency": (with_alpha("gif"), Read(left=WHITE, near=30, alpha=(0, 255))),
    "a transparent colour": (saved("png", transparency=RED), Read(alpha=(0, 255))),
    "transparent": (with_alpha("png"), Read(alpha=(0, 255))),
    "half transparent": (with_alpha("png", HALF), Read(alpha=(128, 255))),
    "transparent WebP": (with_alpha("webp", lossless=True, exact=True), Read(alpha=(0, 255))),
    "transparent TIFF": (with_alpha("tiff"), Read(alpha=(0, 255))),
    "opaque alpha": (with_alpha("png", 255), Read()),
    "CMYK JPEG": (saved("jpg", "CMYK", quality=95), Read()),
    "CMYK TIFF": (saved("tiff", "CMYK"), Read()),
    "YCbCr TIFF": (saved("tiff", "YCbCr"), Read(near=8)),
    "Lab TIFF": (saved("tiff", "LAB"), Read(near=8)),
    "16 bit PNG": (integers("png", np.uint16, 65535), Read(**STEP)),
    "16 bit TIFF": (integers("tiff", np.uint16, 65535), Read(**STEP)),
    "16 bit JPEG 2000": (integers("jp2", np.uint16, 65535), Read(**STEP)),
    "32 bit TIFF of 16": (integers("tiff", np.int32, 65535), Read(**STEP)),
    "floats": (floats(0.5), Read(left=(128,) * 3, right=(128,) * 3)),
    "sRGB profile": (profiled("jpg", srgb()), Read(near=8)),
    "profile of nothing": (profiled("png", b"nothing at all"), Read(notes="its colour profile does not read")),
    "profile of other colours": (profiled("png", srgb(), "L"), Read(**GREY, notes="does not fit")),
    "animated GIF": (animated("gif"), Read(notes=FRAMES)),
    "animated WebP": (animated("webp", lossless=True), Read(notes=FRAMES)),
    "animated PNG": (animated("png"), Read(notes=FRAMES)),
    "pages of a TIFF": (animated("tiff"), Read(notes=FRAMES)),
    "JPEG with a second picture": (animated("mpo", 2), Read(near=8)),
    "64 px": (saved("png", size=(64, 64)), Read(size=(64, 64))),
    "huge": (
        saved("png", size=(2 * LARGEST, 256)),
        Read(size=(LARGEST, 128), notes="8192 x 256 px were scaled to 4096 px"),
    ),
    "huge JPEG": (
        saved("jpg", size=(256, 2 * LARGEST + 1)),
        Read(size=(128, LARGEST), notes="were scaled to 4096 px", near=8),
    ),
    "orientation 77": (oriented(77), Read()),
}


@pytest.mark.parametrize("case", READ)
def test_read_as_documented(case, tmp_path):
    make, expected = READ[case]
    photo = read_photo(make(tmp_path))
    height, width = photo.rgb.shape[:2]
    assert (width, height) == expected.size
    parts = (
        (slice(height // 2, None), slice(0, width * 2 // 5)),
        (slice(height // 2, None), slice(width * 3 // 5, None)),
    )
    for part, colour in zip(parts, (expected.left, expected.right), strict=True):
        assert np.abs(photo.rgb[part].reshape(-1, 3).mean(0) - colour).max() <= expected.near, case
    if expected.alpha is None:
        assert photo.alpha is None
    else:
        assert photo.alpha is not None
        assert tuple(round(float(photo.alpha[part].mean())) for part in parts) == expected.alpha
    notes = "; ".join(photo.notes)
    assert expected.notes in notes if expected.notes else notes == ""


TURNED: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    1: lambda x: x,
    2: lambda x: x[:, ::-1],
    3: lambda x: x[::-1, ::-1],
    4: lambda x: x[::-1],
    5: lambda x: x.swapaxes(0, 1),
    6: lambda x: x[::-1].swapaxes(0, 1),
    7: lambda x: x[::-1, ::-1].swapaxes(0, 1),
    8: lambda x: x[:, ::-1].swapaxes(0, 1),
}


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["jpg", "png", "tiff", "webp", "avif"])
def test_a_picture_is_turned_as_its_exif_says(suffix, orientation, tmp_path):
    found = read_photo(oriented(orientation, suffix)(tmp_path)).rgb.astype(int)
    expected = TURNED[orientation](np.asarray(picture()))
    assert found.shape == expected.shape
    assert np.abs(found - expected).mean() < 4


def test_a_huge_picture_is_turned_too(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    path = _written(tmp_path / "photo.jpg", picture(2 * LARGEST, 256), exif=exif)
    assert read_photo(path).rgb.shape == (LARGEST, 128, 3)


def test_colours_are_read_through_their_profile(tmp_path):
    """A profile that calls red what sRGB calls blue."""
    profile = srgb()
    swapped = profile.replace(b"rXYZ", b"xxxx").replace(b"bXYZ", b"rXYZ").replace(b"xxxx", b"bXYZ")
    photo = read_photo(profiled("png", swapped)(tmp_path))
    assert photo.notes == ()
    assert np.abs(photo.rgb[-1, [0, -1]].astype(int) - [RED[::-1], GREEN[::-1]]).max() <= 2


def test_what_is_transparent_does_not_bleed_when_a_picture_is_scaled(tmp_path):
    rgba = np.zeros((256, 3 * LARGEST, 4), np.uint8)
    rgba[:, ::2] = (*WHITE, 255)
    Image.fromarray(rgba).save(tmp_path / "photo.png")
    photo = read_photo(tmp_path / "photo.png")
    assert photo.alpha is not None
    assert (photo.rgb[photo.alpha > 20] > 250).all()


def heic(folder: Path) -> Path:
    import pillow_heif

    pixels = np.zeros((80, 96, 3), np.uint8)
    pixels[:, :48] = (200, 30, 30)
    heif = pillow_heif.from_bytes("RGB", (96, 80), pixels.tobytes())
    heif.save(str(folder / "photo.heic"), quality=95)
    return folder / "photo.heic"


def test_the_heic_of_a_phone_is_read(tmp_path):
    photo = read_photo(heic(tmp_path))
    assert photo.rgb.shape == (80, 96, 3) and photo.alpha is None
    assert np.abs(photo.rgb[40, 20].astype(int) - (200, 30, 30)).max() < 12
    assert photo.rgb[40, 80].max() < 12


def test_heic_without_its_reader_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setattr("infer.photo.find_spec", lambda name: None)
    with pytest.raises(
        UserError, match=r"photo.heic is HEIC, which needs pillow-heif: install spinset\[heif\], or export"
    ):
        read_photo(heic(tmp_path))

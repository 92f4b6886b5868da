"""Reads picture files of any common format, or refuses them in one line."""

import io
import stat
import warnings
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError

from manifests.errors import MissingFile, UserError

FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
"""Formats of pixels with a signature; Pillow would run Ghostscript for EPS, and guess at formats without a signature."""

SMALLEST = 64
"""Fewest pixels of the shorter side, as of the smallest model."""
LARGEST = 4096
"""Most pixels of the longer side, to which larger pictures are reduced; a head of an eighth of it still has 512."""


@dataclass(frozen=True, eq=False)
class Photo:
    """A picture as it should be seen: upright, 8-bit sRGB."""

    name: str
    """The path as one printable line, for messages."""
    rgb: UInt8[np.ndarray, "h w 3"]
    alpha: UInt8[np.ndarray, "h w"] | None
    """The opacity, or None if every pixel is opaque."""
    notes: tuple[str, ...]
    """Remarks for the user, such as that the first of several frames was taken."""


def read_photo(path: str | Path) -> Photo:
    """Read the first frame of a picture file: turned as its EXIF says, converted to 8 bit sRGB, at most LARGEST px long.

    Raises:
        MissingFile: there is no such file.
        UserError: it is no picture, damaged, too small, too large to be decoded safely, or fully transparent.
    """
    name, file = printable(path), Path(path)
    head = _head(file, name)
    formats = FORMATS
    if _is_heic(head) and find_spec("pillow_heif"):
        import_module("pillow_heif").register_heif_opener()
        formats = (*FORMATS, "HEIF")
    # Pillow warns of odd metadata and of large pictures, which are read all the same.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            image = Image.open(file, formats=formats)
        except UnidentifiedImageError as error:
            raise UserError(f"{name} is {_kind(head)}; JPEG, PNG, WebP, TIFF, AVIF, GIF and BMP work") from error
        except Image.DecompressionBombError as error:
            limit = 2 * (Image.MAX_IMAGE_PIXELS or 0) // 1_000_000
            raise UserError(f"{name} has more pixels than are decoded safely; make it {limit} MP or less") from error
        except Exception as error:  # decoders raise whatever they stumble over
            raise UserError(f"{name} is damaged: {_first_line(error)}") from error
        with image:
            return _read(image, name)


def printable(path: str | Path) -> str:
    """The path as one printable line."""
    return str(path) if str(path).isprintable() else repr(str(path))


def _head(file: Path, name: str) -> bytes:
    try:
        mode = file.stat().st_mode
        head = b""
        if stat.S_ISREG(mode):
            with file.open("rb") as stream:
                head = stream.read(16)
    except (FileNotFoundError, NotADirectoryError, ValueError) as error:  # ValueError: a zero byte in the name
        raise MissingFile(f"there is no file {name}") from error
    except OSError as error:
        raise UserError(f"{name} cannot be read: {error.strerror}") from error
    if stat.S_ISDIR(mode):
        raise UserError(f"{name} is a folder; give one picture")
    if not stat.S_ISREG(mode):
        raise UserError(f"{name} is not a file; give a picture file")
    if not head:
        raise UserError(f"{name} is empty")
    return head


def _is_heic(head: bytes) -> bool:
    return head[4:8] == b"ftyp" and head[8:12] in (b"heic", b"heix", b"hevc", b"mif1", b"msf1")


def _kind(head: bytes) -> str:
    if _is_heic(head) and not find_spec("pillow_heif"):
        return "HEIC, which needs pillow-heif: install spinset[heif], or export it as JPEG"
    return "not a picture that is known here, or cut off at its start"


def _read(image: Image.Image, name: str) -> Photo:
    width, height = image.size
    scale = min(1.0, LARGEST / max(width, height))
    if min(width, height) * scale < SMALLEST:
        scaled = f", once its longer side is scaled to {LARGEST}" if scale < 1 else ""
        raise UserError(f"{name} is {width} x {height} px; its shorter side must have {SMALLEST} or more{scaled}")
    try:
        frames, kind = getattr(image, "n_frames", 1), image.format
        image.draft(None, (LARGEST, LARGEST))  # a JPEG decodes at a fraction of its size, which saves memory
        image.load()
        image = ImageOps.exif_transpose(image)
    except Exception as error:  # decoders raise whatever they stumble over
        raise UserError(f"{name} is damaged or cut off: {_first_line(error)}") from error
    notes = [f"{frames} frames or pages: the first was taken"] if frames > 1 and kind != "MPO" else []
    colours, alpha = _srgb(_eight_bits(image, name), notes)
    if scale < 1:
        # EXIF may have turned it since its size was read.
        wide, high = (width, height) if (colours.width > colours.height) == (width > height) else (height, width)
        size = (round(wide * scale), round(high * scale))
        notes.append(f"{width} x {height} px were scaled to {max(size)} px")
        colours.putalpha(alpha or 255)  # so that what is transparent does not bleed into the rest
        colours = colours.resize(size, Image.Resampling.LANCZOS, reducing_gap=3.0)
        alpha = colours.getchannel("A") if alpha else None
    rgb = np.array(colours.convert("RGB"))
    if alpha is None or alpha.getextrema()[0] == 255:
        return Photo(name, rgb, None, tuple(notes))
    if alpha.getextrema()[1] == 0:
        raise UserError(f"{name} is fully transparent")
    return Photo(name, rgb, np.array(alpha), tuple(notes))


def _eight_bits(image: Image.Image, name: str) -> Image.Image:
    """Convert grey pictures of more than 8 bits to 8 bits; return others as they are."""
    if image.mode not in ("I", "F") and not image.mode.startswith("I;16"):
        return image
    values = np.asarray(image, np.float64)
    low, high, most = values.min(), values.max(), 1.0 if image.mode == "F" else 65535.0
    if not (low >= 0 and high <= most):  # NaN is neither
        raise UserError(f"{name} has pixels from {low:g} to {high:g}; greys from 0 to {most:g} work")
    grey = Image.fromarray((values * (255 / most)).round().astype(np.uint8))
    grey.info = {key: value for key, value in image.info.items() if key == "icc_profile"}
    return grey


def _srgb(image: Image.Image, notes: list[str]) -> tuple[Image.Image, Image.Image | None]:
    """Convert colours to sRGB by the profile in the file; returns the colours and the alpha channel."""
    alpha = image.convert("RGBA").getchannel("A") if image.has_transparency_data else None
    # Pillow turns Lab into sRGB itself.
    profile = image.info.get("icc_profile") if image.mode != "LAB" else None
    if image.mode == "RGBa":
        image = image.convert("RGBA")
    image = image.convert({"1": "L", "LA": "L", "La": "L", "CMYK": "CMYK", "L": "L"}.get(image.mode, "RGB"))
    if profile:
        try:
            theirs, srgb = ImageCms.ImageCmsProfile(io.BytesIO(profile)), ImageCms.createProfile("sRGB")
            converted = ImageCms.profileToProfile(image, theirs, srgb, outputMode="RGB")
            assert converted is not None  # it is not done in place
            return converted, alpha
        except (ImageCms.PyCMSError, OSError):
            notes.append("its colour profile does not read or does not fit, and was left out")
    return image.convert("RGB"), alpha


def _first_line(error: Exception) -> str:
    lines = str(error).splitlines()
    return lines[0][:160] if lines else type(error).__name__

"""Reads checkpoint files of the user into tensors by name; nothing in them is executed."""

from pathlib import Path
from textwrap import shorten
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from manifests.errors import MissingFile, UserError

BOOKKEEPING = ("lightning", "lightning_fabric", "numpy", "omegaconf", "pytorch_lightning")
"""Packages whose objects training frameworks save beside the weights, as in the official file of Stable Diffusion 1.5."""


class StandIn:
    """Replaces an object of these packages, whose class is not imported; it ignores all of its arguments."""

    def __init__(self, *_: Any):
        pass

    def __setstate__(self, _: Any) -> None:
        pass


def read_checkpoint(file: str | Path) -> dict[str, Tensor]:
    """Read the tensors of a safetensors file, or of a torch zip (.ckpt, .pth, .bin) or its `state_dict`, by name.

    Tensors of a zip are mapped from the file, so they take no memory until they are used.

    Raises:
        MissingFile: there is no such file.
        UserError: it is of no such format, is damaged, or holds anything but tensors.
    """
    file = Path(file)
    if not file.is_file():
        raise MissingFile(f"there is no file {file}; give the path of a checkpoint, such as a .safetensors or .ckpt")
    with file.open("rb") as opened:
        start = opened.read(16)
    if start.startswith(b"PK\x03\x04"):
        return _read_zip(file)
    if start[8:9] == b"{":
        try:
            return load_file(file)
        except SafetensorError as error:
            raise UserError(f"{file} is a damaged or cut-off safetensors file ({one_line(error)})") from error
    if start.startswith(b"\x80"):
        raise UserError(
            f"{file} is a plain pickle, as torch wrote before 1.6, and is not opened; give it as safetensors, or as a newer "
            "torch saves it"
        )
    raise UserError(
        f"{file} begins with {start!r}, as no safetensors file or torch checkpoint does; did it arrive whole?"
    )


def one_line(error: Exception) -> str:
    """The message of an error, shortened to one line of 200 characters."""
    return shorten(str(error) or type(error).__name__, 200)


def _read_zip(file: Path) -> dict[str, Tensor]:
    # A file that anyone may have made can fail in any way at all.
    try:
        foreign = sorted(torch.serialization.get_unsafe_globals_in_checkpoint(file))
    except Exception as error:
        raise UserError(f"{file} is damaged, cut off, or a zip of something else ({one_line(error)})") from error
    if refused := [name for name in foreign if name.split(".")[0] not in BOOKKEEPING]:
        raise UserError(
            f"{file} asks for {refused[0]}, which weights do not need; nothing of it was executed. If you trust it, bring "
            "its tensors as safetensors"
        )
    try:
        with torch.serialization.safe_globals([(StandIn, name) for name in foreign]):
            # weights_only builds tensors and plain containers only.
            loaded = torch.load(file, map_location="cpu", mmap=True, weights_only=True)  # noqa: TID251
    except Exception as error:
        raise UserError(f"{file} is damaged, or holds more than weights ({one_line(error)})") from error
    return _tensors(file, loaded)


def _tensors(file: Path, loaded: Any) -> dict[str, Tensor]:
    if isinstance(loaded, dict) and isinstance(loaded.get("state_dict"), dict):
        loaded = loaded["state_dict"]
    if not isinstance(loaded, dict) or not loaded:
        raise UserError(f"{file} holds a {type(loaded).__name__}; a checkpoint holds tensors by name")
    for name, value in loaded.items():
        if not isinstance(name, str) or type(value) not in (Tensor, nn.Parameter):
            raise UserError(
                f"{file} holds {shorten(repr(name), 80)}, a {type(value).__name__}; weights are tensors by name"
            )
    return {name: value.detach() for name, value in loaded.items()}

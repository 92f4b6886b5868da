"""The precision a network runs in: bfloat16 where the device has instructions for it, single precision elsewhere."""

from typing import Literal

import torch

Precision = Literal["auto", "bf16", "fp32"]


def has_bf16(device: str) -> bool:
    """Whether a device multiplies bfloat16 in hardware; emulated on a CPU, convolutions take 30 to 50 times as long.

    `ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2` makes a newer CPU answer as one without such instructions.
    """
    if device.startswith("cuda"):
        return torch.cuda.get_device_capability(device)[0] >= 8
    # The processor's own flags, which these functions of torch.cpu read, and what oneDNN may use of them.
    flags = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return flags and torch.ops.mkldnn._is_mkldnn_bf16_supported()


def resolve(precision: Precision, device: str) -> Literal["bf16", "fp32"]:
    """The precision that `auto` stands for on a device; any other is returned as it is."""
    if precision == "auto":
        return "bf16" if has_bf16(device) else "fp32"
    return precision


def describe(precision: Precision, device: str) -> str:
    """The precision as a line of a log states it, with the reason where it was chosen automatically."""
    chosen = resolve(precision, device)
    if precision != "auto":
        return f"precision {chosen}"
    kind, negation = device.partition(":")[0].upper(), "" if chosen == "bf16" else "no "
    return f"precision {chosen} (this {kind} has {negation}bf16 instructions)"

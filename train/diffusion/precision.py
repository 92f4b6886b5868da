"""The precision of the network's computation: bf16 autocast where the processor computes in bf16, fp32 elsewhere."""

from typing import Literal

import torch

from train.diffusion.config import Precision


def native_bf16(device: torch.device | str) -> bool:
    """Whether the device computes in bf16 natively.

    A processor without these instructions emulates them: a convolution then takes 30 to 50 times as long as in fp32.
    """
    if torch.device(device).type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    has_instructions = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    # oneDNN, which computes convolutions and matrix products, also heeds ONEDNN_MAX_CPU_ISA.
    return has_instructions and torch.ops.mkldnn._is_mkldnn_bf16_supported()


def resolve_precision(precision: Precision, device: torch.device | str) -> Literal["bf16", "fp32"]:
    """The precision itself, or for auto bf16 where the device computes in it natively and fp32 elsewhere."""
    if precision == "auto":
        return "bf16" if native_bf16(device) else "fp32"
    return precision


def precision_line(precision: Precision, device: torch.device | str) -> str:
    """One line that states the precision and why it was chosen."""
    kind = "GPU" if torch.device(device).type == "cuda" else "CPU"
    why = f"this {kind} {'has' if native_bf16(device) else 'has no'} bf16 instructions"
    if precision != "auto":
        why = f"set by --precision; {why}"
    return f"precision: {resolve_precision(precision, device)} ({why})"


def autocast(precision: Precision, device: torch.device | str) -> torch.autocast:
    """The context in which a network runs in this precision, over weights in fp32."""
    return torch.autocast(
        torch.device(device).type, torch.bfloat16, enabled=resolve_precision(precision, device) == "bf16"
    )

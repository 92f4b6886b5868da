"""Auto is bf16 where the processor has its instructions, and fp32 where it would emulate them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from train.networks.model import autocast, native_bf16, precision_line, resolve_precision

ROOT = Path(__file__).parents[3]
PRINT = "from train.networks.model import precision_line; print(precision_line({!r}, 'cpu'))"
WITHOUT = {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2"}
"""What makes PyTorch compute as on a processor with AVX2 only."""


def line(precision: str, **environment: str) -> str:
    inherited = {name: value for name, value in os.environ.items() if name not in WITHOUT}
    command = [sys.executable, "-c", PRINT.format(precision)]
    env = {**inherited, **environment}
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=True).stdout.strip()


def test_a_processor_without_the_instructions_computes_in_fp32():
    assert line("auto", **WITHOUT) == "precision: fp32 (this CPU has no bf16 instructions)"
    assert line("bf16", **WITHOUT) == "precision: bf16 (set by --precision; this CPU has no bf16 instructions)"


@pytest.mark.skipif(not Path("/proc/cpuinfo").exists(), reason="only Linux lists the instructions of its processor")
def test_auto_is_what_the_processor_says_of_itself():
    flags = set(Path("/proc/cpuinfo").read_text().split())
    has = bool(flags & {"avx512_bf16", "amx_bf16"})
    assert line("auto").startswith(f"precision: {'bf16' if has else 'fp32'} (this CPU has")


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_what_is_given_is_taken(precision):
    assert resolve_precision(precision, "cpu") == precision
    assert precision_line(precision, "cpu").startswith(f"precision: {precision} (set by --precision")
    with autocast(precision, "cpu"):
        made = torch.nn.functional.linear(torch.ones(2, 2), torch.ones(2, 2))
    assert made.dtype == {"bf16": torch.bfloat16, "fp32": torch.float32}[precision]


def test_auto_is_one_of_them():
    assert resolve_precision("auto", "cpu") == ("bf16" if native_bf16("cpu") else "fp32")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_a_gpu_of_ampere_or_newer_computes_in_bf16():
    assert native_bf16("cuda") == (torch.cuda.get_device_capability() >= (8, 0))

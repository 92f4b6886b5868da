import os
import subprocess
import sys

import pytest
import torch

from train.networks import precision
from train.networks.precision import describe, has_bf16, resolve


def test_a_given_precision_is_taken():
    assert resolve("bf16", "cpu") == "bf16"
    assert resolve("fp32", "cuda") == "fp32"
    assert describe("fp32", "cpu") == "precision fp32"


@pytest.mark.parametrize(("has", "chosen", "why"), [(True, "bf16", "has bf16"), (False, "fp32", "has no bf16")])
def test_auto_follows_the_device(monkeypatch, has, chosen, why):
    monkeypatch.setattr(precision, "has_bf16", lambda device: has)
    assert resolve("auto", "cpu") == chosen
    assert describe("auto", "cpu") == f"precision {chosen} (this CPU {why} instructions)"


def test_a_cpu_without_bf16_is_recognised():
    """In a process whose libraries use AVX2 at most, as they do on a processor that has no more."""
    environment = {**os.environ, "ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2"}
    program = "from train.networks.precision import resolve; print(resolve('auto', 'cpu'))"
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "fp32\n"


def test_this_cpu_has_what_its_flags_say():
    """The kernel lists the instructions; the answer may only be yes where one of the two kinds is there."""
    with open("/proc/cpuinfo") as file:
        flags = next((line.split() for line in file if line.startswith("flags")), [])
    if has_bf16("cpu"):
        assert {"avx512_bf16", "amx_bf16"} & set(flags)


@pytest.mark.parametrize(("capability", "expected"), [((7, 5), False), ((8, 0), True), ((9, 0), True)])
def test_gpus_have_bf16_from_ampere_on(monkeypatch, capability, expected):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert has_bf16("cuda") is expected

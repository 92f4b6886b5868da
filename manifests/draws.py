"""Randomness as a function: every draw is keyed by what it is for, never by rank, worker or call order."""

import zlib

import numpy as np

MAX_SEED = (1 << 63) - 1
"""Largest seed of a dataset or a run: tables hold seeds as signed 64-bit integers."""


def generator(seed: int, purpose: str, *index: int) -> np.random.Generator:
    """The random generator of one purpose, e.g. `generator(seed, "rig", identity)`; equal arguments, equal numbers."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, zlib.crc32(purpose.encode()), *index])))

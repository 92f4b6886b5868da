"""Marching cubes by scikit-image and by PyMCubes: time, size and topology of the same head's surface.

`python benchmarks/marching_cubes.py` prints a table and a JSON line; PyMCubes is measured if it is installed.
"""

import json
import statistics
import time
from importlib.util import find_spec

from datagen.config import METHODS
from datagen.meshing import clean, density_grid, marching_cubes
from datagen.sources.procedural import ProceduralSource

RUNS = 5


def main() -> None:
    head = ProceduralSource().head(7)
    print(f"{'method':<12}{'cells':>8}{'seconds':>10}{'faces':>10}{'watertight':>12}{'components':>12}{'holes':>7}")
    figures = []
    for resolution in (128, 256):
        grid = density_grid(head, resolution)
        for method in METHODS if find_spec("mcubes") else METHODS[:1]:
            seconds = []
            for _ in range(RUNS):
                started = time.perf_counter()
                mesh = marching_cubes(grid, head.iso_level, method)
                seconds.append(time.perf_counter() - started)
            found = clean(mesh, dust=0.001, tunnels=0)[1]
            row = (method, resolution, statistics.median(seconds), found.faces, found.watertight, found.components)
            print("{:<12}{:>6}^3{:>10.3f}{:>10}{!s:>12}{:>12}{:>7}".format(*row, found.holes))
            figures.append({"method": method, "cells": resolution, "seconds": row[2], "faces": found.faces})
    print(json.dumps({"benchmark": "marching_cubes", "figures": figures}))


if __name__ == "__main__":
    main()

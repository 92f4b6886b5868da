"""Cost of an identity: seconds, bytes and peak memory of one worker, at the full recipe (125 views with normals).

`python benchmarks/generate.py [--resolution 512]` makes one identity, then three, each in a fresh
process, so that memory which grows with the number of identities would show. Prints a table and a JSON line.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from manifests.dataset import Dataset
from manifests.status import summarise


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--resolution", type=int, default=512)
    parser.add_argument("--rig", default="spinmeround-125")
    arguments = parser.parse_args()
    print(f"{'identities':>10}{'seconds each':>14}{'MB each':>9}{'peak GB':>9}")
    figures = []
    for identities in (1, 3):
        with tempfile.TemporaryDirectory() as folder:
            seconds, peak = measure(folder, identities, arguments)
            status = summarise(Dataset(folder))
        assert status.kept == identities
        row = {"identities": identities, "seconds": status.identity_seconds, "peak_gb": peak / 1e6}
        figures.append({**row, "mb": status.bytes / 1e6 / identities, "wall": seconds})
        print(f"{identities:>10}{status.identity_seconds:>14.1f}{figures[-1]['mb']:>9.1f}{row['peak_gb']:>9.2f}")
    print(json.dumps({"benchmark": "generate", "resolution": arguments.resolution, "figures": figures}))


def measure(folder: str, identities: int, arguments: argparse.Namespace) -> tuple[float, int]:
    """Wall seconds and peak resident kB of a worker's process."""
    command = [sys.executable, "-m", "spinset", "generate", folder, "--identities", str(identities), "--inline"]
    command += ["--resolution", str(arguments.resolution), "--rig", arguments.rig, "--identities-per-shard", "16"]
    started = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, cwd=Path(__file__).parents[1])
    _, code, usage = os.wait4(process.pid, 0)
    assert code == 0, "generate failed"
    return time.perf_counter() - started, usage.ru_maxrss


if __name__ == "__main__":
    main()

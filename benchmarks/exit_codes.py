"""Counts the exit codes of commands that read a small dataset and end soon, each run in a process of its own.

Threads of libraries that outlive the interpreter abort a process after its answer was printed; every run here must return 0.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).parents[1]
POLICY = '{"name": "fog", "rules": [{"name": "fog", "score": "image.fog", "max": 0.9, "drop": "view"}]}'


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=100, help="How often each command is run.")
    runs = parser.parse_args().runs
    with tempfile.TemporaryDirectory() as folder:
        heads, policy = f"{folder}/heads", Path(folder, "fog.json")
        policy.write_text(POLICY)
        size = ["--identities", "4", "--identities-per-shard", "2", "--resolution", "16", "--mesh.resolution", "64"]
        for command in (["generate", heads, "--rig", "orbit-2", *size], ["score", heads, "--scorers", "image"]):
            subprocess.run(spinset(*command, "--inline"), check=True, stdout=subprocess.DEVNULL)
        print("| command | runs | exit codes | seconds a run |\n|---|---|---|---|")
        for name in ("status", "verify", "export", "select"):
            codes: Counter[int] = Counter()
            start = time.perf_counter()
            for run in range(runs):
                options = {
                    "export": [f"{folder}/export-{run}", "--format", "huggingface"],
                    "select": ["--policy", str(policy), "--name", f"run{run}"],
                }
                command = spinset(name, heads, *options.get(name, []))
                codes[subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode] += 1
            seconds = (time.perf_counter() - start) / runs
            seen = ", ".join(f"{code}: {count}" for code, count in sorted(codes.items()))
            print(f"| `{name}` | {runs} | {seen} | {seconds:.1f} |", flush=True)


def spinset(*arguments: str) -> list[str]:
    return [sys.executable, str(ROOT / "spinset.py"), *arguments]


if __name__ == "__main__":
    main()

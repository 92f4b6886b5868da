"""Help and refusals import none of the libraries that take seconds to import."""

import subprocess
import sys
from pathlib import Path

import pytest

import spinset

ROOT = Path(__file__).parents[1]
HEAVY = (
    "torch",
    "scipy",
    "skimage",
    "cv2",
    "diffusers",
    "transformers",
    "ray",
    "open_clip",
    "insightface",
    "onnxruntime",
    "matplotlib",
    "pandas",
)
REFUSED = {
    "demo": ["--frobnicate"],
    "plan": ["out", "--identities", "0"],
    "generate": ["out", "--identities", "0"],
    "repair": ["nothing"],
    "retry": ["nothing"],
    "score": ["nothing"],
    "select": ["nothing", "--policy", "spinmeround"],
    "review": ["nothing"],
    "decide": ["nothing", "--drop", "17"],
    "pack": ["nothing", "out", "--selection", "x"],
    "export": ["nothing", "out", "--format", "gltf"],
    "latents": ["nothing", "--vae", "nothing"],
    "train": ["small", "--data", "nothing"],
    "views": ["heads64", "nothing", "--out", "out"],
    "heads": ["nothing", "--out", "out"],
    "invert": ["nothing", "--weights", "nothing", "--out", "out"],
    "evaluate": ["nothing", "--data", "nothing"],
    "average": ["nothing", "out"],
    "convert": ["nothing", "out"],
    "status": ["nothing"],
    "verify": ["nothing"],
}
"""Arguments of each command that it refuses, in a folder without `nothing`."""

RUN = """
import sys
import spinset
try:
    code = spinset.main(sys.argv[2:])
except SystemExit as stop:
    code = stop.code
imported = sorted(set(sys.argv[1].split()) & set(sys.modules))
assert not imported, imported
sys.exit(code)
"""


@pytest.mark.parametrize("command", spinset.COMMANDS)
@pytest.mark.parametrize("refused", [False, True], ids=["help", "refused"])
def test_no_heavy_import(tmp_path, command, refused):
    preset = ["small"] if command == "train" else []
    arguments = REFUSED[command] if refused else [*preset, "--help"]
    done = subprocess.run(
        [sys.executable, "-c", RUN, " ".join(HEAVY), command, *arguments],
        capture_output=True, text=True, cwd=tmp_path, env={"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == (2 if refused else 0), done.stderr
    assert list(tmp_path.iterdir()) == []

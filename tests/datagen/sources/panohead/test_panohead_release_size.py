"""A generator of the released sizes goes all the way, within the memory of a small machine."""

import json
import subprocess
import sys
from pathlib import Path

# In a process of its own, whose peak memory is then its own too.
WHOLE_WAY = """
import json, resource, sys
import numpy as np, torch
from panohead_files import RELEASE, RELEASE_RENDERING, generator, untrained, write
from datagen.meshing import density_grid, marching_cubes
from datagen.sources.panohead.checkpoint import convert, load
from datagen.sources.panohead.config import GeneratorConfig
from datagen.sources.panohead.head import PanoHeadConfig, PanoHeadSource
from geometry.cameras import orbit
from pathlib import Path

torch.set_num_threads(1)
folder = Path(sys.argv[1])
made = untrained(GeneratorConfig.from_official(RELEASE, RELEASE_RENDERING, 64), seed=0)
state = made.state_dict()
file = write(folder / "release.pkl", G_ema=generator(state, RELEASE, resolution=64))
convert(file, folder / "release")
source = PanoHeadSource(PanoHeadConfig(str(folder / "release"), precision="fast"))
same = all(torch.equal(value, state[key]) for key, value in source.generator.state_dict().items())
head = source.head(0)
# An untrained density has its level anywhere: put a fifth of the space inside.
sigma = head.identity.renderer.sigma(torch.rand(5000, 3, generator=torch.Generator().manual_seed(0)) * 0.7 - 0.35)
source.generator.decoder.net[2].bias[0] += head.iso_level - sigma.quantile(0.8)
views = head.render(orbit(np.zeros(1), np.zeros(1)), 512)
mesh = marching_cubes(density_grid(head, 64), head.iso_level)
print(json.dumps({
    "keys": len(state),
    "parameters": sum(p.numel() for p in made.parameters()),
    "same": same,
    "finite": bool(views.rgb.isfinite().all()),
    "shape": list(views.rgb.shape),
    "faces": len(mesh.faces),
    "gigabytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 << 20),
}))
"""


def test_release_size(tmp_path):
    root = Path(__file__).parents[4]
    command = [sys.executable, "-c", WHOLE_WAY, str(tmp_path)]
    done = subprocess.run(
        command, cwd=root, env={"PYTHONPATH": f"{root}:{root / 'tests'}"}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found.pop("gigabytes") < 12
    assert found.pop("faces") > 1000
    assert found.pop("parameters") == 53_741_548
    assert found == {"keys": 295, "same": True, "finite": True, "shape": [1, 512, 512, 3]}

"""The demo: procedural heads made, verified, scored and selected, small enough for two cores, ending in a page to look at."""

import time
from dataclasses import dataclass, replace
from pathlib import Path

from datagen import report
from datagen.generate import GenerateConfig, generate
from datagen.meshing import MeshConfig
from datagen.procedural import ProceduralConfig
from datagen.sources import SourceConfig
from filters.report import sections as selection_sections
from filters.score import ScoreConfig, score
from filters.select import SelectConfig, select
from jobs.page import page
from jobs.status import summarise
from manifests.verify import verify
from train import report as run_report
from train.presets import PRESETS
from train.trainer import run

POLICY = "spinmeround"


@dataclass(frozen=True)
class DemoConfig:
    """Make 12 procedural heads, some with planted defects, verify them, judge them and show them."""

    out: str = "out/demo"
    """Folder of the dataset and its report."""


def demo(config: DemoConfig) -> int:
    """Run the demo; returns the exit code."""
    started = time.monotonic()
    dataset = generate(
        GenerateConfig(
            out=config.out,
            source=SourceConfig(procedural=ProceduralConfig(defect_rate=0.08)),
            identities=12,
            seed=5000,
            resolution=128,
            identities_per_shard=2,
        )
    )
    status = summarise(dataset)
    print(status)
    faults = list(verify(dataset, deep=True))
    for fault in faults:
        print(fault)
    if faults:
        print(f"{len(faults)} faults; remove {config.out} and run the demo again")
        return 3
    verified = "every byte and picture verified"
    score(ScoreConfig(config.out))
    selected = select(SelectConfig(config.out, POLICY))
    print(selected)
    trained = train_a_little(config.out)
    kept = selected.summary["identities"]["kept"]
    lead = (
        f"{status.kept} of {status.identities} procedural heads, {status.views} views of {dataset.plan.resolution} px "
        f"with normals, {status.bytes / 1e6:.1f} MB; {verified}; the policy {POLICY} keeps {kept} of them; "
        f"{time.monotonic() - started:.0f} s."
    )
    html = Path(config.out) / "report.html"
    sections = [*report.sections(dataset), *selection_sections(dataset, selected.name), *run_report.sections(trained)]
    html.write_text(page("A spinset demo dataset", lead, sections), encoding="utf-8")
    print(f"report: {html}\nnext: spinset generate out/heads --identities 100 --resolution 256")
    return 0 if not status.failed else 3


def train_a_little(out: str) -> Path:
    """A few dozen steps of the smallest preset on the demo's own shards; returns the folder of the run.

    It is looked at on four heads of other seeds.
    """
    held_out = f"{out}/held-out"
    generate(
        GenerateConfig(
            out=held_out,
            identities=4,
            seed=7000,
            rig="scatter-24",
            resolution=64,
            mesh=MeshConfig(64),
            identities_per_shard=2,
        )
    )
    score(ScoreConfig(held_out, scorers=("arcface",)))
    own = PRESETS["small"].config
    loader = replace(own.loader, data=out, selection=POLICY, resolution=64)
    look = replace(own.validation, data=held_out, scenes=4, pictures=2, every=120, steps=12)
    run_config = replace(own, loader=loader, latents=False, out=f"{out}/run", validation=look)
    run(run_config)
    return Path(run_config.out)

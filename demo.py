"""The demo: the whole loop on procedural heads, small enough for two cores, ending in a page to look at."""

import json
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from datagen import report
from datagen.config import GenerateConfig, MeshConfig, ProceduralConfig, SourceConfig
from datagen.generate import generate
from filters.config import ScoreConfig, SelectConfig
from filters.report import selection_sections
from filters.score import score
from filters.scorer import read_pictures
from filters.select import select
from geometry.cameras import orbit
from infer.config import DirectionsConfig, PortraitConfig, SamplerConfig, ViewsConfig
from infer.make import views
from infer.outputs.pictures import sheet
from infer.views import HeadViews
from jobs.progress import step
from manifests.dataset import Dataset
from manifests.status import summarise
from manifests.verify import verify
from pages.page import Section, page, picture, render
from train.families import read_about
from train.families.presets import PRESETS
from train.run import report as run_report
from train.run.run_folder import CONFIG
from train.run.trainer import run
from weights.embedded import HEADS64

POLICY = "spinmeround"


def demo(out: str) -> int:
    """Run the demo in a folder, and return the exit code."""
    started = time.monotonic()
    dataset = generate(
        GenerateConfig(
            out=out,
            source=SourceConfig(procedural=ProceduralConfig(defect_rate=0.08)),
            identities=12,
            seed=5000,
            resolution=128,
            identities_per_shard=2,
        )
    )
    status = summarise(dataset)
    print(status)
    with step("verify", dataset.plan.shards) as advance:
        faults = list(verify(dataset, deep=True, checked=advance))
    for fault in faults:
        print(fault)
    if faults:
        print(f"{len(faults)} faults; remove {out} and run the demo again")
        return 3
    verified = "every byte and picture verified"
    if lacking := score(ScoreConfig(out)):
        print("\n".join(lacking))
        return 3
    selected = select(SelectConfig(out, POLICY))
    print(selected)
    # The models are small: a second thread would only wait for the first, and for a core that is busy.
    torch.set_num_threads(1)
    held_out = held_out_heads(out)
    trained = train_a_little(out, held_out)
    seen_around = look_around(out, held_out)
    kept = selected.summary["identities"]["kept"]
    lead = (
        f"{status.kept} of {status.identities} procedural heads, {status.views} views of {dataset.plan.resolution} px "
        f"with normals, {status.bytes / 1e6:.1f} MB; {verified}; the policy {POLICY} keeps {kept} of them; "
        f"{time.monotonic() - started:.0f} s."
    )
    html = Path(out) / "report.html"
    judged = selection_sections(dataset, selected.name)
    sections = [*report.sections(dataset), *judged, *run_report.sections(trained), seen_around]
    html.write_text(page("A spinset demo dataset", lead, sections), encoding="utf-8")
    print(f"report: {html}\nnext: spinset generate out/heads --identities 100 --resolution 256")
    return 0 if not status.failed else 3


def held_out_heads(out: str) -> Dataset:
    """Four heads of other seeds, from 16 sides, with their identities."""
    dataset = generate(
        GenerateConfig(
            out=f"{out}/held-out",
            identities=4,
            seed=7000,
            rig="orbit-16",
            resolution=64,
            mesh=MeshConfig(64),
            identities_per_shard=2,
        )
    )
    score(ScoreConfig(f"{out}/held-out", scorers=("arcface",)))
    return dataset


def train_a_little(out: str, held_out: Dataset) -> Path:
    """A few dozen steps of the smallest preset on the demo's own shards; returns the folder of the run."""
    own = PRESETS["small"].config
    loader = replace(own.loader, data=out, selection=POLICY, resolution=64)
    look = replace(own.validation, data=held_out.storage.url, scenes=4, pictures=2, every=120, steps=12)
    folder = Path(out) / "run"
    began = folder / CONFIG
    # A demo that was interrupted goes on in the precision it began with, also where auto would now be another.
    precision = json.loads(began.read_text())["precision"] if began.exists() else own.precision
    config = replace(own, loader=loader, latents=False, out=str(folder), validation=look, precision=precision)
    return run(config).parent


def look_around(out: str, held_out: Dataset) -> Section:
    """Views of a held-out head by the embedded model, from its front alone, and the truth."""
    first = held_out.views(0).slice(0, 16)
    rgb, alpha, normal = (np.stack(read_pictures(held_out, 0, first, name)) for name in ("rgb", "alpha", "normal"))
    azimuth = first.column("azimuth").to_numpy().astype(np.float32)
    photo = Path(out) / "held-out-front.png"
    Image.fromarray(np.dstack([rgb[0], alpha[0]])).save(photo)
    folder = f"{out}/views"
    asked = ViewsConfig(
        "heads64",
        (str(photo),),
        folder,
        directions=DirectionsConfig(16),
        sampler=SamplerConfig(20),
        portrait=PortraitConfig(aligned=True),
    )
    for line in views(asked):
        print(line)
    pictures, normals = (torch.from_numpy(part).permute(0, 3, 1, 2).float() / 127.5 - 1 for part in (rgb, normal))
    level, none_given = np.zeros(16, np.float32), np.zeros(16, bool)
    truth = HeadViews(pictures, normals, azimuth, level, none_given, orbit(azimuth.astype(float), level.astype(float)))
    made = np.asarray(Image.open(f"{folder}/sheet.png").convert("RGB"))
    about = read_about(HEADS64)[1]
    body = render(
        "infer", "views.html", made=picture(made), truth=picture(sheet(truth)), viewer="views/viewer.html", about=about
    )
    return Section("A head seen from all around", body)

"""The command `spinset evaluate`: a model on people nobody trained on, beside two baselines and the papers' tables.

Every person is one row that is kept once it is done, so the same command goes on where it was stopped.
"""

import hashlib
import time
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32

from infer.config import EvaluateConfig, SamplerConfig
from infer.evaluation.agreement import BORDER, EPIPOLAR, HULL, NEAR, agreement, true_spread
from infer.evaluation.baselines import Nearest, copied
from infer.evaluation.config import check_embedded, kit_settings, open_detector, open_faces
from infer.evaluation.held_out import HeldOut, People, StoredPeople, choose_people, choose_views
from infer.evaluation.importers.open import open_stage
from infer.evaluation.measure import Kit, PictureEmbedder, Truth, look_at_truth, measure, open_kit
from infer.evaluation.novel_views import NovelViews, Shown, make_views, number_of
from infer.evaluation.pairs import evaluate_pair
from infer.evaluation.protocols import PROTOCOLS, Protocol
from infer.evaluation.report import Report, save_strip, strip
from infer.evaluation.rows import Rows
from infer.evaluation.summary import TRUTH, results_of, save_features
from infer.make import open_painter
from infer.metrics.pixels import to_unit
from infer.views import Painter
from jobs.progress import step
from manifests.dataset import Dataset
from manifests.errors import UserError
from train.networks.config import EMBEDDING
from weights.embedded import RECOGNISER, model_folder
from weights.files import sha256

MODEL, COPY, NEAREST = "model", "copy", "nearest"


def evaluate(config: EvaluateConfig, clip: PictureEmbedder | None = None) -> Path:
    """Measure, or go on measuring, and write the report; the folder it is in.

    Raises:
        FileNotFoundError, ValueError: something is missing or does not fit, in one line.
    """
    if config.pair:
        return evaluate_pair(config, clip)
    protocol = PROTOCOLS[config.protocol]
    how = NovelViews(
        config.steps or protocol.steps,
        config.scale or protocol.scale,
        config.seed,
        config.stages,
        config.input_normals,
    )
    painter = open_painter(config.model, SamplerConfig(how.steps, how.scale, seed=config.seed), config.device)
    with step("opening the people and the metrics"):
        run = _open_run(config, protocol, painter, how, clip)
    names = choose_people(run.people.names, config.identities or protocol.identities, config.seed)
    out = Path(config.out)
    rows = Rows(out, run.settings)
    with step("evaluate", len(names), sum(name in rows for name in names)) as advance:
        for name in names:
            if name not in rows:
                rows.add(run.row(name, out))
                advance()
    report(run, out, [rows.rows[name] for name in names]).write(out)
    return out


@dataclass(frozen=True, eq=False)
class Run:
    """Everything that one person takes."""

    config: EvaluateConfig
    protocol: Protocol
    painter: Painter
    how: NovelViews
    people: People
    nearest: Nearest | None
    kit: Kit
    settings: dict[str, Any]

    def row(self, name: str, out: Path) -> dict[str, Any]:
        """Make and measure the views of a person; keeps their pictures and features."""
        begin = time.monotonic()
        person = self.people.person(name)
        held = person.read(
            choose_views(self.protocol, person.azimuth, person.elevation, self.config.seed, number_of(name))
        )
        truth = look_at_truth(self.kit, held)
        embedding = held.embedding if self.config.embeddings else truth.source
        shown = {
            MODEL: make_views(self.painter.model, held, self._identity(embedding, held), self.how),
            COPY: copied(held),
        }
        like = ""
        if self.nearest is not None and embedding is not None:
            like = self.nearest.find(embedding)
            shown[NEAREST] = self.nearest.show(held, like)
        if self.kit.inception is not None:
            pictures = {TRUTH: truth.rgb, **{m: to_unit(views.rgb) for m, views in shown.items()}}
            save_features(out, name, {m: self.kit.inception(p) for m, p in pictures.items()})
        save_strip(out, name, strip(held, shown[MODEL], shown.get(NEAREST)))
        return {
            "name": name,
            "caption": _caption(held, shown[MODEL].normal is not None, like),
            "input": held.views[0],
            "targets": list(held.views[1:]),
            "azimuth": held.azimuth[1:].tolist(),
            "elevation": held.elevation[1:].tolist(),
            "identity": embedding is not None,
            "nearest": like,
            "methods": self._measured(truth, shown),
            "seconds": round(time.monotonic() - begin, 3),
        }

    def _measured(self, truth: Truth, shown: dict[str, Shown]) -> dict[str, Any]:
        """What is measured of a person, by method."""
        found = {method: measure(self.kit, truth, views) for method, views in shown.items()}
        of_truth = true_spread(truth.held)
        for method, views in shown.items():
            found[method]["person"] |= agreement(views, truth.held, of_truth)
        return found

    def _identity(self, embedding: Float32[np.ndarray, " d"] | None, held: HeldOut) -> Float32[np.ndarray, " d"] | None:
        if not self.painter.model.about.identity or embedding is None:
            return None
        if len(embedding) != EMBEDDING:
            raise UserError(
                f"identity {held.name} has an embedding of {len(embedding)} numbers; the model reads {EMBEDDING}"
            )
        return embedding


def _open_run(
    config: EvaluateConfig, protocol: Protocol, painter: Painter, how: NovelViews, clip: PictureEmbedder | None
) -> Run:
    about = painter.model.about
    if about.recogniser == sha256(RECOGNISER) and not config.recogniser and not config.embeddings:
        config = replace(config, recogniser="embedded")  # as `spinset views` takes it
    beyond_embedded = check_embedded(
        config, Dataset(config.data).plan.source["name"] if config.layout == "spinset" else config.layout
    )
    detector = open_detector(config)
    faces = open_faces(config, detector)
    if about.identity and faces is None and not config.embeddings:
        raise UserError(
            "the model was trained with identities: --embeddings names a score table of the dataset, or --recogniser the "
            "ArcFace .onnx that looks at the input view"
        )
    if config.nearest and faces is None and not config.embeddings:
        raise UserError("--nearest compares embeddings: --embeddings names their table, or give a --recogniser")
    if config.layout == "spinset":
        people = StoredPeople(config.data, config.selection, config.embeddings, about.resolution)
    else:
        people = open_stage(config.layout, config.data, config.stage, detector, about.resolution, config.seed)
    nearest = None
    if config.nearest:
        nearest = Nearest(StoredPeople(config.nearest, "", config.embeddings or "arcface", about.resolution))
    kit = open_kit(about.resolution, config.weights, config.device, faces, clip, config.reid_limit)
    settings = {
        "protocol": protocol.name,
        "model": model_fingerprint(model_folder(config.model)),
        "data": people.lineage,
        "nearest": nearest.people.lineage if nearest else None,
        "resolution": about.resolution,
        "steps": how.steps,
        "scale": how.scale,
        "stages": how.stages,
        "input_normals": how.normals if "normal" in painter.model.config.members else None,
        "seed": config.seed,
        "near": NEAR,
        **kit_settings(config, kit, beyond_embedded),
    }
    return Run(config, protocol, painter, how, people, nearest, kit, settings)


def model_fingerprint(folder: Path) -> str:
    """A hash of all files of a model."""
    digest = hashlib.sha256()
    for file in sorted(p for p in folder.rglob("*") if p.suffix in (".json", ".safetensors")):
        digest.update(f"{file.relative_to(folder).as_posix()} {sha256(file)}\n".encode())
    return digest.hexdigest()


def report(run: Run, out: Path, rows: list[dict[str, Any]]) -> Report:
    """The report of all rows."""
    methods = {MODEL: "this model", COPY: "copy of the input"}
    missing = dict(run.kit.missing)
    known = any("normal_error" in row["methods"][MODEL]["views"] for row in rows)
    if not known:
        own = "normal" in run.painter.model.config.members
        missing["normal_error"] = "the true normals are not known" if own else "the model makes no normals"
    missing |= dict.fromkeys(EPIPOLAR, f"SIFT finds no spot twice in views within {NEAR:g} degrees")
    missing |= dict.fromkeys(HULL, "the true views have no masks, or nothing is seen twice")
    missing |= dict.fromkeys(BORDER, f"no two calls of the sampler made views within {NEAR:g} degrees")
    if any(NEAREST in row["methods"] for row in rows):
        methods[NEAREST] = "nearest training head"
    about = {
        "model": config_name(run.config.model),
        "knows": run.painter.model.about.knows,
        "samples_seen": run.painter.model.about.samples_seen,
        "people": len(rows),
        "of": len(run.people.names),
        "settings": run.settings,
        "versions": {name: version(name) for name in ("spinset", "torch", "diffusers", "torchmetrics")},
        "seconds": round(sum(row["seconds"] for row in rows), 1),
    }
    return Report(
        title=f"{config_name(run.config.model)} by the protocol of {run.protocol.name}",
        about=about,
        protocol=run.protocol,
        methods=methods,
        rows=rows,
        results={
            m: results_of([r for r in rows if m in r["methods"]], m, missing, out if run.kit.inception else None)
            for m in methods
        },
        notes=_notes(run, rows),
    )


def config_name(path: str) -> str:
    """The last part of a path that says something."""
    parts = [part for part in Path(path).parts if part not in ("model", "/")]
    return parts[-1] if parts else path


def _notes(run: Run, rows: list[dict[str, Any]]) -> list[str]:
    counts = sorted({len(row["targets"]) for row in rows})
    wanted = sum(targets.count for targets in run.protocol.targets)
    notes = [
        f"The model knows {run.painter.model.about.knows or 'what its maker knows'}; {len(rows)} people were measured."
    ]
    if counts != [wanted]:
        span = f"{counts[0]} to {counts[-1]}" if len(counts) > 1 else str(counts[0])
        notes.append(f"People have {span} views to make where the protocol has {wanted}.")
    if len(rows) < run.protocol.identities:
        notes.append(f"The protocol has {run.protocol.identities} people.")
    if without := sum(not row["identity"] for row in rows):
        notes.append(f"{without} people have no embedding, and were made and looked up without identity.")
    if not max(run.painter.model.about.conditions):
        notes.append("The model takes no input view: views are made from the identity alone.")
    if "normal" in run.painter.model.config.members and run.how.normals == "stored":
        notes.append("The true normals of the input were given, which a photo does not have.")
    if run.nearest and isinstance(run.people, StoredPeople):
        same = run.people.dataset.plan.source == run.nearest.people.dataset.plan.source
        if shared := len(run.people.seeds & run.nearest.people.seeds) if same else 0:
            notes.append(f"{shared} of the held-out identities are heads of the training set: these are not held out.")
    return notes


def _caption(held: HeldOut, normals: bool, like: str) -> str:
    rows = ["the truth (input first)", "made"]
    rows += (["true normals"] if held.normal is not None else []) + ["normals made"] if normals else []
    rows += [f"nearest training head {like}"] if like else []
    return f"Input {held.views[0]}, targets {', '.join(held.views[1:8])}. Rows: {', '.join(rows)}."

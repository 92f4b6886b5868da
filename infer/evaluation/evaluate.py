"""The command `spinset evaluate`: measures a model on held-out people, together with two baselines and the papers' tables.

Every person is one row that is kept once it is measured, so the same command continues where it was stopped.
"""

import time
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float32

from faces.config import FaceConfig
from faces.models import load_face_models
from infer.config import EvaluateConfig, PortraitConfig, SamplerConfig
from infer.evaluation.config import (
    check_embedded,
    folder_fingerprint,
    metric_settings,
    open_detector,
    open_faces,
)
from infer.evaluation.held_out import HeldOut, HeldOutPeople, StoredPeople, choose_people, choose_views
from infer.evaluation.importers import open_stage
from infer.evaluation.measure import (
    BORDER,
    CROSS_CONTROL,
    EPIPOLAR,
    HULL,
    NEAR,
    Metrics,
    PictureEmbedder,
    agreement,
    control_leak,
    measure,
    open_metrics,
    true_views,
)
from infer.evaluation.methods import EvaluatedViews, NearestHead, copied_input, noise_seed, person_key, sample_views
from infer.evaluation.pairs import evaluate_pair
from infer.evaluation.protocols import PROTOCOLS, EvaluationProtocol
from infer.evaluation.report import EvaluationReport, save_strip, strip
from infer.evaluation.results import TRUTH, Row, RowFile, measure_all, results_of, save_features
from infer.inputs import ControlPictures, check_control, check_window, open_control
from infer.metrics.likeness import FaceEmbedder
from infer.metrics.pixels import to_unit
from infer.portrait import PhotoPreprocessor, Portrait
from infer.views import ViewSampler, open_sampler
from jobs.progress import step
from manifests.dataset import Dataset
from manifests.errors import UserError
from manifests.index import open_index
from train.families import model_folder, read_about
from train.networks.config import EMBEDDING, About
from train.networks.model import resolve_precision
from weights.embedded import RECOGNISER
from weights.files import sha256

MODEL, COPY, NEAREST = "model", "copy", "nearest"
NOWHERE = (np.zeros(0), np.zeros(0))
"""The directions of a dataset's control pictures are its own."""


class EvaluationOutcome(NamedTuple):
    """The folder of a report, and the reasons of the people that could not be measured, by name."""

    folder: Path
    failed: dict[str, str]


def evaluate(config: EvaluateConfig, clip: PictureEmbedder | None = None) -> EvaluationOutcome:
    """Measure a model or a pair of folders, or continue to, and write the report.

    Raises:
        MissingFile: a file is missing; the message names it.
        UserError: settings and data do not fit together, or no person could be measured.
    """
    out = Path(config.out)
    if config.pair:
        return EvaluationOutcome(out, evaluate_pair(config, clip))
    evaluation = open_evaluation(config, clip)
    names = choose_people(
        evaluation.people.names, config.identities or evaluation.protocol.identities, evaluation.config.seed
    )
    rows, failed = measure_all(RowFile(out, evaluation.settings), names, lambda name: evaluation.row(name, out))
    report(evaluation, out, rows, failed).write(out)
    return EvaluationOutcome(out, failed)


@dataclass(frozen=True, eq=False)
class Evaluation:
    """The opened model, people and metrics."""

    config: EvaluateConfig
    protocol: EvaluationProtocol
    sampler: ViewSampler
    back: ViewSampler | None
    """Makes the view from behind that is a second reference."""
    strangers: tuple[ControlPictures, ...]
    """The heads whose pictures say where the cameras are, for models that need them."""
    preprocess: PhotoPreprocessor
    people: HeldOutPeople
    nearest: NearestHead | None
    metrics: Metrics
    settings: dict[str, Any]
    """The settings that all rows share."""

    def row(self, name: str, out: Path) -> dict[str, Any]:
        """Sample and measure the views of a person, and write their picture and features to the folder `out`."""
        begin = time.monotonic()
        held, portrait = self.read(name)
        truth = true_views(self.metrics, held)
        embedding = held.embedding if self.config.embeddings else truth.source
        methods = {MODEL: self.views(held, portrait), COPY: copied_input(held)}
        nearest = ""
        if self.nearest is not None and embedding is not None:
            nearest = self.nearest.find(embedding)
            methods[NEAREST] = self.nearest.views(held, nearest)
        if self.metrics.inception is not None:
            pictures = {TRUTH: truth.rgb, **{m: to_unit(views.rgb) for m, views in methods.items()}}
            save_features(out, name, {m: self.metrics.inception(p) for m, p in pictures.items()})
        save_strip(out, name, strip(held, methods[MODEL], methods.get(NEAREST)))
        measured = {method: measure(self.metrics, truth, views) for method, views in methods.items()}
        for method, views in methods.items():
            measured[method]["person"] |= agreement(views, truth)
        if self.config.cross_control:
            other = self.views(held, portrait, stranger=1)
            measured[MODEL]["person"] |= control_leak(self.metrics, methods[MODEL], other)
        return {
            "name": name,
            "caption": _caption(held, methods[MODEL].normal is not None, nearest),
            "input": held.views[0],
            "targets": list(held.views[1:]),
            "azimuth": held.azimuth[1:].tolist(),
            "elevation": held.elevation[1:].tolist(),
            "seed": noise_seed(name, self.config.seed),
            "identity": self._identity(held, portrait) is not None,
            "nearest": nearest,
            "methods": measured,
            "seconds": round(time.monotonic() - begin, 3),
        }

    def read(self, name: str) -> tuple[HeldOut, Portrait]:
        """The views of a person, and the input view preprocessed as `spinset views --aligned` does.

        Raises:
            UserError, DamagedData: a view cannot be read, or the head cannot be placed.
        """
        person = self.people.person(name)
        places = choose_views(self.protocol, person.azimuth, person.elevation, self.config.seed, person_key(name))
        held = person.read(places)
        direction = {"azimuth": float(held.azimuth[0]), "elevation": float(held.elevation[0])}
        preprocess = replace(self.preprocess, config=replace(self.preprocess.config, **direction))
        return held, preprocess(person.photo(int(places[0])))

    def views(self, held: HeldOut, portrait: Portrait, stranger: int = 0) -> EvaluatedViews:
        """The views that the model samples of a person, with the control pictures of a stranger if it takes any."""
        identity, config = self._identity(held, portrait), self.config
        control = self.strangers[stranger] if self.strangers else None
        return sample_views(
            self.sampler, held, portrait.rgb, identity, config.stages, config.input_normals, control, self.back
        )

    def _identity(self, held: HeldOut, portrait: Portrait) -> Float32[torch.Tensor, " d"] | None:
        """The embedding that the model is given."""
        if not self.sampler.model.about.identity:
            return None
        if self.config.embeddings:
            return None if held.embedding is None else torch.from_numpy(held.embedding)
        return portrait.identity


def open_evaluation(config: EvaluateConfig, clip: PictureEmbedder | None = None) -> Evaluation:
    """Open the model, the people and the metrics; raises as `evaluate`."""
    protocol = PROTOCOLS[config.protocol]
    settings = SamplerConfig(
        config.steps or protocol.steps, config.scale or protocol.scale, seed=config.seed, overlap=config.overlap
    )
    check_control_people(config)
    count = 1 + config.cross_control if config.control else 0
    strangers = tuple(open_control(config.control, *NOWHERE, head) for head in range(count))
    sampler = open_sampler(config.model, settings, config.device)
    back = open_sampler(config.back, settings, config.device, several=False) if config.back else None
    with step("opening the people and the metrics"):
        return _open_people_and_metrics(config, protocol, sampler, back, strangers, clip)


def check_control_people(config: EvaluateConfig) -> None:
    """Check the control pictures of an evaluation, before anything heavy is loaded.

    Raises:
        UserError: they are missing or not needed, of another rig than the held-out people, or show one of these.
    """
    model = read_about(config.model)[0]
    needed = "control" in model.inputs or bool(config.back and "control" in read_about(config.back)[0].inputs)
    check_control(config.control, needed, config.model)
    for option, given in (("back", config.back), ("overlap", config.overlap)):
        if given and not model.window:
            raise UserError(f"--{option} is for models that are sampled in windows of views; {config.model} is not")
    check_window(model, config.overlap)
    if not config.control:
        return
    control = Dataset(config.control)
    if config.layout != "spinset":
        raise UserError("--control joins views of datasets of spinset; models that need it are measured on those only")
    people = Dataset(config.data)
    if control.plan.rig != people.plan.rig:
        raise UserError(
            f"--control is {config.control} of rig {control.plan.rig['id']}; the people of {config.data} have rig "
            f"{people.plan.rig['id']}, give control pictures of the same"
        )
    ours, theirs = (set(open_index(one).select().identities + one.plan.seed) for one in (people, control))
    if ours & theirs and people.plan.source == control.plan.source:
        raise UserError(f"--control shows heads of {config.data}; generate strangers with another --seed")


def _open_people_and_metrics(
    config: EvaluateConfig,
    protocol: EvaluationProtocol,
    sampler: ViewSampler,
    back: ViewSampler | None,
    strangers: tuple[ControlPictures, ...],
    clip: PictureEmbedder | None,
) -> Evaluation:
    about = sampler.model.about
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
            "ArcFace .onnx for the input view"
        )
    if config.nearest and faces is None and not config.embeddings:
        raise UserError("--nearest compares embeddings: --embeddings names their table, or give a --recogniser")
    if config.layout == "spinset":
        people = StoredPeople(config.data, config.selection, config.embeddings, about.resolution)
        if config.input_normals == "stored" and "normal" in sampler.model.config.members and not people.has_normals:
            raise UserError(f"{config.data} lacks normals of some views; give --input-normals own")
    else:
        people = open_stage(config.layout, config.data, config.stage, detector, about.resolution, config.seed)
    nearest = None
    if config.nearest:
        nearest = NearestHead(StoredPeople(config.nearest, "", config.embeddings or "arcface", about.resolution))
    _check_dimensions(config, about, people, faces, nearest)
    metrics = open_metrics(about.resolution, config.weights, config.device, faces, clip, config.reid_limit)
    settings = {
        "protocol": protocol.name,
        "model": folder_fingerprint(model_folder(config.model), (".json", ".safetensors")),
        "data": people.lineage,
        "nearest": nearest.people.lineage if nearest else None,
        "resolution": about.resolution,
        "steps": sampler.config.steps,
        "scale": sampler.config.scale,
        "sampler": sampler.config.sampler,
        "precision": resolve_precision(sampler.config.precision, config.device),
        "stages": config.stages,
        "input_normals": config.input_normals if "normal" in sampler.model.config.members else None,
        "seed": config.seed,
        "near": NEAR,
        **_input_settings(config, sampler),
        **metric_settings(config, metrics, beyond_embedded),
    }
    return Evaluation(
        config,
        protocol,
        sampler,
        back,
        strangers,
        _preprocessor(config, about, faces),
        people,
        nearest,
        metrics,
        settings,
    )


def _input_settings(config: EvaluateConfig, sampler: ViewSampler) -> dict[str, Any]:
    """The settings of models that take more than a photo, as far as they are used."""
    given = {
        "eta": sampler.eta,
        "overlap": config.overlap,
        "control": open_index(Dataset(config.control)).fingerprint if config.control else "",
        "back": folder_fingerprint(Path(config.back), (".json", ".safetensors")) if config.back else "",
    }
    return {name: value for name, value in given.items() if value}


def _check_dimensions(
    config: EvaluateConfig,
    about: About,
    people: HeldOutPeople,
    faces: FaceEmbedder | None,
    nearest: NearestHead | None,
) -> None:
    """Raise UserError unless all embeddings that are compared, or given to the model, have equally many numbers."""
    stored = people.embeddings if isinstance(people, StoredPeople) else None
    dimensions = stored.shape[1] if stored is not None else faces.arcface.dimensions if faces else 0
    if about.identity and dimensions != EMBEDDING:
        raise UserError(f"the embeddings have {dimensions} numbers; the model reads {EMBEDDING}")
    others = dimensions if nearest is None else nearest.dimensions
    if others != dimensions:
        raise UserError(
            f"--nearest has embeddings of {others} numbers and the held-out people of {dimensions}; "
            "score both with one recogniser"
        )


def _preprocessor(config: EvaluateConfig, about: About, faces: FaceEmbedder | None) -> PhotoPreprocessor:
    """Preprocesses input views as aligned photos, with the recogniser and the detector of the evaluation."""
    models = load_face_models(FaceConfig(), config.device)
    if faces is not None and about.identity and not config.embeddings:
        models = replace(models, arcface=faces.arcface, detector=faces.detector, min_detection=faces.min_detection)
    return PhotoPreprocessor(PortraitConfig(aligned=True), models, None)


def report(evaluation: Evaluation, out: Path, rows: list[Row], failed: dict[str, str]) -> EvaluationReport:
    """The report of all measured people."""
    config, protocol, about = evaluation.config, evaluation.protocol, evaluation.sampler.model.about
    methods = {MODEL: "this model", COPY: "copy of the input"}
    missing = dict(evaluation.metrics.missing)
    if not any("normal_error" in row["methods"][MODEL]["views"] for row in rows):
        makes_normals = "normal" in evaluation.sampler.model.config.members
        missing["normal_error"] = "the true normals are not known" if makes_normals else "the model makes no normals"
    missing |= dict.fromkeys(EPIPOLAR, f"SIFT finds no spot twice in views within {NEAR:g} degrees")
    missing |= dict.fromkeys(HULL, "the true views have no masks, or nothing is seen twice")
    missing |= dict.fromkeys(BORDER, f"no two calls of the sampler made views within {NEAR:g} degrees")
    missing |= {name: "--cross-control measures it" for name in CROSS_CONTROL if name not in missing}
    if any(NEAREST in row["methods"] for row in rows):
        methods[NEAREST] = "nearest training head"
    facts = {
        "model": config_name(config.model),
        "knows": about.trained_on,
        "samples_seen": about.samples_seen,
        "people": len(rows),
        "of": len(evaluation.people.names),
        "failed": failed,
        "settings": evaluation.settings,
        "versions": {name: version(name) for name in ("spinset", "torch", "diffusers", "torchmetrics")},
        "seconds": round(sum(row["seconds"] for row in rows), 1),
    }
    features = out if evaluation.metrics.inception else None
    return EvaluationReport(
        title=f"{config_name(config.model)} by the protocol of {protocol.name}",
        about=facts,
        protocol=protocol,
        methods=methods,
        rows=rows,
        results={m: results_of([r for r in rows if m in r["methods"]], m, missing, features) for m in methods},
        notes=[*failure_notes(failed), *_notes(evaluation, rows)],
    )


def failure_notes(failed: dict[str, str]) -> list[str]:
    """A sentence for each person that could not be measured."""
    return [f"{name} could not be measured: {reason}." for name, reason in failed.items()]


def config_name(path: str) -> str:
    """The last part of a path that distinguishes models."""
    parts = [part for part in Path(path).parts if part not in ("model", "/")]
    return parts[-1] if parts else path


def _notes(evaluation: Evaluation, rows: list[Row]) -> list[str]:
    model, people, nearest = evaluation.sampler.model, evaluation.people, evaluation.nearest
    counts = sorted({len(row["targets"]) for row in rows})
    wanted = sum(targets.count for targets in evaluation.protocol.targets)
    known = model.about.trained_on or "heads that its folder does not describe"
    notes = [f"The model knows {known}; {len(rows)} people were measured."]
    if counts != [wanted]:
        span = f"{counts[0]} to {counts[-1]}" if len(counts) > 1 else str(counts[0])
        notes.append(f"People have {span} views to make where the protocol has {wanted}.")
    if len(rows) < evaluation.protocol.identities:
        notes.append(f"The protocol has {evaluation.protocol.identities} people.")
    if model.about.identity and (without := sum(not row["identity"] for row in rows)):
        notes.append(f"{without} people have no embedding, and were made without identity.")
    if not max(model.about.conditions):
        notes.append("The model takes no input view: views are made from the identity alone.")
    if "normal" in model.config.members and evaluation.config.input_normals == "stored":
        notes.append("The true normals of the input were given, which a photo does not have.")
    if nearest and isinstance(people, StoredPeople):
        same = people.dataset.plan.source == nearest.people.dataset.plan.source
        if shared := len(people.seeds & nearest.people.seeds) if same else 0:
            notes.append(f"{shared} of the held-out identities are heads of the training set: these are not held out.")
    return notes


def _caption(held: HeldOut, normals: bool, nearest: str) -> str:
    rows = ["the truth (input first)", "made"]
    rows += (["true normals"] if held.normal is not None else []) + ["normals made"] if normals else []
    rows += [f"nearest training head {nearest}"] if nearest else []
    return f"Input {held.views[0]}, targets {', '.join(held.views[1:8])}. Rows: {', '.join(rows)}."

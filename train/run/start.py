"""Before the first step: the model and its first weights, its description, and the state of a resumed run."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from geometry.directions import FOCAL, RADIUS
from manifests.errors import MissingFile, UserError
from manifests.plan import json_differences
from train.data.config import LoaderConfig
from train.data.loader import AnyLoader
from train.data.stream import DatasetFacts
from train.networks.config import FILE, VAE, About, ModelConfig, read_card
from train.networks.model import TEXT_WEIGHTS, Model, fill, load_pretrained, load_vae
from train.run.config import TrainConfig, fixed_settings
from train.run.optimizer import Optimizer, freeze
from train.run.run_folder import DONE, Checkpoints, about_checkpoint
from weights.files import sha256


def open_model(config: TrainConfig, device: torch.device) -> tuple[Model, dict[str, str]]:
    """The model with its first weights, of which `config.trained` are trained, and the hashes of its files.

    The files are those that a run reads at every step and does not train, by the options that name them.

    Raises:
        MissingFile, UserError: files are missing or do not fit; names them, and where they come from.
    """
    if not config.vae and not config.init:
        raise UserError(
            "--vae is needed: the folder of an AutoencoderKL, such as the vae folder of Stable Diffusion 1.5"
        )
    if config.init:
        check_same_kind(Path(config.init), config.model)
    vae = load_vae(config.vae or str(Path(config.init) / VAE), str(device))
    with torch.random.fork_rng():
        # The one place where torch's own stream is used: the first weights of a network.
        torch.manual_seed(config.seed)
        model = config.model.build(vae)
    files = {"vae": vae.sha256}
    for name, encoder in model.encoders.items():
        file = Path(config.text_encoder or f"{config.init}/{name}") / TEXT_WEIGHTS
        if not (config.text_encoder or config.init) or not file.is_file():
            raise MissingFile(
                f"--text-encoder is needed: {file.parent} has no {file.name}; it is Arc2Face's encoder, make it with spinset "
                "convert from the official file"
            )
        fill(encoder, file)
        files[name] = sha256(file)
    if config.init:
        load_pretrained(model, Path(config.init), config.stem, config.seed)
    freeze(model.network, config.trained)
    return model.to(device), files


def check_same_kind(folder: Path, config: ModelConfig) -> None:
    """Raise UserError if weights of a model to start from would load, but were trained on other inputs."""
    if not (folder / FILE).is_file():
        return
    family, values, _ = read_card(folder)
    if family != config.family:
        raise UserError(f"{folder} is a model of the family {family!r}, this run trains {config.family!r}")
    if conflict := config.conflict(config.from_json(values)):
        raise UserError(f"{folder} was trained with {conflict}; give the same")


def check_lens(datasets: Sequence[DatasetFacts]) -> None:
    """Raise UserError if a dataset has another lens than the one that ray maps and sampled views assume."""
    for dataset in datasets:
        rig = dataset.plan.rig
        if (lens := (rig.get("radius", RADIUS), rig.get("focal", FOCAL))) != (RADIUS, FOCAL):
            raise UserError(
                f"{dataset.url} has the rig {rig['id']}, whose cameras stand at {lens[0]:.4g} with a focal length of "
                f"{lens[1]:.4g} image widths; multiview models are trained with {RADIUS:g} and {FOCAL:g}, give another dataset"
            )


def about_run(datasets: Sequence[DatasetFacts], loader: LoaderConfig, resolution: int, scale: float) -> About:
    """The description of the model of a run, before its first sample."""
    return About(
        trained_on=" and ".join(f"{len(one.identities)} {one.plan.source['name']} heads" for one in datasets),
        resolution=resolution,
        conditions=getattr(loader.recipe, "conditions", (0,)),
        identity=bool(loader.embeddings),
        recogniser=datasets[0].recogniser,
        scale=scale,
    )


@dataclass(frozen=True)
class StartState:
    """State in which a run starts."""

    seen: int = 0
    """Samples that were trained on before."""
    checkpoint: Path | None = None
    """The checkpoint that was loaded."""
    history: tuple[str, ...] = ()
    """Events of the run before, as the model's description states them."""
    events: tuple[str, ...] = ()
    """Events that this start adds to the history."""


def resume(
    config: TrainConfig,
    checkpoints: Checkpoints,
    tensors: dict[str, Tensor],
    optimizer: Optimizer,
    loader: AnyLoader,
    files: dict[str, str],
) -> StartState:
    """Load the newest checkpoint of the run or, if it has none, the one it branches from.

    Raises:
        UserError: the checkpoint is of a run with other settings, files or data, which only a branch may have; or it has
            seen more samples than are asked for.
        FileNotFoundError: there is no checkpoint to branch from.
    """
    checkpoint = checkpoints.latest()
    branches = checkpoint is None and config.branch != ""
    if branches:
        checkpoint = Path(config.branch)
        if not (checkpoint / DONE).is_file():
            raise MissingFile(f"--branch is {checkpoint}, which has no {DONE}; give a checkpoint, RUN/checkpoints/N")
    if checkpoint is None:
        return StartState()
    about = about_checkpoint(checkpoint)
    seen, saved, here = about["seen"], about["config"], config.as_json()
    if seen >= config.samples + config.loader.batch:
        raise UserError(f"{checkpoint} has seen {seen} samples, --samples is {config.samples}; give more")
    old, new = fixed_settings(saved), fixed_settings(here)
    # What is not recorded, in checkpoints of older versions, cannot be compared.
    old_files = {**files, **about["files"]}
    events: list[str] = []
    if branches:
        differ = differences({**old, "files": old_files}, {**new, "files": files}, most=None)
        events.append(f"branched from {checkpoint} at {seen} samples{differ and ': '}{differ}")
    else:
        if old != new:
            other = old["precision"] != new["precision"]
            those = f"--precision {old['precision']}" if other else "those"
            raise UserError(
                f"{checkpoint} is of a run with other settings ({differences(old, new)}); give {those}, another --out, or "
                f"begin another run with --branch {checkpoint}"
            )
        if changed := [name for name in old_files if old_files[name] != files.get(name)]:
            option = changed[0].replace("_", "-")
            raise UserError(f"{checkpoint} was trained with other weights of --{option}; give those, or another --out")
        if saved["samples"] != config.samples:
            events.append(f"--samples {config.samples} instead of {saved['samples']} from {seen} samples on")
    try:
        if note := loader.resume(about["loader"]):
            events.append(note)
    except UserError:
        if not branches:
            raise
        events.append("the data differ from those of the branch's origin, their order begins at its start")
    checkpoints.load(checkpoint, tensors)
    optimizer.steps = about["steps"]
    return StartState(seen, checkpoint, (*about["history"], *events), tuple(events))


def differences(there: Any, here: Any, most: int | None = 3) -> str:
    """The settings that differ, at most so many, with the values of both."""
    return ", ".join(f"{at} was {a}, is {b}" for at, a, b in json_differences(there, here)[:most])

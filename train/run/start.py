"""Before the first step: the model and its first weights, the config of the data, and the state of a resumed run."""

import subprocess
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from geometry.directions import FOCAL, RADIUS
from manifests.dataset import Dataset
from manifests.embeddings import recogniser_of
from manifests.errors import MissingFile, UserError
from manifests.order import State
from manifests.plan import json_differences
from train.data.blend import BlendState
from train.data.config import LoaderConfig
from train.data.loader import AnyLoader
from train.networks.config import FILE, VAE, WEIGHTS, About, read_card
from train.networks.model import TEXT_WEIGHTS, Model, fill, misfits, read_weights
from train.networks.vae import load_vae
from train.run.checkpoint import DONE, Checkpoints, about_checkpoint
from train.run.config import TrainConfig, fixed_settings
from train.run.ema import Ema
from train.run.optimizer import Optimizer, freeze
from weights.files import sha256


def loader_config(config: TrainConfig) -> LoaderConfig:
    """The loader's own config, with the autoencoder whose latents are cached."""
    latents = vae_folder(config) if config.latents else ""
    return replace(config.loader, latents=latents, pin_memory=config.device != "cpu")


def vae_folder(config: TrainConfig) -> str:
    return config.vae or str(Path(config.init) / VAE)


def open_model(config: TrainConfig, device: torch.device) -> Model:
    """The model with its first weights, of which `config.trained` are trained.

    Raises:
        MissingFile, UserError: files are missing or do not fit; names them, and where they come from.
    """
    from_convert = "make it with spinset convert from the official file"
    if not config.vae and not config.init:
        raise UserError(
            "--vae is needed: the folder of an AutoencoderKL, such as the vae folder of Stable Diffusion 1.5"
        )
    vae = load_vae(vae_folder(config), str(device))
    with torch.random.fork_rng():
        # The one place where torch's own stream is used: the first weights of a network.
        torch.manual_seed(config.seed)
        model = config.model.build(vae)
    for name, encoder in model.encoders.items():
        file = text_encoder_file(config, name)
        if not (config.text_encoder or config.init) or not file.is_file():
            raise MissingFile(
                f"--text-encoder is needed: {file.parent} has no {file.name}; it is Arc2Face's encoder, {from_convert}"
            )
        fill(encoder, file)
    if config.init:
        check_same_kind(Path(config.init), config)
        generator = torch.Generator().manual_seed(config.seed)
        for name, part in model.parts.items():
            file = Path(config.init) / name / WEIGHTS
            if not file.is_file():
                is_trained = any(
                    fnmatchcase(f"{name}.{weight}", p) for weight in part.state_dict() for p in config.trained
                )
                if is_trained and model.begin(name):
                    continue
                kept = "" if is_trained else f", and --trained is {' '.join(config.trained)}: train that part first, or"
                raise MissingFile(f"--init is {config.init}, which has no {name}/{WEIGHTS}{kept}; {from_convert}")
            try:
                weights = model.adapt(name, read_weights(part, file), config.stem, generator)
            except ValueError as error:
                raise UserError(f"{file} does not fit: {error}") from error
            if wrong := misfits(part, weights):
                raise UserError(f"{file} does not fit: {wrong}")
            part.load_state_dict(weights)
    freeze(model.network, config.trained)
    return model.to(device)


def check_lens(loader: AnyLoader) -> None:
    """Raise UserError if a dataset has another lens than the one that ray maps and sampled views assume."""
    for part in loader.parts:
        rig = Dataset(part.config.data).plan.rig
        if (lens := (rig.get("radius", RADIUS), rig.get("focal", FOCAL))) != (RADIUS, FOCAL):
            raise UserError(
                f"{part.config.data} has the rig {rig['id']}, whose cameras stand at {lens[0]:.4g} with a focal length of "
                f"{lens[1]:.4g} image widths; multiview models are trained with {RADIUS:g} and {FOCAL:g}, give another dataset"
            )


def text_encoder_file(config: TrainConfig, name: str) -> Path:
    return Path(config.text_encoder or f"{config.init}/{name}") / TEXT_WEIGHTS


def check_same_kind(folder: Path, config: TrainConfig) -> None:
    """Raise UserError if weights of a model to start from would load, but were trained on other inputs."""
    if not (folder / FILE).is_file():
        return
    family, values, _ = read_card(folder)
    if family != config.model.family:
        raise UserError(f"{folder} is a model of the family {family!r}, this run trains {config.model.family!r}")
    if conflict := config.model.conflict(config.model.from_json(values)):
        raise UserError(f"{folder} was trained with {conflict}; give the same")


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


def files_of(config: TrainConfig, model: Model) -> dict[str, str]:
    """The hashes of the weights that a run reads at every step and does not train, by the options that name them."""
    return {"vae": model.vae.sha256, **{name: sha256(text_encoder_file(config, name)) for name in model.encoders}}


def differences(there: Any, here: Any, most: int | None = 3) -> str:
    """The settings that differ, at most so many, with the values of both."""
    return ", ".join(f"{at} was {a}, is {b}" for at, a, b in json_differences(there, here)[:most])


def named_tensors(network: nn.Module, optimizer: Optimizer, ema: Ema) -> dict[str, Tensor]:
    """Everything that a checkpoint holds; the tensors themselves, which loading fills."""
    return {
        **{f"network.{name}": weight.data for name, weight in network.named_parameters()},
        **{f"adam.{name}": moment for name, moment in optimizer.moments.items()},
        **{f"ema.{n}.{k}": weight for n, average in ema.averages.items() for k, weight in average.items()},
    }


def resolution_of(config: LoaderConfig) -> int:
    """Width and height in pixels of the views that are trained on."""
    return config.resolution or Dataset(config.data).plan.resolution


def about_run(loader: AnyLoader, resolution: int, scale: float, history: tuple[str, ...]) -> About:
    """The description of the model of a run, before its first sample."""
    first = loader.parts[0].config
    return About(
        knows=" and ".join(
            f"{len(part.batch_dataset.subset.identities)} {Dataset(part.config.data).plan.source['name']} heads"
            for part in loader.parts
        ),
        resolution=resolution,
        conditions=getattr(first.recipe, "conditions", (0,)),
        identity=bool(first.embeddings),
        recogniser=recogniser_of(Dataset(first.data), first.embeddings) if first.embeddings else "",
        scale=scale,
        history=history,
    )


def lineage(
    config: TrainConfig, state: State | BlendState, files: dict[str, str], history: tuple[str, ...]
) -> dict[str, Any]:
    """The entries of checkpoint.json that state how it came about."""
    return {
        "loader": state.to_json(),
        "config": config.as_json(),
        "files": files,
        "history": history,
        "dataset": state.dataset,
        "selection": state.selection,
        "commit": commit(),
        "torch": torch.__version__,
    }


@cache
def commit() -> str:
    """The git commit of this code, with a + if it was changed since; empty if it is no checkout, or git is not here."""
    command = ["git", "describe", "--always", "--dirty=+"]
    try:
        said = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=False)
    except OSError:
        return ""
    return said.stdout.strip()

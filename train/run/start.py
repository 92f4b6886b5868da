"""What happens before the first step: the model and its first weights, the data's config, and where a resumed run goes on."""

import hashlib
import subprocess
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from manifests.dataset import Dataset
from manifests.embeddings import recogniser_of
from manifests.errors import MissingFile, UserError
from manifests.order import State
from train.data.blend import BlendState
from train.data.config import LoaderConfig
from train.data.loader import AnyLoader
from train.diffusion.scene import Nothing
from train.networks.config import FILE, WEIGHTS
from train.networks.identity import Arc2FaceTokens, new_tokens
from train.networks.model import TEXT, UNET, VAE, About, Model, fill, misfits, read_about
from train.networks.unet import MultiviewUNet, grow, new_network
from train.networks.vae import load_vae
from train.run.checkpoint import DONE, Checkpoints, about_checkpoint
from train.run.config import TrainConfig, fixed_settings
from train.run.ema import Ema
from train.run.log import forward_flops
from train.run.optimizer import Optimizer


def loader_config(config: TrainConfig) -> LoaderConfig:
    """The loader's own config, with the autoencoder whose latents are cached."""
    latents = vae_folder(config) if config.latents else ""
    return replace(config.loader, latents=latents, pin_memory=config.device != "cpu")


def vae_folder(config: TrainConfig) -> str:
    return config.vae or str(Path(config.init) / VAE)


def open_model(config: TrainConfig, device: torch.device) -> Model:
    """The model with its first weights.

    Raises:
        FileNotFoundError, ValueError: files are missing or do not fit; names them, and where they come from.
    """
    shape, from_convert = config.model, "make it with spinset convert from the official file"
    if not config.vae and not config.init:
        raise UserError(
            "--vae is needed: the folder of an AutoencoderKL, such as the vae folder of Stable Diffusion 1.5"
        )
    vae = load_vae(vae_folder(config), str(device))
    with torch.random.fork_rng():
        # The one place where torch's own stream is used: the first weights of a network.
        torch.manual_seed(config.seed)
        network, tokens = new_network(shape, vae.channels), new_tokens(shape.identity)
    if isinstance(tokens, Arc2FaceTokens):
        file = text_encoder_file(config)
        if not (config.text_encoder or config.init) or not file.is_file():
            raise MissingFile(
                f"--text-encoder is needed: {file.parent} has no {file.name}; it is Arc2Face's encoder, {from_convert}"
            )
        fill(tokens.text, file)
    if config.init:
        file = Path(config.init) / UNET / WEIGHTS
        if not file.is_file():
            raise MissingFile(f"--init is {config.init}, which has no {UNET}/{WEIGHTS}; {from_convert}")
        check_same_kind(Path(config.init), config)
        first = torch.Generator().manual_seed(config.seed)
        try:
            grown = grow(load_file(file), network, config.stem, first)
        except ValueError as error:
            raise UserError(f"{file} does not fit: {error}") from error
        if wrong := misfits(network.unet, grown):
            raise UserError(f"{file} does not fit: {wrong}")
        network.unet.load_state_dict(grown)
    return Model(shape, network.to(device), tokens.to(device), vae)


def text_encoder_file(config: TrainConfig) -> Path:
    return Path(config.text_encoder or f"{config.init}/{TEXT}") / "model.safetensors"


def check_same_kind(folder: Path, config: TrainConfig) -> None:
    """Raise ValueError if a model to begin with would load, but reads its inputs otherwise."""
    if not (folder / FILE).is_file():
        return
    there, here = read_about(folder)[0], config.model
    if there.rays is None:  # of single pictures: its inputs are a part of these
        return
    for name, old, new in (
        ("rays", there.rays, here.rays),
        ("unet.joint-from", there.unet.joint_from, here.unet.joint_from),
        ("scale-given", there.scale_given, here.scale_given),
        ("identity.kind", there.identity.kind, here.identity.kind),
    ):
        if old != new:
            raise UserError(f"{folder} was trained with model.{name} {old}, this run has {new}; give the same")


def prepared(config: TrainConfig, model: Model) -> MultiviewUNet:
    """The network as its ranks will spread it: checkpointed and compiled first."""
    network = model.network
    if config.checkpoint_activations:
        network.checkpoint_activations()
    if config.compile:
        network.compile_blocks()
    return network


@dataclass(frozen=True)
class Beginning:
    """Where a run starts."""

    seen: int = 0
    """Samples that were trained on before."""
    place: Path | None = None
    """The checkpoint that was loaded."""
    history: tuple[str, ...] = ()
    """What happened to the run before, as the model's card states it."""
    news: tuple[str, ...] = ()
    """The part of the history that begins here."""


def resume(
    config: TrainConfig,
    checkpoints: Checkpoints,
    tensors: dict[str, Tensor],
    optimizer: Optimizer,
    loader: AnyLoader,
    files: dict[str, str],
) -> Beginning:
    """Load the newest checkpoint of the run or, if it has none, the one it branches from.

    Raises:
        UserError: the checkpoint is of a run with other settings, files or data, which only a branch may have; or it has
            seen more samples than are asked for.
        FileNotFoundError: there is no checkpoint to branch from.
    """
    place = checkpoints.latest()
    branches = place is None and config.branch != ""
    if branches:
        place = Path(config.branch)
        if not (place / DONE).is_file():
            raise MissingFile(f"--branch is {place}, which has no {DONE}; give a checkpoint, RUN/checkpoints/N")
    if place is None:
        return Beginning()
    about = about_checkpoint(place)
    seen, there, here = about["seen"], about["config"], config.as_json()
    if seen >= config.samples + config.loader.batch:
        raise UserError(f"{place} has seen {seen} samples, --samples is {config.samples}; give more")
    old, new = fixed_settings(there), fixed_settings(here)
    # What is not recorded, in checkpoints of older versions, cannot be compared.
    old_files = {**files, **about["files"]}
    news: list[str] = []
    if branches:
        differ = differences({**old, "files": old_files}, {**new, "files": files}, most=None)
        news.append(f"branched from {place} at {seen} samples{differ and ': '}{differ}")
    else:
        if old != new:
            other = old["precision"] != new["precision"]
            those = f"--precision {old['precision']}" if other else "those"
            raise UserError(
                f"{place} is of a run with other settings ({differences(old, new)}); give {those}, another --out, or begin "
                f"another run with --branch {place}"
            )
        if changed := [name for name in old_files if old_files[name] != files.get(name)]:
            option = changed[0].replace("_", "-")
            raise UserError(f"{place} was trained with other weights of --{option}; give those, or another --out")
        if there["samples"] != config.samples:
            news.append(f"--samples {config.samples} instead of {there['samples']} from {seen} samples on")
    try:
        if note := loader.resume(about["loader"]):
            news.append(note)
    except UserError:
        if not branches:
            raise
        news.append("the data differ from those of the branch's origin, their order begins at its start")
    checkpoints.load(place, tensors)
    optimizer.steps = about["steps"]
    return Beginning(seen, place, (*about["history"], *news), tuple(news))


def files_of(config: TrainConfig, model: Model) -> dict[str, str]:
    """The hashes of the weights that a run reads at every step and does not train, by the options that name them."""
    found = {"vae": model.vae.sha256}
    if isinstance(model.tokens, Arc2FaceTokens):
        with text_encoder_file(config).open("rb") as file:
            found["text_encoder"] = hashlib.file_digest(file, "sha256").hexdigest()
    return found


def differences(there: Any, here: Any, name: str = "", most: int | None = 3) -> str:
    """The settings that are not the same, at most so many on each level."""
    if isinstance(there, dict) and isinstance(here, dict):
        names = {**there, **here}
        parts = [differences(there.get(k), here.get(k), f"{name}.{k}" if name else k, most) for k in names]
        return ", ".join([part for part in parts if part][:most])
    return "" if there == here else f"{name} was {there!r}, is {here!r}"


def named_tensors(network: MultiviewUNet, optimizer: Optimizer, ema: Ema) -> dict[str, Tensor]:
    """Everything that a checkpoint holds; the tensors themselves, which loading fills."""
    return {
        **{f"network.{name}": weight.data for name, weight in network.named_parameters()},
        **{f"adam.{name}": moment for name, moment in optimizer.moments.items()},
        **{f"ema.{n}.{k}": weight for n, average in ema.averages.items() for k, weight in average.items()},
    }


def scene_flops(model: Model, config: TrainConfig, nothing: Nothing) -> float:
    """Of one scene forward."""
    with torch.device("meta"):
        network = new_network(model.shape, model.vae.channels)
    return forward_flops(network, config.loader.recipe.views, nothing.latents.shape[-1], len(nothing.context))


def resolution_of(config: TrainConfig) -> int:
    """Pixels of a side of the views that are trained on."""
    return config.loader.resolution or Dataset(config.loader.data).plan.resolution


def about_run(config: TrainConfig, loader: AnyLoader, seen: int, history: tuple[str, ...]) -> About:
    """What the model of a run was made from."""
    dataset, table = Dataset(config.loader.data), config.loader.embeddings
    return About(
        knows=" and ".join(
            f"{len(part.worker.subset.identities)} {Dataset(part.config.data).plan.source['name']} heads"
            for part in loader.parts
        ),
        resolution=resolution_of(config),
        conditions=getattr(config.loader.recipe, "conditions", (0,)),
        identity=bool(table),
        recogniser=recogniser_of(dataset, table) if table else "",
        samples_seen=seen,
        scale=config.validation.scale,
        history=history,
    )


def lineage(
    config: TrainConfig, state: State | BlendState, files: dict[str, str], history: tuple[str, ...]
) -> dict[str, Any]:
    """What a checkpoint was made of."""
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

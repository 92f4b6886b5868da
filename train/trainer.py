"""The training run, top to bottom: open everything, go on where the last one stopped, step, log, look, save.

One counter rules: `seen`, the scenes that all ranks together have trained on. The learning rate, the averages, the order
of the data and every draw are functions of it, so a run is the same however often it is stopped, and on any number of ranks.
"""

import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from jaxtyping import Float
from safetensors.torch import load_file
from torch import Tensor

from manifests.dataset import Dataset
from manifests.order import State
from train.batch import Batch
from train.checkpoint import Checkpoints, read_about
from train.config import TrainConfig
from train.ema import Ema
from train.identity import Arc2FaceTokens
from train.loader import open_loader
from train.log import Log, Meter, forward_flops
from train.model import TEXT, UNET, VAE, About, Model, fill
from train.objective import draw, gaussian, losses
from train.optimizer import Optimizer
from train.parallel import Ranks, clip, gathering, joined, spread
from train.run_folder import export, snapshot, write_config
from train.scene import Nothing
from train.stream import Loader, LoaderConfig
from train.unet import MultiviewUNet, grow
from train.vae import WEIGHTS, load_vae
from train.validate import draw_grid, level_losses, open_validation, save_picture, scene_of


def run(config: TrainConfig) -> Path:
    """Train, and return the folder of the model; the same config goes on where it was stopped.

    Raises:
        FileNotFoundError, ValueError: whatever is known to go wrong, before the first step, in one line.
        KeyboardInterrupt: it was asked to stop (SIGTERM, Ctrl-C), and has saved where it is.
    """
    with joined(config.device) as ranks, stop_signals() as stop:
        accumulation, out = config.accumulation(ranks.world), Path(config.out)
        model = open_model(config, ranks.device)
        loader = open_loader(loader_config(config), ranks.rank, ranks.world)
        validation = open_validation(config, model) if config.validation.data else None
        network = spread(prepared(config, model), ranks, config.strategy == "fsdp", config.precision == "bf16")
        optimizer, ema = Optimizer(model.network, config.optim), Ema(model.network, config.ema)
        resolution = loader.config.resolution or Dataset(config.loader.data).plan.resolution
        nothing = model.nothing(resolution)
        checkpoints = Checkpoints(out, ranks, config.keep)
        tensors = named_tensors(model.network, optimizer, ema)
        seen = resume(config, checkpoints, tensors, optimizer, loader)
        if ranks.is_first:
            write_config(config, out)
        batch_size = config.loader.batch
        flops = scene_flops(model, config, nothing)
        meter = Meter(ranks.device, flops, ranks.world)
        autocast = torch.autocast(ranks.device.type, torch.bfloat16, enabled=config.precision == "bf16")

        def save() -> None:
            if seen:
                about = {
                    "seen": seen,
                    "steps": optimizer.steps,
                    "loader": loader.state().to_json(),
                    **lineage(config, loader),
                }
                checkpoints.save(tensors, seen, about)
                snapshot(ema, out, seen, ranks)

        def look() -> None:
            if validation is not None:
                with ema.in_place(), autocast:
                    found = level_losses(model, network, validation, config, nothing)
                    pixels = (
                        draw_grid(model, network, validation, config, nothing) if config.validation.pictures else None
                    )
                log.write(seen, found, f"validation loss {found['validation/loss']:.4f}")
                if ranks.is_first and pixels is not None:
                    save_picture(pixels, out / "samples" / f"{seen:012d}.png")
                    log.picture(seen, "samples", pixels)

        with Log(out, config.samples, seen, ranks.is_first, config.wandb, config.as_json()) as log:
            batches = iter(loader)
            while seen < config.samples:
                waiting = time.perf_counter()
                batch = next(batches).to(ranks.device, non_blocking=True)
                meter.waited += time.perf_counter() - waiting
                for micro in range(accumulation):
                    part = batch.part(slice(micro * config.micro, (micro + 1) * config.micro))
                    places = [seen + ranks.rank + ranks.world * (micro * config.micro + i) for i in range(len(part))]
                    latents = latents_of(model, part, config.seed, places)
                    if meter.steps == 0:
                        check_finite(part, latents)
                    draws = draw(config.objective, config.seed, places, latents)
                    with gathering(network, last=micro == accumulation - 1), autocast:
                        scene = scene_of(model, part, latents, nothing)
                        loss = losses(network, scene, latents, draws, config.objective, nothing).sum() / batch_size
                        # Gradients are averaged over the ranks, while the loss is a sum over them.
                        (loss * ranks.world).backward()
                    meter.loss += loss.detach()
                seen, before = seen + batch_size, seen
                optimizer.step(
                    clip(model.network.parameters(), config.optim.clip), config.optim.rate(seen, config.samples)
                )
                ema.update(seen, batch_size)
                meter.steps, meter.samples = meter.steps + 1, meter.samples + batch_size
                is_last = seen >= config.samples
                if meter.steps == config.log_every or is_last:
                    write_numbers(log, meter, optimizer, config, seen, ranks)
                if passed(before, seen, config.validation.every) or is_last:
                    look()
                stopping = ranks.any(stop())
                if passed(before, seen, config.save_every) or is_last or stopping:
                    save()
                if stopping:
                    checkpoints.finish()
                    raise KeyboardInterrupt
            checkpoints.finish()
        about = About(knows(config, loader), resolution, conditions(config), bool(config.loader.embeddings), seen)
        export(replace(model, about=about), ema, out, ranks)
        return out / "model"


def loader_config(config: TrainConfig) -> LoaderConfig:
    """The loader's own config, with the autoencoder whose latents are cached."""
    latents = vae_folder(config) if config.latents else ""
    return replace(config.loader, latents=latents, pin_memory=config.device == "cuda")


def vae_folder(config: TrainConfig) -> str:
    return config.vae or str(Path(config.init) / VAE)


def open_model(config: TrainConfig, device: torch.device) -> Model:
    """The model with its first weights.

    Raises:
        FileNotFoundError, ValueError: files are missing or do not fit; names them, and where they come from.
    """
    shape, from_convert = config.model, "make it with spinset convert from the official file"
    if not config.vae and not config.init:
        raise ValueError(
            "--vae is needed: the folder of an AutoencoderKL, such as the vae folder of Stable Diffusion 1.5"
        )
    vae = load_vae(vae_folder(config), str(device))
    with torch.random.fork_rng():
        # The one place where torch's own stream is used: the first weights of a network.
        torch.manual_seed(config.seed)
        network, tokens = shape.network(vae.channels), shape.identity.build()
    if isinstance(tokens, Arc2FaceTokens):
        folder = Path(config.text_encoder or f"{config.init}/{TEXT}")
        if not (config.text_encoder or config.init) or not (folder / "model.safetensors").is_file():
            raise FileNotFoundError(
                f"--text-encoder is needed: {folder} has no model.safetensors; it is Arc2Face's encoder, {from_convert}"
            )
        fill(tokens.text, folder / "model.safetensors")
    if config.init:
        file = Path(config.init) / UNET / WEIGHTS
        if not file.is_file():
            raise FileNotFoundError(f"--init is {config.init}, which has no {UNET}/{WEIGHTS}; {from_convert}")
        first = torch.Generator().manual_seed(config.seed)
        try:
            network.unet.load_state_dict(grow(load_file(file), network.unet, config.stem, first))
        except (RuntimeError, KeyError) as error:
            raise ValueError(f"{file} is the UNet of another shape ({str(error).splitlines()[-1].strip()})") from error
    return Model(shape, network.to(device), tokens.to(device), vae)


def prepared(config: TrainConfig, model: Model) -> MultiviewUNet:
    """The network as its ranks will spread it: checkpointed and compiled first."""
    network = model.network
    if config.checkpoint_activations:
        network.checkpoint_activations()
    if config.compile:
        network.compile_blocks()
    return network


def resume(
    config: TrainConfig, checkpoints: Checkpoints, tensors: dict[str, Tensor], optimizer: Optimizer, loader: Loader
) -> int:
    """Go on from the newest checkpoint; returns the samples seen.

    Raises:
        ValueError: it is of another run, or of other data.
    """
    place = checkpoints.latest()
    if place is None:
        return 0
    about = read_about(place)
    if about["fingerprint"] != config.fingerprint:
        differ = differences(about["config"], config.as_json())
        raise ValueError(f"{place} is of a run with other settings ({differ}); give those, or another --out")
    loader.resume(State.from_json(about["loader"]))
    checkpoints.load(place, tensors)
    optimizer.steps = about["steps"]
    return about["seen"]


def differences(there: Any, here: Any, name: str = "") -> str:
    """The first few settings that are not the same."""
    if isinstance(there, dict) and isinstance(here, dict):
        parts = [differences(there.get(k), here.get(k), f"{name}.{k}" if name else k) for k in {**there, **here}]
        return ", ".join([part for part in parts if part][:3])
    return "" if there == here else f"{name} was {there!r}, is {here!r}"


def named_tensors(network: MultiviewUNet, optimizer: Optimizer, ema: Ema) -> dict[str, Tensor]:
    """Everything that a checkpoint holds; the tensors themselves, which loading fills."""
    return {
        **{f"network.{name}": weight.data for name, weight in network.named_parameters()},
        **{f"adam.{name}": moment for name, moment in optimizer.moments.items()},
        **{f"ema.{n}.{k}": weight for n, average in ema.averages.items() for k, weight in average.items()},
    }


def latents_of(model: Model, batch: Batch, seed: int, places: list[int]) -> Float[Tensor, "b v c h w"]:
    """The latents of a batch: cached ones as they come, or of its pictures, drawn from the posterior."""
    assert isinstance(batch.rgb, Tensor)
    if batch.rgb.shape[2] != 3:
        parts = [part for part in (batch.rgb, batch.normal) if part is not None]
        return torch.cat(parts[: 1 + model.shape.normals], 2).float()
    b, v, _, height, width = batch.rgb.shape
    factor, channels = model.vae.factor, model.vae.channels * (1 + model.shape.normals)
    like = batch.rgb.new_empty(b, v, channels, height // factor, width // factor)
    return model.encode(batch.rgb, batch.normal, gaussian(seed, "posterior", places, like))


def check_finite(batch: Batch, latents: Tensor) -> None:
    """Raise ValueError that names the view if latents hold NaN; looked at once per line of the log, for it waits."""
    bad = ~torch.isfinite(latents).flatten(2).all(2)
    if bad.any():
        scene, view = (int(i) for i in bad.nonzero()[0])
        raise ValueError(
            f"identity {int(batch.identity[scene])}, view {int(batch.view[scene, view])} holds numbers that are not finite; "
            "check the data with spinset verify --deep, and make its latents anew with spinset latents"
        )


def write_numbers(log: Log, meter: Meter, optimizer: Optimizer, config: TrainConfig, seen: int, ranks: Ranks) -> None:
    """One line of the log; raises ValueError if no step has been taken for too long."""
    # The loss of the whole batch is the sum of what the ranks have of it.
    loss = float(ranks.mean(meter.loss)) * ranks.world / meter.steps
    skipped, in_row = int(optimizer.skipped), int(optimizer.skipped_in_row)
    numbers, note = meter.numbers(seen, config.samples)
    rate = config.optim.rate(seen, config.samples)
    missed = f", {skipped} steps skipped" if skipped else ""
    log.write(seen, {"loss": loss, "lr": rate, "skipped": skipped, **numbers}, f"loss {loss:.4f}, {note}{missed}")
    if in_row >= config.optim.max_skipped:
        raise ValueError(
            f"the gradients of {in_row} steps in a row were not finite, at {seen} samples; lower --optim.lr, or try "
            "--precision fp32"
        )
    meter.reset()


def passed(before: int, now: int, every: int) -> bool:
    """Whether a multiple lies between two counts."""
    return before // every < now // every


def scene_flops(model: Model, config: TrainConfig, nothing: Nothing) -> float:
    """Of one scene forward."""
    with torch.device("meta"):
        network = model.shape.network(model.vae.channels)
    return forward_flops(network, config.loader.recipe.views, nothing.latents.shape[-1], len(nothing.context))


def knows(config: TrainConfig, loader: Loader) -> str:
    """What heads a model has seen."""
    source = Dataset(config.loader.data).plan.source["name"]
    return f"{len(loader.worker.subset.identities)} {source} heads"


def conditions(config: TrainConfig) -> tuple[int, ...]:
    return getattr(config.loader.recipe, "conditions", (0,))


def lineage(config: TrainConfig, loader: Loader) -> dict[str, Any]:
    """What a checkpoint was made of."""
    state = loader.state()
    return {
        "fingerprint": config.fingerprint,
        "config": config.as_json(),
        "dataset": state.dataset,
        "selection": state.selection,
        "commit": commit(),
        "torch": torch.__version__,
    }


def commit() -> str:
    """The git commit of this code, with a + if it was changed since; empty if it is no checkout."""
    here = Path(__file__).parent
    said = subprocess.run(
        ["git", "describe", "--always", "--dirty=+"], cwd=here, capture_output=True, text=True, check=False
    )
    return said.stdout.strip()


@contextmanager
def stop_signals() -> Iterator[Callable[[], bool]]:
    """Says whether SIGTERM or Ctrl-C came; the run saves at its next step, and a second signal ends it at once."""
    came = False

    def note(number: int, frame: FrameType | None) -> None:
        nonlocal came
        if came:
            raise KeyboardInterrupt
        came = True

    numbers = (signal.SIGTERM, signal.SIGINT)
    try:
        before = [signal.signal(number, note) for number in numbers]
    except ValueError:  # not in the main thread, where Ray runs it: signals are its business there
        yield lambda: False
        return
    try:
        yield lambda: came
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)

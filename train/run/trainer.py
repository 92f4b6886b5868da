"""The training run, top to bottom: open everything, resume, step, log, save, validate.

`samples_seen` counts the scenes that all ranks together have trained on. The learning rate, the averages, the order of the data
and every draw are functions of it, so a run is the same however often it is stopped, and on any number of ranks.
"""

import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from types import FrameType

import torch

from geometry.directions import FOCAL, RADIUS
from manifests.errors import MissingFile, UserError
from manifests.order import State
from train.data.config import LoaderConfig
from train.data.loader import BlendState, open_loader
from train.data.stream import DatasetFacts, lost_workers
from train.diffusion.process import draw, losses
from train.networks.config import FILE, VAE, About, ModelConfig, read_card
from train.networks.model import TEXT_WEIGHTS, Model, autocast, fill, load_pretrained, load_vae, meta_network
from train.networks.unet import checkpoint_activations, compile_blocks
from train.run.config import TrainConfig, check_init
from train.run.log import Log, Meter, forward_flops, open_console, write_numbers
from train.run.optimizer import Ema, Optimizer, clip, freeze, learning_rate
from train.run.parallel import accumulating, common_precision, distribute, micro_batch, process_group
from train.run.run_folder import (
    BEST,
    MODEL,
    Checkpoints,
    best_loss,
    export,
    lineage,
    locked,
    named_tensors,
    resume,
    snapshot,
    write_config,
)
from train.run.validate import draw_grid, level_losses, open_validation, save_picture
from weights.files import sha256


def run(config: TrainConfig) -> Path:
    """Train, and return the folder of the model; the same config resumes a run that was stopped.

    Raises:
        FileNotFoundError, ValueError: the run cannot work; raised before the first step, with a message of one line.
        OSError: a checkpoint could not be written, or a process of the loader was killed.
        KeyboardInterrupt: the run was asked to stop (SIGTERM, Ctrl-C), and has saved its state.
    """
    with ExitStack() as stack:
        ranks = stack.enter_context(process_group(config.device))
        precision, said = common_precision(config.precision, ranks)
        config, out = replace(config, precision=precision), Path(config.out)
        share, micro = config.loader.batch // ranks.world, micro_batch(config.loader.batch, config.micro, ranks.world)
        console = open_console(ranks.is_first)
        steps = -(-config.samples // config.loader.batch)
        work = f"{steps} steps of {config.loader.batch} samples, {micro} at once on each rank"
        console.print(f"train: {ranks.described}, {said}, {work}; loading", soft_wrap=True)

        # Everything that can be refused is opened before the first step.
        model, files = open_model(config, ranks.device)
        autocasting, meta = autocast(precision, ranks.device), meta_network(model)
        process = config.model.process(config.objective.noise)
        latents = model.vae.folder if config.latents else ""
        reading = replace(config.loader, latents=latents, pin_memory=config.device != "cpu")
        loader = open_loader(reading, ranks.rank, ranks.world)
        datasets = [part.facts for part in loader.parts]
        resolution = config.loader.resolution or datasets[0].plan.resolution
        if config.model.multiview:
            check_lens(datasets)
        about = about_run(datasets, config.loader, resolution, config.validation.scale)
        validation = None
        if config.validation.data:
            validation = open_validation(config.validation, config.loader, model, datasets, resolution)
        if config.checkpoint_activations:
            checkpoint_activations(model.network)
        if config.compile:
            compile_blocks(model.network)
        network = distribute(model.network, ranks, config.strategy == "fsdp", precision == "bf16")
        optimizer, ema = Optimizer(model.network, config.optim), Ema(model.network, config.ema)
        stack.enter_context(locked(out, ranks))
        checkpoints = Checkpoints(out, ranks, config.keep)
        tensors = named_tensors(model.network, optimizer, ema)
        start = resume(config, checkpoints, tensors, optimizer, loader, files)
        samples_seen = saved = start.seen
        if ranks.is_first:
            write_config(config, out)
        meter = Meter(ranks.device, ranks.world)
        log = stack.enter_context(Log(out, config.samples, samples_seen, console, config.wandb, config.as_json()))
        if start.checkpoint is not None:
            line = f"train: {start.checkpoint} loaded, at {samples_seen} of {config.samples} samples"
            console.print(line, soft_wrap=True)
        for text in start.events:
            log.note(samples_seen, text)
        about = replace(about, history=start.history)

        def save(state: State | BlendState) -> None:
            nonlocal saved
            facts = {"seen": samples_seen, "steps": optimizer.steps, **lineage(config, state, files, start.history)}
            checkpoints.save(tensors, samples_seen, facts)
            saved = samples_seen

        def described(loss: float | None = None) -> Model:
            return replace(model, about=replace(about, samples_seen=samples_seen, validation_loss=loss))

        def validate() -> None:
            if validation is None:
                return
            with ema.in_place(), autocasting:
                found = level_losses(model, network, process, validation, config.micro)
                drawn = [draw_grid(model, network, validation, config.validation)] if config.validation.pictures else []
            loss = found["validation/loss"]
            is_best = ranks.any(ranks.is_first and loss < best_loss(out))
            if is_best:
                export(described(loss), ema, out / BEST, ranks)
            log.write(samples_seen, found, f"validation loss {loss:.4f}{', the lowest so far' if is_best else ''}")
            for pixels in drawn if ranks.is_first else []:
                save_picture(pixels, out / "samples" / f"{samples_seen:012d}.png")
                log.picture(samples_seen, "samples", pixels)

        with stop_signals(ranks.is_first) as stop, lost_workers():
            batches = iter(loader)
            while samples_seen < config.samples:
                # The state of the data before this step: a run that is stopped within it repeats the whole step.
                state, waiting = loader.state(), time.perf_counter()
                batch = next(batches).to(ranks.device, non_blocking=True)
                meter.data_wait += time.perf_counter() - waiting

                for begin in range(0, share, micro):
                    if ranks.any(stop()):
                        if saved < samples_seen:
                            save(state)
                        checkpoints.finish()
                        at = f"at {samples_seen} of {config.samples} samples"
                        log.note(samples_seen, f"stopped; saved {at}, the same command goes on")
                        raise KeyboardInterrupt
                    part = batch.part(slice(begin, begin + micro))
                    places = [samples_seen + ranks.rank + ranks.world * (begin + i) for i in range(len(part))]
                    z = model.latents_of(part, config.latents, config.seed, places, check=meter.steps == 0)
                    with accumulating(network, last=begin + micro == share), autocasting:
                        conditions = model.conditions_of(part, z)
                        if not meter.flops:
                            meter.flops = forward_flops(meta, conditions, z)
                        draws = draw(config.objective, config.seed, places, z, len(conditions.droppable))
                        sigma = process.sample_sigma(draws.level, conditions.is_target.sum(1).float())
                        loss = losses(network, process, conditions.dropped(draws.drop), z, draws.noise, sigma)
                        # Gradients are averaged over the ranks, while the loss is a sum over them.
                        (loss.sum() * ranks.world / config.loader.batch).backward()
                    meter.add(loss.detach(), len(part) * ranks.world)
                    log.heartbeat(samples_seen, meter)

                before, samples_seen = samples_seen, samples_seen + config.loader.batch
                norm = clip(optimizer.weights.values(), config.optim.clip)
                skipped = optimizer.step(norm, learning_rate(config.optim, samples_seen, config.samples))
                ema.update(samples_seen, config.loader.batch, skipped)
                meter.steps += 1
                is_last = samples_seen >= config.samples
                if meter.steps == config.log_every or is_last:
                    write_numbers(log, meter, optimizer, norm, samples_seen, config.samples, ranks)
                with meter.paused():
                    checkpoints.settle()
                    if passed(before, samples_seen, config.save_every) or is_last:
                        save(loader.state())
                    if passed(before, samples_seen, config.snapshot_every) or is_last:
                        snapshot(ema, out, samples_seen, ranks)
                    if passed(before, samples_seen, config.validation.every) or is_last:
                        validate()
            checkpoints.finish()
        export(described(), ema, out / MODEL, ranks)
        return out / MODEL


def passed(before: int, now: int, every: int) -> bool:
    """Whether a multiple lies between two counts."""
    return before // every < now // every


@contextmanager
def stop_signals(visible: bool) -> Iterator[Callable[[], bool]]:
    """Tell whether SIGTERM or Ctrl-C came; a second Ctrl-C raises KeyboardInterrupt at once.

    With `visible` the first signal is acknowledged on stderr, because the current micro-batch may take seconds.
    """
    came = False

    def note(number: int, frame: FrameType | None) -> None:
        nonlocal came
        # torchrun passes on a SIGTERM that workers may have received from the scheduler already, so a second one is ignored.
        if came and number == signal.SIGINT:
            raise KeyboardInterrupt
        if visible and not came:
            # Not by print, because the signal may have interrupted a print.
            os.write(2, b"\ntrain: stopping after this micro-batch; Ctrl-C again stops at once, without saving\n")
        came = True

    numbers = (signal.SIGTERM, signal.SIGINT)
    try:
        before = [signal.signal(number, note) for number in numbers]
    except ValueError:  # under Ray this is not the main thread, and Ray handles signals
        yield lambda: False
        return
    try:
        yield lambda: came
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


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
        check_init(config)
    vae = load_vae(config.vae or str(Path(config.init) / VAE), str(device))
    with torch.random.fork_rng():
        # The one place where torch's own stream is used: the first weights of a network.
        torch.manual_seed(config.seed)
        model = config.model.build(vae)
    freeze(model.network, config.trained)
    files = {"vae": vae.sha256}
    for name, encoder in model.encoders.items():
        file = Path(config.text_encoder or f"{config.init}/{name}") / TEXT_WEIGHTS
        if not (config.text_encoder or config.init) or not file.is_file():
            raise MissingFile(
                f"--text-encoder is needed: {file.parent} has no {file.name}; make it with spinset convert from "
                "the official file that the model's text encoder is in"
            )
        fill(encoder, file)
        files[name] = sha256(file)
    if config.init:
        load_pretrained(model, Path(config.init), config.stem, config.seed)
    return model.to(device), files


def check_same_kind(folder: Path, config: ModelConfig) -> None:
    """Raise UserError if weights of a model to start from would load, but were trained on other inputs."""
    if not (folder / FILE).is_file():
        return
    family, values, _ = read_card(folder)
    if family in config.bases:
        return
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
        turns=getattr(loader.recipe, "turns", ()),
        identity=bool(loader.embeddings),
        recogniser=datasets[0].recogniser,
        scale=scale,
    )

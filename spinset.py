"""The command line: one table of subcommands, and what every error and interrupt looks like to a person."""

import sys
from pathlib import Path

if __name__ == "__main__":
    # `python -m` and torchrun put the caller's folder first, where a train.py or filters.py of theirs would be imported instead
    # of the packages of the same name here.
    caller, here = str(Path.cwd()), Path(__file__).resolve().parent
    sys.path[:] = [entry for entry in sys.path if (entry or caller) != caller or Path(caller) == here]

import io
import re
import shlex
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stderr
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from functools import partial
from importlib.metadata import version
from types import MappingProxyType
from typing import Annotated, Any, Protocol, TypeVar

import tyro
from tyro import MISSING_NONPROP
from tyro.conf import AvoidSubcommands, Positional, arg

from jobs.failures import BAD_INPUT, DONE, FAULTS, report
from manifests.errors import MissingFile, UserError, check_ranges
from weights.files import existing

EXIT_CODES = """\
exit codes: 0 done, 1 something failed (one line says what), 2 an argument or a file cannot be used,
3 data is damaged or some of the work failed, 130 interrupted, 141 the reader of the output closed the pipe.
SPINSET_TRACEBACK=1 prints the traceback of an error instead of writing it to a file."""

T = TypeVar("T")


class Parse(Protocol):
    """Builds a config from the arguments of the command line; with presets, from one that is named first."""

    def __call__(
        self,
        what: type[T],
        presets: Mapping[str, T] | None = None,
        summaries: Mapping[str, str] = ...,
        preset: str = "",
    ) -> T: ...


@dataclass(frozen=True)
class DemoConfig:
    """Make 12 procedural heads, verify, score and show them, train a model for a few steps, and make views of another head."""

    out: str = "out/demo"
    """Folder of the dataset and its report."""


@dataclass(frozen=True)
class StatusConfig:
    """Print the progress of a dataset, its rates, the time left, and its failed identities."""

    out: Positional[str]
    """Folder or address of the dataset."""
    json: bool = False
    """Print a JSON document with all figures instead, as docs/status.schema.json describes it."""
    files: str = ""
    """Folder in which status.json, status.html and status.prom (metrics for Prometheus) are written, too."""
    watch: float = 0.0
    """Seconds after which all of this is done again, until the dataset is complete; 0 does it once."""

    def __post_init__(self) -> None:
        check_ranges(self, watch=(0, 86_400))


@dataclass(frozen=True)
class VerifyConfig:
    """Check that a dataset is complete and undamaged; the exit code is 3 if it is not."""

    out: Positional[str]
    """Folder or address of the dataset."""
    deep: bool = False
    """Check every hash and decode every picture, too."""


@dataclass(frozen=True)
class AverageConfig:
    """Rebuild the average of a run's weights over another length, from its snapshots."""

    run: Positional[str]
    """Folder of the training run."""
    dest: Positional[str]
    """Folder of the model that is written."""
    sigma_rel: float = 0.08
    """Length of the average, as its standard deviation relative to the samples of the run, up to 0.28."""

    def __post_init__(self) -> None:
        check_ranges(self, sigma_rel=(0.001, 0.28))


@dataclass(frozen=True)
class ConvertConfig:
    """Read an official checkpoint without executing it, and write it as safetensors and JSON; or the reverse."""

    file: Positional[str]
    """Path of a .pkl of PanoHead or SphereHead, or of a checkpoint of SpinMeRound, DiffPortrait, Arc2Face or Stable Diffusion
    1.5; or the folder of a DiffPortrait model, which is written under the released names."""
    dest: Positional[str]
    """Folder that is written; for the folder of a model, the .safetensors file."""
    like: str = ""
    """Folder with the configs of a UNet, autoencoder or text encoder, for sizes that differ from the released ones."""


def _demo(parse: Parse) -> int:
    config = parse(DemoConfig)
    from demo import demo

    return demo(config.out)


def _plan(parse: Parse) -> int:
    from datagen.config import GenerateConfig
    from filters.config import RejectConfig

    @dataclass(frozen=True)
    class Plan:
        """Estimate the size of the dataset of `spinset generate` with the same options, and its time; nothing is written."""

        config: Annotated[GenerateConfig, arg(name="")]
        probe: int = 4
        """Number of heads that are made for the estimate and thrown away."""
        price: float = 0.0
        """Price of a GPU for an hour, in any currency, from which the cost is computed."""
        reject: RejectConfig = field(default_factory=RejectConfig)

        def __post_init__(self) -> None:
            check_ranges(self, probe=(2, 10_000), price=(0, 1e6))

    options = parse(Plan)
    from datagen.estimate import estimate
    from filters.early import open_rejection

    print(estimate(options.config, options.probe, open_rejection(options.reject), options.price))
    return DONE


def _generate(parse: Parse) -> int:
    from datagen.config import GenerateConfig
    from filters.config import RejectConfig

    @dataclass(frozen=True)
    class Generate:
        """Make a dataset; the same command on the same folder resumes it."""

        config: Annotated[GenerateConfig, arg(name="")]
        reject: RejectConfig = field(default_factory=RejectConfig)

    options = parse(Generate)
    from datagen.generate import generate
    from filters.early import open_rejection
    from manifests.status import summarise

    config = options.config
    status = summarise(generate(config, open_rejection(options.reject)))
    print(f"{status}\nnext: spinset verify {shlex.quote(config.out)} --deep")
    complete = status.shards_done == status.shards
    return DONE if complete and status.failed <= config.max_failed else FAULTS


def _status(parse: Parse) -> int:
    config = parse(StatusConfig)
    from datagen.status_files import document, write_status
    from manifests.dataset import Dataset
    from manifests.status import summarise

    dataset = Dataset(config.out)
    while True:
        status = summarise(dataset)
        if config.files:
            write_status(status, config.files)
        print(document(status) if config.json else f"{status}\n", end="", flush=True)
        if status.damaged:
            print(f"next: spinset repair {shlex.quote(config.out)}", file=sys.stderr)
        if not config.watch or status.is_complete:
            return FAULTS if status.damaged else DONE
        time.sleep(config.watch)
        dataset = Dataset(config.out)  # it may have grown


def _verify(parse: Parse) -> int:
    config = parse(VerifyConfig)
    from jobs.devices import usable_cores
    from jobs.progress import step
    from manifests.dataset import Dataset
    from manifests.verify import NOT_MADE, verify

    dataset = Dataset(config.out)
    faults = lacking = 0
    with step("verify", dataset.plan.shards) as advance:
        for fault in verify(dataset, config.deep, advance, usable_cores()):
            print(fault)
            faults += 1
            lacking += fault.problem == NOT_MADE
    checked = "every byte, hash and picture" if config.deep else "every file and size"
    print(f"{faults} faults" if faults else f"{dataset.plan.shards} shards are whole ({checked})")
    if faults > lacking:
        print(f"next: spinset repair {shlex.quote(config.out)}")
    elif lacking:
        print("next: the spinset generate command that began it")
    return FAULTS if faults else DONE


def _repair(parse: Parse) -> int:
    from datagen.config import RemakeConfig
    from filters.config import RejectConfig

    @dataclass(frozen=True)
    class Repair:
        """Make damaged shards again from the dataset's plan, and prove that their bytes equal what was lost."""

        config: Annotated[RemakeConfig, arg(name="")]
        reject: RejectConfig = field(default_factory=RejectConfig)

    options = parse(Repair)
    config = options.config
    _require_dataset(config.out)
    from datagen.repair import repair
    from filters.early import open_rejection

    found = repair(config, open_rejection(options.reject))
    print("\n".join(map(str, found)) if found else f"{config.out}: no shard is damaged")
    return DONE if all(one.is_whole for one in found) else FAULTS


def _retry(parse: Parse) -> int:
    from datagen.config import RemakeConfig
    from filters.config import RejectConfig

    @dataclass(frozen=True)
    class Retry:
        """Make the failed heads of a dataset again, and leave all others as they are."""

        config: Annotated[RemakeConfig, arg(name="")]
        reject: RejectConfig = field(default_factory=RejectConfig)

    options = parse(Retry)
    config = options.config
    _require_dataset(config.out)
    from datagen.retry import retry
    from filters.early import open_rejection
    from manifests.schema import FAILED

    found = retry(config, open_rejection(options.reject))
    print("\n".join(map(str, found)) if found else f"{config.out}: no head of a finished shard has failed")
    return FAULTS if any(one.outcome == FAILED for one in found) else DONE


def _invert(parse: Parse) -> int:
    from datagen.inversion.config import InvertConfig
    from infer.config import PortraitConfig

    @dataclass(frozen=True)
    class Invert:
        """Find a PanoHead or SphereHead identity that shows the person of some pictures; the same command resumes it."""

        config: Annotated[InvertConfig, arg(name="")]
        portrait: Annotated[PortraitConfig, arg(name="")] = field(default_factory=PortraitConfig)
        lpips: str = ""
        """Folder of the VGG-16 of LPIPS, whose distance is a loss, too; without it only colours and outlines are."""

    options = parse(Invert)
    config, portrait = options.config, options.portrait
    if not Path(config.weights).exists():
        raise MissingFile(f"--weights: there is no file {config.weights}; give an official .pkl or a converted folder")
    _require_photos(config.photos, portrait)
    if config.planes:
        from datagen.inversion.invert import from_planes

        family = from_planes(config)
    else:
        from infer.inversion import invert_photos

        found = invert_photos(config, portrait, options.lpips)
        family = found.family
        print(found)
    weights = shlex.quote(config.out)
    print(f"next: spinset generate HEAD --source {family} --weights {weights} --identities 1")
    return DONE


def _score(parse: Parse) -> int:
    from filters.config import ScoreConfig

    config = parse(ScoreConfig)
    _require_dataset(config.out)
    _require_files(
        arcface__model=config.arcface.model,
        arcface__detector=config.arcface.detector,
        clip__checkpoint=config.clip.checkpoint,
    )
    from filters.score import score
    from weights.embedded import is_embedded

    if lacking := score(config):
        print("\n".join([f"{config.out}: not all is scored; the same command continues", *lacking]))
        return FAULTS
    # The limits of presets belong to the embedded CLIP.
    policy = "spinmeround" if is_embedded(config.clip.model) else "POLICY.json"
    print(f"{config.out}: scored\nnext: spinset select {shlex.quote(config.out)} --policy {policy}")
    return DONE


def _select(parse: Parse) -> int:
    from filters.config import SelectConfig

    config = parse(SelectConfig)
    from filters.select import diff, select
    from manifests.dataset import Dataset

    print("\n".join(diff(Dataset(config.out), *config.diff)) if config.diff else select(config))
    return DONE


def _decide(parse: Parse) -> int:
    from filters.config import DecideConfig

    config = parse(DecideConfig)
    _require_dataset(config.out)
    from filters.decide import decide

    print("\n".join(decide(config)))
    return DONE


def _review(parse: Parse) -> int:
    from filters.config import ReviewConfig

    config = parse(ReviewConfig)
    _require_dataset(config.out)
    from filters.review.app import review

    review(config)
    return DONE


def _convert(parse: Parse) -> int:
    config = parse(ConvertConfig)
    if Path(config.file).is_dir():
        return _convert_back(config)
    if not Path(config.file).is_file():
        raise MissingFile(f"there is no file {config.file}; give the path of an official checkpoint")
    if not config.file.endswith(".pkl"):
        return _convert_weights(config)
    from datagen.sources.panohead.checkpoint import LICENCE, convert

    checkpoint = convert(config.file, config.dest)
    print(f"{config.dest}: {checkpoint.official['family']}, source sha256 {checkpoint.sha256}\n{LICENCE}")
    return DONE


def _convert_back(config: ConvertConfig) -> int:
    from train.families import read_about

    model, _ = read_about(config.file)
    from train.weights.diffportrait import write_released

    print(f"{config.dest}: {write_released(model, Path(config.file), Path(config.dest))} tensors")
    return DONE


def _convert_weights(config: ConvertConfig) -> int:
    from train.weights.convert import convert

    found = convert(config.file, config.dest, config.like or None)
    for part, tensors in found.parts.items():
        print(f"{config.dest}/{part}: {tensors} tensors")
    for what, tensors in found.ignored.items():
        print(f"left out: {tensors} tensors ({what})")
    return DONE


def _pack(parse: Parse) -> int:
    from exports.config import PackConfig

    config = parse(PackConfig)
    from exports.pack import pack
    from manifests.status import summarise

    print(f"{summarise(pack(config))}\nnext: spinset verify {shlex.quote(config.dest)} --deep")
    return DONE


def _export(parse: Parse) -> int:
    from exports.config import ExportConfig

    config = parse(ExportConfig)
    from exports.export import export

    print(export(config))
    return DONE


def _latents(parse: Parse) -> int:
    from train.data.config import LatentsConfig

    config = parse(LatentsConfig)
    from train.networks.config import require_vae

    dataset = _require_dataset(config.out)
    require_vae(config.vae)
    from train.data.latents import make_latents

    if lacking := make_latents(config):
        print("\n".join([f"{config.out}: not all is encoded; the same command continues", *lacking]))
        return FAULTS
    print(f"{config.out}: latents of {len(dataset.committed())} shards by {config.vae}")
    return DONE


def _train(parse: Parse) -> int:
    from train.families.presets import PRESETS, SUMMARIES, Train

    options = parse(Train, PRESETS, SUMMARIES)
    stages = [options]
    if options.stages:
        stages = []
        for stage in options.stages:
            one = parse(Train, PRESETS, SUMMARIES, preset=stage).config
            out = f"{one.out}/{stage.rpartition('-')[2]}"
            init = f"{stages[-1].config.out}/model" if stages else one.init
            stages.append(replace(options, config=replace(one, out=out, init=init)))
    _check_training(stages[0].config)
    *_, model = map(_train_one, stages)
    if options.config.model.multiview or options.stages:
        control = " --control DATASET" * ("control" in stages[-1].config.model.inputs)
        print(f"next: spinset views {shlex.quote(str(model))} PHOTO --out DIR{control}")
    return DONE


def _check_training(config: Any) -> None:
    """Check the files of a training run, before what takes seconds to import."""
    if not config.loader.data:
        raise UserError("--data is needed: the folder or address of the dataset to train on")
    from train.networks.config import require_vae
    from train.run.config import check_init

    for data in (config.loader.data, config.loader.control_data, config.validation.data):
        if data:
            _require_dataset(data)
    if config.vae:
        require_vae(config.vae)
    check_init(config)


def _train_one(options: Any) -> Path:
    """Run one training, on this machine or on a Ray cluster."""
    config = options.config
    if options.ray.address:
        from train.run.launch_ray import launch

        model = launch(config, options.ray)
    else:
        from train.run.trainer import run

        model = run(config)
    print(f"model: {model}")
    return model


def _average(parse: Parse) -> int:
    config = parse(AverageConfig)
    if not Path(config.run).is_dir():
        raise MissingFile(f"there is no folder {config.run}; give the folder of a training run")
    from train.run.run_folder import average

    average(Path(config.run), Path(config.dest), config.sigma_rel)
    print(f"model: {config.dest}")
    return DONE


def _views(parse: Parse) -> int:
    from infer.config import ViewsConfig

    config = parse(ViewsConfig)
    _require_model(config.model)
    _require_photos(config.photos, config.portrait)
    from infer.inputs import check_inputs

    check_inputs(config)
    from infer.make import views

    for line in views(config):
        print(line)
    return DONE


def _heads(parse: Parse) -> int:
    from infer.config import HeadsConfig

    config = parse(HeadsConfig)
    _require_model(config.model)
    from infer.make import heads

    for line in heads(config):
        print(line)
    return DONE


def _evaluate(parse: Parse) -> int:
    from infer.config import EvaluateConfig

    config, clip = parse(EvaluateConfig), None
    if not config.pair:
        _require_model(config.model)
    _require_files(
        recogniser="" if config.recogniser == "embedded" else config.recogniser,
        detector=config.detector,
        stage__matte__parser=config.stage.matte.parser,
    )
    from infer.evaluation.evaluate import evaluate

    if config.clip:
        import numpy as np

        from filters.scorers.clip_janus import load_clip

        loaded = load_clip(config.clip, device=config.device)

        def embed(pictures: np.ndarray) -> np.ndarray:
            return loaded.pictures(loaded.prepare(pictures)).numpy()

        clip = embed
    out, failed = evaluate(config, clip)
    print(
        "\n".join(f"{name} could not be measured: {reason}" for name, reason in failed.items()), end="\n" * bool(failed)
    )
    print(f"{out}/results.md\nworst people: {out}/failures.html")
    return DONE if len(failed) <= config.max_failed else FAULTS


def _require_dataset(url: str) -> Any:
    """The dataset at a folder or address, opened before what takes seconds to import; raises UserError if there is none."""
    from manifests.dataset import Dataset

    return Dataset(url)


def _require_model(model: str) -> None:
    """Raise MissingFile unless this names a model; `heads64` is the embedded one."""
    from train.families import model_folder
    from train.networks.config import model_file

    model_file(model_folder(model))


def _require_photos(photos: Sequence[str], portrait: Any) -> None:
    """Raise MissingFile for a photo, or a file that its preparation needs, that does not exist."""
    for photo in photos:
        if not Path(photo).exists():
            raise MissingFile(f"there is no file {photo if photo.isprintable() else repr(photo)}")
    face = portrait.face
    _require_files(face__arcface=face.arcface, matte__parser=portrait.matte.parser)
    if face.models and not Path(face.models).is_dir():
        raise MissingFile(f"--face.models: there is no folder {face.models}; give the folder of your antelopev2 models")


def _require_files(**files: str) -> None:
    """Raise MissingFile for an option whose file is missing; `face__arcface` stands for --face.arcface."""
    for name, file in files.items():
        if file:
            existing(file, f"--{name.replace('__', '.')}")


COMMANDS: dict[str, tuple[Callable[[Parse], int], str]] = {
    "demo": (_demo, "make, verify, score and show procedural heads, in minutes"),
    "plan": (_plan, "estimate the size and the time of a dataset"),
    "generate": (_generate, "make a dataset of heads; the same command resumes it"),
    "score": (_score, "write score tables of every view and identity"),
    "select": (_select, "turn scores, a policy and decisions into a selection"),
    "review": (_review, "open the curator's page: limits, pictures and verdicts"),
    "decide": (_decide, "record verdicts of a person on heads and views"),
    "pack": (_pack, "copy the heads and views of a selection to a new dataset"),
    "export": (_export, "copy a dataset into the format of another tool"),
    "latents": (_latents, "cache the latents of an autoencoder"),
    "train": (_train, "train a multiview model; the same command resumes it"),
    "views": (_views, "make views all around a person, from photos"),
    "heads": (_heads, "make new people, with or without identity embeddings"),
    "evaluate": (_evaluate, "measure a model as papers do, or two folders of pictures"),
    "invert": (_invert, "find the PanoHead identity that shows the person of pictures"),
    "average": (_average, "rebuild the average of a run's weights over another length"),
    "convert": (_convert, "convert an official checkpoint to safetensors without executing it"),
    "status": (_status, "print the progress and the failures of a dataset"),
    "verify": (_verify, "check a dataset for missing and damaged files"),
    "retry": (_retry, "make failed heads again, and leave all others as they are"),
    "repair": (_repair, "make damaged shards again and prove their bytes equal"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one subcommand and return its exit code, which `spinset --help` explains."""
    argv = sys.argv[1:] if argv is None else list(argv)
    if argv and argv[0] == "--version":
        print(f"spinset {version('spinset')}")
        return DONE
    if not argv or argv[0] in ("-h", "--help"):
        try:
            print(_usage(), flush=True)
        except BrokenPipeError as error:
            return report("--help", error)
        return DONE if argv else BAD_INPUT
    name, args = argv[0], argv[1:]
    if name not in COMMANDS:
        near = get_close_matches(name, COMMANDS, 1)
        hint = f"; did you mean {near[0]}?" if near else f"; there are {', '.join(COMMANDS)}"
        return _complain(f"spinset: unknown command {name!r}{hint}")
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        code = COMMANDS[name][0](partial(_parse, name, args))
        sys.stdout.flush()  # here, where a pipe that was closed is no traceback yet
        return code
    except (Exception, KeyboardInterrupt) as error:
        return report(name, error)


def _parse(
    name: str,
    args: Sequence[str],
    what: type[T],
    presets: Mapping[str, T] | None = None,
    summaries: Mapping[str, str] = MappingProxyType({}),
    preset: str = "",
) -> T:
    box, prog = io.StringIO(), f"spinset {name}"
    default: Any = MISSING_NONPROP
    if presets is not None:
        if args and args[0] in ("-h", "--help"):
            rows = "\n".join(f"  {preset:<24} {summary}" for preset, summary in summaries.items())
            print(f"usage: {prog} PRESET [options]; {prog} PRESET --help lists its settings\n\n{rows}")
            raise SystemExit(DONE)
        if not args or args[0] not in presets:
            given = f"{args[0]!r} is no preset" if args else "a preset comes first"
            raise UserError(
                f"{given}; there are {', '.join(presets)} (spinset {name} PRESET --help lists its settings)"
            )
        # The stages of a preset take the same options, each over its own defaults.
        prog, args, default = f"{prog} {args[0]}", args[1:], presets[preset or args[0]]
    try:
        with redirect_stderr(box):
            config = tyro.cli(what, args=args, prog=prog, config=(AvoidSubcommands,), default=default)
    except SystemExit as stop:
        if stop.code == BAD_INPUT:
            raise UserError(_as_given(_first_sentence(box.getvalue()), args)) from None
        raise
    return config


def _first_sentence(box: str) -> str:
    """The message of tyro, which is a box under a title, as one line: the text up to the next rule, without class names."""
    lines = [line.strip("│ ") for line in box.splitlines()[1:]]
    blocks = "\n".join("\f" if set(line) <= set("─-╰╯") else line for line in lines).split("\f")
    text = next((" ".join(block.split()) for block in blocks if block.strip()), box)
    return re.sub(r"^Error parsing \w[\w.]*: ", "", text)


def _as_given(message: str, args: Sequence[str]) -> str:
    """A message about an option such as --clip.min-turn with the name that was given, such as --reject.clip.min-turn."""
    given = {word.partition("=")[0] for word in args if word.startswith("--")}
    for option in given:
        inner = f"--{option.partition('.')[2]}"
        if "." in option and inner not in given:
            message = re.sub(rf"(?<![\w.-]){re.escape(inner)}(?![\w.-])", option, message)
    return message


def _usage() -> str:
    rows = "\n".join(f"  {name:<10} {does}" for name, (_, does) in COMMANDS.items())
    return f"usage: spinset COMMAND [options]; spinset COMMAND --help lists the options\n\n{rows}\n\n{EXIT_CODES}"


def _complain(line: str) -> int:
    print(line, file=sys.stderr)
    return BAD_INPUT


if __name__ == "__main__":
    sys.exit(main())

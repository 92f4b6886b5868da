"""Launches a training run with Ray Train, which places the workers and restarts them after a failure."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from jobs.ray_pool import init_ray
from manifests.errors import UserError
from manifests.order import check_ranks
from train.run.config import RayConfig, TrainConfig


def launch(config: TrainConfig, ray: RayConfig) -> Path:
    """Train on a Ray cluster; returns the folder of the model, which lies on storage that all workers share.

    Raises:
        UserError, OSError: as `run`, from the first worker that raised it.
    """
    import ray as ray_
    from ray.train import FailureConfig, RunConfig, ScalingConfig, WorkerGroupError
    from ray.train.torch import TorchConfig, TorchTrainer

    if ":" in config.device:
        raise UserError(f"--device is {config.device}, but Ray chooses the GPU of each worker; give --device cuda")
    check_ranks(config.loader.batch, 0, ray.workers)
    config = with_absolute_paths(config)
    if started := not ray_.is_initialized():
        init_ray(ray.address, log_to_driver=True)
    trainer = TorchTrainer(
        _train,
        train_loop_config={"config": config},
        torch_config=TorchConfig(backend="gloo" if config.device == "cpu" else "cpu:gloo,cuda:nccl"),
        scaling_config=ScalingConfig(num_workers=ray.workers, use_gpu=config.device != "cpu"),
        run_config=RunConfig(
            name="ray", storage_path=config.out, failure_config=FailureConfig(max_failures=ray.failures)
        ),
    )
    try:
        trainer.fit()
    except WorkerGroupError as error:
        mistakes = [e for e in error.worker_failures.values() if isinstance(e, ValueError | OSError)]
        raise mistakes[0] if mistakes else error from None
    finally:
        if started:
            ray_.shutdown()
    return Path(config.out) / "model"


def with_absolute_paths(config: TrainConfig) -> TrainConfig:
    """The config with absolute paths, because workers start in another folder."""

    def absolute(path: str) -> str:
        return str(Path(path).absolute()) if path and "://" not in path else path

    return replace(
        config,
        **{name: absolute(getattr(config, name)) for name in ("out", "vae", "text_encoder", "init", "branch")},
        loader=replace(
            config.loader,
            data=absolute(config.loader.data),
            blend=tuple(map(absolute, config.loader.blend)),
            cache=absolute(config.loader.cache),
        ),
        validation=replace(config.validation, data=absolute(config.validation.data)),
    )


def _train(given: dict[str, Any]) -> None:
    """Run in one worker; Ray has set the environment of torchrun and the process group already."""
    # Importing it takes seconds, which the driver need not spend.
    from train.run.trainer import run

    run(given["config"])

"""Fits an identity to pictures: first its style, then the weights of the generator around it.

All pictures are rendered in every step and share one style, so that each constrains the head that the others show. The style is
found by L-BFGS, because it is a few hundred numbers and the loss is exact: on the golden generator 21 evaluations reach further
than 50 of the search of StyleGAN2's projector, Adam with noise (docs/benchmarks.md, "Inversion").

Source of the tuning: Roich et al. 2022, Pivotal Tuning for Latent-based Editing of Real Images, section 3.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from torch import Tensor

from datagen.inversion.config import FitConfig
from datagen.inversion.objective import Perceptual, Pictures, loss, moved, render
from datagen.sources.panohead.generator import Generator
from datagen.sources.panohead.official import frontal_label, latent
from geometry.cameras import Cameras
from manifests.errors import DamagedData
from weights.files import save_tensors

ROUND = 20
"""Iterations of L-BFGS before it begins anew; nothing but the style has to be saved between two rounds."""
CAMERA_STEPS = 5
"""Iterations that fit the cameras alone at the beginning of a round."""
TUNING_RATE = 3e-4
"""Learning rate of the weights. Source: PTI's released settings."""
STYLES = 2048
"""Number of styles that the average is taken of."""
MOMENTS = ("step", "exp_avg", "exp_avg_sq")
"""The state of Adam for each tensor."""


@dataclass(eq=False)
class Fit:
    """The state of an inversion after a number of steps: iterations of L-BFGS, then steps of tuning."""

    generator: Generator
    pictures: Pictures
    config: FitConfig
    perceptual: Perceptual | None = None
    step: int = 0
    style: Float[Tensor, "1 l s"] = field(init=False)
    """The style of every layer, or one for all layers."""
    offsets: Float[Tensor, "v 6"] = field(init=False)
    """How far each camera is turned and moved, in units of `objective.SPREAD`."""
    moments: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    """The state of Adam while the weights are tuned, by the name of the weight."""

    def __post_init__(self) -> None:
        style = average_style(self.generator)
        self.style = style.repeat(1, self.generator.num_ws if self.config.per_layer else 1, 1)
        self.offsets = torch.zeros(len(self.pictures), 6, device=style.device)

    @property
    def steps(self) -> int:
        """The number of all steps."""
        return self.config.steps + self.config.tune_steps

    @property
    def ws(self) -> Float[Tensor, "1 l s"]:
        """The style of every layer."""
        return self.style.detach().expand(-1, self.generator.num_ws, -1)

    @property
    def cameras(self) -> Cameras:
        """The cameras of the pictures, as far as they are fitted."""
        return moved(self.pictures.cameras, self.offsets.detach())

    def run(self, save_every: int, stepped: Callable[[int], None] = lambda steps: None) -> Iterator[None]:
        """Take all steps that are left; yields after each round of L-BFGS and after each `save_every` steps of tuning."""
        while self.step < self.config.steps:
            count = min(ROUND, self.config.steps - self.step)
            cameras = [self.offsets] if self.config.fit_cameras else []
            if cameras:
                # First alone: a style that has fitted itself to the wrong cameras does not let them go.
                self._descend(cameras, CAMERA_STEPS)
            self._descend([self.style, *cameras], count)
            self.step += count
            stepped(count)
            yield
        while self.step < self.steps:
            count = min(save_every, self.steps - self.step)
            for _ in self._tune(count):
                self.step += 1
                stepped(1)
            yield

    def _loss(self) -> Tensor:
        seen = render(
            self.generator,
            self.style.expand(-1, self.generator.num_ws, -1),
            moved(self.pictures.cameras, self.offsets),
        )
        return loss(seen, self.pictures, self.offsets, self.perceptual)

    def _descend(self, fitted: list[Tensor], iterations: int) -> None:
        """Iterations of L-BFGS."""
        for tensor in fitted:
            tensor.requires_grad_()
        optimizer = torch.optim.LBFGS(
            fitted, max_iter=iterations, max_eval=2 * iterations, history_size=ROUND, line_search_fn="strong_wolfe"
        )

        def evaluate() -> Tensor:
            optimizer.zero_grad()
            total = self._loss()
            total.backward()
            return total

        optimizer.step(evaluate)  # pyright: ignore[reportArgumentType]
        for tensor in fitted:
            tensor.requires_grad_(False)

    def _tune(self, steps: int) -> Iterator[None]:
        weights = self._weights()
        for weight in weights.values():
            weight.requires_grad_()
        optimizer = torch.optim.Adam(weights.values(), lr=TUNING_RATE)
        for name, weight in weights.items():
            if name in self.moments:
                optimizer.state[weight] = self.moments[name]
        for _ in range(steps):
            optimizer.zero_grad()
            self._loss().backward()
            optimizer.step()
            yield
        # Weights that no picture depends on, such as strengths of noise that is not added, have no moments.
        self.moments = {
            name: dict(optimizer.state[weight]) for name, weight in weights.items() if optimizer.state[weight]
        }
        for weight in weights.values():
            weight.requires_grad_(False)

    def _weights(self) -> dict[str, Tensor]:
        """The weights that are tuned, by name: all that make pictures of a style."""
        return {name: weight for name, weight in self.generator.named_parameters() if "mapping." not in name}

    def save(self, file: Path) -> None:
        """Write the state; an interrupted write leaves the one before."""
        tensors = {"style": self.style, "offsets": self.offsets, "step": torch.tensor(self.step)}
        if self.moments:
            tensors |= {f"weights {name}": weight for name, weight in self._weights().items()}
        for name, moments in self.moments.items():
            tensors |= {f"{key} {name}": value for key, value in moments.items()}
        scratch = file.with_name(f".{file.name}.tmp")
        save_tensors(tensors, scratch)
        scratch.replace(file)

    def resume(self, file: Path) -> None:
        """Take over a state that was saved; raises DamagedData if it cannot be read."""
        try:
            with safe_open(file, "pt") as found, torch.no_grad():
                self.step = int(found.get_tensor("step"))
                self.style.copy_(found.get_tensor("style"))
                self.offsets.copy_(found.get_tensor("offsets"))
                names = set(found.keys())
                if self.step > self.config.steps:
                    for name, weight in self._weights().items():
                        weight.copy_(found.get_tensor(f"weights {name}"))
                        if f"step {name}" in names:
                            moments = {key: found.get_tensor(f"{key} {name}") for key in MOMENTS}
                            self.moments[name] = {k: v if k == "step" else v.to(weight) for k, v in moments.items()}
        except (SafetensorError, RuntimeError) as error:
            raise DamagedData(f"{file} is damaged; remove it to begin again") from error


@torch.no_grad()
def average_style(generator: Generator) -> Float[Tensor, "1 1 s"]:
    """The average style in front of the conditioning camera, over fixed latents."""
    weight = generator.decoder.last.weight
    z = torch.cat([latent(seed, generator.config.z_dim) for seed in range(STYLES)]).to(weight)
    return generator.mapping(z, frontal_label().to(weight.device).expand(len(z), -1)).mean(dim=0, keepdim=True)[:, :1]

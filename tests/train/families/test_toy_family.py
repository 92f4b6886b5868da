"""A second family, built from the parts of the core alone: a reference network, a hint image, and DDPM.

It is the size of a family's own file, and it trains, resumes, is exported and samples like the first one.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from runs import tiny_config, weights
from safetensors.torch import load_file
from torch import Tensor, nn

from manifests.dataset import Dataset
from manifests.errors import UserError
from train.batch import Batch
from train.data.sampling import MultiView
from train.diffusion.conditions import Conditions
from train.diffusion.config import NoiseLevels
from train.diffusion.process import DDPM, ddim, guided, sample
from train.networks.config import About, ModelConfig, UNetShape, read_card
from train.networks.model import Model, Vae, load_vae, load_weights
from train.networks.unet import build_unet, recorded_tokens, run_unet
from train.run.run_folder import average
from train.run.trainer import run

SHAPE = UNetShape(channels=(16, 16), attention=(True, True), blocks=1, heads=2, context=8, groups=4)


@dataclass(frozen=True)
class ToyConfig(ModelConfig):
    family: ClassVar[str] = "toy"

    unet: UNetShape = SHAPE

    @property
    def members(self) -> tuple[str, ...]:
        return ("rgb",)

    @property
    def inputs(self) -> tuple[str, ...]:
        return ("normal",)

    @property
    def multiview(self) -> bool:
        return True

    def process(self, noise: NoiseLevels | None = None) -> DDPM:
        return DDPM()

    def build(self, vae: Vae, about: About | None = None) -> "Toy":
        return Toy(self, ToyNetwork(self.unet, vae.channels, vae.factor), vae, about or About())

    def conflict(self, other: ModelConfig) -> str:
        return ""

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "ToyConfig":
        return cls(UNetShape(**{k: tuple(v) if isinstance(v, list) else v for k, v in values["unet"].items()}))


class HintEncoder(ModelMixin, ConfigMixin):
    """Adds a picture to latents."""

    @register_to_config
    def __init__(self, channels: int, factor: int):
        super().__init__()
        self.conv = nn.Conv2d(3, channels, factor, factor)

    def forward(self, hint: Tensor) -> Tensor:
        return self.conv(hint.flatten(0, 1)).unflatten(0, hint.shape[:2])


@dataclass(frozen=True, eq=False)
class ToyConditions(Conditions):
    droppable: ClassVar[tuple[str, ...]] = ("reference",)

    reference: Tensor
    """Latents of the reference view."""
    hint: Tensor
    """A picture of each view."""

    @property
    def is_target(self) -> Tensor:
        return torch.ones(self.hint.shape[:2], dtype=torch.bool, device=self.hint.device)

    def dropped(self, drop: Tensor) -> "ToyConditions":
        return replace(self, reference=self.reference.masked_fill(drop[:, 0, None, None, None, None], 0))


class ToyNetwork(nn.Module):
    """Parts: the denoising UNet, the reference UNet whose tokens it attends to, and the encoder of the hint."""

    def __init__(self, shape: UNetShape, channels: int, factor: int):
        super().__init__()
        self.unet, self.reference = (build_unet(shape, channels, channels) for _ in range(2))
        self.hint = HintEncoder(channels, factor)

    def forward(self, x: Tensor, c_noise: Tensor, conditions: ToyConditions) -> Tensor:
        context = x.new_zeros(len(x), 1, SHAPE.context)
        with recorded_tokens(self.reference) as banks:
            unused = run_unet(self.reference, conditions.reference, torch.zeros_like(c_noise), context)
        out = run_unet(self.unet, x + self.hint(conditions.hint), c_noise, context, banks)
        # The last layers of the reference network have no part in the result.
        return out + 0 * unused.mean()


@dataclass(frozen=True, eq=False)
class Toy(Model):
    def conditions(self, cameras: Any, is_condition: Tensor, clean: Tensor, embedding: Tensor | None) -> ToyConditions:
        hint = clean.new_zeros(*clean.shape[:2], 3, *(self.vae.factor * side for side in clean.shape[3:]))
        return ToyConditions(clean[:, :1], hint)

    def conditions_of(self, batch: Batch, latents: Tensor) -> ToyConditions:
        assert isinstance(batch.normal, Tensor)
        return ToyConditions(latents[:, :1], batch.normal.float())


@pytest.fixture
def dataset(make) -> Dataset:
    return make(identities=6, views=4)


def toy_config(dataset, tmp_path, **changes):
    config = tiny_config(dataset, tmp_path, model=ToyConfig(), samples=12, snapshot_every=4, save_every=4, **changes)
    return replace(config, loader=replace(config.loader, recipe=MultiView(views=3, conditions=(1,))))


def test_it_trains_resumes_bit_for_bit_and_samples(dataset, tmp_path):
    whole = toy_config(dataset, tmp_path, out="whole")
    run(whole)
    # Three steps, stopped after two.
    halves = toy_config(dataset, tmp_path, out="halves")
    run(replace(halves, samples=8))
    run(halves)
    for part in ("unet", "reference", "hint"):
        one, other = (
            load_file(Path(config.out) / "model" / part / "diffusion_pytorch_model.safetensors")
            for config in (whole, halves)
        )
        assert one and all(torch.equal(one[name], other[name]) for name in one), part

    folder = Path(whole.out) / "model"
    family, values, about = read_card(folder)
    assert family == "toy" and about.samples_seen == 12
    model = ToyConfig.from_json(values).build(load_vae(str(folder / "vae")), about)
    load_weights(model, folder)
    clean = torch.randn(1, 3, 4, 2, 2)
    conditions = model.conditions(None, torch.ones(1, 3, dtype=torch.bool), clean, None)
    denoiser, sigmas = guided(model.network, model.process, conditions, 3.0), model.process.sigmas(4)
    made = sample(denoiser, conditions, torch.randn(1, 3, 4, 2, 2), sigmas, ddim)
    assert made.shape == clean.shape and torch.isfinite(made).all()
    other = replace(conditions, reference=conditions.reference + 1)
    assert not torch.equal(model.network(clean, torch.ones(1), other), model.network(clean, torch.ones(1), conditions))


def test_only_the_trained_parts_change(dataset, tmp_path):
    """A stage of training: the reference network and the hint encoder learn, the UNet is frozen."""
    first = toy_config(dataset, tmp_path, out="first")
    run(first)
    start = str(Path(first.out) / "model")
    stage = toy_config(dataset, tmp_path, out="stage", init=start, trained=("reference.*", "hint.*"))
    run(stage)
    assert all(torch.equal(weight, weights(first)[name]) for name, weight in weights(stage).items())
    changed = [
        load_file(Path(config.out) / "model" / "reference" / "diffusion_pytorch_model.safetensors")
        for config in (first, stage)
    ]
    assert any(not torch.equal(changed[0][name], changed[1][name]) for name in changed[0])
    average(Path(stage.out), tmp_path / "average", 0.05)
    again = load_file(tmp_path / "average" / "unet" / "diffusion_pytorch_model.safetensors")
    assert all(torch.equal(weight, weights(first)[name]) for name, weight in again.items())


def test_patterns_that_name_no_weight_are_refused(dataset, tmp_path):
    with pytest.raises(
        UserError, match=r"--trained is 'control.*', .* the parts of this model are unet.*, reference.*, hint.*"
    ):
        run(toy_config(dataset, tmp_path, trained=("control.*",)))

"""The model families: their configs by name, their training presets, and how a model folder is opened."""

from pathlib import Path
from typing import TYPE_CHECKING

from manifests.errors import UserError
from train.families.diffportrait.config import DiffPortraitConfig
from train.families.spinmeround.config import SpinMeRoundConfig
from train.networks.config import FILE, VAE, About, ModelConfig, read_card

if TYPE_CHECKING:
    from train.networks.model import Model

FAMILIES: dict[str, type[ModelConfig]] = {config.family: config for config in (SpinMeRoundConfig, DiffPortraitConfig)}


def read_about(folder: str | Path) -> tuple[ModelConfig, About]:
    """Read the config and the description of a model from its folder.

    Raises:
        MissingFile: the folder has no model.json.
        UserError: it is damaged, or of an unknown family or format.
    """
    family, values, about = read_card(Path(folder))
    if family not in FAMILIES:
        raise UserError(f"{folder} is a model of the family {family!r}; this spinset knows {', '.join(FAMILIES)}")
    try:
        return FAMILIES[family].from_json(values), about
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{Path(folder) / FILE} is damaged ({type(error).__name__}: {error})") from error


def load_model(folder: str | Path, device: str = "cpu") -> "Model":
    """Read a model and all of its weights from its folder; nothing is downloaded.

    Raises:
        MissingFile: the folder or a part of it is not there.
        UserError: a part is damaged, or weights do not fit the config.
    """
    from train.networks.model import load_weights
    from train.networks.vae import load_vae

    config, about = read_about(folder)
    model = config.build(load_vae(str(Path(folder) / VAE), device), about)
    load_weights(model, Path(folder))
    model.network.eval()
    return model.to(device)

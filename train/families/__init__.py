"""The model families: their configs by name, their training presets, and how a model folder is opened."""

from pathlib import Path
from typing import TYPE_CHECKING

from manifests.errors import UserError
from train.families.diffportrait.config import DiffPortraitConfig
from train.families.spinmeround.config import SpinMeRoundConfig
from train.networks.config import FILE, VAE, About, ModelConfig, read_card
from weights.embedded import HEADS64

if TYPE_CHECKING:
    from train.networks.model import Model

FAMILIES: dict[str, type[ModelConfig]] = {config.family: config for config in (SpinMeRoundConfig, DiffPortraitConfig)}


def model_folder(model: str | Path) -> Path:
    """The folder of a model; `heads64` names the embedded one."""
    return HEADS64 if model == HEADS64.name else Path(model)


def read_about(model: str | Path) -> tuple[ModelConfig, About]:
    """Read the config and the description of a model from its folder, or of the embedded one by its name.

    Raises:
        MissingFile: the folder has no model.json.
        UserError: it is damaged, or of an unknown family or format.
    """
    folder = model_folder(model)
    family, values, about = read_card(folder)
    if family not in FAMILIES:
        raise UserError(f"{folder} is a model of the family {family!r}; this spinset knows {', '.join(FAMILIES)}")
    try:
        return FAMILIES[family].from_json(values), about
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{folder / FILE} is damaged ({type(error).__name__}: {error})") from error


def load_model(model: str | Path, device: str = "cpu") -> "Model":
    """Read a model and all of its weights from its folder, or the embedded one by its name; nothing is downloaded.

    Raises:
        MissingFile: the folder or a part of it is not there.
        UserError: a part is damaged, or weights do not fit the config.
    """
    from train.networks.model import load_vae, load_weights

    (config, about), folder = read_about(model), model_folder(model)
    loaded = config.build(load_vae(str(folder / VAE), device), about)
    load_weights(loaded, folder)
    loaded.network.eval()
    return loaded.to(device)

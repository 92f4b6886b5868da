"""Small models under the names of the released SpinMeRound checkpoint."""

import json
import re
from pathlib import Path
from typing import Any

from hashed import hashed_weights
from safetensors.torch import load_file, save_file
from torch import Tensor

from train.weights.names import LDM_UNET, LDM_VAE, PARTS, Part, blank_model, names_in, read_config

KEYS: dict[str, tuple[int, ...]] = {
    name: tuple(shape)
    for name, shape in json.loads((Path(__file__).parent / "golden" / "spinmeround_keys.json").read_text()).items()
}
"""Names and shapes of the 1,130 tensors of the released checkpoint."""


def official_names(part: Part, model: Any) -> dict[str, str]:
    """The released names of a model's weights; every level of a smaller autoencoder may have every layer."""
    levels = {re.sub(r"\.(down|up)\.\d", rf".\1.{level}", name) for name in KEYS for level in range(4)}
    names = names_in(part, model, levels)
    assert names.keys() == model.state_dict().keys()
    return names


def load_hashed(part: Part, model: Any) -> None:
    """Fill a model with weights hashed from their released names, without the prefix of the whole checkpoint."""
    names = {k: there.removeprefix(LDM_UNET).removeprefix(LDM_VAE) for k, there in official_names(part, model).items()}
    state = model.state_dict()
    hashed = hashed_weights({there: tuple(state[here].shape) for here, there in names.items()})
    model.load_state_dict({here: hashed[there] for here, there in names.items()})


def write_official(folder: Path, file: Path) -> dict[str, Tensor]:
    """Write the models of a folder as one file by the released names; returns its tensors."""
    tensors: dict[str, Tensor] = {}
    for part in PARTS:
        weights = load_file(folder / part.folder / part.weights)
        for here, there in official_names(part, blank_model(part, read_config(folder / part.folder) or {})).items():
            weight = weights[here]
            tensors[there] = weight.reshape(*weight.shape, *(1,) * (len(KEYS[there]) - weight.ndim))
    save_file(tensors, file)
    return tensors

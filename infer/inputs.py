"""Pictures that some models take besides photos: those of a stranger, which say where the cameras are, and proxies of views.

Sources: DiffPortrait3D, supplement; DiffPortrait360, section 3 and its released code.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8

from geometry.directions import angular_distance, turned
from infer.config import ViewsConfig
from infer.photo import read_photo
from manifests.dataset import Dataset
from manifests.errors import MissingFile, UserError
from manifests.index import Subset, open_index
from manifests.pictures import decode_picture
from manifests.plan import FILE
from manifests.reader import Reader
from train.families import model_folder, read_about
from train.networks.config import About, ModelConfig, require_parts

WITHIN = 1.0
"""Largest angle in degrees between a view and its control picture."""
BACK = 180.0
"""Azimuth in degrees of the back that is made as a second reference. Source: the 16th of 32 control pictures of the release."""
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")


@dataclass(frozen=True, eq=False)
class ControlPictures:
    """Pictures of a stranger from known directions, which are read when they are asked for."""

    source: str
    azimuth: Float[np.ndarray, " n"]
    elevation: Float[np.ndarray, " n"]
    files: tuple[Path, ...] = ()
    """The pictures of a folder, in the order of the directions."""
    heads: Subset | None = None
    """The heads of a dataset."""
    head: int = 0
    """Position of the stranger among the heads."""

    def places(self, azimuth: Float[np.ndarray, " v"], elevation: Float[np.ndarray, " v"]) -> list[int]:
        """The positions of the pictures from some directions; raises UserError if there is none from one of them."""
        found = []
        for a, e in zip(azimuth.tolist(), elevation.tolist(), strict=True):
            away = angular_distance(self.azimuth, self.elevation, a, e)
            if away.min() > WITHIN:
                raise UserError(
                    f"--control is {self.source}, which has no picture from azimuth {a:g}, elevation {e:g}; generate one "
                    "with a rig that does (orbit-32 for 32 views, orbit-90 for 16 in front)"
                )
            found.append(int(away.argmin()))
        return found

    def read(
        self, azimuth: Float[np.ndarray, " v"], elevation: Float[np.ndarray, " v"]
    ) -> UInt8[np.ndarray, "v h w 3"]:
        """The pictures from some directions, sRGB.

        Raises:
            UserError: there is none from one of them, or the pictures are not square or not of one size.
            DamagedData: a picture of the dataset cannot be read.
        """
        places = self.places(azimuth, elevation)
        if self.heads is None:
            return read_squares([self.files[place] for place in places])
        rows = self.heads.rows_of(self.head)[places]
        data = Reader(Dataset(self.source), self.heads.index).read({"rgb": rows})["rgb"]
        return np.stack([decode_picture(one) for one in data])


def open_control(
    source: str, azimuth: Float[np.ndarray, " n"], elevation: Float[np.ndarray, " n"], head: int = 0
) -> ControlPictures:
    """Open a dataset, of which one head is the stranger, or a folder of one picture for each direction, in order of names.

    Raises:
        MissingFile: there is no such folder.
        UserError: a folder has another number of pictures, or a dataset has no such head.
    """
    if Path(source).is_dir() and not (Path(source) / FILE).exists():
        files = picture_files(source)
        _check_count("--control", source, files, len(azimuth))
        return ControlPictures(source, azimuth, elevation, tuple(files))
    heads = open_index(Dataset(source)).select()
    if head >= len(heads.identities):
        raise UserError(f"--control is {source}, which has {len(heads.identities)} heads; {head + 1} are needed")
    rows = heads.rows_of(head)
    directions = (heads.index.azimuth[rows].astype(np.float64), heads.index.elevation[rows].astype(np.float64))
    return ControlPictures(source, *directions, heads=heads, head=head)


def picture_files(folder: str) -> list[Path]:
    """The pictures in a folder, in order of names."""
    return sorted(file for file in Path(folder).iterdir() if file.suffix.lower() in SUFFIXES)


def proxy_files(folder: str, views: int) -> list[Path]:
    """The pictures of a folder of proxies, one for each view; raises MissingFile or UserError."""
    if not Path(folder).is_dir():
        raise MissingFile(f"there is no folder {folder}; --proxies names one with a picture for each view")
    files = picture_files(folder)
    _check_count("--proxies", folder, files, views)
    return files


def _check_count(option: str, folder: str, files: list[Path], views: int) -> None:
    if len(files) != views:
        raise UserError(f"{option} is {folder}, which has {len(files)} pictures; {views} views need one each")


def read_squares(files: list[Path]) -> UInt8[np.ndarray, "v h w 3"]:
    """Square pictures of one size; raises UserError if they are not."""
    photos = [read_photo(file).rgb for file in files]
    for file, rgb in zip(files, photos, strict=True):
        if rgb.shape != (len(photos[0]), len(photos[0]), 3):
            raise UserError(
                f"{file} has {rgb.shape[1]} x {rgb.shape[0]} px; give squares, all of one size, as {files[0]} is "
                f"{len(photos[0])} px high"
            )
    return np.stack(photos)


def check_inputs(config: ViewsConfig) -> None:
    """Check that a model can make the views from what is given, before anything heavy is imported.

    Raises:
        MissingFile: a part of the model, or a folder, is missing.
        UserError: pictures are missing, too many or from elsewhere, or a photo is of a side that the model does not take.
    """
    model, about = read_about(config.model)
    require_parts(model, model_folder(config.model))
    azimuth, elevation = config.directions.of_views(model.azimuths)
    directions = [*zip(azimuth.tolist(), elevation.tolist(), strict=True), *([(BACK, 0.0)] if config.back else [])]
    takes_control = "control" in model.inputs
    if config.back:
        back, _ = read_about(config.back)
        require_parts(back, model_folder(config.back))
        takes_control |= "control" in back.inputs
    check_control(config.control, takes_control, config.model)
    if config.control:
        open_control(config.control, azimuth, elevation).places(*np.array(directions).T)
    for option, given in (("proxies", config.proxies), ("overlap", config.sampler.overlap), ("back", config.back)):
        if given and not model.window:
            raise UserError(f"--{option} is for models that are sampled in windows of views; {config.model} is not")
    if model.window and config.directions.angles != "orbit":
        raise UserError(f"--angles {config.directions.angles} is for models of SpinMeRound; {config.model} is not one")
    if config.proxies:
        proxy_files(config.proxies, len(azimuth))
    check_window(model, config.sampler.overlap)
    own = config.portrait.azimuth
    check_references(about, [own, *(own + turn for turn in config.photo_azimuths), *([BACK] if config.back else [])])


def check_control(control: str, needed: bool, model: str) -> None:
    """Raise UserError unless control pictures are given exactly if a model needs them."""
    if needed and not control:
        raise UserError(
            f"{model} needs --control: a dataset, or a folder with a picture for each view, that shows a stranger from there"
        )
    if control and not needed:
        raise UserError(f"--control is {control}; {model} takes no control pictures, leave it out")


def check_window(model: ModelConfig, overlap: int) -> None:
    """Raise UserError if windows overlap by more than they have."""
    if model.window and overlap >= model.window:
        raise UserError(f"--overlap is {overlap}; windows have {model.window} views, give less")


def check_references(about: About, azimuths: list[float]) -> None:
    """Raise UserError if a photo is turned as no given view was in training."""
    for place, azimuth in enumerate(azimuths if about.turns else []):
        # More photos than a model was trained with may be of any side that it knows.
        allowed = about.turns[place : place + 1] or about.turns
        turn = float(turned(np.array([azimuth]))[0])
        if not any(low <= turn <= high for low, high in allowed):
            sides = " or ".join(f"{low:g} to {high:g}" for low, high in allowed)
            raise UserError(
                f"photo {place + 1} is turned {turn:g} degrees from the front; this model takes {sides} degrees there"
            )

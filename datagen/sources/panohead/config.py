"""The configuration of a generator, read from the official constructor arguments and rendering options."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from datagen.sources.panohead.layers import Noise
from datagen.sources.panohead.superresolution import VARIANTS
from manifests.errors import UserError

Family = Literal["panohead", "spherehead"]

# The official renderer ignores density closer than this to the x and z faces of its box.
CROP = 0.1

PLANE_AXES = ((0, 1, 2), (0, 2, 1), (1, 2, 0))
"""For each plane the world axes of its width, height and depth."""

_POWERS = tuple(2**i for i in range(2, 13))
_ACTIVATIONS = ("none", "sigmoid", "lrelu")
_NOISES = get_args(Noise)

# Constructor arguments that are used, or that change nothing when a network is only run.
_MAPPING_KWARGS = {"num_layers", "w_avg_beta"}
_SR_KWARGS = {"channel_base", "channel_max", "fused_modconv_default", "w_dim", "sr_channels"}
_KWARGS = {
    *("z_dim", "c_dim", "w_dim", "img_resolution", "img_channels", "sr_num_fp16_res", "mapping_kwargs"),
    *("rendering_kwargs", "sr_kwargs", "parsing_flag", "architecture", "channel_base", "channel_max"),
    *("fused_modconv_default", "num_fp16_res", "conv_clamp"),
}
_UNSUPPORTED_RENDERING = ("cull_clouds", "binarize_clouds")


@dataclass(frozen=True)
class GeneratorConfig:
    """The sizes and constants of one generator."""

    family: Family
    z_dim: int
    w_dim: int
    resolution: int
    mapping_layers: int
    channel_base: int
    channel_max: int
    conv_clamp: float | None
    plane_resolution: int
    plane_depth: int
    plane_axes: tuple[tuple[int, ...], ...]
    use_torgb: bool
    use_background: bool
    parsing: bool
    decoder_activation: str
    decoder_lr: float
    sr: str
    sr_w_dim: int
    sr_channels: tuple[int, int] | None
    sr_clamp: bool
    sr_antialias: bool
    sr_noise: str
    depth_resolution: int
    depth_resolution_importance: int
    ray_start: float
    ray_end: float
    disparity: bool
    white_back: bool
    box_warp: float
    c_scale: float
    zero_conditioning: bool
    neural_resolution: int

    def __post_init__(self) -> None:
        for name in ("resolution", "plane_resolution"):
            _one_of(name, getattr(self, name), _POWERS)
        for name, most in _LIMITS.items():
            _within(name, getattr(self, name), 1, most)
        _one_of("decoder_activation", self.decoder_activation, _ACTIVATIONS)
        _one_of("superresolution_module", self.sr, tuple(VARIANTS))
        _one_of("superresolution_noise_mode", self.sr_noise, _NOISES)
        _within("depth_resolution", self.depth_resolution, 4, 1024)
        _within("depth_resolution_importance", self.depth_resolution_importance, 0, 1024)
        if VARIANTS[self.sr].channels is None and self.sr_channels is None:
            raise UserError(f"{self.sr} needs sr_channels in sr_kwargs")
        if not 0 < self.ray_start < self.ray_end < 1e3:
            raise UserError(f"rays go from {self.ray_start} to {self.ray_end}; they must go forward from above 0")
        if self.box_warp <= 2 * CROP:
            raise UserError(f"box_warp is {self.box_warp}; it must be above {2 * CROP}")
        if self.family == "spherehead" and self.plane_depth != 3:
            raise UserError(f"triplane_depth is {self.plane_depth}; SphereHead has 3 planes per sphere")

    @classmethod
    def from_official(
        cls, kwargs: Mapping[str, Any], rendering: Mapping[str, Any], neural_resolution: int,
        family: Family = "panohead", plane_axes: Sequence[Sequence[int]] = PLANE_AXES,
    ) -> "GeneratorConfig":  # fmt: skip
        """The config of official constructor arguments, of the `rendering_kwargs` in force, and of the attribute nrr.

        Raises:
            ValueError: an argument is missing, of the wrong type, out of range, or of a network that is not built here.
        """
        _known("constructor argument", kwargs, _KWARGS)
        mapping, sr = kwargs.get("mapping_kwargs", {}), kwargs.get("sr_kwargs", {})
        _known("mapping argument", mapping, _MAPPING_KWARGS)
        _known("super-resolution argument", sr, _SR_KWARGS)
        for name, only in (("architecture", "skip"), ("c_dim", 25), ("img_channels", 3)):
            if kwargs.get(name, only) != only:
                raise UserError(f"{name} is {kwargs[name]!r}; only {only!r} is built here")
        for name in _UNSUPPORTED_RENDERING:
            if rendering.get(name):
                raise UserError(f"rendering option {name} is {rendering[name]!r}; only off is built here")
        channels, clamp = sr.get("sr_channels"), kwargs.get("conv_clamp")
        return cls(
            family=family,
            z_dim=_int(kwargs, "z_dim"),
            w_dim=_int(kwargs, "w_dim"),
            resolution=_int(kwargs, "img_resolution"),
            mapping_layers=_int(mapping, "num_layers", 8),
            channel_base=_int(kwargs, "channel_base", 32768),
            channel_max=_int(kwargs, "channel_max", 512),
            conv_clamp=None if clamp is None else _float(kwargs, "conv_clamp"),
            plane_resolution=_int(rendering, "triplane_size"),
            plane_depth=_int(rendering, "triplane_depth"),
            plane_axes=tuple(tuple(axes) for axes in plane_axes),
            use_torgb=bool(rendering.get("use_torgb_raw", False)),
            use_background=bool(rendering.get("use_background", False)),
            parsing=bool(kwargs.get("parsing_flag", False)),
            decoder_activation=str(rendering.get("decoder_activation", "sigmoid")),
            decoder_lr=_float(rendering, "decoder_lr_mul", 1.0),
            sr=str(rendering.get("superresolution_module")).rpartition(".")[2],
            sr_w_dim=_int(sr, "w_dim", 512),
            sr_channels=None if channels is None else (_int(channels, 0), _int(channels, 1)),
            sr_clamp=_int(kwargs, "sr_num_fp16_res", 0) > 0,
            sr_antialias=bool(rendering.get("sr_antialias", True)),
            sr_noise=str(rendering.get("superresolution_noise_mode", "none")),
            depth_resolution=_int(rendering, "depth_resolution"),
            depth_resolution_importance=_int(rendering, "depth_resolution_importance"),
            ray_start=_float(rendering, "ray_start"),
            ray_end=_float(rendering, "ray_end"),
            disparity=bool(rendering.get("disparity_space_sampling", False)),
            white_back=bool(rendering.get("white_back", False)),
            box_warp=_float(rendering, "box_warp"),
            # The official mapping reads a missing c_scale as 0, that is, without the camera label.
            c_scale=_float(rendering, "c_scale", 0.0),
            zero_conditioning=bool(rendering.get("c_gen_conditioning_zero", False)),
            neural_resolution=neural_resolution,
        )


_LIMITS = {
    **dict.fromkeys(("z_dim", "w_dim", "sr_w_dim", "channel_max"), 4096),
    **{"mapping_layers": 64, "channel_base": 1 << 20, "plane_depth": 64, "neural_resolution": 1024},
}


def _known(what: str, given: Any, known: set[str]) -> None:
    if not isinstance(given, Mapping):
        raise UserError(f"the {what}s are a {type(given).__name__}; they must be a dict")
    unknown = sorted(str(name) for name in given if name not in known)
    if unknown:
        raise UserError(f"unknown {what} {unknown[0]!r}; known are {', '.join(sorted(known))}")


def _int(given: Any, name: Any, default: int | None = None) -> int:
    value = _value(given, name, default)
    if not isinstance(value, int) or isinstance(value, bool):
        raise UserError(f"{name} is {value!r}; it must be an integer")
    return value


def _float(given: Any, name: str, default: float | None = None) -> float:
    value = _value(given, name, default)
    if not isinstance(value, int | float) or isinstance(value, bool) or abs(value) > 1e6 or value != value:
        raise UserError(f"{name} is {value!r}; it must be a number")
    return float(value)


def _value(given: Any, name: Any, default: Any) -> Any:
    """An entry of a mapping, or an item of a short list."""
    if isinstance(given, Mapping):
        value = given.get(name, default)
    else:
        value = given[name] if isinstance(given, Sequence) and len(given) == 2 else None
    if value is None:
        raise UserError(f"the checkpoint does not say {name}")
    return value


def _one_of(name: str, value: Any, known: tuple[Any, ...]) -> None:
    if value not in known:
        raise UserError(f"{name} is {value!r}; it must be one of {', '.join(str(item) for item in known)}")


def _within(name: str, value: int, least: int, most: int) -> None:
    if not least <= value <= most:
        raise UserError(f"{name} is {value}; it must be from {least} to {most}")

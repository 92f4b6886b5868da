"""How three papers measure: which people, which views, how they are sampled, and the numbers that the papers print.

Numbers of papers are theirs, of other people, pictures and weights; what a paper leaves open is said beside its table.
"""

from dataclasses import dataclass
from typing import Literal

from infer.config import ProtocolName


@dataclass(frozen=True)
class Targets:
    """So many views at random of those an identity has, all of them if it has fewer."""

    count: int
    beyond: float = -1.0
    """Only views turned more than this from the front, in degrees,"""
    within: float = 180.0
    """and no more than this."""


@dataclass(frozen=True)
class Table:
    """Rows as a paper prints them; None where it prints none."""

    title: str
    source: str
    columns: tuple[tuple[str, str], ...]
    """The heading of each column, and the metric of ours that stands under it."""
    rows: tuple[tuple[str, tuple[float | None, ...]], ...]

    def __post_init__(self) -> None:
        assert all(len(numbers) == len(self.columns) for _, numbers in self.rows), self.title


@dataclass(frozen=True)
class Protocol:
    """One way to measure."""

    name: ProtocolName
    identities: int
    """Held-out people, as far as there are so many."""
    input_turn: float
    """The input view is one at random of those turned at most this, within 30 degrees of elevation; at 0 the most frontal
    one."""
    targets: tuple[Targets, ...]
    steps: int
    scale: float
    """Of guidance."""
    setting: str
    """What the paper did."""
    choices: tuple[str, ...]
    """What it leaves open or had otherwise, and what is done here."""
    tables: tuple[Table, ...]

    @property
    def metrics(self) -> tuple[str, ...]:
        """What stands in the tables, each metric once."""
        return tuple(dict.fromkeys(metric for table in self.tables for _, metric in table.columns))


LOWER = frozenset(
    {"l2", "lpips_alex", "lpips_vgg", "dists", "reid_distance", "normal_error", "fid"}
    | {"epipolar_median", "hull_spread", "hull_ratio", "border_ratio"}
)
"""Metrics of which less is better, without the endings _front and _back."""


def better(metric: str) -> Literal["lower", "higher"]:
    """Which end of a metric is the good one."""
    return "lower" if metric.removesuffix("_front").removesuffix("_back") in LOWER else "higher"


_SPMR_COLUMNS = (("L2", "l2"), ("LPIPS", "lpips_alex"), ("SSIM", "ssim"), ("ID", "id"))

SPINMEROUND = Protocol(
    name="spinmeround",
    identities=100,
    input_turn=0.0,
    targets=(Targets(10),),
    steps=50,
    scale=3.0,
    setting=(
        "Table 1: 222 people of NeRSemble, 16 cameras, one moment each, frames centred, one view given and a random subset "
        "of the others made. Table 2: 100 heads of PanoHead, the frontal view given and ten others made; 50 steps, guidance 3."
    ),
    choices=(
        "The people and views are those of table 2: the most frontal view is given, ten others at random are made "
        "(--identities 222 for the number of table 1).",
        "The paper names neither the backbone of LPIPS nor the size, the background or the given view of table 1; the column "
        "LPIPS holds AlexNet's here.",
    ),
    tables=(
        Table(
            "NeRSemble, novel views",
            "SpinMeRound, table 1",
            _SPMR_COLUMNS,
            (
                ("EG3D", (0.025, 0.4, 0.55, 0.31)),
                ("PanoHead", (0.012, 0.32, 0.65, 0.27)),
                ("Zero123", (0.195, 0.515, 0.55, 0.169)),
                ("Zero123-XL", (0.198, 0.51, 0.563, 0.118)),
                ("SV3D (p)", (0.087, 0.41, 0.660, 0.36)),
                ("DiffPortrait3D", (0.1, 0.5, 0.35, 0.55)),
                ("SpinMeRound", (0.033, 0.3, 0.73, 0.61)),
            ),
        ),
        Table(
            "PanoHead heads, ablation",
            "SpinMeRound, table 2",
            _SPMR_COLUMNS[:3],
            (
                ("without the input image", (0.1246, 0.4299, 0.568)),
                ("without identity", (0.028, 0.26, 0.70)),
                ("without normals", (0.056, 0.32, 0.65)),
                ("SpinMeRound", (0.018, 0.22, 0.75)),
            ),
        ),
    ),
)

_OOD = (("FID", "fid"), ("O2O", "o2o"), ("CLIP", "clip"), ("I2O", "i2o"))

GEN3D_FACE = Protocol(
    name="gen3d-face",
    identities=1024,
    input_turn=40.0,
    targets=(Targets(40),),
    steps=50,
    scale=2.0,
    setting=(
        "Table 1: 1,024 random photos of FFHQ cut out by U2-Net, 40 views made of each, no true views. Table 2: the 36 test "
        "people of FaceScape. 16 views at a time, 50 DDIM steps."
    ),
    choices=(
        "Here true views exist, so FID is to them and not to photos; 40 views at random of those an identity has.",
        "The paper does not say which 40 views, which CLIP and which pair of pictures, nor what a view without a face counts; "
        "CLIP compares with the true view here, and O2O and I2O leave out views without a face (o2o_counted and "
        "i2o_counted count them as 0).",
        "Its guidance is not stated; 2 is that of SyncDreamer and Morphable Diffusion, on which it stands. The given view is "
        "turned at most 40 degrees, as Morphable Diffusion picks it.",
        "Re-identification is dlib's with a limit of 0.6 in the paper; here it is the recogniser's that was given, and matches "
        "are counted only if --reid-limit tells its limit.",
    ),
    tables=(
        Table(
            "FFHQ photos",
            "Gen3D-Face, table 1",
            _OOD,
            (
                ("Zero-1-to-3", (78.8543, 0.4483, 0.5597, 0.1300)),
                ("SyncDreamer", (68.0294, 0.4420, 0.5883, 0.1572)),
                ("EG3D", (66.1578, 0.4623, 0.5142, 0.1531)),
                ("PanoHead", (58.1578, 0.4821, 0.5644, 0.1611)),
                ("Morphable Diffusion", (89.7443, 0.5171, 0.5359, 0.1146)),
                ("Gen3D-Face", (55.4901, 0.4536, 0.6765, 0.1716)),
            ),
        ),
        Table(
            "FaceScape, in-domain",
            "Gen3D-Face, table 2",
            (
                ("SSIM", "ssim"),
                ("LPIPS", "lpips_vgg"),
                ("FID", "fid"),
                ("Re-ID match", "reid_match"),
                ("Re-ID distance", "reid_distance"),
            ),
            (
                ("pixelNeRF", (0.7898, 0.2200, 92.61, 0.9746, 0.3912)),
                ("Zero-1-to-3", (0.5656, 0.4248, 10.97, 0.9677, 0.4193)),
                ("SSD-NeRF", (0.7225, 0.2225, 34.88, 0.9874, 0.3855)),
                ("SyncDreamer", (0.7732, 0.1854, 6.05, 0.9960, 0.3391)),
                ("PanoHead", (0.7871, 0.1914, 7.10, 0.9915, 0.3412)),
                ("Morphable Diffusion", (0.8064, 0.1653, 6.73, 0.9986, 0.3372)),
                ("Gen3D-Face", (0.7995, 0.1701, 6.1231, 0.9981, 0.3375)),
            ),
        ),
        Table(
            "FFHQ photos, ablation",
            "Gen3D-Face, ablation",
            _OOD,
            (
                ("real data only", (71.2882, 0.4317, 0.5910, 0.1428)),
                ("synthetic data only", (105.5801, 0.5355, 0.5149, 0.1011)),
                ("no pruning", (57.3138, 0.4451, 0.6624, 0.1659)),
                ("pruning (all of it)", (55.4901, 0.4536, 0.6765, 0.1716)),
                ("no joint generation", (58.4648, 0.4441, 0.6181, 0.1571)),
            ),
        ),
    ),
)

DIFFPORTRAIT360 = Protocol(
    name="diffportrait360",
    identities=125,
    input_turn=0.0,
    targets=(Targets(2, within=90.0), Targets(2, beyond=90.0)),
    steps=50,
    scale=3.0,
    setting=(
        "500 pairs of views of RenderMe-360 with different expressions, none of them trained on, apart for fronts and backs; "
        "DDIM with 50 steps, guidance 3."
    ),
    choices=(
        "Two fronts and two backs at random of each of 125 identities make the 500 pairs; the most frontal view is given.",
        "The paper names no angle between front and back: turned 90 degrees or less is front here. It names no backbone of "
        "LPIPS; the column holds AlexNet's.",
        "Its PSNR near 29 beside an SSIM near 0.55 is no PSNR of whole pictures, so do not expect to meet it.",
    ),
    tables=(
        Table(
            "RenderMe-360, novel views",
            "DiffPortrait360, table 1",
            (
                ("front PSNR", "psnr_front"),
                ("front SSIM", "ssim_front"),
                ("front LPIPS", "lpips_alex_front"),
                ("front CSIM", "id_front"),
                ("front FID", "fid_front"),
                ("back PSNR", "psnr_back"),
                ("back SSIM", "ssim_back"),
                ("back LPIPS", "lpips_alex_back"),
                ("back FID", "fid_back"),
            ),
            (
                ("PanoHead + PTI", (28.35, 0.505, 0.495, 0.471, 98.93, 28.39, 0.450, 0.432, 169.52)),
                ("SphereHead + PTI", (28.62, 0.513, 0.432, 0.556, 69.41, 28.63, 0.463, 0.413, 106.21)),
                ("Zero123", (None, None, None, 0.431, 152.03, None, None, None, 216.88)),
                ("Unique3D", (None, None, None, 0.483, 195.33, None, None, None, 285.75)),
                ("DiffPortrait3D, full heads", (28.96, 0.509, 0.425, 0.709, 49.02, 28.47, 0.373, 0.446, 91.37)),
                ("DiffPortrait360", (29.44, 0.578, 0.384, 0.746, 35.34, 30.92, 0.648, 0.313, 39.40)),
            ),
        ),
        Table(
            "NeRSemble, novel views, 512 px, backgrounds removed",
            "DiffPortrait3D, supplement",
            (("LPIPS", "lpips_alex"), ("SSIM", "ssim"), ("DISTS", "dists"), ("ID", "id"), ("FID", "fid")),
            (
                ("Zero1to3", (None, None, None, 0.09, 113.8)),
                ("PanoHead-PTI", (0.28, 0.53, 0.26, 0.38, 60.4)),
                ("DiffPortrait3D", (0.19, 0.74, 0.15, 0.70, 32.6)),
            ),
        ),
    ),
)

PROTOCOLS: dict[str, Protocol] = {p.name: p for p in (SPINMEROUND, GEN3D_FACE, DIFFPORTRAIT360)}

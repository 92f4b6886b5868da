"""Equality with the official implementation, on every case that the golden files hold."""

import numpy as np
import pytest
import torch
from golden_panohead import WHOLE, close, generator
from safetensors.torch import load_file

from datagen.sources.panohead.build import build
from datagen.sources.panohead.official import frontal_label, grid_points, shape_volume
from datagen.sources.panohead.renderer import Jitter, coarse_depths, fine_depths, interval_weights
from datagen.sources.panohead.superresolution import Superresolution
from geometry.cameras import from_eg3d_labels
from geometry.rays import rays

# Below this share of a ray, a depth is decided by the last bit of exp(), which differs between processors.
SEEN = 2e-3


def labels(cases, name: str, count: int) -> torch.Tensor:
    return cases[name].expand(count, -1)


def test_styles(tiny, cases, described):
    present = [case for case in described["mapping"] if case["out"] in cases]
    assert present
    for case in present:
        ws = tiny.mapping(cases["z"], labels(cases, case["c"], 3), case["truncation_psi"], case["truncation_cutoff"])
        close(ws, cases[case["out"]], 1e-5)


def test_camera_offset(tiny, cases, described):
    for case in described["apply_delta_c"]:
        c, psi = labels(cases, case["c"], 3), case["truncation_psi"]
        close(tiny.delta_c(cases["z"], c, psi), cases[case["out_delta"]], 1e-6)
        close(tiny.apply_delta_c(cases["z"], c, psi), cases[case["out_c"]], 1e-6)


def test_planes_and_background(tiny, cases):
    ws = cases["ws_1"][:1]
    close(tiny.planes(ws), cases["planes_const"], 2e-5)
    close(tiny.planes(ws, "none").flatten(1, 3)[:, :, ::8, ::8], cases["planes_none_stride8"], 2e-5)
    close(tiny.background(ws), cases["bcg_image_const"], 1e-5)


def test_points(tiny, cases):
    planes = tiny.planes(cases["ws_1"][:1])
    features = tiny.features(planes, cases["points"])
    close(features, cases["points_features"], 1e-5)
    sigma, colour = tiny.decode(features)
    # Raw densities go up to 64, where single precision has steps of 8e-6 and planes differ by as much.
    close(sigma, cases["points_sigma"], 1e-4)
    close(colour, cases["points_rgb"], 1e-5)
    close(tiny.density(planes, cases["points"]), cases["points_sigma"], 1e-4)


@pytest.mark.parametrize("name", ["c_front", "c_side", "c_back", "c_offpivot"])
def test_rays(cases, name):
    origins, directions = rays(from_eg3d_labels(cases[name]), 16)
    close(origins, cases[f"rays_o_{name}"][0], 1e-6)
    close(directions, cases[f"rays_d_{name}"], 1e-6)


def test_conditioning_camera(cases):
    close(frontal_label(), cases["c_front"], 1e-6)


def jitter(case: dict, cases: dict, resolution: int, config, views: int) -> Jitter:
    """The random numbers that a case was made with."""
    r, u, count = case["stratified_rand"], case["importance_u"], views * resolution**2
    stratified = r if isinstance(r, float) else cases[r.split()[-1]].reshape(count, -1)
    if u.startswith("tensor"):
        return Jitter(stratified, cases[u.split()[-1]].reshape(count, -1))
    if u.startswith("linspace"):
        return Jitter(stratified, torch.linspace(0, 1, config.depth_resolution_importance).expand(count, -1))
    assert u.startswith("(k+0.5)/N")
    return Jitter(stratified)


def select(cases, expression: str) -> torch.Tensor:
    """`ws_1[0:2]`, or `cat(a, b)` of labels."""
    if expression.startswith("cat("):
        return torch.cat([cases[name.strip()] for name in expression[4:-1].split(",")])
    name, _, rows = expression.partition("[")
    first, last = (int(n) for n in rows.rstrip("]").split(":")) if rows else (0, 1)
    return cases[name][first:last]


def test_synthesis(tiny, cases, described):
    present = [case for case in described["synthesis"] if f"{case['name']}.image" in cases]
    assert present
    for case in present:
        ws, c, resolution = select(cases, case["ws"]), select(cases, case["c"]), case["neural_rendering_resolution"]
        behind = select(cases, case["ws_bcg"]) if "ws_bcg" in case else None
        seen = tiny.synthesis(
            ws, c, resolution, behind, case["noise_mode"], jitter(case, cases, resolution, tiny.config, len(ws))
        )
        check_synthesis(
            seen, {key.partition(".")[2]: value for key, value in cases.items() if key.startswith(case["name"])}
        )


def check_synthesis(seen, official) -> None:
    close(seen.image, official["image"], 1e-3)
    close(seen.image_raw, official["image_raw"], 1e-3)
    close(seen.image_mask, official["image_mask"], 1e-4)
    depth, expected = seen.image_depth, official["image_depth"]
    met = official["image_mask"] > SEEN
    assert met.any()
    close(depth[met], expected[met], 1e-4)
    assert ((depth >= expected.min() - 1e-4) & (depth <= expected.max() + 1e-4)).all()
    if "renderer_features" in official:
        close(seen.features, official["renderer_features"], 1e-4)
        close(seen.weights, official["renderer_weights_sum"], 1e-4)


@pytest.mark.parametrize(("name", "view"), [("front", "c_front"), ("side", "c_side")])
def test_samples_along_rays(tiny, cases, described, name, view):
    case = next(case for case in described["synthesis"] if case["name"] == name)
    drawn = jitter(case, cases, 16, tiny.config, 1)
    origins, directions = cases[f"rays_o_{view}"][0].expand(256, 3), cases[f"rays_d_{view}"][0]
    renderer = tiny.identity(cases["ws_1"][:1]).renderer
    depths = coarse_depths(tiny.config, origins, drawn.stratified)
    close(depths, cases[f"{name}.depths_coarse"], 1e-6)
    sigma, _ = renderer._samples(origins, directions, depths)
    weights = interval_weights(depths, sigma)
    close(weights, cases[f"{name}.weights_coarse"], 1e-5)
    drawn_fine = drawn.importance if drawn.importance is not None else ((torch.arange(8) + 0.5) / 8).expand(256, 8)
    close(fine_depths(depths, weights, drawn_fine), cases[f"{name}.depths_fine"], 1e-5)


def test_forward(tiny, cases):
    seen = tiny(cases["z"][:1], cases["c_front"], psi=0.7, cutoff=14)
    if "forward.image" in cases:
        close(seen.image, cases["forward.image"], 1e-3)
        close(seen.image_mask, cases["forward.image_mask"], 1e-4)
    moved = tiny.synthesis(cases["ws_1"][:1], cases["c_new_1"][:1])
    close(seen.image, moved.image, 1e-4)


def test_shape_grids(tiny, cases, described):
    n = described["grid"]["N"]
    points = grid_points(n)
    close(points, cases["grid16_points"], 0)
    sigma = tiny.density(tiny.planes(cases["ws_1"][:1]), points[None])[0]
    close(sigma, cases["grid16_sigma_raw"], 1e-4)
    volumes = {script: shape_volume(sigma, script) for script in ("gen_samples", "gen_videos")}
    for script, volume in volumes.items():
        if f"grid16_{script}" in cases:
            close(torch.from_numpy(volume), cases[f"grid16_{script}"], 1e-4)
    expected = np.zeros_like(volumes["gen_samples"])
    # 30/256 of 16 voxels is one on each side, 38/256 two at the top of y.
    expected[1:-1, 1:-2, 1:-1] = volumes["gen_samples"][1:-1, 1:-2, 1:-1]
    np.testing.assert_array_equal(volumes["gen_videos"], expected)


def test_spherehead(folder):
    spherehead, spherehead_file = generator(folder, "spherehead"), load_file(folder / "spherehead_tiny.safetensors")
    case = {key.removeprefix("case."): value for key, value in spherehead_file.items() if key.startswith("case.")}
    ws = spherehead.mapping(case["z"], case["c"], psi=0.7, cutoff=14)
    close(ws, case["ws"], 1e-5)
    close(spherehead.backbone.synthesis(ws)[:, :, ::8, ::8], case["backbone_out_stride8"], 2e-5)
    planes = spherehead.planes(ws)
    close(planes, case["planes"], 2e-5)
    features = spherehead.features(planes, case["points"])
    close(features, case["points_features"], 1e-5)
    sigma, colour = spherehead.decode(features)
    close(sigma, case["points_sigma"], 1e-4)
    close(colour, case["points_rgb"], 1e-5)
    check_synthesis(
        spherehead.synthesis(ws, case["c"]),
        {key.removeprefix("synth."): value for key, value in case.items() if key.startswith("synth.")},
    )


def test_weights_are_checked_by_name_and_shape(tiny):
    state = tiny.state_dict()
    for broken, complaint in (
        ({key: value for key, value in state.items() if key != "torgb.bias"}, "torgb.bias: the checkpoint has none"),
        ({**state, "extra.weight": torch.zeros(1)}, "extra.weight: .* needs none"),
        ({**state, "torgb.bias": torch.zeros(4)}, r"torgb.bias: the checkpoint has \(4,\)"),
        ({**state, "superresolution.block0.resample_filter": torch.ones(4, 4)}, "filter"),
    ):
        with pytest.raises(ValueError, match=complaint):
            build(tiny.config, broken)


SUPERRESOLUTION = WHOLE / "sr8xdc.safetensors"
if SUPERRESOLUTION.is_file():  # 4 MB, so not in the clone; the cases above go through a smaller super-resolution

    def test_superresolution_at_release_size():
        official = load_file(SUPERRESOLUTION)
        state = {key.removeprefix("sd."): value.float() for key, value in official.items() if key.startswith("sd.")}
        network = Superresolution("SuperresolutionHybrid8XDC", 512, 512, None, 32, clamp=True, antialias=True)
        missing, unexpected = network.load_state_dict(state, strict=False)
        assert not unexpected
        assert all(key.endswith("noise_const") for key in missing)
        with torch.no_grad():
            upscale = network.at(official["in.ws"].float()[0, -1])
            image = upscale(official["in.rgb"].float(), official["in.x"].float())
        close(image[:, :, ::3, ::3], official["out.image_stride"], 1e-3)
        close(image[:, :, 200:264, 300:364], official["out.image_crop"], 1e-3)

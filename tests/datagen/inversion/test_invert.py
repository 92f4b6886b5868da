"""An identity is found in its own pictures, and becomes a head source; on the golden generator."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from golden_panohead import REDUCED, generator, gentle, read, styles
from panohead_files import generator as pickled
from panohead_files import write
from PIL import Image
from safetensors.torch import save_file

import spinset
from datagen.config import PanoHeadConfig
from datagen.inversion.config import FitConfig, InvertConfig
from datagen.inversion.fit import Fit, average_style
from datagen.inversion.invert import RESULT, STATE, from_planes, invert
from datagen.inversion.objective import SPREAD, Pictures, loss, moved, over_white, psnr, render
from datagen.sources.panohead.generator import Generator
from datagen.sources.panohead.head import PanoHeadSource
from datagen.sources.panohead.official import frontal_label, latent
from datagen.sources.panohead.superresolution import resize
from geometry.cameras import Cameras, azimuth_elevation, orbit
from infer.config import MatteConfig, PortraitConfig
from infer.inversion import invert_photos
from manifests.errors import UserError


def around(*azimuths: float) -> Cameras:
    return orbit(np.array(azimuths), np.zeros(len(azimuths)))


@torch.no_grad()
def pictures(network: Generator, *azimuths: float) -> Pictures:
    seen = render(network, styles(network), around(*azimuths))
    alpha = resize(seen.image_mask.clamp(0, 1), seen.image.shape[-1])
    return Pictures(over_white(seen), alpha, around(*azimuths))


@torch.no_grad()
def reached(fit: Fit, *azimuths: float) -> float:
    """The lowest PSNR in dB of the views of a fit."""
    return float(psnr(render(fit.generator, fit.ws, around(*azimuths)), pictures(gentle(), *azimuths)).min())


def finished(fit: Fit) -> Fit:
    """The fit after all of its steps."""
    for _ in fit.run(100):
        pass
    return fit


@pytest.fixture
def one() -> Pictures:
    return pictures(gentle(), 0.0)


@pytest.mark.parametrize("family", ["panohead", "spherehead"])
def test_gradients_are_those_of_finite_differences(family):
    """Of the style and of a weight: through super-resolution, volume rendering, the choice of samples, planes and styles."""
    network, length = gentle() if family == "panohead" else generator(REDUCED, family), 1e-3
    one = pictures(network, 0.0)
    at = {"style": average_style(network), "weight": network.decoder.first.weight}

    def value() -> torch.Tensor:
        ws = at["style"].expand(-1, network.num_ws, -1)
        return loss(render(network, ws, one.cameras), one, torch.zeros(1, 6))

    for tensor in at.values():
        tensor.requires_grad_()
    value().backward()
    for name, tensor in at.items():
        assert tensor.grad is not None
        direction = tensor.grad / tensor.grad.norm()
        with torch.no_grad():
            tensor += length * direction
            above = value()
            tensor -= 2 * length * direction
            below = value()
            tensor += length * direction
        assert float(above - below) / (2 * length) == pytest.approx(float(tensor.grad.norm()), rel=0.01), name


def test_a_known_person_is_found_from_one_picture(one):
    fit = Fit(gentle(), one, FitConfig(steps=20, tune_steps=0))
    assert reached(fit, 0.0) < 20
    finished(fit)
    assert reached(fit, 0.0) > 30
    assert reached(fit, -60.0, 60.0, 150.0) > 25


def test_three_pictures_find_more_than_one(one):
    """In a view that neither fit has seen, from behind."""
    found = {}
    for given in (one, pictures(gentle(), 0.0, 120.0, 240.0)):
        found[len(given)] = reached(finished(Fit(gentle(), given, FitConfig(steps=20, tune_steps=0))), 180.0)
    assert found[3] > found[1] + 0.5


def test_a_camera_is_found(one):
    """The picture is said to be from another side than it is."""
    fit = Fit(gentle(), replace(one, cameras=around(2.0)), FitConfig(steps=20, tune_steps=0, fit_cameras=True))
    fit.style.copy_(styles(fit.generator)[:, :1])
    finished(fit)
    assert float(azimuth_elevation(fit.cameras.c2w)[0]) == pytest.approx(0, abs=1.0)


def test_cameras_turn_about_the_head():
    offsets = torch.zeros(2, 6)
    offsets[0, 1], offsets[1, 3] = np.radians(10) / SPREAD, 0.02 / SPREAD
    found = moved(around(0.0, 0.0), offsets)
    torch.testing.assert_close(found.c2w[0], around(10.0).c2w[0], atol=1e-6, rtol=0)
    torch.testing.assert_close(
        found.positions[1] - around(0.0).positions[0], torch.tensor([0.02, 0, 0]), atol=1e-6, rtol=0
    )


@pytest.mark.parametrize("stopped_after", [1, 3])
def test_a_fit_that_is_stopped_goes_on_to_the_same_result(one, tmp_path, stopped_after):
    """After a round of the style, or among the steps of tuning."""
    config, file = FitConfig(steps=22, tune_steps=3), tmp_path / "state.safetensors"
    straight = Fit(gentle(), one, config)
    for _ in straight.run(1):
        pass
    stopped = Fit(gentle(), one, config)
    for count, _ in enumerate(stopped.run(1), 1):
        stopped.save(file)
        if count == stopped_after:
            break
    fit = Fit(gentle(), one, config)
    fit.resume(file)
    for _ in fit.run(1):
        pass
    assert torch.equal(fit.style, straight.style)
    for name, weight in straight.generator.state_dict().items():
        assert torch.equal(weight, fit.generator.state_dict()[name]), name


def test_tuning_brings_the_pictures_nearer(one):
    fit = Fit(gentle(), one, FitConfig(steps=0, tune_steps=15))
    before = reached(fit, 0.0)
    assert reached(finished(fit), 0.0) > before + 1
    assert not any(weight.requires_grad for weight in fit.generator.parameters())


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    """The solid generator as an official file."""
    kwargs = read(REDUCED, "tiny")["init_kwargs"]
    return write(tmp_path_factory.mktemp("gentle") / "gentle.pkl", G_ema=pickled(gentle().state_dict(), kwargs))


@pytest.fixture
def photo(one, tmp_path) -> Path:
    """A picture as a file with transparency."""
    rgba = torch.cat([(one.rgb[0] + 1) / 2, one.alpha[0]]).permute(1, 2, 0)
    Image.fromarray((rgba * 255 + 0.5).byte().numpy()).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


def test_a_photo_becomes_a_dataset(photo, weights, tmp_path, capsys):
    """Through the commands; a second command does nothing again, and the folder has this head alone."""
    out, heads = tmp_path / "person", tmp_path / "heads"
    command = ["invert", str(photo), "--weights", str(weights), "--out", str(out), "--aligned"]
    command += ["--steps", "20", "--tune-steps", "2"]
    assert spinset.main(command) == 0
    said = capsys.readouterr().out
    assert f"next: spinset generate HEAD --source panohead --weights {out} --identities 1" in said
    document = json.loads((out / RESULT).read_text())
    assert f"{document['psnr'][0]:.1f} dB" in said
    assert not (out / STATE).exists()
    with Image.open(out / "fit.png") as drawn:
        assert drawn.size == (6 * 128, 3 * 128)
    assert spinset.main(command) == 0
    assert capsys.readouterr().out == said

    options = ["--source", "panohead", "--weights", str(out), "--rig", "orbit-4", "--resolution", "64", "--inline"]
    options += ["--mesh.resolution", "64"]
    assert spinset.main(["generate", str(heads), "--identities", "1", *options]) == 0
    (row,) = pq.ParquetFile(next(heads.glob("shards/*.identities.parquet"))).read().to_pylist()
    assert row["latent_sha256"] == json.loads((out / "config.json").read_text())["person_sha256"]
    assert json.loads(row["facts"]) == {"inverted": True, "seed": 0}
    capsys.readouterr()
    assert spinset.main(["generate", str(tmp_path / "two"), "--identities", "2", *options]) == 2
    assert "the seeds of panohead end at 0" in capsys.readouterr().err


def test_poor_fits_are_named(one, weights, tmp_path):
    config = InvertConfig(("photo",), str(weights), str(tmp_path / "out"), fit=FitConfig(0, 0))
    found = invert(config, one, likeness=lambda first, second, cameras: [0.2])
    assert found.psnr[0] < 20
    assert [line.partition(":")[0] for line in found.warnings] == ["picture 1", "picture 1"]
    assert "another person" in str(found)
    assert found == invert(config, one)  # read from the folder


def test_several_pictures_have_the_cameras_that_are_given(photo, weights, tmp_path):
    config = InvertConfig(
        (str(photo), str(photo)), str(weights), str(tmp_path / "out"), (0.0, 90.0), (0.0, 20.0), fit=FitConfig(0, 0)
    )
    found = invert_photos(config, PortraitConfig(aligned=True, matte=MatteConfig()))
    np.testing.assert_allclose(found.azimuth, [0, 90], atol=1e-3)
    np.testing.assert_allclose(found.elevation, [0, 20], atol=1e-3)


def test_planes_of_a_file_are_a_head(weights, tmp_path):
    """As an encoder writes them: channels of one picture, without styles or with them."""
    source = PanoHeadSource(PanoHeadConfig(str(weights)))
    ws = source.generator.mapping(latent(3, 64), frontal_label(), 0.7, 14)
    planes = source.generator.planes(ws)
    save_file(
        {"planes": planes.reshape(1, -1, *planes.shape[-2:]).contiguous(), "ws": ws}, tmp_path / "planes.safetensors"
    )
    config = InvertConfig((), str(weights), str(tmp_path / "out"), planes=str(tmp_path / "planes.safetensors"))
    assert from_planes(config) == "panohead"
    head = PanoHeadSource(PanoHeadConfig(str(tmp_path / "out"))).head(0)
    views = head.render(around(30.0), 64)
    torch.testing.assert_close(views.rgb, source.head(3).render(around(30.0), 64).rgb)
    save_file({"planes": planes[:, :1].contiguous()}, tmp_path / "planes.safetensors")
    with pytest.raises(UserError, match="this generator takes"):
        from_planes(replace(config, out=str(tmp_path / "other")))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["{photo}", "--weights", "missing.pkl"], "--weights: there is no file missing.pkl"),
        (["missing.png", "--weights", "{weights}"], "there is no file missing.png"),
        (["--weights", "{weights}"], "give pictures of a person, or --planes"),
        (["{photo}", "{photo}", "--azimuths", "0", "--weights", "{weights}"], "2 pictures and 1 --azimuths"),
        (["{photo}", "--weights", "{weights}"], "a photo needs a face detector"),
        (["{photo}", "--weights", "{weights}", "--aligned", "--out", "{folder}"], "exists and holds no inversion"),
        (["--planes", "missing", "--weights", "{weights}"], "--planes: there is no file missing"),
    ],
)
def test_mistakes_are_one_line(photo, weights, tmp_path, capsys, options, message):
    places = {"photo": photo, "weights": weights, "folder": tmp_path}
    options = [option.format(**places) for option in options]
    if "--out" not in options:
        options += ["--out", str(tmp_path / "out")]
    assert spinset.main(["invert", *options]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_another_inversion_is_not_overwritten(one, weights, tmp_path):
    config = InvertConfig(("photo",), str(weights), str(tmp_path / "out"), fit=FitConfig(0, 0))
    invert(config, one)
    with pytest.raises(UserError, match="holds another inversion"):
        invert(config, pictures(gentle(), 20.0))
    with pytest.raises(UserError, match="is a person that was fitted"):
        invert(replace(config, weights=config.out, out=str(tmp_path / "again")), one)
    (tmp_path / "out" / "person.safetensors").unlink()
    with pytest.raises(UserError, match="run spinset invert again"):
        PanoHeadSource(PanoHeadConfig(config.out))

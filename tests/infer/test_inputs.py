"""Views by models that need more than a photo: control pictures, a generated back, proxies and windows of views."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from runs import SHAPE as SPINMEROUND
from tiny_vae import write_vae
from turned_heads import turned_noise

from infer.config import DirectionsConfig, EvaluateConfig, FilesConfig, PortraitConfig, SamplerConfig, ViewsConfig
from infer.evaluation.evaluate import evaluate
from infer.inputs import open_control
from infer.make import views
from infer.views import ViewSampler, offloaded, open_sampler, plan_windows, windows_of
from manifests.errors import UserError
from spinset import main
from train.diffusion.process import DDPM, EDM, gaussian, proxy_noise
from train.families.diffportrait.config import DiffPortraitConfig
from train.networks.config import About, UNetShape
from train.networks.model import Model, load_vae, save_model

SHAPE = UNetShape((16, 16), (True, True), blocks=1, heads=2, context=8, joint_from=2, groups=4)
CONFIG = DiffPortraitConfig(SHAPE, prompt=False)
TURNS = ((0.0, 40.0), (145.0, 180.0))
PIXELS = 32


def build(folder: Path, config: DiffPortraitConfig = CONFIG, **about) -> Model:
    """A model whose every weight is random, those of layers that start at zero as well."""
    fields = {"trained_on": "noise", "resolution": PIXELS, "conditions": (2,), "turns": TURNS, "identity": False}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = config.build(load_vae(write_vae(folder / "vae")), About(**{**fields, **about}))
        for weight in model.network.parameters():
            if not weight.any():
                torch.nn.init.normal_(weight, std=0.2)
    model.network.eval()
    return model


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Model:
    return build(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def folders(tmp_path_factory, model) -> dict[str, str]:
    """The folders of the model, of one without control pictures, of a generator of the back, and of another family's."""
    root = tmp_path_factory.mktemp("saved")
    one_view = replace(CONFIG, references=1, temporal=None)
    made = {
        "model": model,
        "rays": build(root / "1", replace(CONFIG, control="rays")),
        "back": build(root / "2", one_view, conditions=(1,), turns=TURNS[:1]),
        "plain": SPINMEROUND.build(load_vae(write_vae(root / "3")), About("noise", 16)),
    }
    for name, one in made.items():
        save_model(one, root / name)
    return {name: str(root / name) for name in made}


@pytest.fixture(scope="module")
def strangers(tmp_path_factory) -> str:
    """Two heads on a ring of 12 views."""
    folder = tmp_path_factory.mktemp("strangers") / "data"
    return turned_noise(folder, 2, 12, resolution=PIXELS, seed=100).storage.url


@pytest.fixture
def photo(tmp_path) -> str:
    return picture(tmp_path / "photo.png", 9)


def picture(file: Path, seed: int, size: int = 64) -> str:
    pixels = np.full((size, size, 4), 255, np.uint8)
    pixels[..., :3] = np.random.default_rng(seed).integers(0, 256, (size, size, 3))
    pixels[: size // 8, :, 3] = 0
    Image.fromarray(pixels).save(file)
    return str(file)


def config(folder: str, photo: str, out: Path, **changes) -> ViewsConfig:
    fields = {
        "photos": (photo,),
        "out": str(out),
        "directions": DirectionsConfig(12),
        "sampler": SamplerConfig(steps=2, precision="fp32"),
        "portrait": PortraitConfig(aligned=True),
        "files": FilesConfig(("images", "sheet")),
    }
    return ViewsConfig(folder, **{**fields, **changes})


def written(out: Path) -> np.ndarray:
    return np.stack([np.asarray(Image.open(file)) for file in sorted(out.glob("images/*.png"))])


class TestViews:
    def test_a_photo_and_a_made_back_become_views(self, folders, strangers, photo, tmp_path):
        lines = list(views(config(folders["model"], photo, tmp_path / "a", control=strangers, back=folders["back"])))
        assert lines[0].endswith("a: 12 views")
        assert "back.png is the back that was made as a reference, from azimuth 180, elevation 0" in lines
        pictures = written(tmp_path / "a")
        assert pictures.shape[:3] == (12, PIXELS, PIXELS)
        back = np.asarray(Image.open(tmp_path / "a" / "back.png"))
        # Giving that back as a second photo gives the same views, up to the 8 bits and the frame of a photo.
        assert back.shape == (PIXELS, PIXELS, 3)
        other = list(views(config(folders["model"], photo, tmp_path / "b", control=strangers)))
        assert "the model was not trained on 1 given views, which some of these were made from" in other
        assert not np.array_equal(pictures, written(tmp_path / "b"))

    def test_a_folder_of_pictures_is_a_stranger_too(self, folders, strangers, photo, tmp_path):
        own = open_control(strangers, np.zeros(0), np.zeros(0))
        azimuth, elevation = DirectionsConfig(12).of_views(())
        folder = tmp_path / "pictures"
        folder.mkdir()
        for number, rgb in enumerate(own.read(azimuth, elevation)):
            Image.fromarray(np.kron(rgb, np.ones((2, 2, 1), np.uint8))).save(folder / f"{number:02d}.png")
        for name, control in (("a", strangers), ("b", str(folder))):
            list(views(config(folders["model"], photo, tmp_path / name, control=control)))
        assert np.array_equal(written(tmp_path / "a"), written(tmp_path / "b"))

    def test_rays_need_no_stranger(self, folders, photo, tmp_path):
        list(views(config(folders["rays"], photo, tmp_path / "a", directions=DirectionsConfig(4))))
        pictures = written(tmp_path / "a")
        turned = DirectionsConfig(azimuths=(10.0, 100.0, 190.0, 280.0))
        list(views(config(folders["rays"], photo, tmp_path / "b", directions=turned)))
        assert len(pictures) == 4 and not np.array_equal(pictures, written(tmp_path / "b"))

    def test_the_papers_views_are_the_default(self, folders, photo, tmp_path):
        list(views(config(folders["rays"], photo, tmp_path / "a", directions=DirectionsConfig())))
        assert len(written(tmp_path / "a")) == 32
        frontal = replace(CONFIG, temporal="diffportrait3d")
        assert (frontal.azimuths[0], frontal.azimuths[-1], len(frontal.azimuths)) == (-60, 60, 16)

    def test_proxies_change_the_views(self, folders, photo, tmp_path):
        folder = tmp_path / "proxies"
        folder.mkdir()
        for number in range(4):
            picture(folder / f"{number}.png", number)
        few = {"directions": DirectionsConfig(4)}
        list(views(config(folders["rays"], photo, tmp_path / "a", **few)))
        list(views(config(folders["rays"], photo, tmp_path / "b", proxies=str(folder), **few)))
        assert not np.array_equal(written(tmp_path / "a"), written(tmp_path / "b"))

    @pytest.mark.parametrize(
        ("given", "message"),
        [
            ({}, r"needs --control: a dataset, or a folder with a picture for each view"),
            (
                {"control": "STRANGERS", "directions": DirectionsConfig(7)},
                r"has no picture from azimuth 51.4286, elevation 0",
            ),
            ({"control": "EMPTY"}, r"--control is .*empty, which has 0 pictures; 12 views need one each"),
            ({"control": "FOLDER"}, r"--control is .*, which has 3 pictures; 12 views need one each"),
            (
                {"control": "STRANGERS", "proxies": "FOLDER"},
                r"--proxies is .*, which has 3 pictures; 12 views need one each",
            ),
            ({"control": "STRANGERS", "proxies": "nowhere"}, r"there is no folder nowhere; --proxies"),
            (
                {"control": "STRANGERS", "photo_azimuths": (90.0,)},
                r"photo 2 is turned 90 degrees from the front; this model takes 145 to 180 degrees there",
            ),
            ({"control": "STRANGERS", "portrait": PortraitConfig(True, 60.0)}, r"photo 1 is turned 60 degrees"),
            (
                {"control": "STRANGERS", "directions": DirectionsConfig(12, angles="spinmeround")},
                r"--angles spinmeround is",
            ),
            (
                {"control": "STRANGERS", "sampler": SamplerConfig(overlap=8)},
                r"--overlap is 8; windows have 8 views, give less",
            ),
        ],
    )
    def test_mistakes_are_one_line_before_anything_is_made(self, folders, strangers, photo, tmp_path, given, message):
        folder = tmp_path / "pictures"
        folder.mkdir()
        for number in range(3):
            picture(folder / f"{number}.png", number)
        (tmp_path / "empty").mkdir()
        names = {"STRANGERS": strangers, "FOLDER": str(folder), "EMPTY": str(tmp_path / "empty")}
        given = {name: names.get(value, value) if isinstance(value, str) else value for name, value in given.items()}
        photos = (photo, photo) if "photo_azimuths" in given else (photo,)
        with pytest.raises((UserError, FileNotFoundError), match=message):
            list(views(config(folders["model"], photo, tmp_path / "a", **{"photos": photos, **given})))
        assert not (tmp_path / "a").exists()

    @pytest.mark.parametrize("option", ["--proxies", "--back", "--overlap", "--control"])
    def test_other_families_take_none_of_it(self, folders, strangers, photo, tmp_path, capsys, option):
        value = {"--overlap": "2", "--back": folders["rays"], "--control": strangers}.get(option, str(tmp_path))
        args = ["views", folders["plain"], photo, "--out", str(tmp_path / "a"), "--aligned", option, value]
        assert main(args) == 2
        message = capsys.readouterr().err
        assert message.count("\n") == 1 and ("sampled in windows" in message or "takes no control pictures" in message)

    def test_a_missing_part_is_named(self, folders, strangers, photo, tmp_path, capsys):
        import shutil

        broken = shutil.copytree(folders["model"], tmp_path / "broken")
        shutil.rmtree(broken / "control")
        args = ["views", str(broken), photo, "--out", str(tmp_path / "a"), "--aligned", "--control", strangers]
        assert main(args) == 2
        assert "is not whole: it has no control/diffusion_pytorch_model.safetensors" in capsys.readouterr().err

    def test_heads_need_a_photo(self, folders, tmp_path, capsys):
        assert main(["heads", folders["model"], "--out", str(tmp_path / "a")]) == 2
        assert "makes views of a photo; spinset views takes it" in capsys.readouterr().err


class TestWindows:
    def test_windows_cover_all_views(self):
        for count in (1, 7, 8, 9, 16, 32):
            for overlap in (0, 2, 4):
                for closed in (False, True):
                    windows = windows_of(count, 8, overlap, closed)
                    assert sorted({view for window in windows for view in window}) == list(range(count))
                    assert all(len(set(window)) == len(window) <= 8 for window in windows)

    def test_windows_of_the_paper(self):
        assert windows_of(32, 8, 0, True) == [tuple(range(start, start + 8)) for start in (0, 8, 16, 24)]
        assert windows_of(16, 8, 4, False) == [tuple(range(start, start + 8)) for start in (0, 4, 8)]
        assert windows_of(16, 8, 4, True)[-1] == (12, 13, 14, 15, 0, 1, 2, 3)

    def test_a_plan_samples_every_view_and_closes_rings_only(self):
        ring, arc = np.arange(16) * 22.5, np.arange(16) * 8.0 - 60
        plan = plan_windows(ring, np.zeros(16), (0.0, 180.0), overlap=4)
        assert plan.photos == (0, 1) and plan.wanted == tuple(range(2, 18))
        assert [
            len(call.windows) for call in (plan.calls[0], plan_windows(arc, np.zeros(16), (0.0,), overlap=4).calls[0])
        ] == [4, 3]
        assert plan_windows(ring, np.zeros(16), (0.0,)).call_numbers.tolist() == [0] * 8 + [1] * 8

    def test_windows_are_independent_without_an_overlap(self, model):
        """As released: a window alone gives the same views."""
        sampler = ViewSampler(model, SamplerConfig(steps=2, precision="fp32"))
        control = gaussian(1, "control", range(12), torch.zeros(12, 3, PIXELS, PIXELS)).clamp(-1, 1)
        given = {place: gaussian(2, "photo", [place], torch.zeros(1, 4, 4, 4))[0] for place in (0, 1)}
        azimuth = np.arange(12) * 30.0
        whole = sampler.sample(plan_windows(azimuth, np.zeros(12), (0.0, 180.0)), given, None, control=control).rgb
        part = sampler.sample(
            plan_windows(azimuth[:8], np.zeros(8), (0.0, 180.0)), given, None, control=control[:8]
        ).rgb
        torch.testing.assert_close(whole[:8], part)
        joined = sampler.sample(
            plan_windows(azimuth, np.zeros(12), (0.0, 180.0), overlap=4), given, None, control=control
        )
        assert (joined.rgb - whole).abs().max() > 1e-3

    def test_weights_outside_of_the_device_make_the_same_views(self, model, tmp_path):
        plan, settings = (
            plan_windows(np.arange(4) * 90.0, np.zeros(4), (0.0,)),
            SamplerConfig(steps=2, precision="fp32"),
        )
        given, control = {0: torch.ones(4, 4, 4)}, torch.zeros(4, 3, 8, 8)
        sampler = ViewSampler(offloaded(build(tmp_path), "cpu"), settings)
        here = ViewSampler(model, settings).sample(plan, given, None, control=control)
        assert torch.equal(sampler.sample(plan, given, None, control=control).rgb, here.rgb)
        save_model(model, tmp_path / "model")
        with pytest.raises(UserError, match=r"--offload keeps weights outside of a GPU; give --device cuda"):
            open_sampler(str(tmp_path / "model"), replace(settings, offload=True), "cpu")

    def test_evaluations_are_counted(self, model):
        sampler, calls = ViewSampler(model, SamplerConfig(steps=2, precision="fp32")), []
        plan = plan_windows(np.arange(12) * 30.0, np.zeros(12), (0.0,), overlap=4)
        sampler.sample(plan, {0: torch.zeros(4, 4, 4)}, None, lambda: calls.append(1), torch.zeros(12, 3, 8, 8))
        assert len(calls) == sampler.evaluations(plan) == 2 * 3


class TestNoise:
    def test_a_proxy_keeps_a_fifteenth_of_its_latents(self):
        latents, none = torch.ones(1, 2, 4, 8, 8), torch.zeros(1, 2, 4, 8, 8)
        assert proxy_noise(none, latents, DDPM()).unique().item() == pytest.approx(0.0683, abs=5e-5)
        noise = gaussian(0, "noise", [0, 1], latents[0])[None]
        started = proxy_noise(noise, latents, DDPM())
        assert float(started.var()) == pytest.approx(1 - 0.0683**2, abs=0.1)
        assert proxy_noise(none, latents, EDM()).max() < 0.002

    def test_each_step_and_view_has_its_own_noise(self, model):
        def made(**changes) -> torch.Tensor:
            sampler = ViewSampler(model, SamplerConfig(**{"steps": 2, "precision": "fp32", **changes}))
            plan = plan_windows(np.arange(4) * 90.0, np.zeros(4), (0.0,))
            return sampler.sample(plan, {0: torch.zeros(4, 4, 4)}, None, control=torch.zeros(4, 3, 8, 8)).rgb

        assert torch.equal(made(), made(eta=0.5))  # the share of the released sampler
        assert not torch.equal(made(), made(eta=0.0))
        torch.testing.assert_close(made(eta=0.0), made(eta=0.0, sampler="ddim"))
        with pytest.raises(UserError, match=r"--eta is 0.5, and --sampler heun adds no noise"):
            SamplerConfig(eta=0.5, sampler="heun")


@pytest.fixture(scope="module")
def people(tmp_path_factory) -> str:
    """Two other heads on the same ring."""
    folder = tmp_path_factory.mktemp("people") / "data"
    return turned_noise(folder, 2, 12, resolution=PIXELS, seed=0).storage.url


class TestEvaluation:
    def test_views_are_measured_with_strangers_of_the_same_rig(self, folders, people, strangers, tmp_path):
        settings = EvaluateConfig(
            folders["model"], people, out=str(tmp_path / "out"), control=strangers, cross_control=True, back=folders["back"],
            steps=2, weights=str(tmp_path), recogniser="", overlap=2,
        )  # fmt: skip
        folder, failed = evaluate(settings)
        assert not failed
        import json

        found = json.loads((folder / "results.json").read_text())
        text = json.dumps(found)
        assert '"control_ssim"' in text and '"border_ratio"' in text
        with pytest.raises(UserError, match=r"overlap"):
            evaluate(replace(settings, overlap=0))
        lonely = turned_noise(tmp_path / "lonely", 1, 12, resolution=PIXELS, seed=100).storage.url
        with pytest.raises(UserError, match=r"which has 1 heads; 2 are needed"):
            evaluate(replace(settings, control=lonely, out=str(tmp_path / "other")))

    @pytest.mark.parametrize(
        ("control", "message"),
        [
            ("", r"needs --control"),
            ("ring", r"of rig orbit-5; the people of .* have rig orbit-12, give control pictures of the same"),
            ("people", r"--control shows heads of .*; generate strangers with another --seed"),
        ],
    )
    def test_strangers_are_of_the_rig_and_no_held_out_people(self, folders, people, tmp_path, control, message):
        ring = turned_noise(tmp_path / "ring", 2, 5, resolution=PIXELS, seed=100).storage.url
        source = {"ring": ring, "people": people}.get(control, "")
        with pytest.raises(UserError, match=message):
            evaluate(EvaluateConfig(folders["model"], people, out=str(tmp_path / "out"), control=source))

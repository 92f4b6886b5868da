"""The whole of `spinset evaluate` with a model of eight steps, on noise and on procedural heads."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import tyro
from PIL import Image
from runs import SHAPE, tiny_config
from stages import FiveDots, facescape
from turned_heads import turned_heads, turned_noise
from turns import ball_turn

from faces.models import load_arcface
from filters.config import ArcFaceConfig, ScoreConfig
from filters.score import score
from infer.config import EvaluateConfig
from infer.evaluation.config import check_embedded
from infer.evaluation.evaluate import EvaluationOutcome, open_evaluation
from infer.evaluation.evaluate import evaluate as evaluate_people
from infer.evaluation.held_out import HeldOut, StoredPeople, choose_people, choose_views
from infer.evaluation.measure import measure, open_metrics, true_views
from infer.evaluation.methods import EvaluatedViews, copied_input, noise_seed, sample_views
from infer.evaluation.protocols import PROTOCOLS
from infer.evaluation.results import ROWS_FILE
from infer.metrics.likeness import FaceEmbedder
from jobs.pool import PoolConfig
from manifests.errors import UserError
from spinset import main
from train.batch import to_bytes
from train.families import load_model
from train.networks.model import save_model
from train.run.trainer import run
from weights.embedded import EMBEDDED
from weights.files import sha256


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("evaluate")


@pytest.fixture(scope="module")
def noise(place) -> str:
    return turned_noise(place / "noise").storage.url


@pytest.fixture(scope="module")
def heads(place) -> str:
    return turned_heads(place / "heads", [52, 53]).storage.url


@pytest.fixture(scope="module")
def model(place) -> str:
    return str(run(tiny_config(turned_noise(place / "training"), place)))


def config(model: str, data: str, out: Path, **changes) -> EvaluateConfig:
    return EvaluateConfig(**{"model": model, "data": data, "out": str(out), "steps": 2, "weights": str(out), **changes})


def evaluate(config: EvaluateConfig, **options) -> Path:
    """Evaluate, with nobody failing."""
    found = evaluate_people(config, **options)
    assert found == EvaluationOutcome(Path(config.out), {})
    return found.folder


def results(out: Path, method: str = "model") -> dict[str, dict]:
    document = json.loads((out / "results.json").read_text())
    return {row["name"]: row for row in document["results"][method]}


def test_everything_is_written_and_nothing_is_measured_twice(model, noise, tmp_path):
    out = evaluate(config(model, noise, tmp_path / "out", identities=2))
    lines = (out / ROWS_FILE).read_text().splitlines()
    assert len(lines) == 3
    rows = results(out)
    assert rows["l2"]["count"] == 8 and rows["l2"]["stderr"] > 0
    assert rows["l2_front"]["count"] + rows["l2_back"]["count"] == 8
    assert rows["normal_error"]["count"] == 8
    assert "--recogniser" in rows["id"]["reason"]
    assert "never downloaded" in rows["fid"]["reason"]
    assert rows["lpips_alex"]["reason"] == "pictures of 16 pixels are too small for it; it takes 32 or more"
    text = (out / "results.md").read_text()
    assert "| SpinMeRound | 0.033 | 0.3 | 0.73 | 0.61 |" in text and "| **this model** |" in text
    assert (
        "The numbers of the papers are their own" in text
        and "People have 4 views to make where the protocol has 10" in text
    )
    assert rows["border_ratio"]["reason"].startswith("no two calls of the sampler")
    page = (out / "failures.html").read_text()
    assert page.count("data:image/png;base64,") == 2 and "http" not in page
    # More people take the rows that are there.
    again = evaluate(config(model, noise, tmp_path / "out", identities=4))
    assert (again / ROWS_FILE).read_text().splitlines()[:3] == lines
    assert results(out)["l2"]["count"] == 16


def test_killed_and_resumed_is_the_straight_run(model, noise, tmp_path):
    straight = evaluate(config(model, noise, tmp_path / "straight", weights=str(tmp_path)))
    lines = (straight / ROWS_FILE).read_text().splitlines(keepends=True)
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / ROWS_FILE).write_text("".join(lines[:2]) + lines[2][: len(lines[2]) // 2])
    evaluate(config(model, noise, broken, weights=str(tmp_path)))
    kept = [
        [{**json.loads(line), "seconds": 0} for line in (f / ROWS_FILE).read_text().splitlines()]
        for f in (straight, broken)
    ]
    assert json.dumps(kept[0]) == json.dumps(kept[1])
    assert results(straight) == results(broken)
    with pytest.raises(
        ValueError, match=r"holds an evaluation with other settings \(steps was 2, is 3\); give another"
    ):
        evaluate(config(model, noise, broken, weights=str(tmp_path), steps=3))


def test_identities_of_the_input_view_and_two_baselines(model, heads, place, tmp_path):
    """The recogniser and CLIP are real, the model is not: it has another resolution than the heads, which are reduced."""
    knowing = load_model(model)
    save_model(replace(knowing, about=replace(knowing.about, identity=True, resolution=64)), tmp_path / "knowing")
    for table in (heads, turned_heads(place / "others", [53, 52]).storage.url):
        score(ScoreConfig(table, ("arcface",), arcface=ArcFaceConfig(min_views=2), pool=PoolConfig(inline=True)))
    out = evaluate(
        config(
            str(tmp_path / "knowing"),
            heads,
            tmp_path / "out",
            protocol="gen3d-face",
            recogniser="embedded",
            nearest=str(place / "others"),
            embeddings="arcface",
            reid_limit=1.2,
        ),
        clip=lambda pictures: pictures.reshape(len(pictures), -1).astype(np.float32) - 128,
    )
    rows = [json.loads(line) for line in (out / ROWS_FILE).read_text().splitlines()[1:]]
    # Both heads are in both sets, and no head is nearer to one than itself.
    assert {row["name"]: row["nearest"] for row in rows} == {"0": "1", "1": "0"}
    for row in rows:
        nearest = row["methods"]["nearest"]["views"]
        assert nearest["l2"] == [0.0] * 5
        assert np.nanmin(nearest["id"]) == pytest.approx(1, abs=1e-4)
    assert "1 of the held-out identities are heads of the training set" in (out / "results.md").read_text()
    copy = results(out, "copy")
    assert copy["detection_rate"]["value"] == 1 and copy["i2o"]["value"] == pytest.approx(1, abs=1e-4)
    assert copy["clip"]["value"] > results(out)["clip"]["value"]
    assert results(out)["detection_rate"]["value"] < 1
    assert "FaceScape, in-domain" in (out / "results.md").read_text()


def test_what_shows_the_truth_has_no_error(heads):
    """The metrics themselves, on views that are the true ones."""
    people = StoredPeople(heads, "", "", 64)
    held = people.person("0").read(np.arange(6))
    metrics = open_metrics(64, "nowhere", "cpu", FaceEmbedder(load_arcface(str(EMBEDDED / "arcface.onnx"))), None, 0.0)
    truth = true_views(metrics, held)
    found = measure(metrics, truth, EvaluatedViews(held.rgb[1:], None, held.cameras[slice(1, None)], held.points))
    assert found["views"]["l2"] == [0.0] * 5 and found["views"]["psnr"] == [np.inf] * 5
    assert found["views"]["ssim"] == pytest.approx([1.0] * 5, abs=1e-4)
    np.testing.assert_allclose([x for x in found["views"]["id"] if not np.isnan(x)], 1, atol=1e-5)
    copy = measure(metrics, truth, copied_input(held))
    assert copy["person"]["detection_rate"] == 1 and copy["person"]["o2o"] == pytest.approx(1, abs=1e-5)
    assert found["person"]["detection_rate"] == 0.4
    assert min(copy["views"]["l2"]) > 0


def test_views_do_not_depend_on_who_else_is_made(model, noise, tmp_path):
    evaluation = open_evaluation(config(model, noise, tmp_path / "out", scale=2.0))
    # Eight steps of training leave so small weights that the normals of the input can change less than 8 bits show.
    for weight in evaluation.sampler.model.network.parameters():
        weight.data *= 3
    read = {name: evaluation.read(name) for name in ("1", "2")}
    one = evaluation.views(*read["2"])
    assert torch.equal(one.rgb, evaluation.views(*read["2"]).rgb)
    assert one.rgb.shape == (4, 3, 16, 16) and one.normal is not None
    assert not torch.equal(one.rgb, evaluation.views(*read["1"]).rgb)
    held, portrait = read["2"]
    for stages, normals in ((1, "own"), (2, "stored")):
        other = sample_views(evaluation.sampler, held, portrait.rgb, None, stages, normals)
        assert other.rgb.shape == one.rgb.shape and not torch.equal(other.rgb, one.rgb)
    sampler = evaluation.sampler
    blind = replace(sampler.model, about=replace(sampler.model.about, conditions=(0,)))
    alone = [sample_views(replace(sampler, model=blind), held, p, None).rgb for p in (portrait.rgb, -portrait.rgb)]
    assert torch.equal(*alone)


@pytest.mark.parametrize("identity", [False, True])
def test_what_is_measured_are_the_bytes_that_views_writes(model, heads, tmp_path, identity):
    """Of the same person from the same view, with the same directions, seed and steps; through both commands' own code."""
    knowing = load_model(model)
    recogniser = sha256(EMBEDDED / "arcface.onnx") if identity else ""
    about = replace(knowing.about, identity=identity, recogniser=recogniser)
    save_model(replace(knowing, about=about), tmp_path / "model")
    evaluation = open_evaluation(config(str(tmp_path / "model"), heads, tmp_path / "out"))
    held, portrait = evaluation.read("0")
    assert (portrait.identity is not None) == identity
    measured = evaluation.views(held, portrait)
    photo = evaluation.people.person("0").photo(0)
    Image.fromarray(np.dstack([photo.rgb, photo.alpha])).save(tmp_path / "photo.png")
    out = tmp_path / "views"
    arguments = ["views", str(tmp_path / "model"), str(tmp_path / "photo.png"), "--out", str(out), "--aligned"]
    arguments += ["--azimuths", *map(str, held.azimuth[1:].tolist()), "--steps", "2", "--scale", "3"]
    assert main([*arguments, "--seed", str(noise_seed("0", 0)), "--outputs", "images"]) == 0
    assert held.azimuth[0] == held.elevation[0] == 0 and len(set(measured.call.tolist())) > 1
    for folder, pictures in (("images", measured.rgb), ("normals", measured.normal)):
        written = [np.asarray(Image.open(file)) for file in sorted((out / folder).iterdir())]
        np.testing.assert_array_equal(to_bytes(pictures), np.stack(written))
    assert (out / "identity.safetensors").exists() == identity


def test_people_that_cannot_be_read_are_rows_with_a_reason(model, place, tmp_path, capsys):
    data = turned_noise(tmp_path / "damaged")
    (tar,) = Path(data.storage.root, "shards").glob("*000002.tar")
    whole = tar.read_bytes()
    tar.write_bytes(whole[:512] + bytes(len(whole) - 512))
    settings = config(model, data.storage.url, tmp_path / "out")
    found = evaluate_people(settings)
    assert list(found.failed) == ["2"] and "does not decode" in found.failed["2"]
    assert results(found.folder)["l2"]["count"] == 12
    document = json.loads((found.folder / "results.json").read_text())
    assert document["failed"] == found.failed and document["people"] == 3
    assert "* 2 could not be measured: " in (found.folder / "results.md").read_text()
    arguments = ["evaluate", model, "--data", data.storage.url, "--out", settings.out, "--steps", "2"]
    arguments += ["--weights", settings.weights]
    assert main(arguments) == 3
    assert "2 could not be measured: " in capsys.readouterr().out
    assert main([*arguments, "--max-failed", "1"]) == 0
    # The same command measures those that can be read now, and nobody else again.
    lines = (found.folder / ROWS_FILE).read_text().splitlines()
    tar.write_bytes(whole)
    assert main(arguments) == 0
    after = (found.folder / ROWS_FILE).read_text().splitlines()
    assert after[: len(lines)] == lines and len(after) == len(lines) + 1 and json.loads(after[-1])["name"] == "2"
    assert results(found.folder)["l2"]["count"] == 16


def test_if_nobody_can_be_measured_the_first_reason_is_the_error(model, tmp_path):
    data = turned_noise(tmp_path / "damaged", identities=2)
    for tar in Path(data.storage.root, "shards").glob("*.tar"):
        tar.write_bytes(bytes(tar.stat().st_size))
    with pytest.raises(UserError, match=r"none of 2 could be measured \(first: .*does not decode"):
        evaluate_people(config(model, data.storage.url, tmp_path / "out"))


def test_a_copy_of_another_set(model, tmp_path, monkeypatch):
    monkeypatch.setattr("infer.evaluation.evaluate.open_detector", lambda config: FiveDots())
    out = evaluate(config(model, str(facescape(tmp_path / "facescape")), tmp_path / "out", layout="facescape"))
    rows = results(out)
    assert rows["l2"]["count"] == 3
    assert rows["normal_error"]["reason"] == "the true normals are not known"
    assert "this model" in (out / "results.md").read_text()


@pytest.mark.parametrize(
    ("models", "option"),
    [
        ({"recogniser": "embedded"}, "--recogniser"),
        ({"recogniser": str(EMBEDDED / "arcface.onnx")}, "--recogniser"),
        ({"clip": f"local-dir:{EMBEDDED / 'clip'}"}, "--clip"),
    ],
)
def test_embedded_models_measure_procedural_heads_only(model, noise, heads, place, tmp_path, models, option):
    says = rf"trained on procedural heads only, and these are {{}}: give weights with {option}, or --allow-embedded"
    with pytest.raises(UserError, match=says.format("noise")):
        evaluate(config(model, noise, tmp_path / "out", **models))
    with pytest.raises(UserError, match=says.format("nersemble")):
        evaluate(config(model, "anywhere", tmp_path / "out", layout="nersemble", **models))
    with pytest.raises(UserError, match=says.format("pictures of an unknown source")):
        evaluate(EvaluateConfig(pair=("made", "true"), out=str(tmp_path / "out"), **models))
    assert not (tmp_path / "out").exists()
    assert not check_embedded(config(model, heads, tmp_path / "out", **models), "procedural")
    allowed = replace(config(model, noise, tmp_path / "out", **models), allow_embedded=True)
    assert check_embedded(allowed, "noise")


def test_the_embedded_recogniser_comes_by_itself_to_the_models_that_were_trained_with_it(model, heads, noise, tmp_path):
    knowing = load_model(model)
    about = replace(knowing.about, identity=True, resolution=64, recogniser=sha256(EMBEDDED / "arcface.onnx"))
    save_model(replace(knowing, about=about), tmp_path / "knowing")
    out = evaluate(config(str(tmp_path / "knowing"), heads, tmp_path / "out", identities=1, protocol="gen3d-face"))
    assert json.loads((out / "results.json").read_text())["settings"]["recogniser"] == about.recogniser
    save_model(replace(knowing, about=replace(about, resolution=16)), tmp_path / "knowing")
    with pytest.raises(UserError, match="these are noise: give weights with --recogniser, or --allow-embedded"):
        evaluate(config(str(tmp_path / "knowing"), noise, tmp_path / "other"))


def test_results_record_that_the_embedded_recogniser_was_allowed(model, noise, tmp_path):
    out = evaluate(config(model, noise, tmp_path / "out", recogniser="embedded", allow_embedded=True))
    assert json.loads((out / "results.json").read_text())["settings"]["allow_embedded"] is True


def test_the_command_line_says_all_of_it():
    def parsed(*args: str) -> EvaluateConfig:
        return tyro.cli(EvaluateConfig, args=args)

    assert parsed("--pair", "a", "b").pair == ("a", "b")
    asked = parsed(
        "heads64", "--data", "x", "--protocol", "gen3d-face", "--stage.matte.uniform", "--layout", "nersemble"
    )
    assert asked.stage.matte.uniform and asked.protocol == "gen3d-face" and asked.model == "heads64"


@pytest.mark.parametrize("angle", [0.0, 10.0, 35.0])
def test_the_error_of_normals_is_the_angle_they_are_off_by(angle):
    """Normals of a ball, turned around the direction of the camera, which changes each by another angle that is known."""
    ball = ball_turn([0, 40, 80], [0, 10, -10])
    names, points = ("a", "b", "c"), np.zeros((5, 3), np.float32)
    held = HeldOut("0", names, ball.rgb, ball.normal, None, ball.cameras, ball.azimuth, ball.elevation, points, None)
    truth = true_views(open_metrics(48, "nowhere", "cpu", None, None, 0.0), held)
    radians = np.radians(angle)
    turn = torch.tensor([[np.cos(radians), -np.sin(radians), 0], [np.sin(radians), np.cos(radians), 0], [0, 0, 1.0]])
    turned = torch.einsum("ij,vjhw->vihw", turn.float(), ball.normal[1:])
    made = EvaluatedViews(ball.rgb[1:], turned, truth.cameras, points)
    found = measure(open_metrics(48, "nowhere", "cpu", None, None, 0.0), truth, made)["views"]["normal_error"]
    expected = []
    for true in ball.normal[1:]:
        n = true[:, true.norm(dim=0) > 0.5].double()
        across = n[:2].square().sum(0)  # the part of a unit normal that turns
        expected.append(float(torch.rad2deg(torch.arccos((1 - across * (1 - np.cos(radians))).clamp(-1, 1))).mean()))
    np.testing.assert_allclose(found, expected, atol=0.02)
    assert angle == 0 or 0.4 * angle < np.mean(found) < angle


def test_which_views_are_given_and_made():
    azimuth = np.arange(-180, 180, 15).astype(np.float32)
    level = np.zeros(24, np.float32)
    places = choose_views(PROTOCOLS["spinmeround"], azimuth, level, 0, 7)
    assert len(places) == 11 == len(set(places.tolist())) and azimuth[places[0]] == 0
    assert places.tolist() == choose_views(PROTOCOLS["spinmeround"], azimuth, level, 0, 7).tolist()
    assert places.tolist() != choose_views(PROTOCOLS["spinmeround"], azimuth, level, 0, 8).tolist()
    _, *pairs = azimuth[choose_views(PROTOCOLS["diffportrait360"], azimuth, level, 0, 7)].tolist()
    assert [abs(a) <= 90 for a in pairs] == [True, True, False, False]
    inputs = {abs(float(azimuth[choose_views(PROTOCOLS["gen3d-face"], azimuth, level, 0, i)[0]])) for i in range(40)}
    assert inputs == {0, 15, 30}
    assert len(choose_views(PROTOCOLS["gen3d-face"], azimuth, level, 0, 0)) == 24
    names = [str(i) for i in range(9)]
    assert choose_people(names, 3, 0) == choose_people(names, 9, 0)[:3] != names[:3]


def test_tables_have_columns_that_are_measured():

    from infer.evaluation.measure import VIEW_METRICS
    from infer.evaluation.results import PERSON_METRICS, PICTURE_METRICS
    from infer.metrics.frechet import FID

    known = {
        *FID,
        *PERSON_METRICS,
        *(f"{m}{e}" for m in (*PICTURE_METRICS, *VIEW_METRICS) for e in ("", "_front", "_back")),
    }
    assert {metric for protocol in PROTOCOLS.values() for metric in protocol.metrics} <= known


# Errors: one line, before anything is made.


def test_what_does_not_fit(model, noise, tmp_path):
    def refused(match: str, **changes):
        with pytest.raises((ValueError, FileNotFoundError), match=match):
            evaluate(config(**{"model": model, "data": noise, "out": tmp_path / "out", **changes}))

    large = load_model(model)
    save_model(replace(large, about=replace(large.about, resolution=64)), tmp_path / "large")
    save_model(replace(large, about=replace(large.about, identity=True)), tmp_path / "knowing")
    single = replace(SHAPE, rays=None, normals=False)
    save_model(single.build(large.vae, large.about), tmp_path / "single")
    refused("has 16 px and the model makes 64; give a dataset of 64 px or more", model=str(tmp_path / "large"))
    refused("trained with identities: --embeddings names a score table", model=str(tmp_path / "knowing"))
    refused("makes single pictures; give one that was trained on several views", model=str(tmp_path / "single"))
    refused("is no model of spinset", model=str(tmp_path))
    refused("is not a dataset", data=str(tmp_path))
    refused("there is no selection 'good'", selection="good")
    refused("--nearest compares embeddings", nearest=noise)
    refused("no identity with two views or more", data=turned_noise(tmp_path / "one", views=1).storage.url)
    refused("--layout nersemble needs --detector", layout="nersemble")
    refused("give a model and --data, or two folders", model="")
    refused("--pair has 1 folders; it takes two", pair=("a",))
    refused("--stages is 3", stages=3)
    assert not (tmp_path / "out" / "results.json").exists()

"""Two folders of pictures against each other, without a model."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from infer.config import EvaluateConfig
from infer.evaluation.evaluate import evaluate
from infer.evaluation.pairs import find_pairs, read_picture
from infer.evaluation.results import results_of, save_features, worst
from infer.metrics.frechet import frechet

SIDE = 64


def picture(seed: int) -> np.ndarray:
    coarse = np.random.default_rng(seed).integers(0, 256, (8, 8, 3)).astype(np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((SIDE, SIDE)))


def folders(place: Path, count: int = 3) -> tuple[Path, Path]:
    for name, shift in (("made", 1), ("true", 0)):
        for i in range(count):
            file = place / name / f"person/{i}.{'jpg' if name == 'made' else 'png'}"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.roll(picture(i), shift, 1)).save(file, quality=95)
    return place / "made", place / "true"


def pair(place: Path, out: str = "out", **changes) -> Path:
    made, true = folders(place)
    config = EvaluateConfig(pair=(str(made), str(true)), out=str(place / out), weights=str(place), **changes)
    return evaluate(config).folder


def test_the_report_of_two_folders(tmp_path):
    out = pair(tmp_path)
    document = json.loads((out / "results.json").read_text())
    rows = {row["name"]: row for row in document["results"]["generated"]}
    expected = [
        float((read_picture(a) - read_picture(b)).div(2).square().mean())
        for a, b in find_pairs(tmp_path / "made", tmp_path / "true").values()
    ]
    assert rows["l2"]["value"] == pytest.approx(np.mean(expected), rel=1e-5)
    assert rows["l2"]["count"] == 3
    assert rows["id"]["reason"] == "without cameras a face must be found: it needs --recogniser and --detector"
    assert "l2_front" not in rows and "o2o" not in rows
    page = (out / "failures.html").read_text()
    assert page.count("data:image/png") == 3 and "person/1" in page
    assert "made against true" in (out / "results.md").read_text()
    # Nothing is measured again, and other pictures are refused.
    before = (out / "rows.jsonl").read_text()
    pair(tmp_path)
    assert (out / "rows.jsonl").read_text() == before
    Image.fromarray(picture(9)).save(tmp_path / "true" / "person" / "0.png")
    with pytest.raises(ValueError, match=r"holds an evaluation with other settings \(pair was"):
        evaluate(
            EvaluateConfig(pair=(str(tmp_path / "made"), str(tmp_path / "true")), out=str(out), weights=str(tmp_path))
        )


def test_fid_is_that_of_all_features(tmp_path):
    """From features that were kept person by person."""
    made, true = (np.random.default_rng(i).normal(size=(12, 4)).astype(np.float32) for i in (0, 1))
    rows = []
    for person in range(3):
        part = slice(4 * person, 4 * person + 4)
        save_features(tmp_path, f"a/{person}", {"model": made[part], "truth": true[part]})
        views = {"l2": [0.1 * person] * 4}
        rows.append(
            {"name": f"a/{person}", "azimuth": [0, 80, 100, 180], "methods": {"model": {"views": views, "person": {}}}}
        )
    found = {r.figure.name: r for r in results_of(rows, "model", {"ssim": "it is too small"}, tmp_path)}
    front = np.tile([True, True, False, False], 3)
    assert found["fid"].figure.value == pytest.approx(frechet(made, true))
    assert found["fid_front"].figure.value == pytest.approx(frechet(made[front], true[front]))
    assert (found["l2"].figure.value, found["l2"].figure.count) == (pytest.approx(0.1), 12)
    assert found["l2"].stderr == pytest.approx(0.1 / 3**0.5)
    assert found["ssim_back"].figure.reason == "it is too small"
    assert [row["name"] for row, _ in worst(rows, "model", "l2", 2)] == ["a/2", "a/1"]


def test_folders_that_do_not_match(tmp_path):
    made, true = folders(tmp_path)
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        find_pairs(made, tmp_path / "nowhere")
    with pytest.raises(ValueError, match="has no pictures; PNG and JPEG are read"):
        find_pairs(made, _folder(tmp_path / "empty"))
    (true / "person" / "1.png").unlink()
    with pytest.raises(ValueError, match=r"true lacks 1 of 3 pictures \(first: person/1\)"):
        find_pairs(made, true)
    Image.fromarray(picture(1)[:, :-1]).resize((SIDE + 8, SIDE)).save(true / "person" / "1.png")
    config = EvaluateConfig(pair=(str(made), str(true)), out=str(tmp_path / "out"), weights=str(tmp_path))
    (reason,) = evaluate(config).failed.values()
    assert reason.startswith(f"{made}/person/1.jpg is 64 x 64 px") and reason.endswith("72 x 64; they must be equal")
    Image.fromarray(picture(1)).save(true / "person" / "1.jpg")
    with pytest.raises(ValueError, match=r"has 1.jpg and 1.png; one of them must go"):
        find_pairs(made, true)


def _folder(place: Path) -> Path:
    place.mkdir()
    return place

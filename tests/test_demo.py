"""The demo's own decisions; the steps it strings together are tested where they belong."""

import json
from pathlib import Path

import pytest

import demo
from train.families.presets import PRESETS


@pytest.mark.parametrize("began", ["bf16", "fp32"])
def test_training_goes_on_in_the_precision_it_began_with(small_dataset, tmp_path, monkeypatch, began):
    asked = []
    monkeypatch.setattr(demo, "run", lambda config: asked.append(config) or Path(config.out) / "model")
    demo.train_a_little(str(tmp_path / "demo"), small_dataset)
    (tmp_path / "demo" / "run").mkdir(parents=True)
    (tmp_path / "demo" / "run" / "config.json").write_text(json.dumps({"precision": began}))
    demo.train_a_little(str(tmp_path / "demo"), small_dataset)
    assert PRESETS["small"].config.precision == "auto"
    assert [config.precision for config in asked] == ["auto", began]

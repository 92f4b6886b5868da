from dataclasses import replace

import pytest
from runs import alone, logged, tiny_config

from train.families import load_model
from train.run.config import RayConfig
from train.run.launch_ray import launch


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::ResourceWarning")
def test_ray_launches_the_very_same_run(make, tmp_path, monkeypatch):
    # local starts its own cluster, whatever other one this environment names.
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    config = tiny_config(make(identities=6, views=4), tmp_path, samples=8)
    here, there = replace(config, out=str(tmp_path / "here")), replace(config, out=str(tmp_path / "there"))
    alone(here)
    model = launch(there, RayConfig("local", workers=2, failures=0))
    assert logged(there) == pytest.approx(logged(here), abs=1e-5)
    assert load_model(model).about.samples_seen == 8


def test_batches_that_do_not_divide_are_refused_before_ray_starts(make, tmp_path):
    config = tiny_config(make(views=4), tmp_path)
    with pytest.raises(ValueError, match=r"does not divide among 3 ranks; take 3 or 6"):
        launch(config, RayConfig("local", workers=3))


def test_settings_that_cannot_be():
    with pytest.raises(ValueError, match=r"--ray.workers is 0"):
        RayConfig(workers=0)

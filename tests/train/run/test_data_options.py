"""Blends and streams as options of `spinset train`, up to the model and through a resume."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import spinset
from manifests.dataset import Dataset


@pytest.fixture
def train(make, tmp_path):
    """Runs the preset `small` on heads of noise with further options; returns its exit code."""
    dataset = make(identities=6, views=8)

    def train(out: str, *options: str, cached: bool = False) -> int:
        plain = ["--data", dataset.storage.url, "--out", str(tmp_path / out), "--loader.embeddings", ""]
        plain += ["--loader.resolution", "16", "--loader.workers", "0", "--save-every", "8", "--precision", "fp32"]
        plain += ["--optim.cooldown", "0"]  # with it, the number of samples changes the rate
        plain += [] if cached else ["--no-latents"]
        return spinset.main(["train", "small", *plain, *options])

    return train


@pytest.fixture
def other(make) -> Dataset:
    return make(identities=5, views=8, name="other", seed=50)


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "model" / "unet" / "diffusion_pytorch_model.safetensors")


def history(run: Path) -> list[str]:
    return json.loads((run / "model" / "model.json").read_text())["about"]["history"]


def test_a_blend_trains_and_resumes_bit_for_bit(train, other, tmp_path):
    options = ("--loader.blend", other.storage.url, "--loader.blend-weights", "1", "2")
    assert train("straight", *options, "--samples", "16") == 0
    assert train("broken", *options, "--samples", "8") == 0
    assert train("broken", *options, "--samples", "16") == 0
    ours, theirs = (weights(tmp_path / name) for name in ("straight", "broken"))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert history(tmp_path / "broken") == ["--samples 16 instead of 8 from 8 samples on"]
    about = json.loads((tmp_path / "broken" / "model" / "model.json").read_text())["about"]
    assert about["trained_on"] == "6 noise heads and 5 noise heads"
    assert train("alone", "--samples", "16") == 0
    alone = weights(tmp_path / "alone")
    assert any(not torch.equal(ours[name], alone[name]) for name in ours)


def test_another_blend_is_refused_on_resume(train, other, capsys):
    options = ("--loader.blend", other.storage.url)
    assert train("run", *options, "--samples", "4") == 0
    capsys.readouterr()
    assert train("run", "--samples", "8") == 2
    assert "of a run with other settings (loader.datasets " in capsys.readouterr().err
    assert train("run", *options, "--loader.blend-weights", "1", "3", "--samples", "8") == 2
    assert "of a run with other settings (loader.blend_weights " in capsys.readouterr().err


def test_heads_of_any_dataset_of_a_blend_are_not_held_out(train, other, capsys):
    options = ("--loader.blend", other.storage.url, "--validation.data", other.storage.url)
    assert train("run", *options, "--samples", "4") == 2
    assert "5 of the 5 heads of --validation.data" in capsys.readouterr().err


def test_a_stream_trains_and_says_that_a_resume_skips_the_remainder_of_its_epoch(train, tmp_path, capsys):
    options = ("--loader.sequential", "--loader.buffer", "4")
    assert train("run", *options, "--samples", "8") == 0
    capsys.readouterr()
    assert train("run", *options, "--samples", "16") == 0
    note = "the stream begins a new epoch: what was left of the last one is skipped"
    assert capsys.readouterr().err.count(note) == 1
    assert note in history(tmp_path / "run")
    saved = json.loads((tmp_path / "run" / "checkpoints" / "000000000008" / "checkpoint.json").read_text())
    assert json.loads(saved["loader"])["epoch"] == 2
    assert train("run", "--samples", "24") == 2
    assert "loader.sequential " in capsys.readouterr().err


def test_streams_of_cached_latents_are_refused(train, capsys):
    assert train("run", "--loader.sequential", cached=True) == 2
    assert "--loader.sequential reads pictures out of shards; give --no-latents" in capsys.readouterr().err


def test_the_help_states_what_a_stream_does_not_promise(capsys):
    with pytest.raises(SystemExit):
        spinset.main(["train", "small", "--help"])
    shown = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "the order is shuffled in a buffer only, and a resume begins a new epoch" in shown
    assert "--loader.blend-weights" in shown


def test_checkpoints_from_before_these_options_are_resumed(train, tmp_path):
    assert train("run", "--samples", "8") == 0
    file = tmp_path / "run" / "checkpoints" / "000000000008" / "checkpoint.json"
    about = json.loads(file.read_text())
    for name in ("blend", "blend_weights", "sequential", "buffer"):
        del about["config"]["loader"][name]
    file.write_text(json.dumps(about))
    assert train("run", "--samples", "12") == 0

"""CLIP through open_clip: cosines as open_clip gives them, from local files only, and clear words for wrong ones."""

import json
import os
import re
import socket
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from tiny import TINY_CLIP, write_clip

from filters.config import ClipConfig
from filters.scorers.clip_janus import BACK, FRONT, ClipScorer, load_clip
from manifests.errors import UserError


@pytest.fixture(autouse=True)
def _offline(monkeypatch):
    def refuse(*_):
        raise AssertionError("something reaches for the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)


def test_cosines_are_open_clip_s(tiny_clip):
    import open_clip

    name = f"local-dir:{tiny_clip}"
    model, _, preprocess = open_clip.create_model_and_transforms(name)
    tokens = open_clip.get_tokenizer(name)([FRONT, BACK])
    pictures = np.random.default_rng(0).integers(0, 256, (3, 80, 80, 3), np.uint8)
    with torch.no_grad():
        seen = model.eval().encode_image(torch.stack([preprocess(Image.fromarray(p)) for p in pictures]))
        said = model.encode_text(tokens)
        expected = torch.nn.functional.cosine_similarity(seen[:, None], said[None], dim=-1)
    scorer = ClipScorer(ClipConfig(name), "cpu")
    found = scorer.score(scorer.clip.prepare(pictures))
    np.testing.assert_allclose(np.stack([found["front"], found["back"]], -1), expected, atol=1e-6)


def test_templates_add_columns(tiny_clip):
    scorer = ClipScorer(
        ClipConfig(f"local-dir:{tiny_clip}", templates=("a photo of the {}", "a render of the {}")), "cpu"
    )
    assert [f.name for f in scorer.columns] == ["front", "back", "front_templates", "back_templates"]
    said = scorer.clip.texts([f"a photo of the {FRONT}", f"a render of the {FRONT}"]).mean(0)
    torch.testing.assert_close(scorer.classes[2], said / said.norm())
    assert scorer.lineage.settings["templates"] == ["a photo of the {}", "a render of the {}"]


def test_only_views_that_are_turned_away_are_read(tiny_clip):
    scorer = ClipScorer(ClipConfig(f"local-dir:{tiny_clip}"), "cpu")
    azimuth = np.array([0.0, 89, 90, -90, -180, 135])
    assert scorer.wants(azimuth, azimuth * 0).tolist() == [False, False, True, True, True, True]


def test_a_real_architecture_by_name_with_a_local_file(tmp_path):
    """ViT-L-14's towers in full width and one layer each, through open_clip's own list of architectures."""
    import open_clip

    config = open_clip.get_model_config("ViT-L-14")
    assert (config["vision_cfg"]["layers"], config["text_cfg"]["layers"]) == (24, 12)
    config["vision_cfg"]["layers"], config["text_cfg"]["layers"] = 1, 1
    (tmp_path / "ViT-L-14-shallow.json").write_text(json.dumps(config))
    open_clip.add_model_config(tmp_path / "ViT-L-14-shallow.json")
    torch.manual_seed(0)
    weights = {k: v.contiguous() for k, v in open_clip.create_model("ViT-L-14-shallow").state_dict().items()}
    save_file(weights, tmp_path / "weights.safetensors")
    clip = load_clip("ViT-L-14-shallow", str(tmp_path / "weights.safetensors"))
    pictures = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), np.uint8)
    prepared = clip.prepare(pictures)
    assert prepared.shape == (2, 3, 224, 224)
    vectors = clip.pictures(prepared)
    assert vectors.shape == (2, 768)
    torch.testing.assert_close(vectors.norm(dim=-1), torch.ones(2))
    weights["visual.proj"] = weights["visual.proj"][:, :5].contiguous()
    save_file(weights, tmp_path / "wrong.safetensors")
    with pytest.raises(ValueError, match=r"wrong.safetensors does not load as ViT-L-14-shallow: RuntimeError"):
        load_clip("ViT-L-14-shallow", str(tmp_path / "wrong.safetensors"))


@pytest.mark.skipif(
    "SPINSET_SLOW" not in os.environ, reason="SPINSET_SLOW=1 runs it: 1.7 GB of random weights, a minute"
)
def test_vit_l_14_in_full(tmp_path):
    import open_clip

    weights = {k: v.contiguous() for k, v in open_clip.create_model("ViT-L-14").state_dict().items()}
    save_file(weights, tmp_path / "weights.safetensors")
    scorer = ClipScorer(ClipConfig("ViT-L-14", str(tmp_path / "weights.safetensors")), "cpu")
    found = scorer.score(scorer.clip.prepare(np.zeros((1, 512, 512, 3), np.uint8)))
    assert np.abs(found["front"]).max() <= 1


def test_nothing_is_ever_downloaded(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"needs --clip.checkpoint, a local file; weights are never downloaded"):
        load_clip("ViT-B-32")
    with pytest.raises(FileNotFoundError, match="there is no file openai"):
        load_clip("ViT-B-32", "openai")
    with pytest.raises(ValueError, match="weights are never downloaded"):
        ClipConfig("hf-hub:some/model")
    with pytest.raises(ValueError, match="open_clip knows no model 'ViT-Z'"):
        load_clip("ViT-Z", "x")
    for online in ("xlm-roberta-base-ViT-B-32", "ViT-B-16-SigLIP"):
        with pytest.raises(ValueError, match=f"{online} would fetch .* from the net; save it as local-dir:FOLDER"):
            load_clip(online, "x")


def nested(tensors: dict[str, torch.Tensor]) -> torch.nn.Module:
    """A module whose state dict is these tensors."""
    root = torch.nn.Module()
    for name, tensor in tensors.items():
        *path, last = name.split(".")
        module = root
        for part in path:
            if part not in dict(module.named_children()):
                module.add_module(part, torch.nn.Module())
            module = module.get_submodule(part)
        module.register_buffer(last, tensor)
    return root


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:FutureWarning")
def test_openai_s_torchscript_is_refused_and_converts_as_the_guide_shows(tmp_path, monkeypatch):
    """OpenAI's archives hold the tensors of open_clip's CLIP and three numbers of its constructor."""
    import open_clip

    (tmp_path / "Tiny.json").write_text(json.dumps(TINY_CLIP))
    open_clip.add_model_config(tmp_path / "Tiny.json")
    tensors = open_clip.create_model("Tiny").state_dict()
    numbers = {name: torch.tensor(1) for name in ("input_resolution", "context_length", "vocab_size")}
    monkeypatch.chdir(tmp_path)
    torch.jit.script(nested({**tensors, **numbers})).save("ViT-L-14.pt")
    with pytest.raises(
        UserError, match=r"ViT-L-14.pt is a TorchScript archive, .* convert it to .safetensors"
    ) as error:
        load_clip("Tiny", "ViT-L-14.pt")
    assert "\n" not in str(error.value)
    guide = (Path(__file__).parents[3] / "docs" / "filters.md").read_text()
    (code,) = re.findall(r" *```python\n(.*?) *```", guide, re.DOTALL)
    exec(textwrap.dedent(code), {})
    converted = load_clip("Tiny", "ViT-L-14.safetensors").model.state_dict()
    assert all(torch.equal(converted[name], tensor) for name, tensor in tensors.items())
    torch.save(tensors, "weights.pt")
    assert load_clip("Tiny", "weights.pt").sha256


def test_wrong_folders_are_named(tmp_path, tiny_clip):
    with pytest.raises(FileNotFoundError, match=r"no file .*open_clip_config.json"):
        load_clip(f"local-dir:{tmp_path}")
    blind = write_clip(tmp_path, TINY_CLIP)
    whole = (blind / "open_clip_model.safetensors").read_bytes()
    (blind / "open_clip_model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"open_clip_model.safetensors does not load as local-dir.*SafetensorError"):
        load_clip(f"local-dir:{blind}")
    (blind / "open_clip_model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"open_clip_model.safetensors"):
        load_clip(f"local-dir:{blind}")
    towers = {k: v for k, v in TINY_CLIP.items() if k != "text_cfg"}
    (blind / "open_clip_config.json").write_text(json.dumps({"model_cfg": towers}))
    with pytest.raises(ValueError, match="has no text_cfg; the Janus scorer needs a picture tower and a text tower"):
        load_clip(f"local-dir:{blind}")
    (blind / "open_clip_config.json").write_text("{}")
    with pytest.raises(ValueError, match="it has no model_cfg"):
        load_clip(f"local-dir:{blind}")
    with pytest.raises(ValueError, match="holds its own weights"):
        load_clip(f"local-dir:{tiny_clip}", "x.safetensors")


def test_bad_settings():
    with pytest.raises(ValueError, match=r"a template has one {}"):
        ClipConfig(templates=("a head",))
    with pytest.raises(ValueError, match=r"--clip.min-turn is 200"):
        ClipConfig(min_turn=200.0)

import pytest
import torch
from hashed import hashed
from safetensors.torch import load_file

from train.networks.config import EMBEDDING, IdentityShape
from train.networks.identity import BEGIN, END, Arc2FaceTokens, IdentityToken


@pytest.fixture(scope="module")
def stored(golden):
    return load_file(golden / "spinmeround/arc2face/arc2face_tiny.safetensors")


def scales(name: str) -> tuple[float, float]:
    if "token_embedding.weight" in name:
        return 0.05, 0.0
    if "layer_norm" in name:
        return 0.1, 1.0 if name.endswith("weight") else 0.0
    return (0.05 if name.endswith("bias") or "position_embedding" in name else 0.08), 0.0


@pytest.fixture(scope="module")
def official() -> Arc2FaceTokens:
    """The tiny text model of the golden file."""
    tokens = Arc2FaceTokens(IdentityShape(width=528, layers=2, heads=4), intermediate_size=64)
    weights = tokens.text.state_dict()
    hashes = {n: hashed(f"text_model.{n}", tuple(w.shape), *scales(n)) for n, w in weights.items()}
    tokens.text.load_state_dict(hashes)
    return tokens


def test_tokens_are_the_official_ones(official, stored):
    assert torch.allclose(official(stored["face_embs_normalised"]), stored["project_face_embs"], atol=1e-5)
    assert torch.allclose(official.null_tokens(), stored["empty_prompt"], atol=1e-5)


def test_the_prompt_is_the_official_one(stored):
    assert torch.equal(Arc2FaceTokens._prompt((1125, 539, 320, 1014, 2533), torch.device("cpu")), stored["input_ids"])
    empty = Arc2FaceTokens._prompt((), torch.device("cpu"))
    assert empty[0, 0] == BEGIN
    assert (empty[0, 1:] == END).all()


def test_tokens_are_made_in_single_precision_and_without_gradients(official, stored):
    plain = official(stored["face_embs_normalised"])
    with torch.autocast("cpu", torch.bfloat16):
        again = official(stored["face_embs_normalised"])
    assert torch.equal(plain, again)
    assert not again.requires_grad
    assert not any(weight.requires_grad for weight in official.parameters())


def test_an_embedding_is_a_token_of_unit_size():
    embedding = torch.nn.functional.normalize(torch.randn(3, EMBEDDING, generator=torch.Generator().manual_seed(0)))
    token = IdentityToken(600)(embedding)
    assert token.shape == (3, 1, 600)
    assert token[..., :EMBEDDING].square().mean() == pytest.approx(1, abs=1e-5)
    assert token[..., EMBEDDING:].abs().max() == 0
    assert IdentityToken(600).null_tokens().abs().max() == 0


def test_shapes_that_cannot_be():
    with pytest.raises(ValueError, match=r"--model.identity.width is 320; it must be from 512"):
        IdentityShape("token", 320)

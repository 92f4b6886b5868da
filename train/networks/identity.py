"""Identities as tokens for cross-attention: Arc2Face's text encoder, or the embedding itself.

An ArcFace embedding takes the place of one word of a prompt (Arc2Face, section 3; SpinMeRound, section 3.2).
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from train.networks.config import IdentityShape

TOKENS = 77
BEGIN, END = 49406, 49407
PROMPT = (1125, 539, 320, 1014, 2533)
"""photo of a id person, in CLIP's vocabulary; `id` is the word that is replaced."""
ID = 1014


class Arc2FaceTokens(nn.Module):
    """transformers' CLIPTextModel, in whose prompt the embedding stands for a word; frozen, in single precision."""

    def __init__(self, shape: IdentityShape, **config: Any):
        super().__init__()
        # Importing transformers takes seconds, which only building a network needs.
        from transformers import CLIPTextConfig, CLIPTextModel

        sizes = {
            "hidden_size": shape.width,
            "intermediate_size": 4 * shape.width,
            "num_hidden_layers": shape.layers,
            "num_attention_heads": shape.heads,
            "eos_token_id": 2,
        }
        self.text = CLIPTextModel(CLIPTextConfig(**{**sizes, **config})).eval().requires_grad_(False)

    @torch.no_grad()
    def forward(self, embedding: Float[Tensor, "b d"]) -> Float[Tensor, "b n w"]:
        """Tokens of embeddings of unit length."""
        ids = self._prompt(PROMPT, embedding.device).expand(len(embedding), -1)
        words = self.text.get_input_embeddings()(ids)
        padded = torch.nn.functional.pad(embedding.to(words), (0, words.shape[-1] - embedding.shape[-1]))
        words = torch.where((ids == ID)[..., None], padded[:, None], words)
        return self._encode(words)

    @torch.no_grad()
    def null_tokens(self) -> Float[Tensor, "n w"]:
        """Tokens of the empty prompt, through the same encoder."""
        ids = self._prompt((), self.text.device)
        return self._encode(self.text.get_input_embeddings()(ids))[0]

    def _encode(self, words: Float[Tensor, "b n w"]) -> Float[Tensor, "b n w"]:
        # Always in single precision, as the released code does.
        with torch.autocast(words.device.type, enabled=False):
            # CLIPTextModel itself takes words by their numbers only.
            hidden = self.text.embeddings(inputs_embeds=words)
            hidden = self.text.encoder(inputs_embeds=hidden, attention_mask=None, is_causal=True).last_hidden_state
            return self.text.final_layer_norm(hidden)

    @staticmethod
    def _prompt(words: tuple[int, ...], device: torch.device) -> Tensor:
        return torch.tensor([[BEGIN, *words, *[END] * (TOKENS - 1 - len(words))]], device=device)


class IdentityToken(nn.Module):
    """The embedding as the only token, scaled to about unit variance; it has no weights."""

    def __init__(self, width: int):
        super().__init__()
        self.width = width

    def forward(self, embedding: Float[Tensor, "b d"]) -> Float[Tensor, "b 1 w"]:
        scaled = embedding * embedding.shape[-1] ** 0.5
        return torch.nn.functional.pad(scaled, (0, self.width - embedding.shape[-1]))[:, None]

    def null_tokens(self) -> Float[Tensor, "1 w"]:
        """Zeros."""
        return torch.zeros(1, self.width)


def build_tokens(shape: IdentityShape) -> Arc2FaceTokens | IdentityToken:
    """The encoder of a shape, with random weights."""
    return Arc2FaceTokens(shape) if shape.kind == "arc2face" else IdentityToken(shape.width)

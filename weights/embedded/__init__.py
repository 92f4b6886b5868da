"""The small models that ship with spinset, trained on heads of the procedural source only."""

from pathlib import Path

from manifests.errors import UserError

EMBEDDED = Path(__file__).parent
RECOGNISER = EMBEDDED / "arcface.onnx"
CLIP = EMBEDDED / "clip"
HEADS64 = EMBEDDED / "heads64"
KNOWN_SOURCE = "procedural"
"""The head source whose heads the embedded models were trained on."""


def is_embedded(model: str) -> bool:
    """Whether the value of an option for a model means an embedded one: an empty text, or a path in this folder."""
    return not model or Path(model.removeprefix("local-dir:")).resolve().is_relative_to(EMBEDDED.resolve())


def beyond_embedded(option: str, model: str, source: str, allow: bool, override: str = "--allow-embedded") -> bool:
    """Whether an embedded model is used on heads of a source that it was not trained on, which only `allow` permits.

    Raises:
        UserError: it is, without `allow`; the message names the option that takes another model.
    """
    if source == KNOWN_SOURCE or not is_embedded(model):
        return False
    if not allow:
        raise UserError(
            f"the embedded model was trained on {KNOWN_SOURCE} heads only, and these are {source}: give weights with "
            f"{option}, or {override} to use it all the same"
        )
    return True

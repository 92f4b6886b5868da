"""The embedded head source: parametric people made of signed-distance parts, drawn from a seed."""

from datagen.sources.procedural.source import ProceduralHead, ProceduralSource

__all__ = ["ProceduralHead", "ProceduralSource"]

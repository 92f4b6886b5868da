"""The embedded head source: parametric people made of signed-distance parts, drawn from a seed."""

from datagen.sources.procedural.defects import DEFECT_KINDS
from datagen.sources.procedural.source import ProceduralConfig, ProceduralHead, ProceduralSource

__all__ = ["DEFECT_KINDS", "ProceduralConfig", "ProceduralHead", "ProceduralSource"]

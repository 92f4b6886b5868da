"""The head sources there are, by name."""

from dataclasses import dataclass, field

from datagen.heads import HeadSource
from datagen.procedural.source import ProceduralConfig, ProceduralSource

SOURCES = ("procedural",)


@dataclass(frozen=True)
class SourceConfig:
    """Which source makes the heads, and the settings of each."""

    source: str = "procedural"
    """procedural (needs nothing)."""
    procedural: ProceduralConfig = field(default_factory=ProceduralConfig)

    def __post_init__(self) -> None:
        if self.source not in SOURCES:
            raise ValueError(f"unknown source {self.source!r}; there are {', '.join(SOURCES)}")

    def open(self, device: str) -> HeadSource:
        return ProceduralSource(self.procedural)

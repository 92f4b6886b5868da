"""The head sources there are, by name."""

from dataclasses import dataclass, field, replace
from pathlib import Path

from datagen.heads import HeadSource
from datagen.sources.panohead.head import PanoHeadConfig, PanoHeadSource, SphereHeadSource
from datagen.sources.procedural import ProceduralConfig, ProceduralSource
from manifests.errors import UserError

SOURCES = ("procedural", "panohead", "spherehead")


@dataclass(frozen=True)
class SourceConfig:
    """Which source makes the heads, and the settings of each."""

    source: str = "procedural"
    """procedural (embedded, needs nothing), panohead or spherehead (need --weights)."""
    procedural: ProceduralConfig = field(default_factory=ProceduralConfig)
    panohead: PanoHeadConfig = field(default_factory=PanoHeadConfig)
    """Of panohead and spherehead alike."""

    def __post_init__(self) -> None:
        if self.source not in SOURCES:
            raise UserError(f"unknown source {self.source!r}; there are {', '.join(SOURCES)}")

    def absolute(self) -> "SourceConfig":
        """The same, with paths that hold wherever a worker runs."""
        weights = self.panohead.weights
        return replace(self, panohead=replace(self.panohead, weights=weights and str(Path(weights).absolute())))

    def open(self, device: str) -> HeadSource:
        """The source, its weights loaded and checked; raises what the source raises where a file is not right."""
        if self.source == "panohead":
            return PanoHeadSource(self.panohead, device)
        if self.source == "spherehead":
            return SphereHeadSource(self.panohead, device)
        return ProceduralSource(self.procedural)

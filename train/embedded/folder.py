"""Where the embedded model lies."""

from pathlib import Path

HEADS64 = Path(__file__).parent / "heads64"

"""The preset policies: JSON files that a curator may copy and change."""

from pathlib import Path

from manifests.errors import UserError

PRESETS = ("gen3d-face", "spinmeround", "diffportrait360", "early")


def policy_file(name: str) -> Path:
    """The file of a preset, or the path of a JSON file; raises UserError if it is neither."""
    path = Path(__file__).parent / f"{name}.json" if name in PRESETS else Path(name)
    if not path.is_file():
        raise UserError(f"there is no policy {name!r}: it is neither a preset ({', '.join(PRESETS)}) nor a file")
    return path

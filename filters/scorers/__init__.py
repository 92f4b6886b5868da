"""The scorers by name, each with the module that opens it, which is imported when it is opened."""

SCORERS = {
    "mesh": "filters.scorers.mesh",
    "image": "filters.scorers.image",
    "clip_janus": "filters.scorers.clip_janus",
    "arcface": "filters.scorers.arcface",
    "duplicates": "filters.scorers.duplicates",
}
"""A new scorer is a module that defines `open_scorer` and a line here; the order is that in which they run."""

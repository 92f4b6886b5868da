"""Writes datasets in the formats of other people's tools; a format is one file and one line in export.py."""

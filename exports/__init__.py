"""Writes datasets in the formats of other tools; a format is one file and one line of a table in config.py."""

"""Trainers of the embedded models; run from a clone, not installed."""

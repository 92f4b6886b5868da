"""Measures a model as the papers do: held-out people, protocols, baselines, reports."""

"""Noise processes, conditions, samplers and the loss."""

"""Learns from datasets: loader, multiview models, EDM, trainer."""

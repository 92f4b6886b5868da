"""Reads official weights and turns them into models."""

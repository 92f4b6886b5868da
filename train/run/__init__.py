"""A training run: its settings, its loop, what it writes, and how it goes on."""

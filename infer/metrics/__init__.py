"""Measures of generated pictures, as numbers or the reason why there are none."""

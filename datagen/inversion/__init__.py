"""Inversion: a PanoHead or SphereHead identity that shows the person of given pictures."""

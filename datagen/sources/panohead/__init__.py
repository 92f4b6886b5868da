"""PanoHead and SphereHead, implemented independently: networks, checkpoint reading without execution, and heads."""

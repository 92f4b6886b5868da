"""PanoHead and SphereHead, written fresh: networks, safe checkpoint reading, and the heads they make."""

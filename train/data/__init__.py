"""Streams the shards: which views, in which order, read how, as which batch; and cached latents of them."""

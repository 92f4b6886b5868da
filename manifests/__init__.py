"""The on-disk format of a dataset: schemas, plan, shards, index, readers, scores, selections, verification (no torch)."""

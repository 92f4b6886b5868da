"""What a dataset is on disk: schemas, plan, shards and their index, verification (pyarrow and numpy; no torch)."""

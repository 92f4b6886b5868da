"""Runs shard-sized units of work: the one actor pool, its progress and its status."""

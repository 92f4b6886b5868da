"""Weight files: where they are found, how they are hashed and written, and the small embedded models."""

"""The noise process, the scene as a network meets it, and the loss."""

"""Uses what was learned: alignment, views of a person, metrics, evaluation."""

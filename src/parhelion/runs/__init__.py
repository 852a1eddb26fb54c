"""A training run, whatever its task."""

"""Training: the loop, optimiser and schedule, checkpoints and run records. Knows no model and no data source."""

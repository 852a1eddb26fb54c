"""Training: the loop, optimiser and schedule, processes, checkpoints and trackers. Knows no model and no images."""

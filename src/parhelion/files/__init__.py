"""What lies on disk: whole files, weights, the folder of a run."""

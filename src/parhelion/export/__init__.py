"""Files for other runtimes, each proven against PyTorch on real images before it is left."""

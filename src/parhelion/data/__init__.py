"""Images in: what `--data` may say (spelling) and what it opens (sources), transforms, batches (loaders).

Nothing is imported here: spelling, and what transforms are told, need no torch.
"""

"""Images in: what `--data` names (sources), how an image is prepared (transforms), batches (loaders).

Nothing is imported here: `parhelion.data.transforms` and `parhelion.data.sources` stay quick to import, and timm
is loaded by the function that needs it.
"""

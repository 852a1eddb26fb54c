"""A program of `torch.export.save` names our operators, so they must be known before one is loaded."""

from importlib import import_module

from parhelion.lazy import once_imported


def register_before_loading() -> None:
    """Register the custom operators when somebody imports what `torch.export.load` reads files with."""
    once_imported("torch.export.pt2_archive", _register)


def _register() -> None:
    for operation in ("axial", "content", "halo"):
        import_module(f"parhelion.ops.{operation}.api")

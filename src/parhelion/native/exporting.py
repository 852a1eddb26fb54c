"""Files for other runtimes, which hold no kernels of ours."""

import torch


def why_not_exported() -> str | None:
    """Why no kernel can go into what is being exported, or None if it can, or if nothing is being exported.

    A program of torch.export, or of torch.jit.trace, may hold kernels: PyTorch runs it beside this package.
    """
    # Asked at every call of an operation, so the flags that are read fast come first.
    if not (torch.compiler.is_exporting() or torch.jit.is_tracing()) or not _to_onnx():
        return None
    return "an ONNX file cannot hold the kernels of Parhelion, only its reference in plain PyTorch"


@torch.compiler.assume_constant_result
def _to_onnx() -> bool:
    return torch.onnx.is_in_onnx_export()

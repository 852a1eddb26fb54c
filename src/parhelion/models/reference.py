"""Which implementation the attention of a whole model runs on."""

import copy
from typing import TypeVar

from torch import nn

from parhelion.errors import UserError
from parhelion.layers import GlobalSelfAttention, HaloAttention
from parhelion.models.accelerate import fast_forms
from parhelion.ops.implementation import Implementation, check_implementation

Model = TypeVar("Model", bound=nn.Module)


def reference(model: Model) -> Model:
    """A copy of `model` whose attention runs in plain PyTorch, without kernels of ours; `model` is left as it is.

    For files that open without this package (`torch.export`, `torch.jit.trace`), for second derivatives, and to compare
    with. Parameters and names are the model's, and so are results up to rounding; the copy is slower. Layers that
    `accelerate` changed run on Parhelion's reference, not on the code that they had before, so they still take maps of
    any size; `decelerate` gives that code back. `create_model(name, impl="reference")` builds one of our models this
    way. An export to ONNX chooses the reference by itself.

    First take the reference of a model, then make its feature extractor, or compile or trace it.

    Raises:
        UserError: `model` is not a torch.nn.Module.
    """
    if not isinstance(model, nn.Module):
        raise UserError(f"reference takes a torch.nn.Module, not {model!r:.60} of type {type(model).__name__}")
    return run_on("reference", copy.deepcopy(model))


def run_on(impl: Implementation, model: Model) -> Model:
    """Let every attention layer of Parhelion in `model`, accelerated ones too, run on `impl`, in place.

    Raises:
        UserError: an unknown implementation.
    """
    check_implementation(impl)
    kinds = (HaloAttention, GlobalSelfAttention, *fast_forms().values())
    for module in model.modules():
        if isinstance(module, kinds):
            vars(module)["impl"] = impl
    return model

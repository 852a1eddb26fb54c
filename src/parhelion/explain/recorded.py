"""Runs a model and finds out what its attention layers were given: from the operations, whichever kernels ran."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from parhelion.errors import UserError
from parhelion.explain.exactness import unit_roundoff
from parhelion.explain.gsa import AxialCall, ContentCall, GlobalLayer
from parhelion.explain.halo import HaloLayer
from parhelion.ops.recording import Call, listening

Layer: TypeAlias = HaloLayer | GlobalLayer


def recorded(model: nn.Module, run: Callable[[], Any]) -> tuple[Any, list[Layer]]:
    """What `run`, which calls `model` on one image in evaluation mode, returns, and the attention layers in order.

    Raises UserError where no operation was called, or in an order that no layer has.
    """
    calls: list[tuple[str, Call]] = []
    sizes: dict[str, tuple[int, int]] = {}
    running: list[str] = []

    def keep(call: Call) -> None:
        arguments = {name: _kept(value) for name, value in call.arguments.items()}
        arguments["device"] = call.output.device
        calls.append((running[-1] if running else "", Call(call.operation, arguments, _kept(call.output))))

    # A compiled model would run without telling.
    with _names(model, running, sizes), listening(keep), in_eval_mode(model):
        with torch.no_grad(), torch.compiler.set_stance("force_eager"):
            answer = run()
        layers = list(_layers(model, calls, sizes))
    if not layers:
        raise UserError(why_nothing(model))
    return answer, layers


def why_nothing(model: nn.Module) -> str:
    """The sentence for a model in which no attention of ours runs."""
    kinds = {type(module).__name__ for module in model.modules()}
    if kinds & {"HaloAttn", "GSA"}:
        return (
            f"the attention of this {type(model).__name__} runs on code that is not Parhelion's; "
            "parhelion.accelerate(model) changes that"
        )
    return (
        f"this {type(model).__name__} has no attention that can be shown: there is no halo attention and no global "
        "self-attention in it"
    )


def _layers(model: nn.Module, calls: list[tuple[str, Call]], sizes: Mapping[str, tuple[int, int]]) -> Iterator[Layer]:
    """The calls as layers: halo attention is one call, a GSA module up to three."""
    seen: dict[str, int] = {}
    at = 0
    while at < len(calls):
        module, first = calls[at]
        count = _calls_of_layer([call for name, call in calls[at : at + 3] if name == module])
        seen[module] = seen.get(module, 0) + 1
        name = (module or "the model") + (f" ({seen[module]})" if seen[module] > 1 else "")
        together = [call for _, call in calls[at : at + count]]
        if not all(call.output.isfinite().all() for call in together):
            raise UserError(f"{name} returned infinity or NaN for this image, so its weights mean nothing")
        roundoff = unit_roundoff(first.output, first.arguments["device"])
        if first.operation == "halo_attention":
            yield _halo_layer(name, first, roundoff)
        else:
            yield _global_layer(name, model.get_submodule(module), together, sizes.get(module), roundoff)
        at += count


def _calls_of_layer(calls: list[Call]) -> int:
    kinds = [call.arguments.get("axis", call.operation) for call in calls]
    for pattern in (["content_attention", "h", "w"], ["h", "w"], ["content_attention"], ["halo_attention"]):
        if kinds[: len(pattern)] == pattern:
            return len(pattern)
    raise UserError(
        "attention along one axis is shown as part of a GSA module only, where rows follow columns; this model calls "
        f"axial_attention with axis={kinds[0]!r} in another way"
    )


def _halo_layer(name: str, call: Call, roundoff: float) -> HaloLayer:
    given = call.arguments
    tables = given["tables"]
    return HaloLayer(
        name=name,
        q=given["q"][0],
        k=given["k"][0],
        v=given["v"][0],
        # Kernels cast them, too.
        tables=None if tables is None else (tables[0].to(given["q"].dtype), tables[1].to(given["q"].dtype)),
        window=given["window"],
        output=call.output[0],
        roundoff=roundoff,
    )


def _global_layer(
    name: str, module: nn.Module, calls: list[Call], size: tuple[int, int] | None, roundoff: float
) -> GlobalLayer:
    content, columns, rows = None, None, None
    for call in calls:
        given, output = call.arguments, call.output[0]
        if call.operation == "content_attention":
            content = ContentCall(given["q"][0], given["k"][0], given["v"][0], given["normalize_queries"], output)
            continue
        plus = None if given["plus"] is None else given["plus"][0]
        axial = AxialCall(given["q"][0], given["v"][0], given["table"].to(given["q"].dtype), plus, output)
        columns, rows = (axial, rows) if given["axis"] == "h" else (columns, axial)
    output = calls[-1].output[0]
    scale, shift = _normalisation(name, module, columns, rows, heads=output.shape[2], width=output.shape[3])
    return GlobalLayer(
        name=name,
        content=content,
        columns=columns,
        rows=rows,
        norm_scale=scale,
        norm_shift=shift,
        output_size=size or (output.shape[0], output.shape[1]),
        roundoff=roundoff,
    )


def _normalisation(
    name: str, module: nn.Module, columns: AxialCall | None, rows: AxialCall | None, *, heads: int, width: int
) -> tuple[Tensor, Tensor]:
    """Scale and shift of each channel between columns and rows, (heads, channels), from the module's batch norm.

    Raises UserError where something else happened there.
    """
    scale, shift = torch.ones(heads, width, dtype=torch.float64), torch.zeros(heads, width, dtype=torch.float64)
    norm, statistics = getattr(module, "norm", None), getattr(getattr(module, "norm", None), "running_mean", None)
    if columns is None or rows is None:
        return scale, shift
    if isinstance(norm, nn.Module) and statistics is not None:
        probes = torch.tensor([0.0, 1.0]).to(statistics).view(2, 1, 1, 1).expand(2, len(statistics), 1, 1)
        at_zero, at_one = norm(probes).detach().cpu().double().view(2, -1, width).expand(2, heads, width)
        scale, shift = at_one - at_zero, at_zero
    expected = columns.output.double() * scale + shift
    eps = max(torch.finfo(rows.v.dtype).eps, torch.finfo(torch.float32).eps)
    error = (rows.v.double() - expected).abs()
    if (error > 8 * eps * ((columns.output.double() * scale).abs() + shift.abs() + 1)).any():
        raise UserError(
            f"the weights of {name} cannot be shown: between columns and rows it does something else than a batch norm"
        )
    return scale, shift


def _kept(value: Any) -> Any:
    """Tensors copied to the CPU, since a model may change them in place afterwards; all else as it is."""
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True)
    # A window is a tuple, too, which has to stay one.
    return tuple(map(_kept, value)) if type(value) is tuple else value


@contextmanager
def _names(model: nn.Module, running: list[str], sizes: dict[str, tuple[int, int]]) -> Iterator[None]:
    """Keep in `running` the names of the modules that are being called, and in `sizes` those of maps that came out."""

    def enter(name: str) -> Callable[..., None]:
        return lambda *_: running.append(name)

    def leave(name: str) -> Callable[..., None]:
        def act(module: nn.Module, given: Any, output: Any) -> None:
            running.pop()
            if isinstance(output, Tensor) and output.ndim == 4:
                sizes[name] = (output.shape[2], output.shape[3])

        return act

    handles = []
    for name, module in model.named_modules():
        if not isinstance(module, torch.jit.ScriptModule):
            handles.append(module.register_forward_pre_hook(enter(name)))
            handles.append(module.register_forward_hook(leave(name)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def in_eval_mode(model: nn.Module) -> Iterator[None]:
    """Evaluation mode meanwhile; each module has its own mode again afterwards."""
    before = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in before:
            module.training = mode

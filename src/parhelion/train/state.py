"""Everything that moves in a run, as named tensors and facts, and back into place."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from parhelion.errors import UserError
from parhelion.train.checkpoint import Checkpoint
from parhelion.train.optimization import Optimization


@dataclass(frozen=True, kw_only=True)
class Moving:
    """Model, running average, optimiser and loss scaler of a run."""

    accelerator: Accelerator
    model: nn.Module
    optimization: Optimization

    def tensors(self) -> dict[str, Tensor]:
        """Weights, buffers, running averages and the optimiser's tensors by name."""
        found = dict(self._weights())
        for name, parameter in self._trained():
            for key, value in self._optimizer_state(parameter).items():
                if isinstance(value, Tensor):
                    found[f"optimizer.{name}.{key}"] = value
        return found

    def facts(self) -> dict[str, Any]:
        """What else moves: numbers of the optimiser's, and of the loss scaler's if there is one."""
        numbers = {
            name: {key: value for key, value in self._optimizer_state(parameter).items() if _is_number(value)}
            for name, parameter in self._trained()
        }
        groups = self._optimizer.param_groups
        scaler = self.accelerator.scaler
        return {
            "optimizer": {name: state for name, state in numbers.items() if state},
            "groups": [{k: v for k, v in group.items() if _is_number(v)} for group in groups],
            # LAMB counts its steps in a tensor of the group.
            "counters": [{k: v.item() for k, v in group.items() if isinstance(v, Tensor)} for group in groups],
            "scaler": scaler.state_dict() if scaler is not None else None,
            "ema_warmup": self.optimization.ema is not None and self.optimization.ema.use_warmup,
        }

    def restore(self, checkpoint: Checkpoint) -> None:
        """Put everything back as it was. Raises UserError where the checkpoint is of another model."""
        shapes = checkpoint.shapes()
        weights = dict(self._weights())
        missing = sorted(weights.keys() - shapes.keys())
        if missing:
            raise UserError(f"{checkpoint.folder} lacks {len(missing)} tensors of this run (first: {missing[0]})")
        targets = {
            name: torch.empty_like(tensor, memory_format=torch.contiguous_format) for name, tensor in weights.items()
        }
        parameters = dict(self._trained())
        states: dict[str, dict[str, Tensor]] = {}
        for full in shapes:
            if full.startswith("optimizer."):
                name, _, key = full.removeprefix("optimizer.").rpartition(".")
                states.setdefault(name, {})[key] = targets[full] = _room(parameters[name], *shapes[full])
        checkpoint.read(targets)
        with torch.no_grad():
            for name, tensor in weights.items():
                tensor.copy_(targets[name])
        facts = checkpoint.facts["moving"]
        for name, parameter in parameters.items():
            state = {key: _laid_out(value, parameter) for key, value in states.get(name, {}).items()}
            state |= facts["optimizer"].get(name, {})
            if state:
                self._optimizer.state[parameter] = state
        for group, numbers, counters in zip(
            self._optimizer.param_groups, facts["groups"], facts["counters"], strict=True
        ):
            group.update(numbers, **{key: torch.tensor(value) for key, value in counters.items()})
        if self.accelerator.scaler is not None and facts["scaler"]:
            self.accelerator.scaler.load_state_dict(facts["scaler"])
        if self.optimization.ema is not None:
            # Averages were not always warmed up; a run that began without goes on without.
            self.optimization.ema.use_warmup = facts.get("ema_warmup", False)

    @property
    def _optimizer(self) -> torch.optim.Optimizer:
        # Accelerate wraps it.
        return getattr(self.optimization.optimizer, "optimizer", self.optimization.optimizer)

    def _optimizer_state(self, parameter: nn.Parameter) -> dict[str, Any]:
        return self._optimizer.state.get(parameter, {})

    def _trained(self) -> Iterator[tuple[str, nn.Parameter]]:
        known = {id(p) for group in self._optimizer.param_groups for p in group["params"]}
        return ((name, p) for name, p in self.model.named_parameters() if id(p) in known)

    def _weights(self) -> Iterator[tuple[str, Tensor]]:
        for name, tensor in self.model.state_dict().items():
            yield f"model.{name}", tensor
        if self.optimization.ema is not None:
            for name, tensor in self.optimization.ema.module.state_dict().items():
                yield f"ema.{name}", tensor


def _is_number(value: object) -> bool:
    return isinstance(value, bool | int | float)


def _room(parameter: Tensor, shape: torch.Size, dtype: torch.dtype) -> Tensor:
    """An empty tensor of the optimiser's: cut into parts as its parameter is, if it has the parameter's shape."""
    if shape == parameter.shape:
        return torch.empty_like(parameter, dtype=dtype, memory_format=torch.contiguous_format).detach()
    return torch.empty(shape, dtype=dtype)


def _laid_out(value: Tensor, parameter: Tensor) -> Tensor:
    """`value` in the memory layout and on the device of its parameter, as the optimiser made it."""
    if value.shape != parameter.shape or isinstance(parameter, DTensor):
        return value
    return torch.empty_like(parameter, dtype=value.dtype).detach().copy_(value)

"""Shape annotations: jaxtyping's where it is installed, bare tensors elsewhere.

The shapes are documentation at run time; only the tests check them, with jaxtyping and beartype. So the
library itself needs neither.
"""

from typing import TYPE_CHECKING, Any

from torch import SymBool, Tensor
from torch.compiler import is_exporting
from torch.fx.experimental.symbolic_shapes import statically_known_true

if TYPE_CHECKING:
    from jaxtyping import Float
else:
    try:
        from jaxtyping import Float
    except ModuleNotFoundError:

        class Float:
            def __class_getitem__(cls, annotation: Any) -> type[Tensor]:
                return Tensor


__all__ = ["Float", "Tensor", "always"]


def always(condition: bool | SymBool) -> bool:
    """Whether a condition on sizes holds, where a program is traced for many sizes at once: whether it does for all.

    A plain `if` would make torch.export refuse, or leave out, the sizes for which the condition turns out otherwise.
    """
    # Where torch.export is strict, a condition on sizes looks like a bool.
    if isinstance(condition, SymBool) or is_exporting():
        return statically_known_true(condition)
    return bool(condition)

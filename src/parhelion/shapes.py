"""Shape annotations: jaxtyping's where it is installed, bare tensors elsewhere.

The shapes are documentation at run time; only the tests check them, with jaxtyping and beartype. So the
library itself needs neither.
"""

from typing import TYPE_CHECKING, Any

from torch import Tensor

if TYPE_CHECKING:
    from jaxtyping import Float
else:
    try:
        from jaxtyping import Float
    except ModuleNotFoundError:

        class Float:
            def __class_getitem__(cls, annotation: Any) -> type[Tensor]:
                return Tensor


__all__ = ["Float", "Tensor"]

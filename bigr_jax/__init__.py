"""A JAX/Flax zoo of paper methods: one trainer, one short recipe per paper."""

from __future__ import annotations

# As type checkers read it; importing `typing` would be a good part of the start of `bigr`.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from bigr_jax.model import Model, load

__version__ = "0.1.0"
__all__ = ["Model", "__version__", "load"]


def __getattr__(name: str) -> object:
    # Loaded when asked for: the command line starts without JAX.
    if name in ("Model", "load"):
        from bigr_jax import model

        return getattr(model, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

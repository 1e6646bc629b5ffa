"""A JAX/Flax zoo of paper methods: one trainer, one short recipe per paper."""

from typing import Any

__version__ = "0.1.0"
__all__ = ["Model", "__version__", "load"]


def __getattr__(name: str) -> Any:
    # Loaded when asked for: the command line starts without JAX.
    if name in ("Model", "load"):
        from bigr_jax import model

        return getattr(model, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

"""Evidence: a study's arms trained by the one trainer, recorded and compared in one run."""

from bigr_jax.lab.lab import Lab

__all__ = ["Lab"]

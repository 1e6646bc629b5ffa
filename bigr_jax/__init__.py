"""A JAX/Flax zoo of paper methods: one trainer, one short recipe per paper."""

__version__ = "0.1.0"

"""Labelled images from embedded sets, folders, arrays and records, as batches in a fixed order."""

from bigr_jax.data.opening import open_source
from bigr_jax.data.pipeline import Order, Share, eval_batches, train_batches
from bigr_jax.data.source import ArraySource, Info, LazySource, Source

__all__ = [
    "ArraySource",
    "Info",
    "LazySource",
    "Order",
    "Share",
    "Source",
    "eval_batches",
    "open_source",
    "train_batches",
]

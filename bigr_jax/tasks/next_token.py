"""Telling the next token as a method: language modelling."""

from __future__ import annotations

import math
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import optax

from bigr_jax.api import Array, Aux, Batch, Given, Method, Network, Part, Sum, Variables


def next_tokens(net: nn.Module, *, padding: int = -1) -> Method:
    """Returns the method that trains `net` on {"tokens": int [B, L]}, to tell the next from each.

    net      called as net(tokens, deterministic) -> logits [B, L, vocabulary]; in training it draws
             from the rng "dropout"
    padding  the token that fills up and is not asked for; -1: there is none
    """

    def init(key: Array, batch: Batch, given: Given) -> Variables:
        return net.init(key, batch["tokens"][:, :-1])

    def told(variables: Any, batch: Batch, rngs: Any) -> tuple[Array, Array, Array]:
        """Returns the cost of every place, whether it is right, and which places count."""
        tokens = batch["tokens"]
        logits: Any = net.apply(variables, tokens[:, :-1], rngs is None, rngs=rngs)
        wanted = tokens[:, 1:]
        counts = (wanted != padding).astype(jnp.float32)
        cost = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.maximum(wanted, 0))
        return cost, (logits.argmax(-1) == wanted).astype(jnp.float32), counts

    def loss(variables: Any, key: Array, batch: Batch, given: Given) -> tuple[Array, Aux]:
        cost, right, counts = told(variables, batch, {"dropout": key})
        total = jnp.maximum(counts.sum(), 1.0)
        return (cost * counts).sum() / total, Aux({"accuracy": (right * counts).sum() / total})

    def evaluate(variables: Any, key: Array, batch: Batch, given: Given) -> dict[str, Sum]:
        cost, right, counts = told(variables, batch, None)
        counts = counts * batch["mask"][:, None]
        weight, total = counts.sum(), (cost * counts).sum()
        return {
            "accuracy": Sum((right * counts).sum(), weight),
            "loss": Sum(total, weight),
            "bits": Sum(total / math.log(2), weight),
        }

    whole = Network((Part(net, {"params": ()}),))
    return Method(init=init, loss=loss, evaluate=evaluate, model=whole)

"""Telling hidden tokens as a method: those that the data ask for, or those that are drawn."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from bigr_jax.api import Array, Aux, Batch, Given, Method, Network, Part, Sum, Variables
from bigr_jax.models.encoder import MaskedModel

# Of the tokens that are asked for, so many are hidden, and so many replaced by any other.
HIDDEN, REPLACED = 0.8, 0.1


class Masking(NamedTuple):
    """What is asked for.

    rate     share of the tokens in training; 0: the batch's "targets" tell what is asked
    tested   share of the tokens in evaluation
    token    the one that hides another; -1: the last of the vocabulary
    padding  the one that fills up and is never asked for; -1: there is none
    """

    rate: float = 0.15
    tested: float = 0.15
    token: int = -1
    padding: int = -1


def masked_tokens(net: MaskedModel, masking: Masking) -> Method:
    """Returns the method that trains `net` on {"tokens": int [B, L]}, and "targets" where the data
    ask.

    Where places are drawn, each is asked for with the probability `rate`; of these 80 % show the
    mask, 10 % any token and 10 % themselves. Source: BERT (arXiv 1810.04805), section 3.1.
    """

    def init(key: Array, batch: Batch, given: Given) -> Variables:
        return net.init(key, batch["tokens"])

    def told(variables: Any, key: Array, batch: Batch, rate: float, drop: bool) -> tuple[Any, ...]:
        """Returns the loss and whether it is right, at every place, and which places count."""
        draw, dropout = jax.random.split(key)
        shown, targets = asked(draw, batch, net.vocabulary, masking, rate)
        real = None if masking.padding < 0 else batch["tokens"] != masking.padding
        rngs = {"dropout": dropout}
        logits: Any = net.apply(variables, shown, real, deterministic=not drop, rngs=rngs)
        wanted, counts = jnp.maximum(targets, 0), (targets >= 0).astype(jnp.float32)
        cost = optax.softmax_cross_entropy_with_integer_labels(logits, wanted)
        return cost, (logits.argmax(-1) == wanted).astype(jnp.float32), counts

    def loss(variables: Any, key: Array, batch: Batch, given: Given) -> tuple[Array, Aux]:
        cost, right, counts = told(variables, key, batch, masking.rate, True)
        total = jnp.maximum(counts.sum(), 1.0)
        return (cost * counts).sum() / total, Aux({"accuracy": (right * counts).sum() / total})

    def evaluate(variables: Any, key: Array, batch: Batch, given: Given) -> dict[str, Sum]:
        cost, right, counts = told(variables, key, batch, masking.tested, False)
        counts = counts * batch["mask"][:, None]
        weight = counts.sum()
        return {
            "accuracy": Sum((right * counts).sum(), weight),
            "loss": Sum((cost * counts).sum(), weight),
        }

    whole = Network((Part(net, {"params": ()}),))
    return Method(init=init, loss=loss, evaluate=evaluate, model=whole)


def asked(
    key: Array, batch: Batch, vocabulary: int, masking: Masking, rate: float
) -> tuple[Array, Array]:
    """Returns what a model sees, int [B, L], and what it is asked for, int [B, L], -1 = nothing."""
    tokens = batch["tokens"]
    if not masking.rate:
        return tokens, batch["targets"]
    choose, how, other = jax.random.split(key, 3)
    chosen = jax.random.bernoulli(choose, rate, tokens.shape) & (tokens != masking.padding)
    fate = jax.random.uniform(how, tokens.shape)
    hidden = masking.token % vocabulary
    anything = jax.random.randint(other, tokens.shape, 0, vocabulary)
    replaced = jnp.where(fate < HIDDEN + REPLACED, anything, tokens)
    shown = jnp.where(fate < HIDDEN, hidden, replaced)
    return jnp.where(chosen, shown, tokens), jnp.where(chosen, tokens, -1)

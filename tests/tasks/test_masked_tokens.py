"""Hidden tokens: how they are drawn, what counts, and learning a text with one answer."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from bigr_jax.models.encoder import Encoder, MaskedModel
from bigr_jax.tasks.masked_tokens import Masking, asked, masked_tokens

ENCODER = Encoder(1, "hydra", {"head_dim": 8, "state": 4, "chunk": 8})
NET = MaskedModel(12, 16, ENCODER)


def test_places_are_drawn_as_bert_draws_them() -> None:
    masking = Masking(rate=0.3, token=9, padding=0)
    tokens = jnp.asarray(np.random.default_rng(0).integers(0, 9, (400, 100)))
    shown, targets = asked(jax.random.key(0), {"tokens": tokens}, 1000, masking, 0.3)
    shown, targets, tokens = (np.asarray(x) for x in (shown, targets, tokens))
    chosen = targets >= 0
    assert not chosen[tokens == 0].any()
    np.testing.assert_array_equal(targets[chosen], tokens[chosen])
    np.testing.assert_array_equal(shown[~chosen], tokens[~chosen])
    real = (tokens != 0).sum()
    assert abs(chosen.sum() / real - 0.3) < 0.01
    hidden, same = shown[chosen] == 9, shown[chosen] == tokens[chosen]
    assert abs(hidden.mean() - 0.8) < 0.01 and abs(same.mean() - 0.1) < 0.01
    others = shown[chosen][~hidden & ~same]
    assert abs(others.mean() / 499.5 - 1) < 0.05


def test_the_last_token_hides_by_default() -> None:
    tokens = jnp.zeros((1, 400), jnp.int32)
    shown, _ = asked(jax.random.key(1), {"tokens": tokens}, 7, Masking(rate=0.9), 0.9)
    assert (np.asarray(shown) == 6).mean() > 0.6


def test_what_the_data_ask_is_taken_as_it_is() -> None:
    batch = {"tokens": jnp.ones((2, 3), jnp.int32), "targets": jnp.full((2, 3), -1)}
    shown, targets = asked(jax.random.key(0), batch, 12, Masking(rate=0.0), 0.15)
    assert shown is batch["tokens"] and targets is batch["targets"]


def test_the_loss_is_that_of_the_places_asked_for_and_padded_rows_do_not_count() -> None:
    method = masked_tokens(NET, Masking(rate=0.0, padding=11))
    rng = np.random.default_rng(2)
    tokens = rng.integers(0, 11, (3, 6))
    tokens[0, 4:] = 11
    targets = np.full((3, 6), -1)
    targets[[0, 0, 1, 2], [1, 3, 5, 0]] = [4, 2, 7, 1]
    batch = {"tokens": jnp.asarray(tokens), "targets": jnp.asarray(targets)}
    batch["mask"] = jnp.asarray([1.0, 1.0, 0.0])
    key = jax.random.key(0)
    variables = nn.unbox(jax.jit(method.init)(key, batch, {}))
    value, aux = jax.jit(method.loss)(variables, key, batch, {})
    apply = jax.jit(NET.apply)
    logits = np.asarray(apply(variables, tokens, jnp.asarray(tokens != 11)), np.float64)
    logs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    costs = {(r, c): -logs[r, c, targets[r, c]] for r, c in zip(*np.nonzero(targets >= 0))}  # noqa: B905
    np.testing.assert_allclose(value, np.mean(list(costs.values())), rtol=1e-5)
    right = [logits[place].argmax() == targets[place] for place in costs]
    np.testing.assert_allclose(aux.metrics["accuracy"], np.mean(right), atol=1e-6)
    found = jax.jit(method.evaluate)(variables, key, batch, {})
    assert found["loss"].weight == 3
    wanted = sum(cost for (row, _), cost in costs.items() if row < 2)
    np.testing.assert_allclose(found["loss"].value, wanted, rtol=1e-5)


def test_learns_a_text_that_repeats() -> None:
    method = masked_tokens(NET, Masking(rate=0.2, tested=0.2))
    starts = np.random.default_rng(3).integers(0, 5, (16, 1))
    rows: dict[str, Any] = {"tokens": jnp.asarray((starts + np.arange(16)) % 5)}
    rows["mask"] = jnp.ones(16)
    variables = nn.unbox(jax.jit(method.init)(jax.random.key(0), rows, {}))
    evaluate = jax.jit(method.evaluate)
    tx = optax.adam(1e-2)
    state = tx.init(variables)

    @jax.jit
    def step(variables: Any, state: Any, key: Any) -> Any:
        grads, _ = jax.grad(method.loss, has_aux=True)(variables, key, rows, {})
        updates, state = tx.update(grads, state)
        return optax.apply_updates(variables, updates), state

    before = evaluate(variables, jax.random.key(9), rows, {})["accuracy"]
    for key in jax.random.split(jax.random.key(1), 60):
        variables, state = step(variables, state, key)
    after = evaluate(variables, jax.random.key(9), rows, {})["accuracy"]
    assert before.value / before.weight < 0.5 and after.value / after.weight > 0.95

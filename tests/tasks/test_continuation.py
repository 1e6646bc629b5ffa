from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigr_jax.errors import UserError
from bigr_jax.models.decoder_lm import DecoderLM
from bigr_jax.tasks.continuation import (
    Continued,
    Decoding,
    Prompts,
    continued,
    grouped_prompts,
    line_prompts,
    measured,
    shown,
)
from bigr_jax.tasks.next_token import next_tokens

END, VOCABULARY = 1, 7
NET = DecoderLM(VOCABULARY, 8, 1, 2, hidden=8)


@pytest.fixture(scope="module")
def variables():
    start = jax.jit(NET.init)(jax.random.key(0), jnp.zeros((1, 3), jnp.int32))
    return jax.tree.map(lambda leaf: leaf * 8, nn.meta.unbox(start))


def test_rows_with_one_beginning_are_one_prompt():
    rows = np.array([[5, 6, 2, 3, 1, 0], [5, 6, 4, 1, 0, 0], [6, 5, 2, 2, 2, 1]])
    found = grouped_prompts(rows, 2, END, 9)
    assert found.tokens.tolist() == [[5, 6], [6, 5]] and found.lengths.tolist() == [2, 2]
    assert found.references == [[(2, 3), (4,)], [(2, 2, 2)]]
    assert len(grouped_prompts(rows, 2, END, 1).references) == 1


def test_a_line_is_asked_for_after_the_one_before():
    rows = np.array([[2, 1, 3, 4, 1, 5, 6, 2, 1], [2, 2, 2, 1, 3, 4, 5, 6, 2], [1] * 9])
    found = line_prompts(rows, END, 9, shortest=3, line=(2, 3))
    # The second row's line does not end, the third's are empty; the first's first comes too early.
    assert found.lengths.tolist() == [5] and found.references == [[(5, 6, 2)]]
    assert found.tokens[0, :5].tolist() == [2, 1, 3, 4, 1] and (found.tokens[0, 5:] == END).all()


def test_what_a_list_is_worth_by_hand():
    prompts = Prompts(np.zeros((1, 1), np.int32), np.ones(1, np.int32), [[(2, 3, 4)]])
    found = Continued([[(2, 3), (2, 3, 4)]], [[-1.0, -3.0]])
    values = measured(found, prompts)
    assert values["oracle@2"] == pytest.approx(1) and values["oracle@1"] < 1
    assert values["distinct-1"] == pytest.approx(3 / 5) and values["distinct-2"] == pytest.approx(
        0.4
    )
    assert values["best_logp"] == -1 and values["mean_logp"] == -2


@pytest.mark.parametrize("kind", ["beam", "sample"])
def test_lists_are_in_the_order_of_their_log_p(variables, kind):
    prompts = Prompts(
        np.array([[2, 3], [4, 0]], np.int32), np.array([2, 1], np.int32), [[(2,)]] * 2
    )
    decoding = Decoding(kind, length=5, beams=4, groups=2)
    found = continued(NET, variables, jax.random.key(0), prompts, decoding, END)
    for texts, logp in zip(found.texts, found.logp, strict=True):
        assert len(texts) == len(logp) <= 4 and logp == sorted(logp, reverse=True)
        assert all(END not in text and len(text) <= 5 for text in texts)
    picture = shown(prompts, found, lambda tokens: " ".join(map(str, tokens)))
    assert picture.dtype == np.uint8 and picture.min() < 100 and picture.shape[2] == 3


def test_an_unknown_kind_is_refused(variables):
    prompts = Prompts(np.zeros((1, 1), np.int32), np.ones(1, np.int32), [[]])
    with pytest.raises(UserError, match=r"sample\.kind"):
        continued(NET, variables, jax.random.key(0), prompts, Decoding("best"), END)


def test_the_loss_is_that_of_the_next_token_without_padding(variables):
    method = next_tokens(NET, padding=0)
    tokens = np.array([[2, 3, 4, 1, 0], [5, 6, 1, 0, 0]], np.int32)
    batch = {"tokens": jnp.asarray(tokens), "mask": jnp.array([1.0, 1.0])}
    value, aux = method.loss(variables, jax.random.key(0), batch, {})
    logits = np.asarray(NET.apply(variables, tokens[:, :-1]), np.float64)
    logp = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    places = [(r, i) for r in range(2) for i in range(4) if tokens[r, i + 1] != 0]
    wanted = -np.mean([logp[r, i, tokens[r, i + 1]] for r, i in places])
    assert float(value) == pytest.approx(wanted, rel=1e-5)
    right = np.mean([logits[r, i].argmax() == tokens[r, i + 1] for r, i in places])
    assert float(aux.metrics["accuracy"]) == pytest.approx(right)
    sums = method.evaluate(variables, jax.random.key(0), batch, {})
    assert sums["loss"].metric() == pytest.approx(wanted, rel=1e-5)
    assert sums["bits"].metric() == pytest.approx(wanted / np.log(2), rel=1e-5)
    half = {**batch, "mask": jnp.array([1.0, 0.0])}
    assert float(method.evaluate(variables, jax.random.key(0), half, {})["loss"].weight) == 3

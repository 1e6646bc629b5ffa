"""Items told from both sides or from one: what is seen, what counts, and what is ranked."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigr_jax.data.interactions import TEST, TRAIN, VALIDATION
from bigr_jax.data.opening import open_source
from bigr_jax.errors import UserError
from bigr_jax.models.encoder import Encoder, MaskedModel
from bigr_jax.models.item_counts import Markov, Popularity
from bigr_jax.tasks import next_item as task
from bigr_jax.tasks.next_item import Objective, Ranking, next_item

ITEMS, LENGTH, BATCH = 16, 7, 4
ASKED = Ranking((1, 3), 5)
MIXERS = {"cloze": "attention", "bce": "causal_attention", "softmax": "causal_attention"}


def network(kind: str) -> MaskedModel:
    encoder = Encoder(1, MIXERS[kind], heads=2, hidden=8, norm_first=False)
    return MaskedModel(ITEMS, 8, encoder, positions=LENGTH, spread=0.3)


@pytest.fixture(scope="module")
def batch() -> dict[str, Any]:
    rng = np.random.default_rng(0)
    tokens = np.stack([rng.permutation(np.arange(1, ITEMS - 1))[:LENGTH] for _ in range(BATCH)])
    tokens[1, :3], tokens[2, :-3] = 0, 0
    seen = np.zeros((BATCH, ITEMS), bool)
    for row, items in zip(seen, tokens, strict=True):
        row[items[:-1]] = True
    part = np.array([TEST, VALIDATION, TEST, TRAIN], np.int32)
    index, mask = np.arange(BATCH, dtype=np.int32), np.ones(BATCH, np.float32)
    found = {
        "tokens": tokens.astype(np.int32),
        "seen": np.packbits(seen, axis=1),
        "part": part,
        "index": index,
        "mask": mask,
    }
    return {name: jnp.asarray(value) for name, value in found.items()}


@pytest.fixture(scope="module", params=MIXERS)
def made(request: pytest.FixtureRequest, batch: dict[str, Any]) -> Any:
    """The kind, its network, its variables, and the gradient of its loss, compiled."""
    kind = request.param
    net = network(kind)
    method = next_item(net, Objective(kind, rate=0.4, last=0.25), ASKED)
    variables = nn.unbox(jax.jit(method.init)(jax.random.key(0), batch, {}))
    slope = jax.jit(jax.value_and_grad(method.loss, has_aux=True))
    return kind, net, variables, slope, method


@pytest.fixture(scope="module")
def at() -> dict[str, Any]:
    return {
        kind: jax.jit(lambda v, t, p, kind=kind: task.scores_at(network(kind), kind, v, t, p))
        for kind in MIXERS
    }


def test_what_an_answer_depends_on(made: Any, at: Any, batch: dict[str, Any]) -> None:
    kind, _, variables, _, _ = made
    tokens, places = np.asarray(batch["tokens"]), np.full(BATCH, 5)
    scores = np.asarray(at[kind](variables, tokens, places))
    for place in range(LENGTH):
        changed = tokens.copy()
        # Another item, but padding stays padding.
        changed[:, place] = np.where(tokens[:, place], tokens[:, place] % (ITEMS - 2) + 1, 0)
        moved = np.abs(np.asarray(at[kind](variables, changed, places)) - scores).max(1) > 1e-6
        sees = place < 5 or (kind == "cloze" and place > 5)
        np.testing.assert_array_equal(moved, sees & (tokens[:, place] > 0), err_msg=str(place))


def test_padding_changes_nothing(made: Any, at: Any, batch: dict[str, Any]) -> None:
    _, net, variables, _, _ = made
    tokens = np.asarray(batch["tokens"])
    real = jnp.asarray(tokens > 0)
    apply = jax.jit(lambda tokens: net.apply(variables, tokens, real))
    plain = np.asarray(apply(tokens))
    other = np.asarray(apply(np.where(real, tokens, 3)))
    np.testing.assert_allclose(np.where(real[..., None], plain - other, 0), 0, atol=1e-6)


def test_places_and_choices_are_those_of_the_whole(made: Any, batch: dict[str, Any]) -> None:
    _, net, variables, _, _ = made
    tokens, rng = batch["tokens"], np.random.default_rng(1)
    places = jnp.asarray(rng.integers(0, LENGTH, (BATCH, 3)))
    choices = jnp.asarray(rng.integers(0, ITEMS, (BATCH, 3, 2)))
    whole, few, fewer = jax.jit(
        lambda v: (
            net.apply(v, tokens),
            net.apply(v, tokens, places=places),
            net.apply(v, tokens, places=places, choices=choices),
        )
    )(variables)
    wanted = np.take_along_axis(np.asarray(whole), np.asarray(places)[..., None], axis=1)
    np.testing.assert_allclose(few, wanted, atol=1e-5)
    np.testing.assert_allclose(fewer, np.take_along_axis(wanted, np.asarray(choices), 2), atol=1e-5)


def test_the_loss_is_that_of_what_is_asked(
    made: Any, batch: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    kind, net, variables, _, method = made
    tokens, key = np.asarray(batch["tokens"]), jax.random.key(5)
    asked: dict[str, Any] = {}

    def kept(name: str) -> Any:
        real = getattr(task, name)

        def wrapper(*args: Any) -> Any:
            asked[name] = real(*args)
            return asked[name]

        return wrapper

    for name in ("places_of", "unseen"):
        monkeypatch.setattr(task, name, kept(name))

    @jax.jit
    def run(variables: Any) -> Any:
        return method.loss(variables, key, batch, {})[0], asked

    value, asked = run(variables)
    apply = jax.jit(net.apply)
    if kind == "cloze":
        places, used = (np.asarray(x) for x in asked["places_of"])
        hidden = [row[own > 0].tolist() for row, own in zip(places, used, strict=True)]
        # Of 7, 4, 3 and 7 items 0.4, or the last alone.
        for row, own in enumerate(hidden):
            full = len(own) == (3, 2, 1, 3)[row]
            assert full or own == [LENGTH - 1]
        shown = tokens.copy()
        for row, own in enumerate(hidden):
            shown[row, own] = ITEMS - 1
        logits = _float64(apply, variables, shown, tokens > 0)
        pairs = [(row, place, place) for row, own in enumerate(hidden) for place in own]
    else:
        shown = tokens[:, :-1]
        logits = _float64(apply, variables, shown, shown > 0)
        pairs = [(row, place, place + 1) for row, place in zip(*np.nonzero(shown), strict=True)]
    costs = []
    for row, place, wanted in pairs:
        line, item = logits[row, place], tokens[row, wanted]
        if kind == "bce":
            other = asked["unseen"][row, place]
            assert other not in tokens[row, :-1] and 0 < other < ITEMS - 1
            costs.append(np.log1p(np.exp(-line[item])) + np.log1p(np.exp(line[other])))
        else:
            costs.append(np.log(np.exp(line - line.max()).sum()) + line.max() - line[item])
    np.testing.assert_allclose(value, np.mean(costs), rtol=2e-5)


def _float64(apply: Any, variables: Any, shown: np.ndarray, real: np.ndarray) -> np.ndarray:
    return np.asarray(apply(variables, shown, jnp.asarray(real)), np.float64)


def test_a_gradient_reaches_every_parameter(made: Any, batch: dict[str, Any]) -> None:
    _, _, variables, slope, _ = made
    _, slopes = slope(variables, jax.random.key(1), batch, {})
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(slopes))


def test_evaluation_ranks_each_part_among_what_was_not_had(
    made: Any, at: Any, batch: dict[str, Any]
) -> None:
    kind, _, variables, _, method = made
    found = jax.jit(method.evaluate)(variables, jax.random.key(0), batch, {})
    tokens = np.asarray(batch["tokens"])
    scores = np.asarray(at[kind](variables, tokens, np.full(BATCH, LENGTH - 1)))[:, :ITEMS]
    ranks = []
    for row, line in zip(tokens, scores, strict=True):
        left = set(range(1, ITEMS - 1)) - set(row[:-1].tolist())
        ranks.append(1 + sum(line[item] >= line[row[-1]] for item in left - {row[-1]}))
    for prefix, rows in (("", [0, 2]), ("valid_", [1])):
        own = np.array(ranks)[rows]
        assert found[f"{prefix}hr@3"] == ((own <= 3).sum(), len(rows))
        np.testing.assert_allclose(found[f"{prefix}mrr"].value, (1 / own).sum(), rtol=1e-6)
    halves = []
    for part in (slice(0, 2), slice(2, 4)):
        cut = {name: value[part] for name, value in batch.items()}
        halves.append(jax.jit(method.evaluate)(variables, jax.random.key(0), cut, {}))
    for name, pair in found.items():
        np.testing.assert_allclose(pair, np.sum([half[name] for half in halves], 0), rtol=1e-5)


def test_items_not_had_are_drawn_alike() -> None:
    rng = np.random.default_rng(0)
    exclude = rng.random((3, 12)) < [[0.2], [0.6], [0.0]]
    exclude[1, :11] = True
    exclude[1, 11] = False
    drawn = np.asarray(task.unseen(jax.random.key(0), jnp.asarray(exclude), 20000))
    for row, items in zip(exclude, drawn, strict=True):
        share = np.bincount(items, minlength=12) / len(items)
        np.testing.assert_allclose(share, ~row / (~row).sum(), atol=0.01)
        assert not share[row].any()


@pytest.mark.parametrize(
    ("kind", "mixer", "changes", "said"),
    [
        ("clozes", "attention", {}, "objective.kind='clozes' is not known .did you mean 'cloze'"),
        (
            "softmax",
            "attention",
            {},
            "asks for the next item, which encoder.mixer='attention' sees",
        ),
        ("bce", "hydra", {}, "legal with it: causal, causal_attention"),
        ("cloze", "attention", {"rate": 1.5}, "objective.rate=1.5 is no share"),
        ("cloze", "attention", {"last": -0.1}, "objective.last=-0.1 is no share"),
        ("cloze", "attention", {"most": -1}, "objective.most=-1 must not be negative"),
    ],
)
def test_bad_objectives_are_refused(kind: str, mixer: str, changes: Any, said: str) -> None:
    net = MaskedModel(ITEMS, 8, Encoder(1, mixer))
    with pytest.raises(UserError, match=said):
        next_item(net, Objective(kind, **changes), ASKED)


def test_counting_scorers() -> None:
    sequences = [np.array([1, 2, 3, 1, 2]), np.array([2, 3]), np.array([4])]
    counts = np.bincount(np.concatenate(sequences), minlength=6)
    scores = Popularity(counts).scores(np.array([2, 4]))
    np.testing.assert_array_equal(scores, [counts, counts])
    found = Markov(sequences, counts).scores(np.array([1, 2, 4]))
    followed = np.array([[0, 0, 2, 0, 0, 0], [0, 0, 0, 2, 0, 0], [0] * 6])
    np.testing.assert_array_equal(np.floor(found), followed)
    np.testing.assert_array_equal(np.argsort(-(found - followed), 1, "stable")[:, 0], [2, 2, 2])


def test_scorers_that_are_not_trained_are_measured_alike() -> None:
    section = {"source": "interactions:made", "size": 8, "channels": 0}
    source: Any = open_source(section, "test")
    counts = source.counts()
    found = task.measured_scorer(
        lambda rows: Popularity(counts).scores(rows["tokens"][:, -2]), source, ASKED
    )
    rows = source.gather(np.arange(len(source)))
    had = np.unpackbits(rows["seen"], axis=1, count=source.info.num_classes) > 0
    own = counts[rows["tokens"][:, -1]][:, None]
    better = (counts >= own) & ~had
    better[:, [0, -1]] = False
    # The item itself is counted.
    places = better.sum(1)
    for part, prefix in ((TEST, ""), (VALIDATION, "valid_")):
        of_part = places[rows["part"] == part]
        np.testing.assert_allclose(found[f"{prefix}hr@3"], (of_part <= 3).mean(), atol=1e-6)
        np.testing.assert_allclose(found[f"{prefix}mrr"], (1 / of_part).mean(), rtol=1e-5)
    assert found["hr@3 of 5 uniform"] > found["hr@3"]


def test_the_middle_is_asked_where_it_stands(made: Any, at: Any, batch: dict[str, Any]) -> None:
    kind, net, variables, _, _ = made
    found = jax.jit(task.middle(net, kind, ASKED))(variables, batch)
    tokens, ranks = np.asarray(batch["tokens"]), []
    for row in (0, 2):
        real = int((tokens[row] > 0).sum())
        place = LENGTH - real + real // 2
        line = np.asarray(at[kind](variables, tokens, np.full(BATCH, place)))[row, :ITEMS]
        own = tokens[row, place]
        left = set(range(1, ITEMS - 1)) - set(tokens[row].tolist())
        ranks.append(1 + sum(line[item] >= line[own] for item in left))
    assert found["middle_hr@3"] == (sum(rank <= 3 for rank in ranks), 2)


def test_the_picture_shows_lists() -> None:
    names = ("<padding>", *"abcdefgh", "<mask>")
    rows = {"tokens": np.array([[0, 1, 2], [3, 4, 5]]), "seen": np.zeros((2, 2), np.uint8)}
    picture = task.shown_lists(np.eye(10)[[2, 5]], rows, names)
    assert picture.dtype == np.uint8 and picture.ndim == 3 and picture.std() > 0


def test_ties_with_what_is_drawn_count_against_the_item(batch: dict[str, Any]) -> None:
    scores = jnp.zeros((BATCH, ITEMS))
    counts = jnp.arange(ITEMS).astype(jnp.float32)
    found = task.among_drawn(scores, batch, counts, ASKED)
    # All are worth the same: the target is behind every one of the five that are drawn.
    assert found["mrr of 5 popular"] == (pytest.approx(2 / 6), 2)
    assert found["hr@3 of 5 uniform"] == (0, 2)

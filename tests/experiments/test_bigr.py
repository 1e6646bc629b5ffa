"""BiGR's evidence: every arm of its study is another choice of the same model, and traces whole."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigr_jax import config as configs
from bigr_jax import registry
from bigr_jax.api import Method
from bigr_jax.data import Source, open_source
from bigr_jax.generate import codes
from bigr_jax.generate.masked import MaskedSampling, remaining_counts, sample_masked
from bigr_jax.train.run import fill
from bigr_jax.train.state import abstract_variables, batch_spec

RECIPE: Any = registry.run_file(Path(__file__).resolve().parents[2] / "experiments" / "bigr.py")
LOADED = configs.load("bigr:smoke")
# Measured beside the arms, once for all of them.
BESIDE = ("pixels", "codes")
# What tells an arm from BiGR, where it is looked for in what was built.
BUILT = {
    "BiGR": lambda task: (task.net.target, task.sampling.order, task.net.causal),
    "z0": lambda task: task.net.target == "z0" and task.schedule.total == 8,
    "direct": lambda task: task.net.target == "direct" and task.schedule.total == 1,
    "random order": lambda task: task.sampling.order == "random",
    "raster order": lambda task: task.sampling.order == "raster",
    "rounded bits": lambda task: task.sampling.deterministic,
    "unconditional": lambda task: task.label_drop == 1,
    "autoregressive": lambda task: task.net.causal,
}
# Those that differ in how is drawn, and those that learn otherwise.
DRAWN = [arm for arm, keys in RECIPE.ARMS.items() if any(key[:7] == "sample." for key in keys)]
LEARNT = [arm for arm in RECIPE.ARMS if arm not in DRAWN]
KEY, ROWS = jax.random.key(0), 4


class Study:
    """Stands for a lab: keeps what the study asks of it, and trains nothing."""

    def __init__(self) -> None:
        self.seeds = range(2)
        self.trained: dict[tuple[str, int], dict[str, str]] = {}
        self.recorded: set[tuple[str, str, int]] = set()
        self.claimed: list[tuple[str, str, Any, bool]] = []

    def arms(self, known: dict[str, dict[str, str]]) -> dict[str, dict[str, str]]:
        return known

    def train(self, arm: str, changes: dict[str, str], seed: int, stage: str) -> Any:
        assert stage == "generator"
        self.trained[arm, seed] = changes
        return SimpleNamespace(measured=measured)

    def measure(self, arm: str, seed: int, function: Any) -> dict[str, float]:
        found: dict[str, float] = function()
        self.recorded |= {(arm, metric, seed) for metric in found}
        return found

    def record(self, arm: str, metric: str, value: float, seed: int) -> None:
        self.recorded.add((arm, metric, seed))

    def claim(self, text: str, metric: str, better: str, than: Any, lower: bool = False) -> None:
        assert text
        self.claimed.append((metric, better, than, lower))


def measured(stage: str) -> dict[str, float]:
    assert stage == "generator"
    return {"frechet": 1.0, "probe": 0.5, "probe_pixels": 0.5, "probe_codes": 0.5}


class Built(NamedTuple):
    """An arm's generator, and the shapes of what it is given and of its own variables."""

    task: Any
    method: Method
    given: dict[str, Any]
    variables: Any


@pytest.fixture(scope="module")
def study() -> Study:
    found = Study()
    RECIPE.study(LOADED, found)
    return found


@pytest.fixture(scope="module")
def source() -> Source:
    return open_source(configs.copy(LOADED).data, "train")


@pytest.fixture(scope="module")
def arms(study: Study, source: Source) -> dict[str, Built]:
    """Every arm as the study trains it, traced on shapes alone; none changes the stages before."""
    found: dict[str, Built] = {}
    given: dict[str, Any] = {}
    for arm in RECIPE.ARMS:
        config = configs.copy(configs.override(LOADED, study.trained[arm, 0]))
        fill(config.data, source)
        stages = RECIPE.stages(config)
        for name in ("tokenizer", "referee"):
            if name not in given:
                given[name] = shapes(stages[name], source, {})
        method = stages["generator"]
        task = method.loss.__self__
        found[arm] = Built(task, method, given, shapes(method, source, given))
    return found


def shapes(method: Method, source: Source, given: Any) -> Any:
    return nn.meta.unbox(abstract_variables(method, batch_spec(source, ROWS), given))


def learnt(built: Built) -> dict[str, tuple[int, ...]]:
    leaves = jax.tree_util.tree_flatten_with_path(built.variables["params"])[0]
    return {jax.tree_util.keystr(path): leaf.shape for path, leaf in leaves}


def test_the_study_trains_every_arm_for_one_budget(study: Study) -> None:
    assert study.trained.keys() == {(arm, seed) for arm in RECIPE.ARMS for seed in study.seeds}
    key = "train.generator.duration"
    for (arm, _), changes in study.trained.items():
        assert changes == {key: LOADED.study.duration, **RECIPE.ARMS[arm]}
    # Those that draw otherwise are of one training.
    for arm in DRAWN:
        changes = RECIPE.ARMS[arm].items()
        assert {(k, v) for k, v in changes if k[:7] != "sample."} == RECIPE.ARMS["BiGR"].items()
    # A rate of its own is an arm's right, more steps or rows are not.
    trained = {key for changes in RECIPE.ARMS.values() for key in changes if key[:6] == "train."}
    assert trained <= {"train.generator.optimizer.lr"}


def test_claims_are_about_what_is_measured(study: Study) -> None:
    assert len(study.claimed) == len(RECIPE.CLAIMS) == len({row[0] for row in RECIPE.CLAIMS})
    for metric, better, than, lower in study.claimed:
        assert better in RECIPE.ARMS and than in {*RECIPE.ARMS, *BESIDE} and better != than
        assert lower == (metric == "frechet")
        for seed in study.seeds:
            assert {(better, metric, seed), (than, metric, seed)} <= study.recorded
    assert set(RECIPE.ARMS) <= {name for _, *pair, _ in study.claimed for name in pair}


@pytest.mark.parametrize("arm", RECIPE.ARMS)
def test_an_arm_is_what_it_says_at_equal_size(arms: dict[str, Built], arm: str) -> None:
    built, base = arms[arm], arms["BiGR"]
    assert BUILT[arm](built.task)
    assert BUILT["BiGR"](base.task) == ("flip", "entropy", False)
    assert arm == "BiGR" or not BUILT[arm](base.task)
    assert learnt(built).keys() == learnt(base).keys()
    sizes = [sum(map(math.prod, learnt(one).values())) for one in (built, base)]
    assert sizes[0] == sizes[1] > 10_000


@pytest.mark.parametrize("arm", LEARNT)
def test_what_an_arm_learns_by_traces_whole(
    arms: dict[str, Built], source: Source, arm: str
) -> None:
    _, method, given, variables = arms[arm]
    batch = batch_spec(source, ROWS)
    loss, aux = jax.eval_shape(method.loss, variables, KEY, batch, given)
    assert (loss.shape, loss.dtype) == ((), jnp.float32)
    assert {name: leaf.shape for name, leaf in aux.metrics.items()} == {"bit_accuracy": ()}
    found = jax.eval_shape(method.evaluate, variables, KEY, batch, given)
    assert found.keys() == {"loss", "bits_per_image"}
    assert {leaf.shape for leaf in jax.tree.leaves(found)} == {()}


@pytest.mark.parametrize("arm", RECIPE.ARMS)
def test_an_arm_draws_images_and_the_causal_one_token_by_token(
    arms: dict[str, Built], monkeypatch: pytest.MonkeyPatch, arm: str
) -> None:
    task, method, given, variables = arms[arm]
    asked: list[MaskedSampling] = []
    assert method.sample is not None

    def spied(steps: Any, draws: Any, schedule: Any, sampling: Any, **rest: Any) -> Any:
        asked.append(sampling)
        return sample_masked(steps, draws, schedule, sampling, **rest)

    monkeypatch.setattr(codes, "sample_masked", spied)
    labels = jax.ShapeDtypeStruct((3,), jnp.int32)
    images = jax.eval_shape(method.sample, variables, KEY, labels, given)
    assert (images.shape, images.dtype) == ((3, 8, 8, 1), jnp.float32)
    (how,) = asked
    if arm == "autoregressive":
        counts = remaining_counts(how.remaining, how.iterations, task.net.length)[:, -1]
        assert how.order == "raster"
        np.testing.assert_array_equal(counts, np.arange(task.net.length, -1, -1))
    else:
        assert how == task.sampling and how.iterations == 4 < task.net.length

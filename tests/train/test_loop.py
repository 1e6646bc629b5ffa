"""The loop on a tiny experiment: stopping and going on, one program, whole evaluations, traces."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from bigr_jax import registry
from bigr_jax.errors import UserError
from bigr_jax.train import commands, loop, manifest
from bigr_jax.train.checkpoints import Checkpoints
from bigr_jax.train.loop import Evaluator, Interrupted, profiler, stopping
from bigr_jax.train.run import Run
from bigr_jax.train.writer import Metrics


def rows(workdir):
    return [json.loads(line) for line in Path(workdir, "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def straight(tiny, tmp_path_factory):
    """A work directory that nothing disturbed."""
    workdir = tmp_path_factory.mktemp("straight")
    commands.train(tiny(), str(workdir))
    return workdir


@pytest.fixture
def on_row(monkeypatch):
    """Returns a function that has (stage, step, values) called after each row of metrics."""
    write = Metrics.write

    def install(action):
        def patched(self, stage, step, values):
            write(self, stage, step, values)
            action(stage, step, values)

        monkeypatch.setattr(Metrics, "write", patched)

    yield install
    monkeypatch.setattr(Metrics, "write", write)


@pytest.fixture
def wrapped(monkeypatch):
    """Returns a function that has every Method replaced by change(stage, method)."""
    load = registry.load

    def install(change):
        def patched(ref):
            found = load(ref)
            return found._replace(
                stages=lambda config: {n: change(n, m) for n, m in found.stages(config).items()}
            )

        monkeypatch.setattr(registry, "load", patched)

    return install


class Crash(Exception):
    pass


def signals(*numbers):
    return [lambda number=number: os.kill(os.getpid(), number) for number in numbers]


def crash():
    raise Crash


TERM, INT = signal.SIGTERM, signal.SIGINT
# What happens while the row of a step is written, the stage and step at which it does, and the step
# that is on disk then. A row is written one step late, but not before an evaluation.
BREAKS = {
    "SIGTERM": (signals(TERM), "first", 2, False, Interrupted, 3),
    "SIGINT": (signals(INT), "first", 7, False, Interrupted, 8),
    "while it evaluates": (signals(TERM), "first", 5, True, Interrupted, 5),
    "in the last step": (signals(TERM), "first", 12, False, Interrupted, 12),
    "in the second stage": (signals(TERM), "second", 2, False, Interrupted, 3),
    "impatiently": (signals(INT, INT), "first", 6, False, KeyboardInterrupt, 4),
    "by a crash": ([crash], "second", 5, True, Crash, 4),
}


def test_no_step_counts_before_the_checkpoint_before_it_is_on_disk(
    tiny, on_row, tmp_path, monkeypatch
):
    write, ahead = manifest.write, []

    def slowly(*args):
        time.sleep(0.2)
        write(*args)

    def look(stage, step, values):
        with Checkpoints(tmp_path / stage / "checkpoints") as checkpoints:
            ahead.append(step - (checkpoints.latest() or 0))

    monkeypatch.setattr(manifest, "write", slowly)
    on_row(look)
    config = tiny()
    commands.train(config, str(tmp_path), "first")
    assert config.train.first.save == f"{max(ahead)} steps"


@pytest.mark.parametrize("name", BREAKS)
def test_a_broken_run_goes_on_to_the_same_bits(
    straight, tiny, saved, on_row, tmp_path, monkeypatch, name
):
    actions, stage, step, evaluating, raised, on_disk = BREAKS[name]
    clock, ahead = time.perf_counter, [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: clock() + ahead[0])

    def strike(at_stage, at_step, values):
        if (at_stage, at_step, "test/loss" in values) == (stage, step, evaluating):
            # An hour that only the first leg has.
            ahead[0] += 3600
            for action in actions:
                action()

    on_row(strike)
    with pytest.raises(raised) as caught:
        commands.train(tiny(), str(tmp_path))
    assert type(caught.value) is raised
    with Run(tiny(), str(tmp_path)).checkpoints(stage) as checkpoints:
        assert checkpoints.latest() == on_disk
    if raised is Interrupted:
        total = {"first": 12, "second": 6}[stage]
        assert str(caught.value) == (
            f"stopped at step {on_disk} of {total} of stage '{stage}', saved; "
            "the same command goes on from there"
        )
        assert caught.value.signum in (TERM, INT)
    on_row(lambda *_: None)
    commands.train(tiny(), str(tmp_path))
    for part in ("first", "second"):
        expected, found = saved(straight, part), saved(tmp_path, part)
        assert expected.keys() == found.keys() and len(expected) >= 6
        for path, leaf in expected.items():
            assert leaf.tobytes() == found[path].tobytes(), path
    assert rows(tmp_path) == rows(straight)
    spent = json.loads((tmp_path / "results.json").read_text())["stages"][stage]["seconds"]
    # What was done after the last save before a crash is done again, and counted once.
    assert (spent > 3600) == (raised is Interrupted)


def test_every_step_is_logged_once_in_order(straight):
    plain = [(r["stage"], r["step"]) for r in rows(straight) if "loss" in r]
    assert plain == [("first", n) for n in range(1, 13)] + [("second", n) for n in range(1, 7)]
    tests = [(r["stage"], r["step"]) for r in rows(straight) if "test/loss" in r]
    assert tests == [("first", 5), ("first", 10), ("first", 12), ("second", 5), ("second", 6)]


def test_a_stop_leaves_the_handlers_as_they_were():
    before = [signal.getsignal(number) for number in (TERM, INT)]
    with stopping() as asked:
        os.kill(os.getpid(), TERM)
        assert asked == [TERM]
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), INT)
    assert [signal.getsignal(number) for number in (TERM, INT)] == before


def test_outside_the_main_thread_signals_are_left_alone():
    seen = []

    def inside():
        with stopping() as asked:
            seen.append((asked, signal.getsignal(TERM)))

    before = signal.getsignal(TERM)
    thread = threading.Thread(target=inside)
    thread.start()
    thread.join()
    assert seen == [([], before)]


def test_nothing_is_traced_after_the_first_evaluation(tiny, on_row, tmp_path):
    def forbid(stage, step, values):
        if "test/loss" in values:
            jax.config.update("jax_no_tracing", step < 12)

    on_row(forbid)
    try:
        commands.train(tiny(), str(tmp_path), "first")
        jax.config.update("jax_no_tracing", True)
        with pytest.raises(RuntimeError, match="tracing"):
            jax.jit(lambda x: x + len(rows(tmp_path)))(1.0)
    finally:
        jax.config.update("jax_no_tracing", False)
    assert rows(tmp_path)[-1]["step"] == 12


def test_loss_and_evaluation_are_traced_once(tiny, wrapped, tmp_path):
    traces = {"loss": 0, "evaluate": 0}

    def counted(name, function):
        def call(*args):
            traces[name] += 1
            return function(*args)

        return call

    def change(stage, method):
        return method._replace(**{name: counted(name, getattr(method, name)) for name in traces})

    wrapped(change)
    commands.train(tiny(), str(tmp_path), "first")
    assert traces == {"loss": 1, "evaluate": 1}


def test_a_transfer_within_the_step_is_refused(tiny, monkeypatch, tmp_path):
    monkeypatch.setattr(loop, "device_batches", lambda batches, mesh: batches)
    with pytest.raises(Exception, match="Disallowed host-to-device transfer"):
        commands.train(tiny(), str(tmp_path), "first")


@pytest.mark.parametrize(("poison", "name"), [("loss", "loss"), ("gradient", "grad_norm")])
@pytest.mark.parametrize(("at", "intact"), [(3, 0), (8, 4)])
def test_what_is_not_finite_ends_the_run_before_it_is_saved(
    tiny, tmp_path, poison, name, at, intact
):
    config = tiny({"method.poison": poison, "method.at": str(at)})
    with pytest.raises(UserError, match=rf"the {name} of stage 'first' is nan at step {at}; "):
        commands.train(config, str(tmp_path))
    assert Run(config, str(tmp_path)).step_of("first") == intact
    assert [r["step"] for r in rows(tmp_path) if "loss" in r] == list(range(1, at))


@pytest.mark.parametrize("size", [359, 100, 358])
def test_evaluation_is_the_mean_over_every_example(straight, tiny, size):
    run = Run(tiny(), str(straight))
    variables = run.variables("first")
    test = run.sources["test"]
    assert len(test) == 359
    batch = test.gather(np.arange(len(test)))
    x = batch["image"].reshape(len(test), -1).astype("f8") / 255
    params = jax.tree.map(lambda leaf: np.asarray(leaf, "f8"), dict(variables["params"]))
    logits = x @ params["kernel"] + params["bias"]
    losses = np.log(np.exp(logits).sum(-1)) - logits[np.arange(len(x)), batch["label"]]
    plan = run.plan("first")
    found = Evaluator(plan._replace(eval_batch_size=size), run.mesh, {})(variables, test)
    np.testing.assert_allclose(found["loss"], losses.mean(), rtol=1e-6)
    assert found["index"] == 179  # of 0 to 358


def test_the_window_is_traced_wherever_training_begins_and_ends(monkeypatch):
    events = []
    monkeypatch.setattr(jax.profiler, "start_trace", lambda path: events.append(path))
    monkeypatch.setattr(jax.profiler, "stop_trace", lambda: events.append("stop"))

    def traced(window, start, end):
        events.clear()
        with profiler(window, "there") as before:
            for step in range(start + 1, end + 1):
                events.append(step)
                before(step, None)
        return list(events)

    assert traced((2, 3), 0, 5) == [1, 2, "there", 3, 4, "stop", 5]
    assert traced((4, 9), 0, 5) == [1, 2, 3, 4, "there", 5, "stop"]
    assert traced((2, 5), 3, 7) == [4, "there", 5, 6, "stop", 7]
    assert traced((1, 3), 3, 5) == [4, 5]
    assert traced(None, 0, 2) == [1, 2]


def test_a_profile_is_written_also_when_training_ends_first(tiny, tmp_path):
    commands.train(tiny(), str(tmp_path), "first", profile="11:40")
    traces = list(tmp_path.glob("first/profile/**/*.xplane.pb"))
    assert len(traces) == 1 and traces[0].stat().st_size > 0

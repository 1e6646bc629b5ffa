"""A tiny experiment in a work directory: what it leaves there, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

from bigr_jax import config as configs
from bigr_jax import files
from bigr_jax.errors import UserError
from bigr_jax.train import commands
from bigr_jax.train import run as runs
from bigr_jax.train.run import Run

TINY = Path(__file__).resolve().parents[1] / "tiny.py"


@pytest.fixture(scope="module")
def finished(tiny, tmp_path_factory):
    """A work directory in which both stages are trained; copy it to change it."""
    workdir = tmp_path_factory.mktemp("finished")
    commands.train(tiny(), str(workdir))
    return workdir


@pytest.fixture
def workdir(finished, tmp_path):
    return str(shutil.copytree(finished, tmp_path / "run"))


@pytest.fixture
def no_training(monkeypatch):
    def fit(*args):
        raise AssertionError("a stage was trained")

    monkeypatch.setattr(runs, "fit", fit)


def read(workdir, name):
    return json.loads(Path(workdir, name).read_text())


def rows(workdir):
    return [json.loads(line) for line in Path(workdir, "metrics.jsonl").read_text().splitlines()]


def same(a, b):
    leaves = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return all(np.asarray(x).tobytes() == np.asarray(y).tobytes() for x, y in leaves)


def refused(config, workdir, **kwargs):
    with pytest.raises(UserError) as caught:
        commands.train(config, str(workdir), **kwargs)
    text = str(caught.value)
    assert "\n" not in text
    return text


def test_results_say_what_was_measured_at_the_end(finished):
    results = read(finished, "results.json")
    assert results["variant"] == "small"
    for stage, total in (("first", 12), ("second", 6)):
        entry = results["stages"][stage]
        assert entry["step"] == total and entry["seconds"] > 0
        last = [r for r in rows(finished) if r["stage"] == stage and "test/loss" in r][-1]
        assert last["step"] == total and last["test/loss"] == entry["test"]["loss"]
    assert results["stages"]["second"]["report"].keys() == {"brightness", "spread"}
    assert "report" not in results["stages"]["first"]


def test_rows_hold_the_metrics_of_loss_and_step(finished):
    first = rows(finished)[0]
    assert first.keys() == {"stage", "step", "loss", "first_index", "grad_norm", "lr"}
    assert 2.0 < first["loss"] < 2.6 and first["grad_norm"] > 0


def test_the_work_directory_describes_the_run(finished, tiny):
    config = configs.load_json(str(finished / "config.json"))
    changed = {change.key: change.after for change in configs.diff(tiny(), config)}
    assert changed == {"data.channels": 1, "data.num_classes": 10, "data.examples": 1438}
    env = read(finished, "env.json")
    assert env["jax"] == jax.__version__ and env["processes"] == 1
    table = (finished / "params.txt").read_text()
    assert "params/kernel | 16 x 10 | float32 |   160 | embed, mlp" in table
    assert table.index("# first") < table.index("# second")
    assert (finished / "samples.png").stat().st_size > 0


def test_a_finished_run_is_left_alone(workdir, tiny, no_training, capsys):
    before = Path(workdir, "metrics.jsonl").read_bytes(), read(workdir, "results.json")
    commands.train(tiny(), workdir)
    assert (Path(workdir, "metrics.jsonl").read_bytes(), read(workdir, "results.json")) == before
    error = capsys.readouterr().err
    assert error == "first: already trained to step 12\nsecond: already trained to step 6\n"


def test_what_was_trained_but_not_measured_is_measured(workdir, tiny):
    results = read(workdir, "results.json")
    kept = results["stages"].pop("second")
    files.write_json(Path(workdir, "results.json"), results)
    before = Path(workdir, "metrics.jsonl").read_bytes()
    commands.train(tiny(), workdir)
    assert Path(workdir, "metrics.jsonl").read_bytes() == before
    again = read(workdir, "results.json")["stages"]["second"]
    assert (again["test"], again["report"]) == (kept["test"], kept["report"])


def test_a_study_trains_for_the_metrics_alone(tiny, tmp_path):
    run = Run(tiny(), str(tmp_path))
    run.write_description()
    for name in ("first", "second"):
        assert not run.is_measured(name)
        run.train(name, report=False)
        assert run.is_measured(name)
    stages = read(tmp_path, "results.json")["stages"]
    assert [entry.keys() for entry in stages.values()] == [{"step", "seconds", "test"}] * 2
    assert not list(tmp_path.glob("*.png"))
    # What it has to show is shown when asked for.
    run.measure("second")
    assert read(tmp_path, "results.json")["stages"]["second"]["report"]
    assert (tmp_path / "samples.png").exists()


def test_all_numbers_of_a_stage_are_those_of_the_test_split_and_of_its_report(workdir, tiny):
    run = Run(tiny({"sample.noise": "0.3"}), workdir)
    test = read(workdir, "results.json")["stages"]["second"]["test"]
    shown = run.report("second", 0).metrics
    assert run.measured("second") == {**test, **shown} and shown["spread"] == 0.3
    assert run.measured("first") == run.evaluate("first")
    # Of two with one name, both are kept.
    method = run.methods["second"]
    run.methods["second"] = method._replace(report=lambda *given: runs.Report({"loss": 7.0}, {}))
    assert run.measured("second") == {**test, "report.loss": 7.0}


def test_stages_one_by_one_are_the_same(finished, tiny, saved, tmp_path):
    text = refused(tiny(), tmp_path, stage="second")
    assert text.startswith(f"stage 'first' is at step 0 of 12 in {tmp_path}; train it first: ")
    commands.train(tiny(), str(tmp_path), "first")
    assert list(read(tmp_path, "results.json")["stages"]) == ["first"]
    commands.train(tiny(), str(tmp_path), "second")
    for stage in ("first", "second"):
        expected, found = saved(finished, stage), saved(tmp_path, stage)
        assert expected.keys() == found.keys() and same(expected, found)


def test_a_misspelt_stage(tiny, tmp_path):
    assert refused(tiny(), tmp_path, stage="secnd").startswith(
        "--stage=secnd is no stage (did you mean 'second'?); "
    )
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("window", ["3", "5:4", "a:b", "1:2:3"])
def test_a_window_that_is_none(tiny, tmp_path, window):
    assert refused(tiny(), tmp_path, profile=window).startswith(f"--profile={window} is not FIRST:")


def test_evaluating_again_gives_the_same(workdir, no_training):
    before = read(workdir, "results.json")
    Path(workdir, "samples.png").unlink()
    assert commands.evaluate(workdir) == before == read(workdir, "results.json")
    assert Path(workdir, "samples.png").exists()
    assert commands.evaluate(workdir, "first") == before
    with pytest.raises(UserError, match=r"--stage=frst is no stage \(did you mean 'first'\?\)"):
        commands.evaluate(workdir, "frst")


def test_evaluation_passes_over_what_is_not_finished(workdir):
    shutil.rmtree(Path(workdir, "second"))
    Path(workdir, "results.json").unlink()
    assert list(commands.evaluate(workdir)["stages"]) == ["first"]
    with pytest.raises(UserError, match="stage 'second' is at step 0 of 6"):
        commands.evaluate(workdir, "second")
    shutil.rmtree(Path(workdir, "first"))
    with pytest.raises(UserError, match="stage 'first' is at step 0 of 12"):
        commands.evaluate(workdir)


def test_no_work_directory(tmp_path):
    for call in (
        lambda: commands.evaluate(str(tmp_path)),
        lambda: commands.sample(str(tmp_path), None, None, 1, 0),
    ):
        with pytest.raises(UserError, match=r"is no work directory of `bigr train`: .*\.json is m"):
            call()


def test_another_config_is_refused_by_key(workdir, tiny):
    text = refused(tiny({"train.first.optimizer.lr": "0.1", "seed": "3"}), workdir)
    assert text.startswith(f"{workdir} was made with another config: seed was 0, now 3; ")
    assert "train.first.optimizer.lr was 0.01, now 0.1" in text
    many = {f"train.first.{name}": "9 steps" for name in ("duration", "log", "save", "evaluate")}
    text = refused(tiny({**many, "seed": "3", "method.noise": "0.2"}), workdir)
    assert "; and 1 more. Give another --workdir" in text and text.count(" was ") == 6


@pytest.mark.parametrize(
    "changes",
    [{"mesh.data": "1"}, {"sample.noise": "0.3"}, {"report.bias": "1"}, {"study.seeds": "5"}],
)
def test_what_training_does_not_see_may_change(workdir, tiny, no_training, changes):
    commands.train(tiny(changes), workdir)
    (key,) = changes
    assert configs.flat(configs.load_json(f"{workdir}/config.json"))[key] == float(changes[key])


def test_placement_and_writers_may_change(workdir, tiny):
    config = configs.copy(tiny())
    config.sharding = (("kernel", (None, None)),)
    config.logging.tensorboard = True
    assert Run(config, workdir).is_finished("second")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("config.method.colour = 3", "nothing reads config.method.colour"),
        ("config.data.sizes = 3", "nothing reads config.data.sizes (did you mean 'size'?)"),
        ("config.train.first.lod = '1 steps'", "nothing reads config.train.first.lod (did you"),
        ("config.extra = ConfigDict(dict(a=1))", "nothing reads config.extra.a"),
        ("del config.train.second", "config.train.second is not a key"),
        ("del config.data", "config.data is not a key"),
        ("config.data.size = 0", "data.size=0 is not a side in pixels"),
    ],
)
def test_a_config_of_the_users_own_is_checked(tmp_path, line, message):
    text = TINY.read_text().replace("    return config\n", f"    {line}\n    return config\n", 1)
    (tmp_path / "mine.py").write_text(text)
    config = configs.load(str(tmp_path / "mine.py"))
    assert refused(config, tmp_path / "run").startswith(message)
    assert not (tmp_path / "run").exists()


def test_the_section_of_a_stage_that_is_switched_off_may_stay(tiny, tmp_path):
    config = configs.copy(tiny())
    config.train.third = config.train.second.copy_and_resolve_references()
    assert list(Run(config, str(tmp_path)).methods) == ["first", "second"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data.channels": "2"}, "data.channels=2 is not known"),
        ({"data.num_classes": "7"}, "config.data.num_classes=7, but digits has 10; 0 takes what"),
        ({"data.examples": "9"}, "config.data.examples=9, but digits has 1438; 0 takes what"),
        ({"data.source": "digit"}, "data.source='digit' is not known (did you mean 'digits'?)"),
        ({"train.first.accumulate": "3"}, "train.first.batch_size=8 must be a multiple of data x"),
        ({"train.first.accumulate": "0"}, "train.first.accumulate=0 must be 1 or more"),
        ({"train.first.batch_size": "0"}, "train.first.batch_size=0 must be 1 or more"),
        ({"train.first.eval_batch_size": "-1"}, "train.first.eval_batch_size=-1 must be 1 or"),
        ({"train.first.best": "los"}, "train.first.best='los' is not known (did you mean 'loss'?)"),
        ({"train.first.keep": "0"}, "train.first.keep=0 must be 1 or more"),
        ({"train.second.duration": "6"}, "train.second.duration='6' is not a duration"),
        ({"train.second.optimizer.name": "adamm"}, "train.second.optimizer.name='adamm' is not"),
        ({"mesh.model": "3"}, "mesh data=-1, fsdp=1, model=3, seq=1 does not fit 1 device(s)"),
    ],
)
def test_contradictions_are_told_before_anything_is_trained(tiny, tmp_path, changes, message):
    assert refused(tiny(changes), tmp_path / "run").startswith(message)
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_grey_data_may_be_asked_for_in_colour(tiny, tmp_path):
    run = Run(tiny({"data.channels": "3", "data.num_classes": "10"}), str(tmp_path))
    assert run.config.data.channels == 3
    assert run.plan("first").abstract.variables["params"]["kernel"].shape == (48, 10)


def test_a_file_in_the_way(tiny, tmp_path):
    (tmp_path / "run").write_text("")
    assert refused(tiny(), tmp_path / "run").startswith(f"--workdir={tmp_path}/run cannot be made:")


def test_a_bucket_is_to_be_mounted(tiny):
    with pytest.raises(UserError, match=r"--workdir=gs://mine/run is a URL; mount the bucket"):
        Run(tiny(), "gs://mine/run").write_description()


def test_a_config_that_is_no_json(tiny, tmp_path):
    (tmp_path / "config.json").write_text("{")
    assert refused(tiny(), tmp_path).startswith(f"{tmp_path}/config.json is not JSON")


def test_micro_batches_change_nothing_but_memory(tiny, tmp_path):
    found = []
    for count in ("1", "4"):
        config = tiny({"method.noise": "0.0", "train.first.accumulate": count})
        commands.train(config, str(tmp_path / count), "first")
        found.append(Run(config, str(tmp_path / count)).variables("first"))
    one, four = found
    for name, leaf in one["params"].items():
        np.testing.assert_allclose(four["params"][name], leaf, atol=2e-6)
    assert (int(one["seen"]["steps"]), int(four["seen"]["steps"])) == (12, 48)


def test_an_average_is_what_is_measured_and_drawn_with(finished, tiny):
    run = Run(tiny(), str(finished))
    plan = run.plan("second")
    with run.checkpoints("second") as checkpoints:
        state, meta = checkpoints.restore(plan.abstract)
    assert meta.pop("seconds") > 0
    assert meta == {"step": 6, "examples": 48}
    assert same(run.variables("second")["params"], state.ema["params"])
    assert not same(state.ema["params"], state.variables["params"])


def test_a_later_stage_gets_the_average_of_schedule_free(tiny, tmp_path):
    sets = {"name": "schedule_free", "schedule": "constant"}
    config = tiny({f"train.first.optimizer.{name}": value for name, value in sets.items()})
    commands.train(config, str(tmp_path))
    run = Run(config, str(tmp_path))
    plan = run.plan("first")
    with run.checkpoints("first") as checkpoints:
        state, _ = checkpoints.restore(plan.abstract)
    kept = runs.state.eval_variables(state, "schedule_free")["params"]
    assert same(run.given("second")["first"]["params"], kept)
    assert not same(kept, state.variables["params"])
    assert [r["stage"] for r in rows(tmp_path)][-1] == "second"


def test_later_stages_get_the_best_checkpoint(tiny, tmp_path):
    # The loss falls, so that its highest value, asked for here, is the first one measured; that is
    # between two saves.
    config = tiny({"train.first.best": "loss", "train.first.keep": "1"})
    commands.train(config, str(tmp_path))
    measured = {r["step"]: r["test/loss"] for r in rows(tmp_path) if r["stage"] == "first"
                if "test/loss" in r}  # fmt: skip
    assert max(measured, key=measured.__getitem__) == 5
    run = Run(config, str(tmp_path))
    plan = run.plan("first")
    with run.checkpoints("first") as checkpoints:
        assert checkpoints.all_steps() == [5, 12]
        state, _ = checkpoints.restore(plan.abstract, 5)
    assert same(run.given("second")["first"], state.variables)
    assert read(tmp_path, "results.json")["stages"]["first"]["test"]["loss"] == measured[5]


def test_other_seeds_end_elsewhere(finished, tiny, saved, tmp_path):
    commands.train(tiny({"seed": "1"}), str(tmp_path), "first")
    found, expected = saved(tmp_path, "first"), saved(finished, "first")
    assert found.keys() == expected.keys() and not same(found, expected)


def test_drawing(workdir, tiny, tmp_path):
    one = commands.sample(workdir, None, [3, 5], 2, 0)
    assert one == f"{workdir}/samples-seed0.png"
    first = Path(one).read_bytes()
    assert Path(commands.sample(workdir, None, [3, 5], 2, 0)).read_bytes() == first
    other = commands.sample(workdir, str(tmp_path / "b.png"), [3, 5], 2, 1)
    assert Path(other).read_bytes() != first
    louder = commands.sample(workdir, None, [3, 5], 2, 0, {"sample.noise": "9.0"})
    assert Path(louder).read_bytes() != first
    for bad, text in (([10], "--classes=10: classes are 0 to 9"), ([-1], "--classes=-1")):
        with pytest.raises(UserError, match=text):
            commands.sample(workdir, None, bad, 1, 0)
    with pytest.raises(UserError, match=r"noise was 0\.1, now 0\.2"):
        commands.sample(workdir, None, None, 1, 0, {"method.noise": "0.2"})


def test_a_method_that_draws_nothing(tiny, workdir, monkeypatch):
    load = runs.registry.load

    def patched(ref):
        found = load(ref)
        return found._replace(
            stages=lambda c: {n: m._replace(sample=None) for n, m in found.stages(c).items()}
        )

    monkeypatch.setattr(runs.registry, "load", patched)
    with pytest.raises(UserError, match="draws nothing"):
        commands.sample(workdir, None, None, 1, 0)

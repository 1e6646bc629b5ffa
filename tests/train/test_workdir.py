"""A work directory used without its data, on the base of another one, with weights given to it."""

import errno
import fcntl
import json
import os
import shutil
import socket
from pathlib import Path

import jax
import numpy as np
import pytest

from bigr_jax.data import open_source
from bigr_jax.data.described import Described, describe, spec
from bigr_jax.errors import UserError
from bigr_jax.train import commands, workdir
from bigr_jax.train.run import Run, opened
from bigr_jax.train.state import batch_spec


@pytest.fixture(scope="module")
def finished(tiny, tmp_path_factory):
    where = tmp_path_factory.mktemp("finished") / "both"
    commands.train(tiny(), str(where))
    return where


@pytest.fixture
def no_data(monkeypatch):
    def absent(section, split):
        raise UserError("the data are not here")

    monkeypatch.setattr(workdir, "open_source", absent)


def same(a, b):
    leaves = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return all(np.asarray(x).tobytes() == np.asarray(y).tobytes() for x, y in leaves)


def test_a_description_stands_for_its_source(tiny):
    source = open_source(tiny().data, "train")
    calls = []
    found = Described(json.loads(json.dumps(describe(source))), lambda: calls.append(1) or source)
    assert (found.info, len(found)) == (source.info, len(source))
    assert spec(found) == spec(source)
    assert batch_spec(found, 3) == batch_spec(source, 3)
    assert not calls
    rows = np.array([2, 0])
    for name, column in source.gather(rows).items():
        np.testing.assert_array_equal(found.gather(rows)[name], column)
    found.gather(rows)
    assert calls == [1]


def test_examples_that_hold_codes_still_have_an_image_to_plan_with(tiny):
    class Codes:
        info = open_source(tiny().data, "train").info

        def gather(self, indices):
            codes = np.zeros((len(indices), 6), np.uint8)
            return {"codes": codes, "label": np.zeros(len(indices), np.int32)}

    assert spec(Codes()) == {
        "image": ((4, 4, 1), np.uint8),
        "codes": ((6,), np.uint8),
        "label": ((), np.int32),
    }


def test_a_trained_model_draws_without_its_data(finished, no_data, tmp_path):
    out = str(tmp_path / "a.png")
    assert commands.sample(str(finished), out, [3], 2, 0) == out
    run = opened(str(finished))
    assert run.sources["train"].info.class_names[3] == "3"
    with pytest.raises(UserError, match="the data are not here"):
        run.evaluate("first")


def test_without_its_description_the_data_are_opened(finished, tmp_path):
    copy = shutil.copytree(finished, tmp_path / "old")
    (copy / "data.json").unlink()
    assert len(opened(str(copy)).sources["test"]) == len(opened(str(finished)).sources["test"])


def test_a_stage_on_the_base_of_another_run_is_that_of_one_run(tiny, finished, tmp_path):
    base, own = str(tmp_path / "base"), str(tmp_path / "own")
    commands.train(tiny(), base, "first")
    commands.train(tiny(), own, "second", base=base)
    assert not Path(own, "first").exists()
    whole, parted = opened(str(finished)), opened(own)
    for name in ("first", "second"):
        assert same(whole.variables(name), parted.variables(name))
    assert list(commands.evaluate(own)["stages"]) == ["second"]
    shutil.move(tmp_path / "base", tmp_path / "moved" / "base")
    shutil.move(tmp_path / "own", tmp_path / "moved" / "own")
    moved = opened(str(tmp_path / "moved" / "own"))
    assert same(whole.variables("first"), moved.variables("first"))


def test_a_base_wants_a_stage(tiny, tmp_path):
    with pytest.raises(UserError, match=r"--base=\S+ goes with --stage"):
        commands.train(tiny(), str(tmp_path / "own"), base=str(tmp_path))
    with pytest.raises(UserError, match="is no work directory"):
        commands.train(tiny(), str(tmp_path / "own"), "second", base=str(tmp_path))


def test_weights_that_are_given_are_used_and_not_trained(tiny, finished, tmp_path, capsys):
    trained = opened(str(finished))
    run = Run(tiny(), str(tmp_path / "own"))
    run.write_description()
    assert not run.is_finished("first")
    run.adopt("first", jax.tree.map(np.asarray, trained.variables("first")))
    again = opened(str(tmp_path / "own"))
    assert again.is_finished("first")
    assert same(again.variables("first"), trained.variables("first"))
    commands.train(tiny(), str(tmp_path / "own"))
    assert "first: its weights were given, it is not trained" in capsys.readouterr().err
    assert same(opened(str(tmp_path / "own")).variables("second"), trained.variables("second"))


def test_weights_of_another_shape_or_of_a_trained_stage_are_refused(tiny, finished, tmp_path):
    trained = opened(str(finished)).variables("first")
    with pytest.raises(UserError, match="has been trained to step 12"):
        opened(str(finished)).adopt("first", trained)
    run = Run(tiny({"data.size": "8"}), str(tmp_path))
    with pytest.raises(UserError, match=r"not the weights of stage 'first'.*params/kernel"):
        run.adopt("first", trained)
    assert os.listdir(tmp_path) == []


def test_a_work_directory_has_one_writer(tmp_path):
    where = str(tmp_path / "run")
    with workdir.writing(where):
        told = json.loads((tmp_path / "run" / workdir.WRITER).read_text())
        assert told["pid"] == os.getpid() and told["host"] == socket.gethostname()
        with (
            pytest.raises(UserError, match=rf"is being trained by process {os.getpid()} on"),
            workdir.writing(where),
        ):
            pass
    # What a killed writer leaves is no lock.
    (tmp_path / "run" / workdir.WRITER).write_text(json.dumps({**told, "pid": 1}))
    with workdir.writing(where), workdir.writing(str(tmp_path / "other")):
        pass


def test_a_file_system_without_locks_is_written_to(tmp_path, monkeypatch):
    def no_locks(file, how):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", no_locks)
    with workdir.writing(str(tmp_path)), workdir.writing(str(tmp_path)):
        pass


def test_a_run_may_write_within_its_own_writing(tiny, tmp_path):
    run = Run(tiny(), str(tmp_path / "run"))
    with run.writing(), run.writing():
        assert (tmp_path / "run" / workdir.WRITER).read_text()
        with pytest.raises(UserError, match="is being trained by"):
            Run(tiny(), str(tmp_path / "run")).train("first")
    run.train("first")
    assert (tmp_path / "run" / workdir.WRITER).read_text() == ""

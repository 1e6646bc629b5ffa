"""The benchmark of the sampler runs, and times nothing that is not equal."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import jax
import pytest

from bigr_jax import registry
from bigr_jax.generate.draws import KeyDraws

PATH = Path(__file__).resolve().parents[2] / "benchmarks" / "bigr.py"
SMOKE = ["--variant=smoke", "--images=2", "--repeats=1"]


@pytest.fixture(scope="module")
def benchmark():
    return registry.run_file(PATH)


def test_both_forms_are_equal_and_timed(benchmark, capsys):
    assert benchmark.main([*SMOKE, "--orders=entropy"]) == 0
    printed = capsys.readouterr().out
    assert "bigr:smoke: 16 tokens of 8 bits, 4 iterations of 4 denoising steps" in printed
    assert "random weights" in printed
    assert "equal: both forms draw the same bits in the same order, 2 settings" in printed
    rows = re.findall(r"^\| (\w+) \| (\S+) \| (\w+) \| (\S+) \| (\S+) \|$", printed, re.MULTILINE)
    cases = itertools.product(["entropy"], ["1", "1.5"], ["plain", "compiled"])
    assert [tuple(row[:3]) for row in rows] == list(cases)
    assert all(float(taken) > 0 for *_, taken, _ in rows)
    for plain, compiled in zip(rows[::2], rows[1::2], strict=True):
        assert plain[4] == "1.00"
        assert float(compiled[4]) == pytest.approx(float(plain[3]) / float(compiled[3]), rel=0.02)


def test_a_form_that_draws_otherwise_is_refused(benchmark, capsys, monkeypatch):
    class Other(KeyDraws):
        def bits(self, iteration):
            return jax.random.uniform(jax.random.key(5), self.shape)

    monkeypatch.setattr(benchmark.Pieces, "draws", lambda self, key: Other(key, self.shape))
    assert benchmark.main([*SMOKE, "--orders=entropy"]) == 1
    printed = capsys.readouterr().out
    assert re.search(r"UNEQUAL: entropy, cfg_scale 1: [1-9]\d* of 256 bits, \d+ of 32 ", printed)
    assert "equal:" not in printed and "|" not in printed


def test_mistakes_are_named(benchmark, capsys):
    assert benchmark.main(["--variant=smok"]) == 2
    assert "did you mean 'smoke'?" in capsys.readouterr().err
    assert benchmark.main(["--workdir=nowhere"]) == 2
    assert "nowhere/config.json is missing" in capsys.readouterr().err
    for wrong in ("--orders=entrop", "--images=0", "--repeats=none"):
        with pytest.raises(SystemExit) as stopped:
            benchmark.main([wrong])
        assert stopped.value.code == 2
        assert wrong.partition("=")[2] in capsys.readouterr().err

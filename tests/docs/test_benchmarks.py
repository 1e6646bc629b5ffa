"""Every benchmark runs at a tiny size, and none times what is not equal; no time is asked for."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigr_jax import config as configs
from bigr_jax import registry
from bigr_jax.generate.draws import KeyDraws
from bigr_jax.train.run import Run

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"
SMOKE = ["--variant=smoke", "--repeats=1"]


@pytest.fixture(scope="module")
def load():
    """Reads a benchmark as `python benchmarks/NAME.py` does, its folder first on the path."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(FOLDER)
        yield lambda name: registry.run_file(FOLDER / f"{name}.py")


@pytest.fixture(scope="module")
def sampler(load):
    return load("bigr")


@pytest.fixture(scope="module")
def training(load):
    return load("training")


def rows(printed: str) -> list[list[str]]:
    """The rows of all tables without the first two of each."""
    lines = [re.split(r" \| ", line[2:-2]) for line in printed.splitlines() if line[:2] == "| "]
    rules = [i for i, line in enumerate(lines) if set(line[0]) == {"-"}]
    heads = {i for rule in rules for i in (rule - 1, rule)}
    return [line for i, line in enumerate(lines) if i not in heads]


def test_both_forms_of_the_sampler_are_equal_and_timed(sampler, capsys):
    assert sampler.main([*SMOKE, "--images=2", "--orders=entropy", "--set=model.depth=1"]) == 0
    printed = capsys.readouterr().out
    assert "bigr:smoke: width 32, 16 tokens of 8 bits, 4 iterations of 4 denoising" in printed
    assert "random weights" in printed
    assert "equal: both forms draw the same bits in the same order, 2 settings" in printed
    found = rows(printed)
    cases = itertools.product(["entropy"], ["1", "1.5"], ["plain", "compiled"])
    assert [tuple(row[:3]) for row in found] == list(cases)
    for plain, compiled in zip(found[::2], found[1::2], strict=True):
        assert plain[4] == "1.00 (1.00 to 1.00)"
        times = float(plain[3]) / float(compiled[3])
        assert float(compiled[4].split()[0]) == pytest.approx(times, rel=0.02, abs=0.01)


def test_a_form_that_draws_otherwise_is_refused(sampler, capsys, monkeypatch):
    class Other(KeyDraws):
        def bits(self, iteration):
            return jax.random.uniform(jax.random.key(5), self.shape)

    monkeypatch.setattr(sampler.Pieces, "draws", lambda self, key: Other(key, self.shape))
    assert sampler.main([*SMOKE, "--images=2", "--orders=entropy"]) == 1
    printed = capsys.readouterr().out
    assert re.search(r"UNEQUAL: entropy, cfg_scale 1: [1-9]\d* of 256 bits, \d+ of 32 ", printed)
    assert not rows(printed)


def test_mistakes_are_told(sampler, capsys):
    assert sampler.main(["--variant=smole"]) == 2
    assert "did you mean" in capsys.readouterr().err
    for wrong in ("--orders=entropic", "--images=0", "--repeats=-1"):
        with pytest.raises(SystemExit) as stopped:
            sampler.main([wrong])
        assert stopped.value.code == 2
        assert wrong.partition("=")[2] in capsys.readouterr().err


def test_narrowed_models_keep_their_proportions(load):
    scaled = load("scaled")
    whole, narrow = (scaled.generator(scaled.scaled("paper", by)) for by in (1, 8))
    for name in ("depth", "length", "bits", "head_blocks"):
        assert getattr(narrow.net, name) == getattr(whole.net, name)
    assert narrow.net.width // narrow.net.heads == whole.net.width // whole.net.heads
    assert narrow.sampling == whole.sampling

    def share(model):
        sizes = jax.tree.map(np.size, scaled.shapes(model))["params"]
        return sum(jax.tree.leaves(sizes["denoiser"])) / sum(jax.tree.leaves(sizes["layers"]))

    assert share(narrow) == pytest.approx(share(whole), rel=0.25)


def test_training_parts_run(training, capsys):
    small = [*SMOKE, "--large=smoke", "--looped=smoke", "--narrow=1", "--batch=2", "--memory=2"]
    assert training.main([*small, "--steps=4", "--set=model.depth=1"]) == 0
    printed = capsys.readouterr().out
    assert "equal: the same loss" in printed and "equal: the same norm" in printed
    found = rows(printed)
    names = ["through the tokenizer", "stored codes", "divided by 1"]
    names += ["in the loop", "the step alone", "none", "dots", "full"]
    assert [row[0] for row in found] == names
    through, alone = (float(x) for x in found[2][1:3])
    assert through > alone and float(found[2][4]) == pytest.approx(through / alone, abs=0.01)
    memory = [float(row[1]) for row in found[-3:]]
    assert memory[0] > memory[1] >= memory[2]
    assert "the loop takes" in printed


def test_another_loss_is_refused(training, capsys, monkeypatch):
    losses = itertools.count()
    state = training.training(training.scaled.generator(training.scaled.scaled("smoke")))[1]

    def other(model):
        return lambda state, *inputs: (state, {"loss": next(losses)}), state

    monkeypatch.setattr(training, "training", other)
    assert training.main([*SMOKE, "--narrow=1", "--batch=2", "--parts=cached"]) == 1
    printed = capsys.readouterr().out
    assert "UNEQUAL: losses 0.0 and 1.0" in printed and not rows(printed)


def test_input_pipelines_are_compared(load, capsys, monkeypatch):
    data = load("data")
    small = ["--images=40", "--size=4", "--batch=8", "--batches=2", "--repeats=1"]
    assert data.main(small) == 0
    printed = capsys.readouterr().out
    assert "equal: the same images under the same indices" in printed
    names = [row[0] for row in rows(printed)]
    assert names[:2] == ["bigr_jax", "grain.DataLoader, 0 threads"] and len(names) == 9

    class Wrong(data.Records):
        def __getitem__(self, index):
            return {**super().__getitem__(index), "index": (index + 1) % len(self)}

    monkeypatch.setattr(data, "Records", Wrong)
    assert data.main(small) == 1
    printed = capsys.readouterr().out
    assert "UNEQUAL: an image" in printed and not rows(printed)


def test_pytorch_does_the_same(load, capsys, monkeypatch):
    pytest.importorskip("torch")
    peer = load("peer")
    small = [*SMOKE, "--narrow=1", "--eager", "--batch=2", "--images=2"]
    assert peer.main(small) == 0
    printed = capsys.readouterr().out
    assert "equal: logits to" in printed and "equal: the same 256 bits" in printed
    names = ["PyTorch", "here, remat none", "here, remat dots"]
    names += ["PyTorch, all tokens", "PyTorch, unknown tokens", "here"]
    assert [row[0] for row in rows(printed)] == names
    monkeypatch.setattr(peer, "lost", lambda *inputs: (jnp.zeros(()), jnp.ones((2, 16, 8)) * 9))
    assert peer.main([*small, "--parts=training"]) == 1
    printed = capsys.readouterr().out
    assert "UNEQUAL: logits differ" in printed and not rows(printed)


def test_ratios_are_those_of_the_turns(load):
    timing = load("timing")
    order = []
    forms = {name: lambda turn, name=name: order.append((name, turn)) for name in ("a", "b")}
    taken = timing.interleaved(forms, 3, warm=1)
    # Every turn has both, the first of them in turns; the warm one does not count.
    assert [name for name, _ in order] == list("baabbaab")
    assert [turn for _, turn in order] == [0, 0, 0, 0, 1, 1, 2, 2]
    assert [len(one.seconds) for one in taken.values()] == [3, 3]
    slow, fast = timing.Taken([2.0, 9.0, 4.0], [1.0] * 3), timing.Taken([1.0, 3.0, 1.0], [0.5] * 3)
    assert timing.ratio(slow, fast) == (3.0, 2.0, 4.0)
    assert str(timing.ratio(slow, fast, cores=True)) == "2.00 (2.00 to 2.00)"
    shown = timing.compared({"x": slow, "y": fast}, "x", per=2)
    assert shown[1] == ["y", "0.5", "3.00 (2.00 to 4.00)", "2.00"]
    assert timing.table(["a"], [["b"]]) == "| a |\n| --- |\n| b |"


def test_the_published_sizes_of_biformer_multiply_what_the_paper_says(load, capsys):
    assert load("biformer").main() == 0
    found = rows(capsys.readouterr().out)
    assert [row[0] for row in found] == [f"BiFormer-{name}" for name in ("T", "S", "B", "STL")]


def test_code_bases_are_read_and_names_that_are_gone_are_counted(load, tmp_path, capsys):
    code = tmp_path / "mine"
    (code / "tests").mkdir(parents=True)
    (code / "net.py").write_text(
        "import jax\nimport jax.numpy as jnp\nfrom flax import linen, optim\nimport optax\n\n"
        "# Comments do not count, nor do blank lines.\n"
        "optax.mine = object()\n\n"
        "def net(x: int, y):\n"
        '    """Says what it is."""\n'
        "    optax.mine.sgd(optim.SGD)\n"
        "    return jax.tree_map(jnp.sin, jax.tree.map(jnp.float_power, x)), jnp.DeviceArray\n\n"
        "def other():\n    return linen.Dense.of_a_class\n"
    )
    (code / "broken.py").write_text("print 'once'\n")
    (code / "tests" / "helper.py").write_text("import jax\nassert jax.tree_map\n\n")
    (code / "net_test.py").write_text("assert True\n")
    assert load("zoos").main([str(code)]) == 0
    # optim, tree_map twice, DeviceArray; what is hung on optax here is of here.
    wanted = ["mine", "11", "11, 11", "2, 4", "50%", "50%", "0.27", "4"]
    assert rows(capsys.readouterr().out) == [wanted]
    assert load("zoos").main([str(code / "tests")]) == 0
    empty = tmp_path / "none"
    empty.mkdir()
    assert load("zoos").main([str(empty)]) == 2
    assert f"{empty}: no Python files" in capsys.readouterr().err


@pytest.fixture(scope="module")
def backbones(load):
    return load("backbones")


def test_backbones_are_of_one_size(backbones, tmp_path):
    changes = {"model.mixer": "hydra"}
    config, where = configs.load("bigr:smoke"), str(tmp_path)

    def size(more):
        return backbones.size(Run(configs.override(config, more), where))

    hidden = backbones.as_large(config, where, changes)
    sizes = [size({**changes, "model.ffn_hidden": str(hidden + by)}) for by in (-1, 0, 1)]
    assert hidden < config.model.ffn_hidden
    assert np.argmin([abs(found - size({})) for found in sizes]) == 1


def test_backbones_are_compared_at_every_number_of_tokens(backbones, capsys, monkeypatch):
    def compared(given, tokens):
        return [[str(tokens), name, *"1234567"] for name in backbones.BACKBONES]

    monkeypatch.setattr(backbones, "compared", compared)
    assert backbones.main(["--tokens=16,64", "--steps=3", "--set=model.depth=2"]) == 0
    printed = capsys.readouterr().out
    assert "3 steps of 4096 tokens, 3 seeds, 200 images drawn" in printed
    assert [row[:2] for row in rows(printed)] == [
        [tokens, name] for tokens in ("16", "64") for name in ("attention", "hydra")
    ]
    for wrong in ("--tokens=17", "--rates=0.1", "--set=model.depth", "--steps=0"):
        with pytest.raises(SystemExit) as stopped:
            backbones.main([wrong])
        assert stopped.value.code == 2
        assert wrong.partition("=")[2] in capsys.readouterr().err
    monkeypatch.undo()
    assert backbones.main(["--set=model.dept=2"]) == 2
    assert "config.model.dept is not a key" in capsys.readouterr().err

"""The command line as a whole: help, mistakes in one line, exit statuses, and what it imports."""

from __future__ import annotations

import importlib
import re
import shlex
import signal
import sys
import types
from pathlib import Path
from typing import Any

import pytest

import bigr_jax
import bigr_jax.train
from bigr_jax.cli import command
from bigr_jax.cli import main as entry
from bigr_jax.cli.main import main
from bigr_jax.errors import UserError

CONFIG = """
from ml_collections import ConfigDict

VARIANTS = ("smoke", "small")


def get_config(variant="small"):
    model = dict(depth=2, tied=True, betas=(0.9, 0.95))
    return ConfigDict(dict(model=model, sample=dict(cfg_scale=1.0)))
"""


@pytest.fixture
def idea(tmp_path: Path) -> str:
    file = tmp_path / "my_idea.py"
    file.write_text(CONFIG)
    return str(file)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """Stands in for training, evaluation and sampling, and keeps what they were called with."""
    kept: list[tuple[Any, ...]] = []
    run = types.ModuleType("bigr_jax.train.commands")

    def evaluate(*arguments: Any) -> dict[str, Any]:
        kept.append(arguments)
        return {"slug": "tiny", "stages": {"only": {"step": 3, "test": {"accuracy": 0.98765432}}}}

    def sample(*arguments: Any) -> str:
        kept.append(arguments)
        return "somewhere/grid.png"

    run.train = lambda *arguments: kept.append(arguments)  # type: ignore[attr-defined]
    run.evaluate, run.sample = evaluate, sample  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "bigr_jax.train.commands", run)
    monkeypatch.setattr(bigr_jax.train, "commands", run, raising=False)
    return kept


def refusal(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    assert main(argv) == 2
    out, error = capsys.readouterr()
    assert out == ""
    assert error.count("\n") == 1
    assert error.startswith("bigr: ")
    return error.removeprefix("bigr: ").rstrip("\n")


def printed(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    assert main(argv) == 0
    out, error = capsys.readouterr()
    assert error == ""
    return out


@pytest.mark.parametrize("argv", [[], ["--help"], ["-h"], ["help"]])
def test_help_lists_every_command_with_an_example(
    capsys: pytest.CaptureFixture[str], argv: list[str]
) -> None:
    text = printed(capsys, *argv)
    for name in entry.COMMANDS:
        assert f"\n  {name} " in text
    assert "\nexample: bigr train --config=bigr:small" in text


@pytest.mark.parametrize("name", list(entry.COMMANDS))
def test_every_command_has_help_with_usage_flags_and_an_example(
    capsys: pytest.CaptureFixture[str], name: str
) -> None:
    text = printed(capsys, name, "--help")
    assert text.startswith(f"usage: bigr {name}")
    assert re.search(rf"\nexamples:\n  .*bigr {name}", text)
    assert max(map(len, text.splitlines())) <= 100
    usage = text.splitlines()[0]
    for flag in re.findall(r"--[\w.]+", usage):
        assert re.search(rf"^  {re.escape(flag)}\b", text, re.MULTILINE), flag
    assert printed(capsys, name, "-h") == text


@pytest.mark.parametrize("name", list(entry.COMMANDS))
def test_every_example_of_a_help_is_understood(name: str) -> None:
    chosen = importlib.import_module(f"bigr_jax.cli.{name}").COMMAND
    for line in chosen.examples:
        words = shlex.split(line.removeprefix("JAX_PLATFORMS=cpu "), comments=True)
        if words[0] == "eval":
            words = shlex.split(words[1].removeprefix("$(").removesuffix(")"))
        assert words[:2] == ["bigr", name]
        arguments = command.parse(chosen, words[2 : words.index(">") if ">" in words else None])
        if arguments.spec:
            assert arguments.config().slug == arguments.spec.partition(":")[0]


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert printed(capsys, "--version") == f"bigr {bigr_jax.__version__}\n"


def test_an_unknown_command_is_told_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert refusal(capsys, "trian") == (
        "'trian' is no command (did you mean 'train'?); see bigr --help"
    )
    assert refusal(capsys, "--configg").startswith("'--configg' is no command")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["train"], "--config is missing, e.g. --config=bigr:small; `bigr list` shows all"),
        (["train", "--config=IDEA", "--wrkdir=x"], "--wrkdir is no flag of bigr train (did you m"),
        (["train", "--config=IDEA", "--zzz"], "--zzz is no flag of bigr train; see bigr train"),
        (["train", "--config=IDEA", "extra"], "'extra' is one word too many; usage: bigr train"),
        (["train", "--config=IDEA:smal"], "variant='smal' is not known (did you mean 'small'?)"),
        (["train", "--config=IDEA", "--config.model.dept=4"], "config.model.dept is not a key (d"),
        (["train", "--config=IDEA", "--config.model.depth=x"], "config.model.depth: 'x' given, i"),
        (["train", "--config=IDEA", "--config.model.depth"], "config.model.depth: 'true' given, "),
        (["train", "--config=IDEA", "--noconfig.model.depth"], "config.model.depth: 'false' give"),
        (["train", "--config=bigrr"], "'bigrr' is no config (did you mean 'bigr'?)"),
        (["train", "--config=./none.py"], "./none.py is not a file"),
        (["train", "--config=IDEA", "--workdir"], "--workdir lacks its value: --workdir=...; "),
        (["eval"], "--workdir is missing, the folder of a run, e.g. --workdir=runs/bigr-small"),
        (["eval", "--config=IDEA", "--workdir=x"], "bigr eval takes no --config"),
        (["list", "--config.a=1"], "bigr list takes no --config.KEY"),
        (["sample"], "--workdir is missing"),
        (["sample", "--workdir=x", "--classes=a"], "--classes=a is not a list of class numbers"),
        (["sample", "--workdir=x", "--per_class=0"], "--per_class=0: legal: positive integer"),
        (["sample", "--workdir=x", "--size=0"], "--size=0: legal: positive integer"),
        (["sample", "--workdir=x", "--config=IDEA"], "bigr sample takes no --config"),
        (["show"], "--config is missing"),
        (["show", "IDEA", "--config=IDEA"], "two configs: "),
        (["data", "list", "mnist5k"], "'mnist5k' is one word too many; usage: bigr data list"),
        (["data", "fetch"], "bigr data fetch needs a name"),
        (["data", "fech", "x"], "action='fech' is not known (did you mean 'fetch'?)"),
        (["data", "fetch", "mnist"], "data set='mnist' is not known (did you mean 'mnist5k'?)"),
    ],
)
def test_mistakes_are_one_line_and_exit_status_2(
    capsys: pytest.CaptureFixture[str],
    calls: list[Any],
    idea: str,
    argv: list[str],
    message: str,
) -> None:
    found = refusal(capsys, *(word.replace("IDEA", idea) for word in argv))
    assert found.startswith(message)
    assert calls == []


def test_debugging_shows_the_traceback(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BIGR_DEBUG", "1")
    assert main(["train"]) == 2
    error = capsys.readouterr().err
    assert "Traceback" in error
    assert error.splitlines()[-1].startswith("bigr: --config is missing")


class Stopped(KeyboardInterrupt):
    signum = int(signal.SIGTERM)


@pytest.mark.parametrize(
    ("raised", "status", "line"),
    [
        (KeyboardInterrupt(), 130, "bigr: interrupted\n"),
        (Stopped("stopped at step 3, saved"), 143, "bigr: stopped at step 3, saved\n"),
        (UserError("no"), 2, "bigr: no\n"),
    ],
)
def test_exit_statuses(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    raised: BaseException,
    status: int,
    line: str,
) -> None:
    def fail(argv: list[str]) -> None:
        raise raised

    monkeypatch.setattr(entry, "_run", fail)
    assert main(["train"]) == status
    assert capsys.readouterr().err == line


def test_a_bug_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(argv: list[str]) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(entry, "_run", fail)
    with pytest.raises(ZeroDivisionError):
        main(["train"])


def test_train(calls: list[Any], idea: str) -> None:
    assert main(["train", f"--config={idea}:smoke", "--config.model.depth=4"]) == 0
    config, *rest = calls.pop()
    assert (config.model.depth, config.variant) == (4, "smoke")
    assert config.is_locked
    assert rest == ["runs/my_idea-smoke", None, None, None]
    flags = ["--workdir=w", "--stage", "tokenizer", "--profile=10:13", "--base=b"]
    assert main(["train", *flags, "--config", idea, "--config.model.depth", "5"]) == 0
    config, *rest = calls.pop()
    assert config.model.depth == 5
    assert rest == ["w", "tokenizer", "10:13", "b"]


def test_a_bool_is_set_with_and_without_a_value_and_the_last_word_counts(
    calls: list[Any], idea: str
) -> None:
    given = ["--noconfig.model.tied", "--config.model.depth=1", "--config.model.depth=3"]
    assert main(["train", f"--config={idea}", *given]) == 0
    config = calls.pop()[0]
    assert (config.model.tied, config.model.depth) == (False, 3)
    assert main(["train", f"--config={idea}", "--noconfig.model.tied", "--config.model.tied"]) == 0
    assert calls.pop()[0].model.tied is True


def test_a_negative_number_may_follow_a_blank(calls: list[Any], idea: str) -> None:
    assert main(["train", "--config", idea, "--config.model.depth", "-1"]) == 0
    assert calls.pop()[0].model.depth == -1


def test_commands_share_no_state(calls: list[Any], idea: str) -> None:
    for depth in (3, 4):
        assert main(["train", f"--config={idea}", f"--config.model.depth={depth}"]) == 0
    assert main(["train", f"--config={idea}"]) == 0
    assert [call[0].model.depth for call in calls] == [3, 4, 2]


def test_eval_prints_every_number(calls: list[Any], capsys: pytest.CaptureFixture[str]) -> None:
    text = printed(capsys, "eval", "--workdir=w", "--stage=only")
    assert calls == [("w", "only")]
    assert text.split() == [
        "slug", "tiny", "stages.only.step", "3", "stages.only.test.accuracy", "0.987654",
    ]  # fmt: skip


def test_sample_hands_on_overrides(calls: list[Any], capsys: pytest.CaptureFixture[str]) -> None:
    assert printed(capsys, "sample", "--workdir=w") == "somewhere/grid.png\n"
    assert calls.pop() == ("w", None, None, 8, 0, {}, [], None)
    flags = ["--out=o.png", "--classes=3,5", "--per_class=2", "--seed=7", "--size=24"]
    printed(capsys, "sample", "--workdir=w", *flags, "--config.sample.cfg_scale=2.5")
    assert calls.pop() == ("w", "o.png", [3, 5], 2, 7, {"sample.cfg_scale": "2.5"}, [], 24)
    printed(capsys, "sample", "--workdir=w", "--captions=three and one; nine and two;")
    assert calls.pop()[6] == ["three and one", "nine and two"]


def test_show_prints_every_setting_and_what_was_changed(
    capsys: pytest.CaptureFixture[str], idea: str
) -> None:
    lines = printed(capsys, "show", idea, "--config.model.depth=7").splitlines()
    assert [line.split()[0] for line in lines] == [
        "model.betas", "model.depth", "model.tied", "sample.cfg_scale", "slug", "variant",
    ]  # fmt: skip
    assert lines[0].endswith("  (0.9, 0.95)")
    assert lines[1].split(maxsplit=1)[1] == "7  (default 2)"
    assert printed(capsys, "show", f"--config={idea}") == printed(capsys, "show", f"{idea}:small")


def test_show_of_the_zoo(capsys: pytest.CaptureFixture[str]) -> None:
    assert re.search(r"^slug +'bigr'$", printed(capsys, "show", "bigr:small"), re.MULTILINE)


def test_data_list(capsys: pytest.CaptureFixture[str]) -> None:
    assert "fashion_mnist" in printed(capsys, "data")
    assert printed(capsys, "data", "list") == printed(capsys, "data")


def test_a_real_process(run_python: Any, idea: str) -> None:
    done = run_python(["-m", "bigr_jax", "show", idea, "--config.model.dept=1"])
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "bigr: config.model.dept is not a key (did you mean 'depth'?)\n"


def test_a_reader_that_leaves_early_is_no_error(run_python: Any, idea: str) -> None:
    code = (
        "import os, subprocess, sys; reader, writer = os.pipe(); os.close(reader);"
        f"command = [sys.executable, '-m', 'bigr_jax', 'show', {idea!r}];"
        "sys.exit(subprocess.call(command, stdout=writer))"
    )
    done = run_python(["-c", code])
    assert (done.returncode, done.stderr) == (128 + signal.SIGPIPE, "")

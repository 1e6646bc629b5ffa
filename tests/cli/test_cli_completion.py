"""The Tab key: what may follow is offered, without JAX, in real shells where they are installed."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bigr_jax.cli import completion
from bigr_jax.cli.main import COMMANDS, main

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("line", "among"),
    [
        ("bigr tr", ["train "]),
        ("bigr ", [f"{name} " for name in sorted(COMMANDS)]),
        ("bigr train --w", ["--workdir="]),
        ("bigr train --con", ["--config.", "--config="]),
        ("bigr train --config=bigr:sm", ["--config=bigr:small ", "--config=bigr:smoke "]),
        ("bigr show hydra:smo", ["hydra:smoke "]),
        (
            "bigr train --config=bigr:smoke --config.model.dr",
            ["--config.model.dropout="],
        ),
        (
            "bigr train --config bigr:smoke --config.referee.enabled=t",
            ["--config.referee.enabled=true "],
        ),
        ("bigr train --config=bigr:smoke --stage=g", ["--stage=generator "]),
        ("bigr sweep --config=bigr:smoke model.dep", ["model.depth="]),
        ("bigr edit in", ["inpaint ", "interpolate "]),
        ("bigr edit inpaint ", []),
        ("bigr data ", ["fetch ", "list "]),
        ("bigr data fetch d", ["digits "]),
        ("bigr completion f", ["fish "]),
        ("bigr demo --o", ["--open "]),
        ("bigr eval --probe_b", ["--probe_batch="]),
        ("bigr list --help x", []),
        ("bigr none --", []),
        ('bigr sweep --config=bigr:smoke "model.dep', ["model.depth="]),
    ],
)
def test_what_is_offered(line: str, among: list[str]) -> None:
    found = completion.candidates(line)
    assert [word for word in found if not word.startswith("--help") and word != "--version "] == (
        among
    )


def test_files_and_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "one").mkdir(parents=True)
    (tmp_path / "runs" / "note.txt").touch()
    (tmp_path / "idea.py").touch()
    assert completion.candidates("bigr eval --workdir=ru") == ["--workdir=runs/"]
    assert completion.candidates("bigr eval --workdir=runs/") == ["--workdir=runs/one/"]
    assert completion.candidates("bigr edit inpaint --image=runs/n") == ["--image=runs/note.txt "]
    assert completion.candidates("bigr train --config=ide") == ["--config=idea.py "]


def test_every_flag_of_a_path_is_one() -> None:
    known: set[str] = set()
    for name in COMMANDS:
        known |= {word.strip("-= ") for word in completion.candidates(f"bigr {name} --")}
    assert known >= {*completion.FOLDERS, *completion.FILES}


def test_nobody_hears_of_a_mistake_at_the_prompt(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", "zsh", "--line=bigr train --config=none --config.a"]) == 0
    assert capsys.readouterr() == ("\n", "")


def test_a_shell_is_needed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion"]) == 2
    assert capsys.readouterr().err == "bigr: bigr completion needs a shell: bash, zsh, fish\n"
    assert main(["completion", "bsh"]) == 2
    assert "did you mean 'bash'?" in capsys.readouterr().err


def test_jax_is_not_imported(run_python: Any) -> None:
    code = (
        "import sys; from bigr_jax.cli import completion;"
        "print(completion.candidates('bigr train --config=bigr:smoke --config.model.dep'),"
        "completion.candidates('bigr data fetch d'), 'jax' in sys.modules)"
    )
    done = run_python(["-c", code])
    assert done.stdout == "['--config.model.depth='] ['digits '] False\n"


@pytest.fixture
def bigr(tmp_path: Path) -> str:
    """A folder with the command `bigr`."""
    command = tmp_path / "bin" / "bigr"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nPYTHONPATH={ROOT} exec {sys.executable} -m bigr_jax "$@"\n')
    command.chmod(0o755)
    return str(command.parent)


def in_shell(shell: str, script: str) -> list[str]:
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    words = [shell, *(["-f"] if shell == "zsh" else []), "-c", script]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.stderr == ""
    return done.stdout.splitlines()


def test_in_bash(bigr: str) -> None:
    script = f"""
        PATH={bigr}:$PATH
        eval "$(bigr completion bash)"
        offer() {{
            COMP_LINE=$1 COMP_POINT=${{#1}} COMPREPLY=()
            $(complete -p bigr | sed 's/.*-F \\([^ ]*\\).*/\\1/') bigr
            printf '[%s]' "${{COMPREPLY[@]}}"; echo
        }}
        offer 'bigr tra'
        offer 'bigr train --config=bigr:sm'
        offer 'bigr train --config=bigr:smoke --config.model.dep'
    """
    # After a colon bash begins another word.
    assert in_shell("bash", script) == ["[train ]", "[small ][smoke ]", "[--config.model.depth=]"]


def test_in_zsh(bigr: str) -> None:
    script = f"""
        PATH={bigr}:$PATH
        compdef() {{ : }}
        compadd() {{ shift 4; print -r -- "[${{(j:][:)@}}]" }}
        eval "$(bigr completion zsh)"
        words=(bigr train --config=bigr:sm) CURRENT=3
        _bigr
    """
    assert in_shell("zsh", script) == ["[--config=bigr:small ][--config=bigr:smoke ]"]


def test_in_fish(bigr: str) -> None:
    script = f"""
        set PATH {bigr} $PATH
        bigr completion fish | source
        complete -C 'bigr train --config=bigr:sm'
    """
    assert in_shell("fish", script) == ["--config=bigr:small", "--config=bigr:smoke"]

"""The flags by which a command becomes one of several processes."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from bigr_jax.cli import command, main
from bigr_jax.cli.command import Command, execute
from bigr_jax.errors import UserError
from bigr_jax.train import hosts

BY_HAND = ["--coordinator=10.0.0.1:1234", "--processes=4", "--process=3"]


@pytest.fixture
def joins(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Stands in for the meeting of processes and keeps the addresses."""
    kept: list[Any] = []

    @contextlib.contextmanager
    def joined(address: Any, say: Callable[[BaseException], int]) -> Iterator[int]:
        assert say is command.say
        kept.append(address)
        yield 0 if address is None else address.process

    monkeypatch.setattr(hosts, "joined", joined)
    return kept


def echo(**settings: Any) -> Command:
    run = settings.pop("run", lambda arguments: print("done"))
    return Command("echo", "Echoes.", "", (), command.no_flags, run, hosts=True, **settings)


def test_by_hand_the_flags_are_the_address(joins: list[Any]) -> None:
    execute(echo(), BY_HAND)
    assert joins == [hosts.Address("10.0.0.1:1234", 4, 3)]


def test_the_cluster_knows_the_address(joins: list[Any]) -> None:
    execute(echo(), ["--distributed"])
    assert joins == [None]


def test_without_the_flags_there_is_one_process(
    joins: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    execute(echo(), [])
    assert joins == [] and capsys.readouterr().out == "done\n"


@pytest.mark.parametrize("process, out", [("0", "done\n"), ("3", "")])
def test_process_0_prints_for_all(
    joins: list[Any], capsys: pytest.CaptureFixture[str], process: str, out: str
) -> None:
    execute(echo(), [*BY_HAND[:2], f"--process={process}"])
    assert capsys.readouterr().out == out


@pytest.mark.parametrize(
    "words, text",
    [
        (["--distributed", *BY_HAND], "--distributed and --coordinator: one at a time"),
        (BY_HAND[:1], "--coordinator goes with --processes, which is missing"),
        (BY_HAND[1:], "--processes goes with --coordinator, which is missing"),
        (BY_HAND[:2], "--coordinator goes with --process, which is missing"),
        (["--coordinator=node", *BY_HAND[1:]], "--coordinator=node: legal: HOST:PORT"),
        (["--coordinator=node:x", *BY_HAND[1:]], "--coordinator=node:x: legal: HOST:PORT"),
        ([*BY_HAND[:2], "--process=4"], "--process=4: with --processes=4, legal: 0 to 3"),
    ],
)
def test_flags_that_do_not_go_together(joins: list[Any], words: list[str], text: str) -> None:
    with pytest.raises(UserError) as caught:
        execute(echo(), words)
    assert str(caught.value).startswith(text) and joins == []


@pytest.mark.parametrize("name", ["train", "eval", "sample", "prove", "encode"])
def test_the_help_of_what_several_hosts_can_do_names_the_flags(
    capsys: pytest.CaptureFixture[str], name: str
) -> None:
    assert main.main([name, "--help"]) == 0
    out = capsys.readouterr().out
    assert all(f"--{flag}" in out for flag in ("distributed", "coordinator", "processes"))


def test_other_commands_have_none_of_the_flags(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["list", "--distributed"]) == 2
    assert "--distributed is no flag of bigr list" in capsys.readouterr().err

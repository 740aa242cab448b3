"""What holds for every command: its help page, and how it answers what it can't understand or reach."""

import numpy as np
import pytest

from forebay_server.cli.root import COMMANDS, GROUPS

NOBODY = "127.0.0.1:1"

CALLING = {
    "predict": ["model", "x.npy"],
    "stream": ["model", "x.npy"],
    "batch": ["model", "x.npy", "-o", "y.npy"],
    "submit": ["model", "x.npy"],
    "result": ["f" * 32],
    "watch": ["f" * 32],
    "cancel": ["f" * 32],
    "jobs": [],
    "models": [],
    "health": [],
    "top": ["--once"],
}


def test_all_commands_are_listed(forebay):
    """In their groups, each with its whole sentence; also for those who say nothing."""
    ended = forebay("--help")

    assert ended == forebay()
    assert (ended.code, ended.err) == (0, "")
    assert "..." not in ended.out.partition("Options:")[2]
    for title, group in GROUPS.items():
        section = ended.out.partition(f"{title}:\n")[2].partition("\n\n")[0]
        assert [line.split()[0] for line in section.splitlines() if line.startswith("  ") and line[2] != " "] == [
            *group
        ]


@pytest.mark.parametrize("command", COMMANDS)
def test_each_has_a_help_page(forebay, command):
    """Which names it and says something about each option."""
    ended = forebay(command, "--help")

    assert (ended.code, ended.err) == (0, "")
    assert ended.out.startswith(f"Usage: forebay {command} ")
    assert "INTEGER" not in ended.out
    assert "TEXT" not in ended.out


@pytest.mark.parametrize("command", COMMANDS)
def test_an_option_that_there_is_not(forebay, command):
    """Code 2 and one sentence."""
    ended = forebay(command, "--nonsense")

    assert (ended.code, ended.out) == (2, "")
    assert ended.err.startswith("forebay: No such option")
    assert ended.err.count("\n") == 1


@pytest.mark.parametrize("command", CALLING)
def test_a_server_that_there_is_not(forebay, tmp_path, monkeypatch, command):
    """Code 1 and one sentence, which says where it was looked for; no file is written."""
    monkeypatch.chdir(tmp_path)
    np.save("x.npy", np.ones((1, 2), np.float32))
    ended = forebay(command, *CALLING[command], "--address", NOBODY)

    assert (ended.code, ended.out) == (1, "")
    assert ended.err.startswith(f"forebay: UNAVAILABLE: no connection to {NOBODY}: Connection refused")
    assert ended.err.count("\n") == 1
    assert not list(tmp_path.glob("y.npy*"))


def test_an_address_that_is_none(forebay):
    """Code 2 and one sentence."""
    assert forebay("health", "--address", "") == (2, "", "forebay: there must be at least one address\n")


@pytest.mark.parametrize(
    "arguments",
    [
        ["predict", "double", "nowhere.npy"],
        ["submit", "double", "nowhere.npy"],
        ["batch", "double", "nowhere.npy", "-o", "y.npy"],
    ],
    ids=lambda arguments: arguments[0],
)
def test_a_file_that_there_is_not(forebay, server, tmp_path, monkeypatch, arguments):
    """Code 2: nothing was sent."""
    monkeypatch.chdir(tmp_path)
    ended = forebay(*arguments, "--address", server.address)

    assert (ended.code, ended.out) == (2, "")
    assert ended.err.startswith("forebay: nowhere.npy: ")
    assert ended.err.count("\n") == 1

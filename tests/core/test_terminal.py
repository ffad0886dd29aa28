"""What a text from a file may do to the terminal: nothing."""

import io
import sys

import pytest
from rich.table import Table
from rich.text import Text

from twistlm.core.terminal import console, outlets

# Clears the screen, names the window, moves up, the same in eight bits, rings, and hides what follows.
HOSTILE = "\x1b[2J\x1b]0;mine\x07\x1b[1A\x9b2K\x08\x7fend\x1b[8m"


class Terminal(io.StringIO):
    """A stream that says what it is."""

    def __init__(self, is_terminal: bool) -> None:
        super().__init__()
        self.is_terminal = is_terminal

    def isatty(self) -> bool:
        return self.is_terminal


@pytest.mark.parametrize("is_terminal", [True, False])
def test_no_control_characters(is_terminal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setattr(sys, "stdout", stream := Terminal(is_terminal))
    table = Table(title=HOSTILE)
    table.add_column(HOSTILE)
    table.add_row(Text(HOSTILE, style="bold"))
    table.add_row(HOSTILE)
    with outlets():
        console().print(HOSTILE)
        console().print(table)
        styled = stream.getvalue()
        print(HOSTILE)
        print("tab\there\x1b[1m")
    printed = stream.getvalue()
    for forbidden in ("\x1b[2J", "\x1b]", "\x1b[1A", "\x9b", "\x07", "\x08", "\x7f"):
        assert forbidden not in printed
    assert "\x1b[8m" not in styled
    assert ("\x1b" in printed) == is_terminal, "rich's own styles stay where there is a terminal"
    assert "tab\there" in printed
    # Borders stand below each other.
    lines = [line for line in console_lines(styled) if line.startswith("│")]
    assert len({len(line) for line in lines}) == 1


def console_lines(styled: str) -> list[str]:
    """What is seen of it."""
    return Text.from_ansi(styled).plain.splitlines()

import io
import sys

import pytest
from rich.console import Console

from mcbeit import progress
from mcbeit.progress import PLAIN_SECONDS, QUIET_SECONDS, Display


class Clock:
    """Stands still until it is told to move."""

    now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch) -> Clock:
    monkeypatch.setattr(progress, "time", found := Clock())
    return found


@pytest.fixture(autouse=True)
def _no_terminal(monkeypatch) -> None:
    """Nothing in the environment may make a terminal of the file that pytest puts in the place of stderr."""
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE", "JUPYTER_COLUMNS"):
        monkeypatch.delenv(name, raising=False)


def terminal() -> Console:
    return Console(file=io.StringIO(), force_terminal=True, force_interactive=True, width=120, color_system=None)


# not a terminal


def test_display__writes_plain_lines_to_stderr_where_there_is_no_terminal(clock, capsys) -> None:
    with Display("pretrain", 300) as display:
        display.note("14 images")
        for _ in range(300):
            clock.now += PLAIN_SECONDS / 100
            display.advance(f"loss {display.done}")
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == [
        "pretrain: 14 images",
        "pretrain 1/300  loss 0",
        "pretrain 102/300  loss 101",
        "pretrain 203/300  loss 202",
        "pretrain 300/300  loss 299",  # the last step is always told
    ]


def test_display__a_step_without_a_status_says_nothing(clock, capsys) -> None:
    with Display("pretrain", 3) as display:
        for status in (None, "loss 1", None):
            display.advance(status)
    assert capsys.readouterr() == ("", "pretrain 2/3  loss 1\n")


def test_display__slow_steps_without_a_status_show_that_it_goes_on(clock, capsys) -> None:
    with Display("pretrain", 5) as display:
        for _ in range(4):
            clock.now += QUIET_SECONDS / 2
            display.advance()
    assert capsys.readouterr().err == "pretrain 2/5\npretrain 4/5\n"


def test_display__a_resumed_job_counts_on(clock, capsys) -> None:
    with Display("tokenizer", 100, done=41) as display:
        display.advance("loss 0.2")
    assert capsys.readouterr().err == "tokenizer 42/100  loss 0.2\n"


def test_display__takes_text_as_it_is(clock, capsys) -> None:
    text = "[red]50 %[/red] of '/data/[old]' :smile: " + "and so on " * 30
    with Display("pretrain", 2) as display:
        display.note(text)
        display.advance(text)
    assert capsys.readouterr().err == f"pretrain: {text}\npretrain 1/2  {text}\n"


def test_warn__says_each_kind_of_warning_once(capsys) -> None:
    with Display("pretrain", 3) as display:
        display.warn("the targets are uniform (entropy 9.011)")
        display.warn("the targets are uniform (entropy 9.010)")
        display.warn("nearly all patches have the same code")
        display.warn("nearly all patches have the same code")
    assert capsys.readouterr() == (
        "",
        "pretrain: warning: the targets are uniform (entropy 9.011)\n"
        "pretrain: warning: nearly all patches have the same code\n",
    )


# a terminal


def test_display__shows_a_bar_in_a_terminal(capsys) -> None:
    console = terminal()
    with Display("pretrain", 40, done=10, console=console) as display:
        display.note("14 images of '/data/[old]'")
        display.advance("loss 7.000")
        display.advance()
        display.warn("the targets are uniform (entropy 9.011)")
    shown = console.file.getvalue()
    lines = [line.strip() for line in shown.replace("\r", "\n").splitlines()]
    assert "pretrain: 14 images of '/data/[old]'" in shown
    assert "pretrain: warning: the targets are uniform (entropy 9.011)" in shown
    bars = [line for line in lines if "/40" in line]
    assert "12/40" in bars[-1]
    assert "loss 7.000" in bars[-1]  # the last status stays
    assert capsys.readouterr() == ("", "")


def test_display__gives_the_terminal_back_after_an_error(capsys) -> None:
    console, before = terminal(), (sys.stdout, sys.stderr)
    with pytest.raises(KeyboardInterrupt), Display("pretrain", 40, console=console):
        raise KeyboardInterrupt
    assert (sys.stdout, sys.stderr) == before
    assert console.file.getvalue().endswith("\x1b[?25h")  # the cursor is back

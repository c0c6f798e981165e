from __future__ import annotations

import io
import sys

import pytest

from training.watch import display
from training.watch.display import Display, clock


@pytest.fixture(autouse=True)
def plain_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)


class Clock:
    """A clock that stands until it is set."""

    def __init__(self) -> None:
        self.now = 1000.0


@pytest.fixture
def time(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock()
    monkeypatch.setattr(display.time, "monotonic", lambda: found.now)
    return found


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (0, "0:00"),
        (59.6, "1:00"),
        (61, "1:01"),
        (3599, "59:59"),
        (3600, "1:00:00"),
        (360_000, "100:00:00"),
        (0.4, "0:00"),
    ],
)
def test_clock(seconds: float, shown: str) -> None:
    assert clock(seconds) == shown


class TestPlainLines:
    def test_work_before_training_is_told_when_it_takes_long(
        self, capsys: pytest.CaptureFixture[str], time: Clock
    ) -> None:
        display = Display(label="base", steps=10, is_shown=True)
        display.preparing("indexing code", 1, 200)
        time.now += 9.9
        display.preparing("indexing code", 50, 200)
        assert capsys.readouterr().out == ""
        time.now += 0.2
        display.preparing("indexing code", 57, 200)
        time.now += 5
        display.preparing("indexing code", 100, 200)
        time.now += 5
        display.preparing("encoding pairs", 0, 0)
        assert capsys.readouterr().out == "base: indexing code: 28%\nbase: encoding pairs: 0%\n"

    def test_a_line_of_its_own_is_not_interpreted_or_wrapped(self, capsys: pytest.CaptureFixture[str]) -> None:
        text = f"[bold]in[/bold] {'/a/long/path' * 30} :smile: {{x}}"
        Display(label="base", steps=10, is_shown=True).say(text)
        assert capsys.readouterr() == (f"base: {text}\n", "")

    def test_other_ranks_are_silent(self, capsys: pytest.CaptureFixture[str], time: Clock) -> None:
        display = Display(label="base", steps=10, is_shown=False)
        with display:
            display.say("hello")
            display.step(1, 2.0, 100.0)
            time.now += 100
            display.evaluating(1, 2)
            display.step(10, 2.0, 100.0)
        assert capsys.readouterr() == ("", "")

    def test_steps_appear_every_ten_seconds_and_at_the_end(
        self, capsys: pytest.CaptureFixture[str], time: Clock
    ) -> None:
        with Display(label="base", steps=100, is_shown=True) as display:
            for step in range(1, 101):
                display.step(step, 5 - step / 100, 12_345.6)
                time.now += 3
        lines = capsys.readouterr().out.splitlines()
        assert lines == [
            "base: step 1/100  loss 4.990  12,346 tokens/s",
            *(
                f"base: step {step}/100  loss {5 - step / 100:.3f}  12,346 tokens/s  {clock((100 - step) * 3)} left"
                for step in (*range(5, 98, 4), 100)
            ),
            # 97 + 4 is past the end, which is printed though only 9 s have passed.
        ]

    def test_the_time_left_counts_from_where_this_start_began(
        self, capsys: pytest.CaptureFixture[str], time: Clock
    ) -> None:
        display = Display(label="base", steps=100, is_shown=True)
        display.step(51, 1.0, 1.0)
        time.now += 20
        display.step(61, 1.0, 1.0)
        assert capsys.readouterr().out.splitlines()[-1].endswith("  1:18 left")

    def test_evaluation_appears_every_ten_seconds(self, capsys: pytest.CaptureFixture[str], time: Clock) -> None:
        display = Display(label="base", steps=100, is_shown=True)
        for done in range(1, 13):
            display.evaluating(done, 12)
            time.now += 2
        assert capsys.readouterr().out.splitlines() == [f"base: evaluating {done}/12" for done in (1, 6, 11)]

    def test_the_fraction_of_the_peak_is_shown_where_it_is_known(self, capsys: pytest.CaptureFixture[str]) -> None:
        Display(label="base", steps=1, is_shown=True).step(1, 2.0, 900.0, 0.4567)
        assert capsys.readouterr().out == "base: step 1/1  loss 2.000  900 tokens/s  46% MFU\n"

    def test_a_loss_that_is_no_number_is_shown(self, capsys: pytest.CaptureFixture[str]) -> None:
        Display(label="base", steps=1, is_shown=True).step(1, float("nan"), 0.0)
        assert "loss nan" in capsys.readouterr().out


class TestTerminal:
    def test_a_bar_shows_the_step_and_is_left_standing(
        self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("TTY_COMPATIBLE", "1")
        monkeypatch.setenv("COLUMNS", "120")
        display = Display(label="lora", steps=100, is_shown=True)
        assert display.is_live
        with display:
            display.evaluating(1, 4)
            display.step(7, 2.5, 900.0)
            display.say("saved")
        printed = capsys.readouterr().out
        assert "7/100" in printed
        assert "loss 2.500  900 tokens/s" in printed
        assert "lora: saved" in printed

    def test_other_ranks_have_no_bar(self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("TTY_COMPATIBLE", "1")
        with Display(label="lora", steps=100, is_shown=False) as display:
            display.step(7, 2.5, 900.0)
        assert not display.is_live
        assert capsys.readouterr().out == ""

    def test_it_is_taken_down_after_a_failure(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("TTY_COMPATIBLE", "1")
        display = Display(label="lora", steps=100, is_shown=True)
        with pytest.raises(ZeroDivisionError), display:
            raise ZeroDivisionError
        assert not display._bar.live.is_started


class FullDisk(io.StringIO):
    """Standard output into a file that takes nothing."""

    def write(self, text: str) -> int:
        raise OSError(28, "No space left on device")

    def flush(self) -> None:
        raise OSError(28, "No space left on device")


def test_an_output_that_takes_nothing_ends_no_run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", FullDisk())
        display = Display(label="run", steps=10, is_shown=True)
        with display:
            for step in range(1, 4):
                display.say("what is lost")
                display.step(step, 2.5, 100.0)
            display.evaluating(1, 2)
    display.say("what is shown")
    assert capsys.readouterr().out == "run: what is shown\n", "and nothing has piled up"

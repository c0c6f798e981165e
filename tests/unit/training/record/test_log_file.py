from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from training.record import log_file
from training.record.log_file import LogFile


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    found = tmp_path / "logs"
    found.mkdir()
    return found


@pytest.fixture
def handler(folder: Path) -> Iterator[LogFile]:
    found = LogFile(folder / "rank0.log")
    found.setFormatter(logging.Formatter("%(levelname)s %(message)s"))
    yield found
    found.close()


@pytest.fixture
def log(handler: LogFile) -> Iterator[logging.Logger]:
    found = logging.Logger("test", logging.INFO)
    found.addHandler(handler)
    return found


def test_a_line_is_in_the_file_at_once(log: logging.Logger, folder: Path) -> None:
    log.info("one %s", "\udc80")
    log.warning("two")
    assert (folder / "rank0.log").read_text() == "INFO one \\udc80\nWARNING two\n"


def test_lines_wait_while_the_folder_is_away(
    log: logging.Logger, folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(log_file, "PAUSE_SECONDS", 0.0)
    log.info("one")
    away = folder.rename(folder.with_name("away"))
    log.info("two")
    log.info("three")
    away.rename(folder)
    log.info("four")
    assert (folder / "rank0.log").read_text().split() == ["INFO", "one", "INFO", "two", "INFO", "three", "INFO", "four"]
    assert capfd.readouterr().err == (
        "WARNING: storage does not take 1 lines of rank0.log: No such file or directory. They wait, and are lost if they still wait "
        "when the run ends\n"
    )


def test_lines_are_tried_again_when_it_is_closed(
    log: logging.Logger, handler: LogFile, folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder.rmdir()
    for number in range(3):
        log.info("line %d", number)
    handler.flush()
    folder.mkdir()
    handler.close()
    handler.close()
    assert (folder / "rank0.log").read_text() == "INFO line 0\nINFO line 1\nINFO line 2\n"
    assert capfd.readouterr().err.count("\n") == 1, "said once"


def test_a_message_that_does_not_fit_its_arguments_is_shown_as_usual(
    log: logging.Logger, folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    log.info("%d", "x")
    assert "TypeError: %d format" in capfd.readouterr().err
    assert not (folder / "rank0.log").exists()

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.record import appended
from training.record.appended import AppendedFile

FAILURES = st.sampled_from(["none", "open", "write", "close", "truncate"])


@contextmanager
def refusing(call: str, after_bytes: int) -> Iterator[None]:
    """Storage that fails in one call: a write after so many bytes, and then the cutting of what it left too."""
    own_write, room = os.write, after_bytes

    def write(descriptor: int, content: Any) -> int:
        nonlocal room
        if room == 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        count = own_write(descriptor, memoryview(content)[:room])
        room -= count
        return count

    def refuse(*_: Any) -> None:
        raise OSError(errno.EIO, "Input/output error")

    def close(descriptor: int) -> None:
        os.close(descriptor)
        refuse()

    with pytest.MonkeyPatch.context() as patch:
        fake: Any = type("FakeOs", (), {name: staticmethod(getattr(os, name)) for name in
            ("open", "write", "close", "fstat", "ftruncate")} | {name: getattr(os, name) for name in dir(os) if name[:2] == "O_"})  # fmt: skip
        if call == "open":
            fake.open = staticmethod(refuse)
        if call in ("write", "truncate"):
            fake.write = staticmethod(write)
        if call == "close":
            fake.close = staticmethod(close)
        if call == "truncate":
            fake.ftruncate = staticmethod(refuse)
        patch.setattr(appended, "os", fake)
        yield


@given(
    attempts=st.lists(
        st.tuples(st.lists(st.text("abc{}", max_size=12), max_size=4), FAILURES, st.integers(0, 40)), max_size=8
    )
)
def test_in_the_end_every_line_is_there_once_and_in_order(
    attempts: list[tuple[list[str], str, int]],
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        file = AppendedFile(Path(folder) / "lines")
        said = b""
        for lines, call, room in attempts:
            for line in lines:
                file.add(line.encode() + b"\n")
                said += line.encode() + b"\n"
            with refusing(call, room):
                try:
                    file.flush()
                except OSError:
                    pass
                else:
                    found = file.path.read_bytes() if file.path.exists() else b""
                    assert found == said, "nothing waits once it has succeeded"
            found = file.path.read_bytes() if file.path.exists() else b""
            assert said.startswith(found), "a piece is only ever at the end"
        file.flush()
        assert (file.path.read_bytes() if file.path.exists() else b"") == said


def test_what_an_earlier_start_left_is_kept_but_for_half_a_line(tmp_path: Path) -> None:
    path = tmp_path / "lines"
    path.write_bytes(b"one\ntwo\nthr")
    file = AppendedFile(path)
    file.add(b"four\n")
    file.flush()
    assert path.read_bytes() == b"one\ntwo\nfour\n"
    # Others may write, too: the stacks of a crash go to the log.
    with path.open("ab") as other:
        other.write(b"stack")
    file.add(b"five\n")
    file.flush()
    assert path.read_bytes() == b"one\ntwo\nfour\nstackfive\n"


def test_a_folder_that_is_away_is_not_made_anew(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    file = AppendedFile(folder / "lines")
    file.add(b"one\n")
    with pytest.raises(FileNotFoundError):
        file.flush()
    assert not folder.exists()
    folder.mkdir()
    file.flush()
    assert file.path.read_bytes() == b"one\n"


def test_the_oldest_entries_give_way_and_that_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(appended, "MOST_BYTES", 10)
    file = AppendedFile(tmp_path / "lines", called="events")
    for number in range(7):
        file.add(b"%d..\n" % number)
    assert file.num_lost == 5
    assert str(file) == "2 events (5 older ones are lost)"
    file.add(b"an entry that is longer than everything that may wait\n")
    assert str(file) == "1 events (7 older ones are lost)"
    file.flush()
    assert file.path.read_bytes() == b"an entry that is longer than everything that may wait\n"


def test_only_what_is_kept_is_written(tmp_path: Path) -> None:
    file = AppendedFile(tmp_path / "lines")
    for number in range(4):
        file.add(b"%d\n" % number)
    assert str(file) == "4 lines of lines"
    file.keep(lambda entry: int(entry) % 2 == 0)
    file.flush()
    assert file.path.read_bytes() == b"0\n2\n"

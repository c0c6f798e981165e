"""A short version of `make fuzz`: the same inputs every time, and all that ever failed."""

from __future__ import annotations

import faulthandler
import logging
import pathlib
from pathlib import Path

import pytest

import launch.jobs
from tests.fuzz import folders
from tests.fuzz.fuzzing import attempt_anew, fuzz, try_valid
from tests.fuzz.pieces import place
from tests.fuzz.target import Failure, Target, attempt
from tests.fuzz.targets import targets
from training.errors import CheckpointError

CORPUS = Path(__file__).parent / "corpus"
INPUTS = 200
"""Of a target with a share of 1."""
TARGETS = {target.name: target for target in targets()}
KEPT = sorted(path for path in CORPUS.glob("*/*") if path.is_dir())


@pytest.fixture(autouse=True)
def quiet() -> object:
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


@pytest.mark.parametrize("name", TARGETS)
def test_inputs_are_read_or_refused_by_a_named_error(name: str, tmp_path: Path) -> None:
    target = TARGETS[name]
    try_valid(target, tmp_path)
    tally = fuzz(target, max(10, round(INPUTS * target.share)), start=0, work=tmp_path)
    assert not tally.failures, "\n".join(f"{kind}\n{failure.text}" for kind, failure in tally.failures.items())
    assert sum(tally.results.values()) == tally.inputs == max(10, round(INPUTS * target.share))


@pytest.mark.parametrize("path", KEPT, ids=lambda path: f"{path.parent.name}-{path.name}")
def test_what_once_failed(path: Path, tmp_path: Path) -> None:
    target = TARGETS[path.parent.name]
    try_valid(target, tmp_path)
    # A kept input has the files that were changed.
    result = attempt_anew(target, {**target.valid, **folders.read_input(path)}, tmp_path / "now")
    assert isinstance(result, str), f"{result.kind}\n{result.text}"


def _loop(folder: Path) -> None:
    while True:
        pass


def _grow(folder: Path) -> None:
    bytearray(1 << 32)


def _write(folder: Path) -> None:
    (folder.parent / "outside").write_text("x")


def _run(folder: Path) -> None:
    import subprocess

    subprocess.run(["true"], check=True)


def _refuse(folder: Path) -> None:
    raise CheckpointError("something is wrong")


def _warn(folder: Path) -> None:
    import warnings

    warnings.warn("odd", RuntimeWarning, stacklevel=1)


@pytest.mark.parametrize(
    ("read", "kind"),
    [
        (_loop, "TooLong"), (_grow, "MemoryError"), (_write, "Forbidden"), (_run, "Forbidden"), (_warn, "RuntimeWarning"),
        (_refuse, "names neither file nor setting: CheckpointError"), (lambda folder: 1 // 0, "ZeroDivisionError"),
    ],
)  # fmt: skip
def test_what_must_not_happen_is_noticed(
    read: object, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tests.fuzz.target.MAX_SECONDS", 0.2)
    folder = tmp_path / "now"
    folder.mkdir()
    target = Target(name="t", make=lambda: {"a": b""}, read=read, errors=(CheckpointError,))  # type: ignore[arg-type]
    found = attempt(target, {"a": b""}, folder)
    assert isinstance(found, Failure)
    assert found.kind.startswith(kind)
    assert not (tmp_path / "outside").exists()


def test_what_is_put_is_read_again(tmp_path: Path) -> None:
    files: dict[str, folders.Content] = {
        "a/b": b"1",
        "c": folders.Odd.FOLDER,
        "d/e": folders.Odd.NOWHERE,
        "f": folders.Odd.ITSELF,
    }
    folders.put(files, tmp_path)
    assert folders.read_input(tmp_path) == files
    assert folders.read(tmp_path) == {"a/b": b"1"}


def test_a_process_that_waits_is_named_by_its_place(tmp_path: Path) -> None:
    with (tmp_path / "stacks").open("w") as stacks:
        faulthandler.dump_traceback(file=stacks)
    assert place((tmp_path / "stacks").read_text()) == "unknown"
    ours = f'Timeout (0:01:00)!\nThread 0x1 (most recent call first):\n  File "{pathlib.__file__}", line 1 in open\n'
    ours += f'  File "{launch.jobs.__file__}", line 81 in events\n  File "{__file__}", line 2 in attempt\n'
    assert place(ours) == "launch/jobs.py:events"


def test_inputs_are_as_many_as_wanted_and_of_every_kind(tmp_path: Path) -> None:
    seen: list[dict[str, folders.Content]] = []
    valid = {"a.json": b'{"x": [1, {"y": null}]}', "b.bin": b"0123456789"}
    target = Target(name="t", make=lambda: valid, read=lambda folder: seen.append(folders.read_input(folder)))
    tally = fuzz(target, 600, start=3, work=tmp_path)
    assert tally.inputs == len(seen) == tally.results["read"] == 600
    contents = {files.get("a.json", b"gone") for files in seen}
    assert len(contents) > 100
    assert b"gone" in contents
    assert any(isinstance(content, bytes) and len(content) > 3000 for content in contents), "something deep or long"
    assert contents.issuperset(folders.Odd), "what is no file"
    assert any(files.get("a.json") == valid["b.bin"] for files in seen), "files that were swapped"
    again = fuzz(target, 600, start=3, work=tmp_path)
    assert again.inputs == 600
    assert seen[:600] == seen[600:], "the same seed, the same inputs"

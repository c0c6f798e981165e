from __future__ import annotations

import os
import sys
import tempfile
import time
from pathlib import Path

import pytest

from training.placements import extensions
from training.placements.extensions import NAME, choose_folder, clear_lock, find_ninja, refuse_missing_tools
from training.recipe import ConfigError


@pytest.fixture
def said() -> list[str]:
    return []


def program(folder: Path, name: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text("#!/bin/sh\n")
    (folder / name).chmod(0o755)
    return folder


def test_the_folder_is_that_of_the_environment(
    tmp_path: Path, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    environment = {"XDG_CACHE_HOME": str(tmp_path)}
    one = choose_folder(environment, said.append)
    assert one.is_dir()
    assert one.parent == tmp_path / "palimpsest"
    assert choose_folder(environment, said.append) == one
    monkeypatch.setattr(sys, "prefix", "/another/environment")
    assert choose_folder(environment, said.append) != one
    assert choose_folder({"TORCH_EXTENSIONS_DIR": str(tmp_path / "own")}, said.append) == tmp_path / "own"
    assert said == []


def test_a_home_that_cannot_be_written(tmp_path: Path, said: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    folder = choose_folder({"XDG_CACHE_HOME": "/dev/null/cache"}, said.append)
    assert folder.parent == tmp_path / f"palimpsest-{os.getuid()}"
    assert folder.parent.stat().st_mode & 0o077 == 0
    (line,) = said
    assert line.startswith("/dev/null/cache/palimpsest/extensions-")
    assert line.endswith(f"can't be written (Not a directory); DeepSpeed's extension is compiled in {tmp_path}")


def test_a_folder_that_others_can_write_is_not_used(
    tmp_path: Path, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    foreign = tmp_path / f"palimpsest-{os.getuid()}"
    foreign.mkdir()
    foreign.chmod(0o777)
    with pytest.raises(
        ConfigError, match="belongs to another user, or others can write to it; set TORCH_EXTENSIONS_DIR"
    ):
        choose_folder({"XDG_CACHE_HOME": "/dev/null/cache"}, said.append)


def test_a_chosen_folder_that_cannot_be_written_is_refused(said: list[str]) -> None:
    with pytest.raises(ConfigError, match=r"TORCH_EXTENSIONS_DIR=/dev/null/x: can't be written \(Not a directory\)"):
        choose_folder({"TORCH_EXTENSIONS_DIR": "/dev/null/x"}, said.append)


def test_ninja_of_an_environment_that_is_not_activated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own, others = program(tmp_path / "own", "ninja"), program(tmp_path / "others", "ninja")
    monkeypatch.setattr("sysconfig.get_path", lambda name: str(own))
    environment = {"PATH": "/nowhere"}
    find_ninja(environment)
    assert environment["PATH"] == f"{own}{os.pathsep}/nowhere"
    environment = {"PATH": str(others)}
    find_ninja(environment)
    assert environment["PATH"] == str(others)


def test_missing_tools_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r'lacks ninja .* and the C\+\+ compiler c\+\+; .*placement = "replicated"'):
        refuse_missing_tools(tmp_path, {"PATH": "/nowhere"})
    tools = str(program(tmp_path / "tools", "ninja"))
    with pytest.raises(ConfigError, match=r"lacks the C\+\+ compiler my-c\+\+ -O2;"):
        refuse_missing_tools(tmp_path, {"PATH": tools, "CXX": "my-c++ -O2"})
    (tmp_path / NAME).mkdir()
    (tmp_path / NAME / f"{NAME}.so").touch()
    refuse_missing_tools(tmp_path, {"PATH": tools})


def test_a_dead_starts_lock_is_removed(tmp_path: Path, said: list[str]) -> None:
    lock = tmp_path / "lock"
    lock.touch()
    hour_ago = time.time() - 3600
    os.utime(lock, (hour_ago, hour_ago))
    clear_lock(lock, said.append)
    assert not lock.exists()
    assert said == [f"removed {lock}, left 60 minutes ago by a start that was killed while it compiled"]


def test_a_lock_that_is_held_is_waited_for(tmp_path: Path, said: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    lock = tmp_path / "lock"
    lock.touch()
    waited = []

    def sleep(_: float) -> None:
        waited.append(None)
        if len(waited) == 1:
            minute_ago = time.time() - 60
            os.utime(lock, (minute_ago, minute_ago))
        if len(waited) == 4:
            lock.unlink()

    monkeypatch.setattr(extensions.time, "sleep", sleep)
    clear_lock(lock, said.append)
    assert len(waited) == 4
    (line,) = said
    assert line == f"waiting for another start to compile DeepSpeed's extension ({lock}), for at most 10 minutes"

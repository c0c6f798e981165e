"""Environments made for real; no other Python is needed for one that seems to be of another."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]


def make(folder: Path) -> subprocess.CompletedProcess[str]:
    """Run tools/environment.py."""
    command = [sys.executable, str(ROOT / "tools" / "environment.py"), folder.name]
    return subprocess.run(command, cwd=folder.parent, capture_output=True, text=True, timeout=120, check=False)


def pip_of(folder: Path) -> str:
    """What its pip says of itself."""
    command = [str(folder / "bin" / "pip"), "--version"]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with a file that it loses when it is made anew."""
    folder = tmp_path_factory.mktemp("there") / ".venv"
    done = make(folder)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    (folder / "mine").touch()
    return folder


def test_one_that_works_is_kept(made: Path) -> None:
    done = make(made)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert (made / "mine").exists()
    assert (made / "bin" / "python").is_symlink()


@pytest.mark.parametrize("change", ["dangling", "another Python", "no pip", "another place"])
def test_one_that_does_not_is_made_anew(made: Path, tmp_path: Path, change: str) -> None:
    # Below another folder, the place that it names ends like its own.
    folder = tmp_path / ".venv"
    subprocess.run(["cp", "-a", str(made), str(folder)], check=True, timeout=60)
    activate, python = folder / "bin" / "activate", folder / "bin" / "python"
    place = str(folder) if change != "another place" else f"/scratch{folder}"
    activate.write_text(activate.read_text().replace(str(made), place))
    if change == "dangling":
        python.unlink()
        python.symlink_to("/nowhere/python3")
    elif change == "another Python":
        python.unlink()
        python.write_text("#!/bin/sh\necho /usr 3.99.0\n")
        python.chmod(0o755)
    elif change == "no pip":
        (pip,) = folder.glob("lib/*/site-packages/pip")
        pip.rename(tmp_path / "pip")
    done = make(folder)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{folder}: is no working environment of {sys.executable} in this place; making it anew\n"
    assert not (folder / "mine").exists()
    assert str(folder) in pip_of(folder)


def test_a_file_in_its_place(tmp_path: Path) -> None:
    (tmp_path / ".venv").touch()
    done = make(tmp_path / ".venv")
    assert done.returncode == 2
    assert done.stderr.startswith(f"{tmp_path / '.venv'}: can't be made: ")
    assert "Traceback" not in done.stderr

"""Wheels for machines without internet: collected and installed for real, with packages made here."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import sys
import tarfile
import warnings
import zipfile
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[3]
PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"

BACKEND = """
import pathlib, zipfile

def build_wheel(folder, settings=None, metadata=None):
    name = "{name}-1.0-{tag}.whl"
    info = "{name}-1.0.dist-info"
    with zipfile.ZipFile(pathlib.Path(folder, name), "w") as wheel:
        wheel.writestr("{name}.py", "")
        wheel.writestr(info + "/METADATA", "Metadata-Version: 2.1\\nName: {name}\\nVersion: 1.0\\n")
        wheel.writestr(info + "/WHEEL", "Wheel-Version: 1.0\\nGenerator: test\\nRoot-Is-Purelib: true\\nTag: {tag}\\n")
        wheel.writestr(info + "/RECORD", "")
    return name

build_editable = build_wheel
"""
PROJECT = '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n[project]\nname = "{name}"\nversion = "1.0"\n'


@pytest.fixture(scope="module")
def wheelhouse() -> ModuleType:
    """tools/wheelhouse.py, which is a program and in no package."""
    import importlib.util

    spec = importlib.util.spec_from_file_location("wheelhouse_tool", ROOT / "tools" / "wheelhouse.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    with warnings.catch_warnings():
        # Of pip's import, where another test has imported distutils before.
        warnings.filterwarnings("ignore", "Setuptools is replacing distutils", UserWarning)
        spec.loader.exec_module(module)
    return module


def wheel(folder: Path, name: str, *requires: str, version: str = "1.0", tag: str = "py3-none-any") -> Path:
    """A wheel with one empty module."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}-{version}-{tag}.whl"
    info = f"{name}-{version}.dist-info"
    needs = "".join(f"Requires-Dist: {each}\n" for each in requires)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{name}.py", "")
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{needs}")
        archive.writestr(f"{info}/WHEEL", f"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: {tag}\n")
        archive.writestr(f"{info}/RECORD", "")
    return path


def source(folder: Path, name: str, tag: str = "py3-none-any") -> None:
    """A source distribution whose build makes a wheel with this tag."""
    folder.mkdir(parents=True, exist_ok=True)
    files = {"PKG-INFO": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n", "pyproject.toml": PROJECT.format(name=name),
             "backend.py": BACKEND.format(name=name, tag=tag)}  # fmt: skip
    with tarfile.open(folder / f"{name}-1.0.tar.gz", "w:gz") as archive:
        for file, text in files.items():
            entry = tarfile.TarInfo(f"{name}-1.0/{file}")
            entry.size = len(text)
            archive.addfile(entry, io.BytesIO(text.encode()))


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that pip finds packages in, and nowhere else."""
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "published"))
    monkeypatch.delenv("PIP_EXTRA_INDEX_URL", raising=False)
    return tmp_path / "published"


def make(checkout: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = ["make", f"PYTHON={sys.executable}", f"PYTHON_VERSION={PYTHON}", *arguments]
    return subprocess.run(command, cwd=checkout, capture_output=True, text=True, timeout=300, check=False)


def test_collected_there_installed_here(offline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`make wheelhouse` and `make install-offline`, in a checkout without .git that has a small lock file."""
    checkout = tmp_path / "checkout"
    checkout.mkdir()
    shutil.copy(ROOT / "Makefile", checkout)
    shutil.copytree(ROOT / "tools", checkout / "tools")
    (checkout / "requirements.lock").write_text("# two\nfirst_one==1.0\nsecond==1.0\n")
    (checkout / "pyproject.toml").write_text(PROJECT.format(name="project"))
    (checkout / "backend.py").write_text(BACKEND.format(name="project", tag="py3-none-any"))
    wheel(offline, "first_one", "third>=1", "never; python_version < '3'")
    source(offline, "second")
    wheel(offline, "third", version="1.5")
    done = make(checkout, "wheelhouse")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "3 wheels" in done.stdout
    assert f"all that Python {PYTHON} on manylinux_2_28_x86_64 needs" in done.stdout
    assert "make install-offline" in done.stdout
    names = {path.name for path in (checkout / "wheelhouse").iterdir()}
    assert names == {
        "first_one-1.0-py3-none-any.whl",
        "second-1.0-py3-none-any.whl",
        "third-1.5-py3-none-any.whl",
        "target.json",
    }

    assert not (checkout / ".venv").exists()

    # From here on nothing but the folder is there, and an environment that was copied with the checkout.
    offline.rename(tmp_path / "gone")
    copied = checkout / ".venv" / "bin"
    copied.mkdir(parents=True)
    (copied / "python").symlink_to("/nowhere/python")
    (copied / "python3").write_text("#!/bin/sh\nexit 77\n")
    (copied / "python3").chmod(0o755)
    (checkout / ".venv" / ".complete").touch()
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    moved = (checkout / "wheelhouse" / "third-1.5-py3-none-any.whl").rename(tmp_path / "third")
    refused = make(checkout, "install-offline", "PYTHON=python3")
    assert refused.returncode == 2, refused.stdout + refused.stderr
    assert not (checkout / ".venv" / ".complete").exists()
    assert "incomplete, there is no wheel for third>=1 (for first-one)" in refused.stderr
    moved.rename(checkout / "wheelhouse" / "third-1.5-py3-none-any.whl")
    done = make(checkout, "install-offline")
    assert done.returncode == 0, done.stdout + done.stderr
    code = "import first_one, second, third, project"
    assert subprocess.run([checkout / ".venv" / "bin" / "python", "-c", code], check=False, timeout=60).returncode == 0
    assert "up to date" in make(checkout, "setup").stdout or "Nothing to be done" in make(checkout, "setup").stdout


def test_what_would_be_compiled_is_refused_by_name(
    offline: Path, tmp_path: Path, wheelhouse: ModuleType, capfd: pytest.CaptureFixture[str]
) -> None:
    source(offline, "compiled", tag=f"cp{PYTHON.replace('.', '')}-cp{PYTHON.replace('.', '')}-linux_x86_64")
    lock = tmp_path / "lock"
    lock.write_text("compiled==1.0\n")
    out = tmp_path / "out"
    assert wheelhouse.main(["collect", str(out), "--python-version", PYTHON, "--lock", str(lock)]) == 2
    said = capfd.readouterr().err
    assert "compiled-1.0.tar.gz: has no wheel for the target, and building it compiles code for this machine" in said
    assert not list(out.glob("*.whl"))


def test_what_pip_cannot_find_is_its_failure(
    offline: Path, tmp_path: Path, wheelhouse: ModuleType, capfd: pytest.CaptureFixture[str]
) -> None:
    offline.mkdir()
    lock = tmp_path / "lock"
    lock.write_text("nowhere==1.0\n")
    assert wheelhouse.main(["collect", str(tmp_path / "out"), "--lock", str(lock)]) == 2
    said = capfd.readouterr().err
    assert "No matching distribution found for nowhere==1.0" in said
    assert "pip download failed, as said above" in said


def test_torch_can_come_from_another_index(
    tmp_path: Path, wheelhouse: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def run_pip(*arguments: object) -> None:
        calls.append(arguments)
        wheel(tmp_path / "out", "torch", version="1.0+cu1")

    monkeypatch.setattr(wheelhouse, "run_pip", run_pip)
    lock = tmp_path / "lock"
    lock.write_text("torch==1.0\n")
    told = wheelhouse.collect(
        tmp_path / "out", wheelhouse.Target("3.11", "manylinux_2_28_x86_64", "https://of.torch"), lock
    )
    (call,) = calls
    assert call[0] == "download"
    assert call[call.index("--extra-index-url") + 1] == "https://of.torch"
    assert "with torch from https://of.torch needs, torch 1.0+cu1" in told


@pytest.mark.parametrize(("before", "now"), [("2.0", "1.0"), ("1.0", "2.0")])
def test_another_pin_in_the_lock_file(
    offline: Path, tmp_path: Path, wheelhouse: ModuleType, before: str, now: str
) -> None:
    folder, lock, target = tmp_path / "out", tmp_path / "lock", wheelhouse.Target(PYTHON, "manylinux_2_28_x86_64")
    wheel(offline, "one", "left_behind", version=before)
    wheel(offline, "one", version=now)
    wheel(offline, "left_behind")
    wheel(offline, "user", "one>=1")
    lock.write_text(f"one=={before}\nuser==1.0\n")
    assert "3 wheels" in wheelhouse.collect(folder, target, lock)
    lock.write_text(f"one=={now}\nuser==1.0\n")
    told = wheelhouse.collect(folder, target, lock)
    assert {path.name.partition("-py3")[0] for path in folder.glob("*.whl")} == {
        "one-1.0", "one-2.0", "left_behind-1.0", "user-1.0",
    }  # fmt: skip
    # What only the other version needs is not counted, and not asked for.
    assert "2 wheels" in told
    (folder / "left_behind-1.0-py3-none-any.whl").unlink()
    assert "2 wheels" in wheelhouse.collect(folder, target, lock)


@pytest.mark.parametrize("name", ["file", "file/folder"])
def test_a_folder_that_is_a_file(
    tmp_path: Path, wheelhouse: ModuleType, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    (tmp_path / "file").touch()
    assert wheelhouse.main(["collect", str(tmp_path / name)]) == 2
    said = capsys.readouterr().err
    assert (
        said == f"make wheelhouse: {tmp_path / name}: can't be written: is no folder; name another with WHEELHOUSE=\n"
    )


def test_a_folder_of_another_target_is_left_alone(tmp_path: Path, wheelhouse: ModuleType) -> None:
    folder, lock = tmp_path / "wheelhouse", tmp_path / "lock"
    lock.write_text("one==1.0\n")
    wheel(folder, "one")
    wheelhouse.collect(folder, wheelhouse.Target("3.11", "manylinux_2_28_x86_64"), lock)
    with pytest.raises(
        wheelhouse.WheelhouseError, match=r"was made for Python 3\.11 on manylinux_2_28_x86_64; delete it"
    ):
        wheelhouse.collect(folder, wheelhouse.Target("3.12", "manylinux_2_28_x86_64"), lock)
    with pytest.raises(wheelhouse.WheelhouseError, match="delete it, or name another with WHEELHOUSE="):
        wheelhouse.collect(folder, wheelhouse.Target("3.11", "manylinux_2_28_x86_64", "https://index"), lock)


@pytest.mark.parametrize(
    ("python", "platform", "message"),
    [
        ("3.11.7", "manylinux_2_28_x86_64", r"PYTHON_VERSION=3\.11\.7: must be like 3\.11"),
        ("3.11", "macosx_14_0_arm64", r"PLATFORM=macosx_14_0_arm64: must be like manylinux_2_28_x86_64"),
    ],
)
def test_targets_that_are_none(
    tmp_path: Path, wheelhouse: ModuleType, python: str, platform: str, message: str
) -> None:
    with pytest.raises(wheelhouse.WheelhouseError, match=message):
        wheelhouse.collect(tmp_path / "out", wheelhouse.Target(python, platform), tmp_path / "lock")
    assert not (tmp_path / "out").exists()


def test_a_newer_platform_takes_what_is_built_for_older_ones(wheelhouse: ModuleType) -> None:
    platforms = wheelhouse.Target("3.11", "manylinux_2_18_aarch64").platforms()
    assert platforms[:3] == ["manylinux_2_18_aarch64", "manylinux_2_17_aarch64", "manylinux2014_aarch64"]
    assert platforms[-1] == "linux_aarch64"
    assert wheelhouse.Target("3.11", "manylinux2014_x86_64").platforms()[0] == "manylinux_2_17_x86_64"


def test_conditions_are_those_of_the_target(tmp_path: Path, wheelhouse: ModuleType) -> None:
    """Where pip would go by the Python it runs in."""
    wheel(
        tmp_path,
        "one",
        "newer; python_version >= '3.14'",
        "arm; platform_machine == 'aarch64'",
        "extra; extra == 'more'",
    )
    wheel(tmp_path, "two", "one[more]")
    wheel(tmp_path, "newer", version="2.0", tag="cp313-cp313-manylinux_2_17_aarch64")

    def lacking(python: str, platform: str, wanted: str) -> set[str]:
        target = wheelhouse.Target(python, platform)
        wheels = wheelhouse.usable_wheels(tmp_path, target.tags())
        return set(wheelhouse.choose([wheelhouse.Requirement(wanted)], wheels, target.conditions())[1])

    assert lacking("3.13", "manylinux_2_28_x86_64", "one") == set()
    assert lacking("3.14", "manylinux_2_28_aarch64", "one") == {"newer", "arm"}
    assert lacking("3.13", "manylinux_2_28_x86_64", "two") == {"extra"}
    assert lacking("3.13", "manylinux_2_28_x86_64", "newer==2.0") == {"newer==2.0"}
    assert lacking("3.13", "manylinux_2_28_aarch64", "newer==2.0") == set()
    assert lacking("3.13", "manylinux_2_28_aarch64", "newer==1.0") == {"newer==1.0"}


def test_no_folder(tmp_path: Path, wheelhouse: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    assert wheelhouse.main(["check", str(tmp_path / "wheelhouse")]) == 2
    said = capsys.readouterr().err
    assert said.startswith(
        f"make install-offline: {tmp_path / 'wheelhouse'}: no such folder; on a machine with internet"
    )


def test_a_wheelhouse_for_another_machine(tmp_path: Path, wheelhouse: ModuleType) -> None:
    lock = tmp_path / "lock"
    lock.write_text("")
    for python, platform in (("3.99", "manylinux_2_28_x86_64"), (PYTHON, "manylinux_2_28_sparc64")):
        wheelhouse.collect(tmp_path / python / platform, wheelhouse.Target(python, platform), lock)
        with pytest.raises(
            wheelhouse.WheelhouseError, match=rf"is for Python {python} on {platform}; this is Python {PYTHON}"
        ):
            wheelhouse.check(tmp_path / python / platform, lock)


def test_a_damaged_wheel(tmp_path: Path, wheelhouse: ModuleType) -> None:
    lock = tmp_path / "lock"
    lock.write_text("one==1.0\n")
    path = wheel(tmp_path / "wheelhouse", "one")
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(
        wheelhouse.WheelhouseError, match=r"one-1\.0-py3-none-any\.whl: is no wheel, or damaged; delete it"
    ):
        wheelhouse.check(tmp_path / "wheelhouse", lock)

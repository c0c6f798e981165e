"""A folder of wheels for machines without internet: `make wheelhouse` collects it, `make install-offline` installs from it.

It holds every version of requirements.lock, and all that these need on the target, a Python version and platform that need
not be this machine's. What pip itself can't say for another machine is worked out here: pip reads conditions such as
`python_version >= "3.12"` with the values of the Python that runs it.

Needs pip and nothing else; what reads versions, tags and conditions is pip's own copy of `packaging`.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import zipfile
from dataclasses import asdict, dataclass
from email.parser import HeaderParser
from pathlib import Path

from pip._vendor.packaging.markers import default_environment
from pip._vendor.packaging.requirements import Requirement
from pip._vendor.packaging.specifiers import SpecifierSet
from pip._vendor.packaging.tags import Tag, compatible_tags, cpython_tags, sys_tags
from pip._vendor.packaging.utils import InvalidWheelFilename, canonicalize_name, parse_wheel_filename
from pip._vendor.packaging.version import Version

ROOT = Path(__file__).resolve().parents[1]
TARGET_FILE = "target.json"
LEGACY_NAMES = {"manylinux2014": 17, "manylinux2010": 12, "manylinux1": 5}
"""Names that manylinux platforms had, and the minor version of glibc 2 each stands for."""
Wheel = tuple[Version, Path]


class WheelhouseError(ValueError):
    """What is wrong, for people: which folder or package, and what to do."""


@dataclass(frozen=True)
class Target:
    """The machine that the wheels are for."""

    python: str
    """Version, as 3.11."""
    platform: str
    """Newest platform tag that it takes, as manylinux_2_28_x86_64."""
    torch_index: str = ""
    """URL of the package index that torch came from; empty for the ordinary ones."""

    def platforms(self) -> list[str]:
        """Tags of all platforms whose wheels run there, best first: a newer glibc runs what was built for older ones.

        Raises:
            WheelhouseError: the platform is not one of Linux and glibc.
        """
        found = re.fullmatch(r"manylinux_2_(\d+)_(\w+)|(manylinux1|manylinux2010|manylinux2014)_(\w+)", self.platform)
        if found is None:
            raise WheelhouseError(f"PLATFORM={self.platform}: must be like manylinux_2_28_x86_64 (glibc 2.28 or newer)")
        newest, machine = int(found[1] or LEGACY_NAMES[found[3]]), found[2] or found[4]
        tags = []
        for minor in range(newest, 4, -1):
            tags += [f"manylinux_2_{minor}_{machine}"]
            tags += [f"{name}_{machine}" for name, of in LEGACY_NAMES.items() if of == minor]
        return [*tags, f"linux_{machine}"]

    def tags(self) -> list[Tag]:
        """All tags of wheels that it can install, best first.

        Raises:
            WheelhouseError: the Python version or the platform is not one.
        """
        if not re.fullmatch(r"3\.\d+", self.python):
            raise WheelhouseError(f"PYTHON_VERSION={self.python}: must be like 3.11")
        version, platforms = tuple(map(int, self.python.split("."))), self.platforms()
        interpreter = f"cp{self.python.replace('.', '')}"
        found = list(cpython_tags(version, abis=[interpreter], platforms=platforms))
        return found + list(compatible_tags(version, interpreter=interpreter, platforms=platforms))

    def conditions(self) -> dict[str, str]:
        """Values of the variables in conditions of requirements, there."""
        machine = self.platforms()[-1].removeprefix("linux_")
        return dict(default_environment()) | {
            "python_version": self.python, "python_full_version": f"{self.python}.0", "implementation_version": f"{self.python}.0",
            "implementation_name": "cpython", "platform_python_implementation": "CPython", "os_name": "posix",
            "sys_platform": "linux", "platform_system": "Linux", "platform_machine": machine,
        }  # fmt: skip


def locked(lock: Path) -> list[Requirement]:
    """The requirements of a lock file."""
    lines = (line.partition("#")[0].strip() for line in lock.read_text(encoding="utf-8").splitlines())
    return [Requirement(line) for line in lines if line]


def usable_wheels(folder: Path, tags: list[Tag]) -> dict[str, list[Wheel]]:
    """The wheels of each package among those that have one of the tags, newest first."""
    accepted = set(tags)
    found: dict[str, list[Wheel]] = {}
    for path in folder.glob("*.whl"):
        try:
            name, version, _, own = parse_wheel_filename(path.name)
        except InvalidWheelFilename:
            continue
        if accepted & own:
            found.setdefault(name, []).append((version, path))
    return {name: sorted(wheels, reverse=True) for name, wheels in found.items()}


def needs(wheel: Path) -> list[Requirement]:
    """What a wheel says it requires.

    Raises:
        WheelhouseError: the file is damaged.
    """
    try:
        with zipfile.ZipFile(wheel) as archive:
            name = next(name for name in archive.namelist() if re.fullmatch(r"[^/]+\.dist-info/METADATA", name))
            headers = HeaderParser().parsestr(archive.read(name).decode("utf-8"))
    except (zipfile.BadZipFile, StopIteration, OSError) as error:
        raise WheelhouseError(f"{wheel}: is no wheel, or damaged; delete it and collect or copy it again") from error
    return [Requirement(text) for text in headers.get_all("Requires-Dist", [])]


def choose(
    wanted: list[Requirement], wheels: dict[str, list[Wheel]], conditions: dict[str, str]
) -> tuple[dict[str, Wheel], dict[str, str]]:
    """The wheels that `wanted` and all that follows from it need, and what no wheel meets, each with who needs it.

    Of several versions, as an older lock file has left them, the newest that fits is taken, as pip does.
    """
    chosen: dict[str, Wheel] = {}
    lacking: dict[str, str] = {}
    locks = {canonicalize_name(requirement.name): requirement.specifier for requirement in wanted}
    todo, seen = [(requirement, "requirements.lock") for requirement in wanted], set()
    while todo:
        requirement, by = todo.pop()
        name = canonicalize_name(requirement.name)
        specifier = requirement.specifier & locks.get(name, SpecifierSet())
        found = next((wheel for wheel in wheels.get(name, []) if specifier.contains(wheel[0], prereleases=True)), None)
        if found is None:
            lacking[f"{name}{requirement.specifier}"] = by
            continue
        chosen[name] = found
        for extra in {"", *requirement.extras}:
            if (found, extra) in seen:
                continue
            seen.add((found, extra))
            # What comes with an extra has a condition on it; the rest was added with the extra "".
            for each in needs(found[1]):
                if each.marker is None or each.marker.evaluate(conditions | {"extra": extra}):
                    todo.append((each, name))
    return chosen, lacking


def run_pip(command: str, *arguments: str | Path) -> None:
    """Run a command of pip, with this environment's indexes, certificates and proxies.

    Raises:
        WheelhouseError: it failed; its own words stand above.
    """
    call = [sys.executable, "-m", "pip", command, "--quiet", "--disable-pip-version-check", *map(str, arguments)]
    if subprocess.run(call, check=False).returncode:
        raise WheelhouseError(f"pip {command} failed, as said above; what was collected is kept, so it can be repeated")


def build(source: Path, folder: Path) -> None:
    """Replace a source distribution by its wheel, which must not depend on the machine.

    Raises:
        WheelhouseError: the build failed, or compiled something.
    """
    before = set(folder.glob("*.whl"))
    run_pip("wheel", "--no-deps", "--wheel-dir", folder, source)
    for wheel in set(folder.glob("*.whl")) - before:
        if not wheel.name.endswith("-none-any.whl"):
            wheel.unlink()
            raise WheelhouseError(
                f"{source.name}: has no wheel for the target, and building it compiles code for this machine; build its "
                "wheel on a machine like the target, with `pip wheel --no-deps`, and put it into the folder"
            )
    source.unlink()


def collect(folder: Path, target: Target, lock: Path) -> str:
    """Fill the folder with all wheels that the target needs; return what there is now, for people.

    What is there is not loaded again, so that an interrupted collection goes on.

    Raises:
        WheelhouseError: the target is no such thing, the folder is another's, or a wheel can't be had.
    """
    tags, conditions, wanted = target.tags(), target.conditions(), locked(lock)
    if (made := read_target(folder)) not in (None, target):
        raise WheelhouseError(f"{folder}: was made for {describe(made)}; delete it, or name another with WHEELHOUSE=")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / TARGET_FILE).write_text(json.dumps(asdict(target), indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        reason = "is no folder" if isinstance(error, FileExistsError | NotADirectoryError) else error.strerror
        raise WheelhouseError(f"{folder}: can't be written: {reason}; name another with WHEELHOUSE=") from error
    options: list[str | Path] = [
        "--no-deps",
        "--python-version",
        target.python,
        "--implementation",
        "cp",
        "--dest",
        folder,
    ]
    for platform in target.platforms():
        options += ["--platform", platform]
    if target.torch_index:
        options += ["--extra-index-url", target.torch_index]
    before: dict[str, str] = {}
    while True:
        for source in [path for path in folder.iterdir() if path.name.endswith((".tar.gz", ".zip"))]:
            print(f"building a wheel of {source.name}", flush=True)
            build(source, folder)
        chosen, lacking = choose(wanted, usable_wheels(folder, tags), conditions)
        if not lacking:
            break
        if lacking == before:
            raise WheelhouseError(f"{folder}: pip brought nothing that the target can use for {listed(lacking)}")
        print(f"loading {len(lacking)} packages", flush=True)
        run_pip("download", *options, *lacking)
        before = lacking
    size = sum(path.stat().st_size for _, path in chosen.values())
    torch = f", torch {chosen['torch'][0]}" if "torch" in chosen else ""
    return (
        f"{folder}: {len(chosen)} wheels, {size / 1e9:.2f} GB, all that {describe(target)} needs{torch}\n"
        f"Next: copy this checkout with the folder to the cluster, and there: make install-offline WHEELHOUSE={folder}"
    )


def check(folder: Path, lock: Path) -> None:
    """Make sure that this very Python can install everything from the folder.

    Raises:
        WheelhouseError: there is no such folder, it is for another Python or platform, or something is missing.
    """
    if not folder.is_dir():
        raise WheelhouseError(
            f"{folder}: no such folder; on a machine with internet, `make wheelhouse` makes it. WHEELHOUSE= names another"
        )
    tags, python = list(sys_tags()), f"{sys.version_info.major}.{sys.version_info.minor}"
    platforms = [tag.platform for tag in tags]
    target = read_target(folder)
    if target is not None and (target.python != python or target.platform not in platforms):
        raise WheelhouseError(
            f"{folder}: is for {describe(target)}; this is Python {python} on {platforms[0]}. Choose another Python with PYTHON=, or "
            f"make one for this: make wheelhouse PYTHON_VERSION={python} PLATFORM={platforms[0]}"
        )
    _, lacking = choose(locked(lock), usable_wheels(folder, tags), dict(default_environment()))
    if lacking:
        raise WheelhouseError(
            f"{folder}: incomplete, there is no wheel for {listed(lacking)}; `make wheelhouse` again, or copy it again"
        )


def read_target(folder: Path) -> Target | None:
    """What a folder was collected for; None where it doesn't say."""
    try:
        return Target(**json.loads((folder / TARGET_FILE).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def describe(target: Target) -> str:
    """The target in words."""
    index = f" with torch from {target.torch_index}" if target.torch_index else ""
    return f"Python {target.python} on {target.platform}{index}"


def listed(lacking: dict[str, str]) -> str:
    """Requirements in words: the first ten, and how many more."""
    some = [f"{name} (for {by})" for name, by in sorted(lacking.items())[:10]]
    return ", ".join(some) + (f" and {len(lacking) - 10} more" if len(lacking) > 10 else "")


def main(arguments: list[str] | None = None) -> int:
    """Collect or check a wheelhouse; return the exit code: 2 where something is wrong."""
    parser = argparse.ArgumentParser(prog="tools/wheelhouse.py", description=str(__doc__).partition("\n")[0])
    parser.add_argument("command", choices=("collect", "check"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--python-version", default="3.11")
    parser.add_argument("--platform", default="manylinux_2_28_x86_64")
    parser.add_argument("--torch-index", default="", help="URL of one more package index, for another build of torch")
    parser.add_argument("--lock", type=Path, default=ROOT / "requirements.lock")
    options = parser.parse_args(arguments)
    try:
        if options.command == "check":
            check(options.folder, options.lock)
        else:
            target = Target(options.python_version, options.platform, options.torch_index)
            print(collect(options.folder, target, options.lock))
    except WheelhouseError as error:
        print(
            f"{'make wheelhouse' if options.command == 'collect' else 'make install-offline'}: {error}", file=sys.stderr
        )
        return 2
    return 0


if __name__ == "__main__":
    # Ctrl-C is no error of ours to show a traceback for.
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        os._exit(130)

"""A model of a disk whose machine loses power: what was not synchronised is lost, in any combination.

A name given or taken in a folder lasts from the next fsync of that folder on; until then the folder may come back as it was
at any moment since the last one. The bytes of a file last from its next fsync on; of later ones any number may be there. That is
less than most file systems keep.
"""

from __future__ import annotations

import os
import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.chaos.system_calls import Perform

Content = dict[str, "Content | bytes"]
"""A folder's names; a folder in it, or the bytes of a file."""


@dataclass(eq=False)
class File:
    """Its bytes, and how many of them are safe."""

    content: bytes = b""
    safe: int = 0


@dataclass(eq=False)
class Folder:
    """Its names at every moment since it was last synchronised; the last entry is now."""

    moments: list[dict[str, File | Folder]] = field(default_factory=lambda: [{}])

    @property
    def names(self) -> dict[str, File | Folder]:
        return self.moments[-1]

    def change(self, changed: dict[str, File | Folder | None]) -> None:
        """Give names to nodes, and take them from None."""
        self.moments.append({name: node for name, node in (self.names | changed).items() if node is not None})


class Ended(BaseException):
    """Stands for the end of the process; nothing is done after it."""


class Disk:
    """A handler of intercepted calls that performs them and keeps account of what of them would survive, under one folder."""

    def __init__(self, root: Path, *, ends_at: int | None = None) -> None:
        """Begin with what is there, all of it safe; the process ends at the call of that number, counted from 1."""
        self._path = root
        self.ends_at = ends_at
        self._root = _read(root)
        self._opened: dict[int, File | Folder] = {}
        self.calls = 0

    def __call__(self, name: str, perform: Perform, arguments: tuple[Any, ...], options: dict[str, Any]) -> Any:
        self.calls += 1
        if self.ends_at is not None and self.calls >= self.ends_at:
            # What the end of a process would do.
            if name == "close" and self._opened.pop(arguments[0], None) is not None:
                perform(*arguments)
            raise Ended
        result = perform(*arguments, **options)
        # After the call: one that fails changes nothing.
        apply = getattr(self, f"_{name}", None)
        assert apply is not None, f"the model does not know os.{name}"
        apply(result, *arguments, **options)
        return result

    def after_power_loss(self, source: random.Random) -> Content:
        """One of the states in which the disk may come back."""
        return _survivor(self._root, source)

    def _find(self, path: Any, dir_fd: int | None = None) -> tuple[Folder, str] | None:
        """The folder that has a path, and its name there; None outside."""
        if dir_fd is not None:
            folder = self._opened.get(dir_fd)
            assert not isinstance(folder, File)
            return None if folder is None else (folder, os.fspath(path))
        relative = os.path.relpath(os.fspath(path), self._path)
        if relative.startswith(".."):
            return None
        *parents, name = relative.split(os.sep)
        folder = self._root
        for parent in parents:
            inner = folder.names[parent]
            assert isinstance(inner, Folder)
            folder = inner
        return folder, name

    def _open(self, descriptor: Any, path: Any, flags: Any = 0, mode: Any = 0, *, dir_fd: int | None = None) -> None:
        found = self._find(path, dir_fd)
        if found is None or flags == "rb":
            return
        assert isinstance(descriptor, int), "the model follows os.open only"
        folder, name = found
        node = self._root if name == "." else folder.names.get(name)
        if node is None:
            node = File()
            folder.change({name: node})
        if flags & os.O_TRUNC:
            assert isinstance(node, File)
            node.content, node.safe = b"", 0
        self._opened[descriptor] = node

    def _close(self, result: Any, descriptor: int) -> None:
        self._opened.pop(descriptor, None)

    def _write(self, count: int, descriptor: int, data: Any) -> None:
        node = self._opened.get(descriptor)
        if node is not None:
            assert isinstance(node, File)
            node.content += bytes(memoryview(data).cast("B")[:count])

    def _fsync(self, result: Any, descriptor: int) -> None:
        node = self._opened.get(descriptor)
        if isinstance(node, File):
            node.safe = len(node.content)
        elif node is not None:
            node.moments = [node.names]

    def _mkdir(self, result: Any, path: Any, mode: int = 0o777, *, dir_fd: int | None = None) -> None:
        if found := self._find(path, dir_fd):
            found[0].change({found[1]: Folder()})

    def _unlink(self, result: Any, path: Any, *, dir_fd: int | None = None) -> None:
        if found := self._find(path, dir_fd):
            found[0].change({found[1]: None})

    _rmdir = _remove = _unlink

    def _rename(self, result: Any, source: Any, target: Any) -> None:
        there, here = self._find(source), self._find(target)
        assert there is not None
        assert here is not None
        assert there[0] is here[0], "the model renames within a folder"
        there[0].change({there[1]: None, here[1]: there[0].names[there[1]]})

    _replace = _rename


def _read(path: Path) -> Folder:
    names: dict[str, File | Folder] = {}
    for each in path.iterdir():
        if each.is_dir():
            names[each.name] = _read(each)
        else:
            content = each.read_bytes()
            names[each.name] = File(content, len(content))
    return Folder([names])


def _survivor(folder: Folder, source: random.Random) -> Content:
    found: Content = {}
    # The first and the last moment are the likely ones in reality, and those with the most to lose.
    moment = source.choice((folder.moments[0], folder.moments[-1], source.choice(folder.moments)))
    for name, node in moment.items():
        if isinstance(node, Folder):
            found[name] = _survivor(node, source)
        else:
            lengths = (node.safe, len(node.content), source.randint(node.safe, len(node.content)))
            found[name] = node.content[: source.choice(lengths)]
    return found


def write_content(path: Path, content: Content) -> None:
    """Put a state of the disk under a folder that does not exist yet."""
    path.mkdir()
    for name, value in content.items():
        if isinstance(value, dict):
            write_content(path / name, value)
        else:
            (path / name).write_bytes(value)

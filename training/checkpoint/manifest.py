"""MANIFEST.json: what makes a folder a checkpoint, and proves that it still is one.

A JSON object whose last entry, `sha256`, is the SHA-256 of all bytes before it, so that a change of any byte is noticed; the
hashes of all other files are in it. No torch in here: people on login nodes look at checkpoints, too.
"""

from __future__ import annotations

import hashlib
import json
import re
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from training.errors import CheckpointError
from training.files import sha256

SCHEMA = 3
MANIFEST = "MANIFEST.json"
_TAIL = re.compile(rb',\n "sha256": "([0-9a-f]{64})"\n}\n')
_TAIL_BYTES = len(b',\n "sha256": ""\n}\n') + 64
_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*")


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A checkpoint on disk whose manifest is valid."""

    path: Path
    manifest: dict[str, Any]

    @property
    def step(self) -> int:
        """Optimizer steps done."""
        return int(self.manifest["step"])

    @property
    def tokens_seen(self) -> int:
        """Input tokens of all ranks until then."""
        return int(self.manifest["progress"].get("tokens_seen", 0))

    @property
    def bytes(self) -> int:
        """Size of its files, without the manifest."""
        return sum(entry["bytes"] for entry in self.manifest["files"])


def seal(content: dict[str, Any]) -> bytes:
    """The bytes of a manifest with this content, which must not be empty."""
    text = json.dumps({"schema": SCHEMA, **content}, indent=1)
    body = text.removesuffix("\n}").encode()
    return body + b',\n "sha256": "' + hashlib.sha256(body).hexdigest().encode() + b'"\n}\n'


def read_manifest(folder: Path) -> Checkpoint:
    """The checkpoint in a folder, as far as its manifest goes; its files may be anything.

    Raises:
        CheckpointError: there is no valid manifest.
    """
    path = folder / MANIFEST
    manifest = _read(path)
    for name, is_sensible in _SENSIBLE.items():
        if not is_sensible(manifest.get(name)):
            raise CheckpointError(f"{path}: says nothing sensible about {name}")
    # Its name is what all who look for the newest one go by.
    if re.fullmatch("[0-9]+", folder.name) and int(folder.name) != manifest["step"]:
        raise CheckpointError(f"{folder}: is that of step {manifest['step']}; was it renamed?")
    names = {entry["name"] for entry in manifest["files"]}
    if not len(names) == len(manifest["files"]) == manifest["world_size"]:
        raise CheckpointError(f"{path}: lists {len(names)} files for {manifest['world_size']} ranks")
    return Checkpoint(path=folder, manifest=manifest)


def open_checkpoint(folder: Path) -> Checkpoint:
    """The checkpoint in a folder, as far as names and sizes of its files go; they were not read.

    Raises:
        CheckpointError: naming the file that is missing, of another size, or no valid manifest.
    """
    checkpoint = read_manifest(folder)
    for entry in checkpoint.manifest["files"]:
        check_size(checkpoint, entry)
    return checkpoint


def check_size(checkpoint: Checkpoint, entry: dict[str, Any]) -> None:
    """Look at the size of one of a checkpoint's files.

    Raises:
        CheckpointError: it is missing, or of another size than what was written.
    """
    path = checkpoint.path / entry["name"]
    try:
        status = path.stat()
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: missing") from error
    except OSError as error:
        raise CheckpointError(f"{path}: can't be read: {error.strerror}") from error
    if not stat.S_ISREG(status.st_mode):
        raise CheckpointError(f"{path}: is no file")
    size = status.st_size
    if size != entry["bytes"]:
        raise CheckpointError(f"{path}: has {size} bytes instead of {entry['bytes']}")


def _is_count(value: Any) -> bool:
    # True is an int, too.
    return type(value) is int and value >= 0


def _is_table(value: Any, is_sensible: Callable[[Any], bool] = lambda each: True) -> bool:
    return isinstance(value, dict) and all(map(is_sensible, value.values()))


def _is_list(value: Any, is_sensible: Callable[[Any], bool]) -> bool:
    return isinstance(value, list) and all(map(is_sensible, value))


def _is_file_entry(entry: Any) -> bool:
    # A name with a folder in it would lead out of the checkpoint.
    return (
        isinstance(entry, dict)
        and isinstance(entry.get("name"), str)
        and _NAME.fullmatch(entry["name"]) is not None
        and _is_count(entry.get("bytes"))
        and isinstance(entry.get("sha256"), str)
    )


_SENSIBLE: dict[str, Callable[[Any], bool]] = {
    "step": _is_count,
    "world_size": _is_count,
    "progress": lambda value: _is_table(value) and _is_count(value.get("tokens_seen", 0)),
    "optimizer_steps": lambda value: _is_table(value, _is_count),
    "parameters": lambda value: _is_table(value, lambda shape: _is_list(shape, _is_count)),
    "states": lambda value: _is_table(value, lambda names: _is_list(names, lambda name: isinstance(name, str))),
    "fingerprints": _is_table,
    "config": _is_table,
    "stream": _is_table,
    "placement": lambda value: isinstance(value, str | None),
    "written": lambda value: isinstance(value, str | None),
    "files": lambda value: _is_list(value, _is_file_entry) and value != [],
}
"""What readers rely on."""


def check_file(checkpoint: Checkpoint, entry: dict[str, Any]) -> None:
    """Read one of a checkpoint's files and compare its hash.

    Raises:
        CheckpointError: it is not what was written.
    """
    path = checkpoint.path / entry["name"]
    try:
        found = sha256(path)
    except OSError as error:
        raise CheckpointError(f"{path}: can't be read: {error.strerror}") from error
    if found != entry["sha256"]:
        raise CheckpointError(f"{path}: content differs from what was written (SHA-256)")


def file_damage(checkpoint: Checkpoint, entry: dict[str, Any]) -> str | None:
    """Read one of a checkpoint's files; what is wrong with it."""
    try:
        check_size(checkpoint, entry)
        check_file(checkpoint, entry)
    except CheckpointError as error:
        return str(error)
    return None


def first_damage(checkpoint: Checkpoint, rank: int = 0, size: int = 1) -> str | None:
    """Read the files of a checkpoint, those of one of `size` equal shares, until one is damaged; what is wrong with that."""
    damages = (file_damage(checkpoint, entry) for entry in checkpoint.manifest["files"][rank::size])
    return next((damage for damage in damages if damage is not None), None)


def folders(root: Path) -> list[Path]:
    """What may be checkpoints under `root`, the newest first.

    Raises:
        OSError: `root` can't be looked at.
    """
    if not root.is_dir():
        return []
    found = [path for path in root.iterdir() if re.fullmatch("[0-9]+", path.name) and _may_be_folder(path)]
    return sorted(found, key=lambda path: int(path.name), reverse=True)


def _may_be_folder(path: Path) -> bool:
    """Whether it is one, or can't be looked at, which whoever opens it tells."""
    try:
        return path.is_dir()
    except OSError:
        return True


def candidates(root: Path) -> Iterator[Checkpoint | CheckpointError]:
    """The checkpoints under `root`, the newest first, or why one is none, as far as manifests and sizes go."""
    for folder in folders(root):
        try:
            yield open_checkpoint(folder)
        except CheckpointError as error:
            yield error


def _read(path: Path) -> dict[str, Any]:
    try:
        if stat.S_ISFIFO(path.stat().st_mode):
            raise CheckpointError(f"{path}: can't be read: it is a FIFO")
        raw = path.read_bytes()
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: missing, so the checkpoint was never completed") from error
    except OSError as error:
        raise CheckpointError(f"{path}: can't be read: {error.strerror}") from error
    body, tail = raw[:-_TAIL_BYTES], _TAIL.fullmatch(raw[-_TAIL_BYTES:])
    schema = re.match(rb'\{\n "schema": (\d{1,9}),\n', raw)
    if schema is not None and int(schema[1]) != SCHEMA:
        raise CheckpointError(f"{path}: schema {int(schema[1])} is not the {SCHEMA} read here")
    if tail is None or hashlib.sha256(body).hexdigest().encode() != tail[1]:
        raise CheckpointError(f"{path}: content differs from what was written (SHA-256)")
    try:
        content = json.loads(raw, object_pairs_hook=_without_repetition)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: is no JSON ({error})") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: is no JSON object")
    return content


def _without_repetition(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key is there twice")
    return found

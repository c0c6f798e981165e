"""Everything a run reads: there on every node, and the same on all."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from launch.preflight.verdict import Finding, Judgement, fail, odd_ones, others, readable, warn
from training.config import Config
from training.inputs import files_of, input_paths, named_inputs

EDGE = 4096
"""Bytes at both ends of a file whose content is compared."""

WHOLE = 1 << 20
"""Files up to so many bytes are compared as a whole."""

MOST_FILES = 1000
"""Files of one setting that are opened, evenly chosen where it has more."""

SHOWN = 3
"""Files that a message names."""

READERS = 16


def look(config: Config) -> dict[str, Any]:
    """The files of every setting, and what a node needs besides.

    Returns:
        files: setting -> {"root": what it names, "count", "marks": {name below root: [size, digest] or an error's text}}; problems: setting -> why its files can't
        be listed; unsaved: hub names whose files aren't in the node's cache; cache: what is wrong with data.cache_dir, or None.
    """
    files: dict[str, Any] = {}
    problems: dict[str, str] = {}
    with ThreadPoolExecutor(READERS) as readers:
        for setting, path in input_paths(config):
            try:
                found = files_of(setting, path)
            except OSError as error:
                problems[setting] = f"{path}: {error.strerror or error}"
                continue
            marks = readers.map(mark, chosen := evenly(found, MOST_FILES))
            names = [str(file.relative_to(path)) for file in chosen]
            files[setting] = {"root": str(path), "count": len(found), "marks": dict(zip(names, marks, strict=True))}
    return {
        "files": files, "problems": problems, "unsaved": list(_unsaved(config)), "cache": _cache_problem(config.data.cache_dir),
        "elsewhere": [f"{setting} ({text})" for setting, text in named_inputs(config) if setting != "model.base"],
    }  # fmt: skip


def evenly(items: Sequence[Path], most: int) -> list[Path]:
    """So many items at equal distances, or all where there are no more."""
    if len(items) <= most:
        return list(items)
    return [items[index * len(items) // most] for index in range(most)]


def mark(path: Path) -> list[Any] | str:
    """A file's size and the digest of its content, of a large one of its ends; or why it can't be read."""
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            content = file.read(size if size <= WHOLE else EDGE)
            if size > WHOLE:
                file.seek(-EDGE, os.SEEK_END)
                content += file.read(EDGE)
    except OSError as error:
        return error.strerror or str(error)
    return [size, hashlib.sha256(content).hexdigest()[:16]]


def _unsaved(config: Config) -> Iterator[str]:
    """A base's hub name whose config.json isn't in this node's cache."""
    base = config.model.base
    if base is None or base not in {text for _, text in named_inputs(config)}:
        return
    from huggingface_hub import try_to_load_from_cache

    if not isinstance(try_to_load_from_cache(base, "config.json", revision=config.model.revision), str):
        yield base


def _cache_problem(folder: Path | None) -> str | None:
    """Why data.cache_dir can't be written; it need not be there."""
    if folder is None:
        return None
    there = next(each for each in (folder, *folder.parents) if each.exists())
    return None if os.access(there, os.W_OK | os.X_OK) else f"data.cache_dir = {folder} can't be written"


def judge(inputs: Mapping[str, Mapping[str, Any]]) -> Judgement:
    """Whether all nodes read the same; most of them decide what is right, and the first node on a tie.

    Args:
        inputs: what `look` said, by node, rank 0's first.
    """
    if not inputs:
        return Judgement(check="inputs", line="no node could look")
    findings: list[Finding] = []
    for node, said in inputs.items():
        findings += [fail(f"{setting}: {problem}", node) for setting, problem in said["problems"].items()]
        for setting, files in said["files"].items():
            if unread := {path: text for path, text in files["marks"].items() if isinstance(text, str)}:
                findings.append(
                    fail(f"{setting}: {_listed(files, unread)} can't be read: {next(iter(unread.values()))}", node)
                )
        findings += [warn(
            f"model.base = {name} is not in its cache of the hub; without internet, download it first (hf download {name}) "
            "or give a folder", node,
        ) for name in said["unsaved"]]  # fmt: skip
        if said["cache"]:
            findings.append(warn(said["cache"], node))
    for setting in dict.fromkeys(name for said in inputs.values() for name in said["files"]):
        findings += _differences(
            setting, {node: said["files"][setting] for node, said in inputs.items() if setting in said["files"]}
        )
    return Judgement(check="inputs", line=_line(next(iter(inputs.values())), len(inputs)), findings=findings)


def _differences(setting: str, files: Mapping[str, Mapping[str, Any]]) -> Iterator[Finding]:
    """The nodes that have another number of a setting's files, or other content in them, than most."""
    count, odd = odd_ones({node: each["count"] for node, each in files.items()})
    for node in odd:
        yield fail(f"{setting}: {files[node]['count']:,} file(s), and {count:,} on {others(files, odd)}", node)
    alike = {node: each["marks"] for node, each in files.items() if node not in odd}
    differing: dict[str, dict[str, str]] = {}
    """Of a node, its files that are others than elsewhere, and where that is."""
    for name in dict.fromkeys(name for marks in alike.values() for name in marks):
        read = {node: tuple(mark) for node, marks in alike.items() if isinstance(mark := marks.get(name), list)}
        odd = odd_ones(read)[1] if read else []
        for node in odd:
            differing.setdefault(node, {})[name] = others(read, odd)
    for node, names in differing.items():
        elsewhere = next(iter(names.values()))
        yield fail(f"{setting}: {_listed(files[node], names)} is not what it is on {elsewhere}", node)


def _listed(files: Mapping[str, Any], names: Collection[str]) -> str:
    """The first of these files, by their paths."""
    shown = [os.path.normpath(os.path.join(files["root"], name)) for name in list(names)[:SHOWN]]
    return ", ".join(shown) + (f" and {len(names) - SHOWN:,} more" if len(names) > SHOWN else "")


def _line(said: Mapping[str, Any], nodes: int) -> str:
    marks = [mark for files in said["files"].values() for mark in files["marks"].values()]
    count = sum(files["count"] for files in said["files"].values())
    size = sum(mark[0] for mark in marks if isinstance(mark, list))
    sample = f" ({len(marks):,} of them opened)" if len(marks) < count else ""
    elsewhere = f"; not asked: {', '.join(said['elsewhere'])}" if said["elsewhere"] else ""
    return f"{count:,} file(s), {readable(size)}{sample}, read on {nodes} node(s){elsewhere}"

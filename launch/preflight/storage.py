"""The run directory: every node writes there, and every node sees what the others write and replace.

Twice, because a file system may show a new file at once and go on showing the old content of one that was replaced.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from launch.preflight.exchange import Exchange
from launch.preflight.roster import file_name
from launch.preflight.verdict import Finding, Judgement, fail, odd_ones, others, readable, warn
from training.files import sync_folder

SECONDS = 10.0
"""Longest wait until a file of another node is seen: file systems over a network keep what they know of a folder that long."""


def take_part(
    exchange: Exchange, leaders: Mapping[str, int], node: str, folder: Path, token: str, seconds: float = SECONDS
) -> dict[str, Any]:
    """Write, look, replace and look again, together with the other nodes.

    Args:
        exchange: the conversation of those who answer for the nodes.
        leaders: of each node the rank that answers for it; this one among them.
        node: this one.
        folder: the run directory; made with its parents, which are removed again if nothing else has come to them.
        token: the same on all nodes and in no other start's file names.
        seconds: longest wait for a file.

    Returns:
        folder; problem: why this node can't write, or None; seen and replaced: by node, seconds until what it wrote was seen, or
        what is wrong; free: bytes, None where that isn't known; checkpoints: number of those that lie there.
    """
    ranks = leaders.values()
    problem, made = None, []
    try:
        made = [each for each in (folder, *folder.parents) if not each.exists()]
    except OSError as error:
        problem = error.strerror or str(error)
    # All know what was there before anybody makes it: the last one to leave an empty folder removes it, whoever made it.
    exchange.gathered("storage/looked", True, ranks)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        problem = problem or error.strerror or str(error)
    own = probe_path(folder, token, node)
    found: dict[str, Any] = {"folder": str(folder), "problem": problem, "free": free_bytes(folder),
                             "checkpoints": checkpoints(folder)}  # fmt: skip
    try:
        for name in ("seen", "replaced"):
            content = secrets.token_hex(8)
            found["problem"] = found["problem"] or write(own, content)
            mine = {"node": node, "content": None if found["problem"] else content}
            written = exchange.gathered(f"storage/{name}/written", mine, ranks).values()
            wanted = {probe_path(folder, token, each["node"]): each for each in written if each["content"]}
            if name == "replaced":
                wanted = {
                    path: each for path, each in wanted.items() if isinstance(found["seen"].get(each["node"]), float)
                }
            seen = watch({path: each["content"] for path, each in wanted.items()}, seconds)
            found[name] = {each["node"]: seen[path] for path, each in wanted.items()}
            # Nobody writes again, or removes, what another is still looking for.
            exchange.gathered(f"storage/{name}/done", True, ranks)
    finally:
        remove([own])
        if exchange.rank == min(ranks):  # what nodes that have gone silent have left
            remove(_probes(folder, token))
        for each in made:
            with contextlib.suppress(OSError):
                each.rmdir()
    return found


def hear_out(exchange: Exchange, leaders: Mapping[str, int]) -> None:
    """Rank 0's part where it has no folder to look at: the others speak through it, in the rounds of `take_part`."""
    exchange.gathered("storage/looked", True, leaders.values())
    for name in ("seen", "replaced"):
        exchange.gathered(f"storage/{name}/written", {"node": None, "content": None}, leaders.values())
        exchange.gathered(f"storage/{name}/done", True, leaders.values())


def probe_path(folder: Path, token: str, node: str) -> Path:
    """The file that a node writes."""
    return folder / f".preflight-{token}-{file_name(node)}"


def write(path: Path, content: str) -> str | None:
    """Write as training does: under another name, to the disk, then renamed. Returns why that was not possible."""
    temporary = path.with_name(f"{path.name}.tmp")
    try:
        with temporary.open("w") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        remove([temporary])
        return error.strerror or str(error)
    return None


def watch(contents: Mapping[Path, str], seconds: float) -> dict[Path, float | str]:
    """Wait until the files have these contents; of each the seconds that it took, or what is there instead."""
    began, pause = time.monotonic(), 0.01
    found: dict[Path, float | str] = {}
    while True:
        for path in contents.keys() - found.keys():
            if _read(path) == contents[path]:
                found[path] = time.monotonic() - began
        waited = time.monotonic() - began
        if len(found) == len(contents) or waited > seconds:
            break
        time.sleep(min(pause, seconds))
        pause = min(2 * pause, 0.5)
    return found | {path: _what_is_wrong(path) for path in contents.keys() - found.keys()}


def _read(path: Path) -> str | None:
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError):
        return None


def _what_is_wrong(path: Path) -> str:
    try:
        path.read_bytes()
    except FileNotFoundError:
        return "missing"
    except OSError as error:
        return error.strerror or str(error)
    return "old"


def remove(paths: Collection[Path]) -> None:
    """Remove files, there or not."""
    for path in paths:
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)


def _probes(folder: Path, token: str) -> list[Path]:
    """The files of this start that lie in a folder, which another node may have removed in the meantime."""
    try:
        return list(folder.glob(f".preflight-{token}-*"))
    except OSError:
        return []


def free_bytes(folder: Path) -> int | None:
    """Bytes that a user can still write below a folder, which need not be there; None where that isn't known."""
    try:
        there = next(each for each in (folder, *folder.parents) if each.exists())
        state = os.statvfs(there)
    except OSError:
        return None
    return state.f_bavail * state.f_frsize


def checkpoints(folder: Path) -> int:
    """Number of checkpoints in a run directory."""
    try:
        return sum(each.name.isdigit() for each in (folder / "checkpoints").iterdir())
    except OSError:
        return 0


def judge(
    said: Mapping[str, Mapping[str, Any]], checkpoint_bytes: int | None, kept: int, unplanned: str = ""
) -> Judgement:
    """Whether the run directory is one place for all nodes, with room for what the run will save.

    Args:
        said: what `take_part` returned, by node, rank 0's first.
        checkpoint_bytes: of one checkpoint; None: not known.
        kept: checkpoints that the run keeps at most, with the one that is being written.
        unplanned: why checkpoint_bytes isn't known.
    """
    if not said:
        return Judgement(check="storage", line="no node could look")
    folder, elsewhere = odd_ones({node: each["folder"] for node, each in said.items()})
    findings = [fail(
        f"run.dir is {said[node]['folder']} there, and {folder} on {others(said, elsewhere)}; name one folder on shared storage",
        node,
    ) for node in elsewhere]  # fmt: skip
    findings += [fail(f"{said[node]['folder']} can't be written: {each['problem']}", node)
                 for node, each in said.items() if each["problem"]]  # fmt: skip
    here = {node: each for node, each in said.items() if node not in elsewhere}
    findings += _unseen(here, folder)
    findings += _stale(here, folder)
    room, space = _room(here, checkpoint_bytes, kept, unplanned)
    seconds = [value for each in here.values() for name in ("seen", "replaced") for other, value in each.get(name, {}).items()
               if isinstance(value, float)]  # fmt: skip
    latency = (
        f"; what one node writes the others see within {1000 * max(seconds):.0f} ms"
        if len(said) > 1 and seconds
        else ""
    )
    return Judgement(check="storage", line=f"{folder}{latency}; {room}", findings=[*findings, *space])


def _unseen(said: Mapping[str, Mapping[str, Any]], folder: str) -> list[Finding]:
    """Nodes that are not where most others are."""
    apart = {node: {other for other in said if _is_apart(said, node, other)} for node in said}
    if not any(apart.values()):
        return []
    local = f"in {folder}: it is on a disk of the node; choose a run.dir on shared storage"
    if len(said) > 2 and all(len(other) == len(said) - 1 for other in apart.values()):
        return [fail(f"no node sees what another writes {local.replace('the node', 'each node')}")]
    # The one that fewest are apart from is where the others should be; the first where several are.
    anchor = min(said, key=lambda node: len(apart[node]))
    together = {anchor, *(set(said) - apart[anchor])}
    findings = []
    for node in said:
        if node in together:
            continue
        reader, writer = next((pair for other in [anchor, *together] for pair in ((node, other), (other, node))
                               if isinstance(said[pair[0]]["seen"].get(pair[1]), str)), (node, anchor))  # fmt: skip
        why = said[reader]["seen"].get(writer)
        if why in ("missing", "old"):
            text = f"{'it ' if reader == node else reader + ' '}doesn't see what {'it' if writer == node else writer} wrote {local}"
        else:
            text = f"it can't read what {writer} wrote in {folder}: {why}"
        findings.append(fail(text, node))
    return findings


def _is_apart(said: Mapping[str, Mapping[str, Any]], one: str, other: str) -> bool:
    return one != other and any(isinstance(said[a]["seen"].get(b), str) for a, b in ((one, other), (other, one)))


def _stale(said: Mapping[str, Mapping[str, Any]], folder: str) -> list[Finding]:
    """Nodes that go on seeing what was replaced."""
    findings = []
    for node, each in said.items():
        if stale := [other for other, value in each.get("replaced", {}).items() if isinstance(value, str)]:
            findings.append(fail(
                f"{SECONDS:g} s after {stale[0]} has replaced a file in {folder} it still doesn't see the new content: its file "
                "system keeps old ones too long (mount option actimeo, say)", node,
            ))  # fmt: skip
    return findings


def _room(
    said: Mapping[str, Mapping[str, Any]], checkpoint_bytes: int | None, kept: int, unplanned: str
) -> tuple[str, list[Finding]]:
    """A phrase on the free space, and what is wrong with it."""
    free = min((each["free"] for each in said.values() if each["free"] is not None), default=None)
    if free is None:
        return "free space is not known", []
    if checkpoint_bytes is None:
        return f"{readable(free)} free; what checkpoints need is not known: {unplanned}", []
    there = max(each["checkpoints"] for each in said.values())
    needed = max(1, kept - there) * checkpoint_bytes
    phrase = f"{readable(free)} free, checkpoints take {readable(needed)}"
    more = f"{readable(free)} are free in run.dir, and "
    if free < checkpoint_bytes:
        return phrase, [
            fail(f"{more}one checkpoint takes {readable(checkpoint_bytes)}; make room, or choose another run.dir")
        ]
    if free < needed:
        return phrase, [warn(f"{more}the checkpoints that the run keeps take {readable(needed)}; make room, or lower "
                             "checkpoint.keep")]  # fmt: skip
    return phrase, []


def num_kept(keep: int, keep_at: Sequence[str], *, keeps_best: bool) -> int:
    """Checkpoints that a run has on disk at most, with the one that is being written; those of keep_every not counted."""
    return keep + len(keep_at) + keeps_best + 1

"""Answers that are kept as they come, so that an interrupted evaluation goes on where it was.

The file is JSON lines, only ever appended to: a header with what the answers depend on (the model, its precision, its
longest input), then {"key", "answer"} per answer, its key a hash of what was asked. What was written also stays as the
evidence for a score. A half-written last line is what a killed process leaves, and is dropped.
"""

from __future__ import annotations

import hashlib
import json
import os
from array import array
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from evals.errors import EvalError

SCHEMA = 1


class Kept:
    """Answers by key, in memory and, with a path, in a file that the first rank writes.

    Attributes:
        path: the file; None = memory only.
        moved_to: where a file was moved to that held answers of another model or other settings, if there was one.
        num_found: answers that the file already held.
        problem: why answers are in memory only for now; empty where they are in the file.
    """

    def __init__(
        self,
        path: Path | None = None,
        identity: Mapping[str, Any] | None = None,
        *,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        """Read what is there; with `world_size` > 1 a collective, after which all ranks know the same answers.

        Args:
            path: the file, made if need be.
            identity: what answers depend on besides what is asked. A file with another identity is moved aside.
            rank: this process; only rank 0 touches the file.
            world_size: processes that evaluate together.

        Raises:
            EvalError: on all ranks, when the file cannot be read or written.
        """
        self.path = None if path is None else Path(path)
        self.moved_to: Path | None = None
        self._is_writer = rank == 0 and path is not None
        self._answers: dict[str, Any] = {}
        self._unwritten: list[dict[str, Any]] = []
        self.problem = ""
        problem: str | None = None
        if self._is_writer:
            try:
                self._open({"schema": SCHEMA, **(identity or {})})
            except OSError as error:
                problem = f"{path}: answers cannot be kept there ({error.strerror}); make the folder writable"
        if world_size > 1 and path is not None:
            import torch.distributed as dist

            state = [self._answers, self.moved_to, problem]
            dist.broadcast_object_list(state, src=0)
            self._answers, self.moved_to, problem = state  # type: ignore[assignment]
        if problem is not None:
            raise EvalError(problem)
        self.num_found = len(self._answers)

    def __contains__(self, key: str) -> bool:
        return key in self._answers

    def __getitem__(self, key: str) -> Any:
        return self._answers[key]

    def add(self, answers: Mapping[str, Any]) -> None:
        """Keep answers (JSON values) by key; on return they are on the disk, or wait for the next ones if it is full."""
        self._answers.update(answers)
        if not self._is_writer or not answers:
            return
        self._unwritten += [{"key": key, "answer": answer} for key, answer in answers.items()]
        try:
            self._append(self._unwritten)
        except OSError as error:
            # An hour of answers is worth more than the file that would save them from a kill.
            self.problem = f"{self.path}: answers are not kept ({error.strerror}); make room, or the folder writable"
        else:
            self._unwritten, self.problem = [], ""

    def _open(self, header: dict[str, Any]) -> None:
        assert self.path is not None
        self.path.parent.mkdir(parents=True, exist_ok=True)
        data = self.path.read_bytes() if self.path.is_file() else b""
        # What follows the last end of a line is torn.
        *whole, torn = data.split(b"\n")
        content = [entry for line in whole if (entry := _parsed(line)) is not None]
        if content and content[0] != json.loads(json.dumps(header)):
            self.moved_to = _free_name(self.path)
            os.replace(self.path, self.moved_to)
            torn, content = b"", []
        if torn:
            os.truncate(self.path, len(data) - len(torn))  # what is appended must not continue a torn line
        if not content:
            self.path.unlink(missing_ok=True)
            self._append([header])
        self._answers = {
            entry["key"]: entry["answer"]
            for entry in content[1:]
            if isinstance(entry.get("key"), str) and "answer" in entry
        }

    def _append(self, entries: Sequence[Mapping[str, Any]]) -> None:
        assert self.path is not None
        text = "".join(json.dumps(entry, ensure_ascii=False) + "\n" for entry in entries)
        # What a model writes may hold halves of surrogate pairs, which UTF-8 has no bytes for.
        with open(self.path, "ab") as file:
            if self.problem:
                file.write(b"\n")  # after what a failure may have left of a line
            file.write(text.encode("utf-8", errors="backslashreplace"))
            file.flush()
            os.fsync(file.fileno())


def key_of(ids: Sequence[int], *settings: Any) -> str:
    """Hash of what is asked: token ids, and everything else that the answer depends on."""
    digest = hashlib.sha256(array("q", ids).tobytes())
    digest.update(json.dumps(settings).encode())
    return digest.hexdigest()[:32]


def _parsed(line: bytes) -> dict[str, Any] | None:
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return entry if isinstance(entry, dict) else None


def _free_name(path: Path) -> Path:
    number = 1
    while (name := path.with_name(f"{path.stem}.other-{number}{path.suffix}")).exists():
        number += 1
    return name

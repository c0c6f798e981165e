"""Manifests and files that are not what was written: always a CheckpointError that names the file, never anything else."""

from __future__ import annotations

import hashlib
import json
import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.unit.training.checkpoint.checking import newest_good, verify
from tests.unit.training.checkpoint.stored import store
from training.checkpoint.image import shard_name
from training.checkpoint.manifest import (
    MANIFEST,
    SCHEMA,
    Checkpoint,
    candidates,
    first_damage,
    folders,
    open_checkpoint,
    seal,
)
from training.checkpoint.slices import check_parameters, read_state
from training.errors import CheckpointError

TENSORS = {"layer.weight": torch.arange(300.0).view(20, 15), "bias": torch.arange(7.0)}
SHAPES = {name: tuple(tensor.shape) for name, tensor in TENSORS.items()}
STATES = dict.fromkeys(SHAPES, ("exp_avg",))
MORE: dict[str, Any] = {
    "optimizer_steps": {"decayed": 4, "plain": 4},
    "fingerprints": {"base": "b", "data": {"sources": ["x"]}},
    "config": {"train": {"steps": 20, "precision": "bf16"}},
    "stream": {"schema": 1, "lanes": [{"cursor": [3, 4]}]},
    "progress": {"step": 4, "tokens_seen": 2048, "data_hash": "ab", "seconds": 1.5},
}
REPEATED = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A checkpoint of step 4 by two ranks."""
    return store(tmp_path / "checkpoints", 4, TENSORS, world_size=2, states=("exp_avg",), **MORE)


def content_of(folder: Path) -> dict[str, Any]:
    """What a manifest says, as it was given to `seal`."""
    found: dict[str, Any] = json.loads((folder / MANIFEST).read_text())
    return {key: value for key, value in found.items() if key not in ("schema", "sha256")}


def refusal(folder: Path) -> str | None:
    """The message with which a checkpoint is refused, by everything that reads one alike; None where it is good."""
    newest, damages = newest_good(folder.parent)
    if newest is None:
        (message,) = damages
        with pytest.raises(CheckpointError) as caught:
            verify(folder)
        assert str(caught.value) == message
        assert message.startswith(str(folder)), "it names the file"
        return message
    found = verify(folder)
    assert isinstance(found.step, int)
    assert isinstance(found.tokens_seen, int)
    assert found.bytes == sum(path.stat().st_size for path in folder.iterdir() if path.name != MANIFEST)
    try:
        check_parameters(found, STATES, SHAPES)
        state = dict(read_state(found, STATES, SHAPES, 0, 1))
    except CheckpointError as error:
        return str(error)
    assert all(torch.equal(state[name][: tensor.numel()], tensor.flatten()) for name, tensor in TENSORS.items())
    return None


def test_what_was_written_is_good(saved: Path) -> None:
    assert refusal(saved) is None
    found = open_checkpoint(saved)
    assert (found.path, found.step, found.tokens_seen) == (saved, 4, 2048)
    assert found.manifest["schema"] == SCHEMA
    assert {key: found.manifest[key] for key in MORE} == MORE


class TestSeal:
    @given(
        st.dictionaries(
            st.text().filter(lambda key: key not in ("schema", "sha256")),
            st.recursive(
                st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
                lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
                max_leaves=10,
            ),
            min_size=1,
        )
    )
    def test_it_is_json_whose_last_entry_is_the_hash_of_what_precedes(self, content: dict[str, Any]) -> None:
        raw = seal(content)
        found = json.loads(raw)
        body, _, _ = raw.rpartition(b',\n "sha256": ')
        assert found.pop("sha256") == hashlib.sha256(body).hexdigest()
        assert found == {"schema": SCHEMA, **content}


class TestBytes:
    """A manifest that is not what was sealed."""

    @REPEATED
    @given(data=st.data())
    def test_changed_bytes(self, saved: Path, data: st.DataObject) -> None:
        raw = bytearray((saved / MANIFEST).read_bytes())
        original = bytes(raw)
        for _ in range(data.draw(st.integers(1, 3))):
            place = data.draw(st.integers(0, len(raw) - 1))
            raw[place] = data.draw(st.integers(0, 255))
        (saved / MANIFEST).write_bytes(raw)
        try:
            assert (refusal(saved) is None) == (raw == original)
        finally:
            (saved / MANIFEST).write_bytes(original)

    @REPEATED
    @given(data=st.data())
    def test_pieces_cut_out_doubled_or_put_in(self, saved: Path, data: st.DataObject) -> None:
        original = (saved / MANIFEST).read_bytes()
        begin, end = sorted(data.draw(st.tuples(*[st.integers(0, len(original))] * 2)))
        changed = data.draw(
            st.sampled_from([
                original[:begin], original[begin:], original[:begin] + original[end:], original + original[begin:end],
                original[:end] + original[begin:], b"", bytes(len(original)), original[:begin] + bytes(end - begin) + original[end:],
            ])
            | st.binary(max_size=30).map(lambda junk: original[:begin] + junk + original[end:])
        )  # fmt: skip
        (saved / MANIFEST).write_bytes(changed)
        try:
            assert (refusal(saved) is None) == (changed == original)
        finally:
            (saved / MANIFEST).write_bytes(original)

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            (b"", "content differs from what was written (SHA-256)"),
            (b'{"schema": 3, "st', "content differs from what was written (SHA-256)"),
            (b"\xff\xfe\x00", "content differs from what was written (SHA-256)"),
            (b'{\n "schema": 2,\n "step": 4}', f"schema 2 is not the {SCHEMA} read here"),
            (b'{\n "schema": 4,\n "step": 4}', f"schema 4 is not the {SCHEMA} read here"),
            (b'{\n "schema": ' + b"9" * 5000 + b",\n", "content differs from what was written (SHA-256)"),
        ],
    )
    def test_messages(self, saved: Path, text: bytes, message: str) -> None:
        (saved / MANIFEST).write_bytes(text)
        assert refusal(saved) == f"{saved / MANIFEST}: {message}"

    def test_what_is_no_file(self, saved: Path) -> None:
        message = f"{saved / MANIFEST}: missing, so the checkpoint was never completed"
        (saved / MANIFEST).unlink()
        assert refusal(saved) == message
        # It may well be complete, on storage that does not give it now.
        (saved / MANIFEST).mkdir()
        assert refusal(saved) == f"{saved / MANIFEST}: can't be read: Is a directory"
        (saved / MANIFEST).rmdir()
        (saved / MANIFEST).symlink_to(saved / MANIFEST)
        assert refusal(saved) == f"{saved / MANIFEST}: can't be read: Too many levels of symbolic links"


def sealed(body: bytes) -> bytes:
    """Any text, with the hash that `seal` would give it."""
    return body + b',\n "sha256": "' + hashlib.sha256(body).hexdigest().encode() + b'"\n}\n'


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
    | st.sampled_from([-1, 0, 10**30, 10**4000, "../x", "/etc/passwd", "", ".", "x" * 300]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)  # fmt: skip
"""Values of JSON, and some that Python's JSON has beside them."""


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The paths of all values in nested tables and lists."""
    if path:
        yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield from places(inner, (*path, key))


class TestSenselessContent:
    """A manifest with a valid hash whose content makes no sense."""

    @settings(REPEATED, max_examples=400)
    @given(data=st.data())
    def test_any_change_is_refused_or_harmless(self, saved: Path, data: st.DataObject) -> None:
        original = (saved / MANIFEST).read_bytes()
        content = content_of(saved)
        path = data.draw(st.sampled_from(list(places(content))))
        owner = content
        for key in path[:-1]:
            owner = owner[key]
        match data.draw(st.sampled_from(["replace", "remove", "double"])):
            case "replace":
                owner[path[-1]] = data.draw(JUNK)
            case "remove":
                del owner[path[-1]]
            case "double" if isinstance(owner, list):
                owner.append(owner[path[-1]])
        (saved / MANIFEST).write_bytes(seal(content))
        try:
            # No other error, that is, and never other numbers than those that were saved.
            refusal(saved)
        finally:
            (saved / MANIFEST).write_bytes(original)

    @pytest.mark.parametrize(
        "name",
        ["../4/rank-00000-of-00002.safetensors", "/etc/passwd", "", ".", "..", "a/b", "a\0b", ".hidden", "a\n", "x" * 300, 3, None],
    )  # fmt: skip
    def test_names_that_lead_elsewhere(self, saved: Path, name: Any) -> None:
        content = content_of(saved)
        content["files"][0]["name"] = name
        (saved / MANIFEST).write_bytes(seal(content))
        message = refusal(saved)
        assert message is not None
        if name == "x" * 300:
            assert message == f"{saved / name}: can't be read: File name too long"
        else:
            assert message == f"{saved / MANIFEST}: says nothing sensible about files"

    @pytest.mark.parametrize(
        ("key", "value"),
        [
            ("step", None), ("step", "4"), ("step", True), ("step", -1), ("step", 4.0), ("world_size", True),
            ("progress", []), ("progress", {"tokens_seen": "many"}), ("progress", {"tokens_seen": float("nan")}),
            ("optimizer_steps", 4), ("optimizer_steps", {"all": None}), ("parameters", {"w": 3}), ("parameters", {"w": [-3]}),
            ("parameters", [["w", [3]]]), ("states", {"w": None}), ("states", {"w": [["exp_avg"]]}), ("stream", None),
            ("placement", 3), ("written", ["x"]), ("fingerprints", "x"), ("config", 3), ("files", {}), ("files", [5]), ("files", []),
        ],
    )  # fmt: skip
    def test_what_readers_rely_on(self, saved: Path, key: str, value: Any) -> None:
        (saved / MANIFEST).write_bytes(seal({**content_of(saved), key: value}))
        assert refusal(saved) == f"{saved / MANIFEST}: says nothing sensible about {key}"

    @pytest.mark.parametrize(("ranks", "files"), [(0, 2), (1, 2), (3, 2), (10**18, 2), (2, 1)])
    def test_more_or_fewer_files_than_ranks(self, saved: Path, ranks: int, files: int) -> None:
        content = content_of(saved)
        content.update(world_size=ranks, files=content["files"][:files])
        (saved / MANIFEST).write_bytes(seal(content))
        assert refusal(saved) == f"{saved / MANIFEST}: lists {files} files for {ranks} ranks"

    def test_the_same_file_twice(self, saved: Path) -> None:
        content = content_of(saved)
        content["files"][1] = content["files"][0]
        (saved / MANIFEST).write_bytes(seal(content))
        assert refusal(saved) == f"{saved / MANIFEST}: lists 1 files for 2 ranks"

    def test_files_of_other_names(self, saved: Path) -> None:
        content = content_of(saved)
        (saved / shard_name(1, 2)).rename(saved / "other")
        content["files"][1]["name"] = "other"
        (saved / MANIFEST).write_bytes(seal(content))
        message = refusal(saved)
        assert message is not None
        assert message.startswith(f"{saved / shard_name(1, 2)}: layer.weight can't be read: ")

    @pytest.mark.parametrize(
        ("body", "message"),
        [
            (b"[3", "is no JSON ("), (b'{\n "step": 4, "step": 5', "is no JSON (a key is there twice)"),
            (b'{"a": ' + b"[" * 100_000, "is no JSON (maximum recursion depth"), (b'{"a": "\xff"', "is no JSON ('utf-8' codec"),
            (b'{"a": ' + b"9" * 5000, "is no JSON (Exceeds the limit"), (b'{"a": NaN', "says nothing sensible about step"),
        ],
    )  # fmt: skip
    def test_text_that_is_no_manifest(self, saved: Path, body: bytes, message: str) -> None:
        (saved / MANIFEST).write_bytes(sealed(body))
        found = refusal(saved)
        assert found is not None
        assert found.startswith(f"{saved / MANIFEST}: {message}")

    def test_unknown_keys_are_tolerated(self, saved: Path) -> None:
        (saved / MANIFEST).write_bytes(seal({**content_of(saved), "from_the_future": {"a": 1}}))
        assert refusal(saved) is None


Damage = Callable[[bytes, random.Random], bytes]


def flipped(content: bytes, choice: random.Random) -> bytes:
    place, bit = choice.randrange(len(content)), choice.randrange(8)
    return content[:place] + bytes([content[place] ^ 1 << bit]) + content[place + 1 :]


def zeroed(content: bytes, choice: random.Random) -> bytes:
    begin = choice.randrange(len(content) - 64)
    # What is zero already would stay what it is.
    while not any(content[begin : begin + 64]):
        begin = choice.randrange(len(content) - 64)
    return content[:begin] + bytes(64) + content[begin + 64 :]


def truncated(content: bytes, choice: random.Random) -> bytes:
    return content[: choice.randrange(len(content))]


def extended(content: bytes, choice: random.Random) -> bytes:
    return content + choice.randbytes(choice.randrange(1, 50))


@pytest.mark.parametrize(("damage", "times"), [(flipped, 100), (zeroed, 20), (truncated, 20), (extended, 20)])
def test_all_damage_is_noticed_and_the_file_named(saved: Path, damage: Damage, times: int) -> None:
    choice, hit = random.Random(6), set()
    files = sorted(saved.iterdir())
    sizes = [path.stat().st_size for path in files]
    for _ in range(times):
        (path,) = choice.choices(files, weights=sizes)
        content = path.read_bytes()
        path.write_bytes(damage(content, choice))
        message = refusal(saved)
        assert message is not None, f"{path.name} {damage.__name__}"
        assert message.startswith(f"{path}: "), message
        path.write_bytes(content)
        hit.add(path.name)
    assert len(hit) == 3, "the manifest and the files of both ranks"
    assert refusal(saved) is None


def test_ranks_share_the_files(saved: Path) -> None:
    (saved / shard_name(1, 2)).write_bytes(flipped((saved / shard_name(1, 2)).read_bytes(), random.Random(1)))
    found = open_checkpoint(saved)
    message = f"{saved / shard_name(1, 2)}: content differs from what was written (SHA-256)"
    assert [first_damage(found), first_damage(found, 0, 2), first_damage(found, 1, 2)] == [message, None, message]
    (saved / shard_name(0, 2)).unlink()
    assert first_damage(found, 0, 2) == f"{saved / shard_name(0, 2)}: missing"


def test_swapped_and_missing_files(saved: Path) -> None:
    first, second = (saved / shard_name(rank, 2) for rank in range(2))
    assert first.stat().st_size == second.stat().st_size
    other = first.rename(saved / "other")
    second.rename(first)
    other.rename(second)
    assert refusal(saved) == f"{first}: content differs from what was written (SHA-256)"
    first.unlink()
    assert refusal(saved) == f"{first}: missing"
    first.mkdir()
    assert refusal(saved) == f"{first}: is no file"
    first.rmdir()
    first.symlink_to(first)
    assert refusal(saved) == f"{first}: can't be read: Too many levels of symbolic links"


def test_a_file_that_cannot_be_read(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> str:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("training.checkpoint.manifest.sha256", refuse)
    assert refusal(saved) == f"{saved / shard_name(0, 2)}: can't be read: Input/output error"


class TestFinding:
    def test_nothing_there(self, tmp_path: Path) -> None:
        for root in (tmp_path, tmp_path / "none"):
            assert newest_good(root) == (None, [])
            assert list(candidates(root)) == []

    def test_the_newest_by_number_and_what_is_none(self, tmp_path: Path) -> None:
        for step in (9, 10, 100):
            store(tmp_path, step, {"w": torch.ones(3)})
        for name in ("notes", ".11.x.unfinished", "²", "٣", "-5", "12 "):
            (tmp_path / name).mkdir()
        (tmp_path / "200").touch()
        (tmp_path / "300").symlink_to("300")
        assert [path.name for path in folders(tmp_path)] == ["100", "10", "9"]
        found, damages = newest_good(tmp_path)
        assert found is not None
        assert (found.step, found.path, damages) == (100, tmp_path / "100", [])

    def test_an_older_one_is_taken_where_newer_ones_are_damaged(self, tmp_path: Path) -> None:
        for step in (1, 2, 3):
            store(tmp_path, step, {"w": torch.arange(9.0)})
        (tmp_path / "3" / MANIFEST).unlink()
        shard = tmp_path / "2" / shard_name(0, 1)
        shard.write_bytes(flipped(shard.read_bytes(), random.Random(3)))
        found, damages = newest_good(tmp_path)
        assert found is not None
        assert found.step == 1
        assert damages == [
            f"{tmp_path / '3' / MANIFEST}: missing, so the checkpoint was never completed",
            f"{shard}: content differs from what was written (SHA-256)",
        ]
        # As far as manifests and sizes go, the second one is good.
        quick, _ = newest_good(tmp_path, open_checkpoint)
        assert quick is not None
        assert quick.step == 2
        assert [found.step if isinstance(found, Checkpoint) else None for found in candidates(tmp_path)] == [None, 2, 1]

    def test_one_that_was_renamed(self, saved: Path, tmp_path: Path) -> None:
        assert open_checkpoint(saved.rename(saved.with_name("0004"))).step == 4
        assert open_checkpoint(saved.with_name("0004").rename(tmp_path / "copy")).step == 4
        renamed = (tmp_path / "copy").rename(saved.with_name("99"))
        assert refusal(renamed) == f"{renamed}: is that of step 4; was it renamed?"

    def test_none_is_good(self, saved: Path) -> None:
        store(saved.parent, 5, TENSORS, world_size=2)
        for name in ("4", "5"):
            os.truncate(saved.with_name(name) / shard_name(0, 2), 3)
        found, damages = newest_good(saved.parent)
        assert found is None
        assert [damage.partition(":")[0] for damage in damages] == [
            str(saved.with_name(name) / shard_name(0, 2)) for name in ("5", "4")
        ]

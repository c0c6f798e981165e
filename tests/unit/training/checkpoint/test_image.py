from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save

from training.checkpoint.image import Copying, ShardImage, flat_header, header, shard_name, sizes_of, streamed
from training.checkpoint.storage import CHUNK_BYTES

CPU = torch.device("cpu")
names = st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=12)


def content_of(image: ShardImage) -> bytes:
    return os.pread(image.descriptor, image.bytes, 0)


@settings(max_examples=50)
@given(sizes=st.dictionaries(names.filter(lambda name: name != "__metadata__"), st.integers(0, 40), max_size=5))
def test_memory_and_stream_are_the_file_that_safetensors_reads(
    sizes: dict[str, int], tmp_path_factory: pytest.TempPathFactory
) -> None:
    tensors = {name: torch.randn(size) for name, size in sizes.items()}
    image = ShardImage(sizes, CPU)
    assert image.fill(tensors.items()).is_complete()
    raw = content_of(image)
    assert raw == b"".join(bytes(piece) for piece in streamed(sizes, tensors.items()))
    path = tmp_path_factory.mktemp("image") / "file.safetensors"
    path.write_bytes(raw)
    found = load_file(path)
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items())


def test_a_header_is_safetensors_own(tmp_path: Path) -> None:
    """Byte for byte where both put the tensors in the same order."""
    tensors = {"a": torch.arange(6.0).view(2, 3), "b": torch.arange(3.0)}
    theirs = save(tensors)
    ours = header({"a": ("F32", (2, 3), 24), "b": ("F32", (3,), 12)})
    assert theirs[: len(ours)] == ours


def test_it_is_filled_again_and_again(tmp_path: Path) -> None:
    tensors = {"w": torch.zeros(5), "w/exp_avg": torch.zeros(5)}
    image = ShardImage({name: 5 for name in tensors}, CPU)
    for value in (1.0, 2.0):
        for tensor in tensors.values():
            tensor.fill_(value)
        image.fill(tensors.items())
        path = tmp_path / "file.safetensors"
        path.write_bytes(content_of(image))
        assert all((found == value).all() for found in load_file(path).values())


def test_only_a_piece_is_in_memory_when_it_is_streamed() -> None:
    whole = torch.arange(CHUNK_BYTES // 4 * 2 + 5, dtype=torch.float32)
    pieces = list(streamed({"w": whole.numel()}, [("w", whole)]))
    assert [len(piece) for piece in pieces[1:]] == [CHUNK_BYTES, CHUNK_BYTES, 20]


def test_other_precisions_become_fp32() -> None:
    half = torch.arange(4, dtype=torch.bfloat16)
    pieces = [bytes(piece) for piece in streamed({"w": 4}, [("w", half)])]
    assert pieces == [flat_header({"w": 4}), half.float().numpy().tobytes()]
    image = ShardImage({"w": 4}, CPU)
    image.fill([("w", half)])
    assert content_of(image) == b"".join(pieces)


def test_sizes_in_the_order_of_the_file() -> None:
    shapes, states = {"w": (3, 3), "b": (1,)}, {"w": ("exp_avg", "exp_avg_sq"), "b": ("exp_avg",)}
    assert list(sizes_of(shapes, states, 2).items()) == [
        ("w", 5), ("w/exp_avg", 5), ("w/exp_avg_sq", 5), ("b", 1), ("b/exp_avg", 1),
    ]  # fmt: skip


def test_names_sort_by_rank() -> None:
    assert shard_name(3, 128) == "rank-00003-of-00128.safetensors"


class FakeEvent:
    """What a CUDA event answers."""

    def __init__(self) -> None:
        self.is_over = False

    def query(self) -> bool:
        return self.is_over

    def synchronize(self) -> None:
        self.is_over = True


def test_a_copy_on_a_device_is_over_when_its_event_is() -> None:
    event = FakeEvent()
    copying = Copying(event)  # type: ignore[arg-type]
    assert not copying.is_complete()
    copying.wait()
    assert copying.is_complete()


def test_updates_on_a_device_come_after_the_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[object] = []
    stream = type("Stream", (), {"wait_event": staticmethod(waited.append)})
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: stream)
    event = FakeEvent()
    Copying(event).hold()  # type: ignore[arg-type]
    assert waited == [event]
    Copying().hold()
    assert waited == [event], "on the CPU there is nothing to wait for"

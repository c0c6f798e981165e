"""Shards of MosaicML Streaming (MDS, version 2): a sample is an extent.

A folder has an index.json that names the shards. A shard is: the number of samples n (uint32), where each begins and the
last ends (uint32 [n + 1]), a JSON with the columns, the samples. A sample is: the lengths (uint32) of its columns that are
not of fixed length, then the columns. https://docs.mosaicml.com/projects/streaming

Text, JSON, bytes and numbers are decoded here. Other encodings (images, arrays, pickles) hold no text and are passed over, so
that nothing needs the package itself, which asks for older versions of libraries than we use, and would load torch.
"""

from __future__ import annotations

import bz2
import io
import itertools
import json
import os
import struct
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from data_pipeline.sources.arrow import chosen_columns, line_of
from data_pipeline.sources.errors import DataError
from data_pipeline.sources.extents import CHUNK
from data_pipeline.sources.formats import Extent, MustBeRewritten, Reader, Record, Records, Storage
from data_pipeline.sources.suffixes import MDS_INDEX

_MAX_CONFIG_BYTES = 1 << 24
_PIECE = 1 << 18
_NUMBERS = ("uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64", "float16", "float32", "float64")


def _decode_number(dtype: str) -> Callable[[bytes], Any]:
    return lambda data: np.frombuffer(data, np.dtype(dtype).newbyteorder("<"))[0].item()


_DECODERS: dict[str, Callable[[bytes], Any]] = {
    "str": lambda data: data.decode("utf-8"),
    "json": lambda data: json.loads(data.decode("utf-8")),
    "bytes": lambda data: data,
    "int": _decode_number("int64"),
    "str_int": lambda data: int(data.decode("utf-8")),
    "str_float": lambda data: float(data.decode("utf-8")),
    **{dtype: _decode_number(dtype) for dtype in _NUMBERS},
}


def shard_locations(location: str, indexes: Sequence[str], split: str, storage: Storage) -> list[str]:
    """The shards of an MDS folder in their order.

    Args:
        location: the folder, or its index.json.
        indexes: the folder's index.json; or those of its splits, each in a folder named as the split.
        split: which split, where the folder has splits.
        storage: where they are.

    Raises:
        DataError: there is no such split, or its index.json is damaged or names shards that are not MDS.
    """
    folders = {index.rsplit("/", 2)[-2]: index.rsplit("/", 1)[0] for index in indexes}
    name = location.removesuffix(MDS_INDEX).rstrip("/").rsplit("/", 1)[-1]
    if [name] == list(folders):
        folder = folders[name]
    elif split in folders:
        folder = folders[split]
    else:
        raise DataError(f"{location} has no MDS split {split!r}; it has {', '.join(map(repr, sorted(folders)))}")
    index = f"{folder}/{MDS_INDEX}"
    with storage.open(index) as file:
        return [f"{folder}/{name}" for name in _shard_names(file.read(), index)]


def _shard_names(index: bytes, name: str) -> list[str]:
    try:
        shards = json.loads(index)["shards"]
        kinds = {(shard["format"], shard["version"]) for shard in shards}
        names = [str((shard["zip_data"] or shard["raw_data"])["basename"]) for shard in shards]
        if outside := [name for name in names if not name or "/" in name or "\0" in name or name in (".", "..")]:
            raise ValueError(f"{outside[0]!r} is no name of a file beside it")
        for each in names:
            os.fsencode(each)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise DataError(
            f"{name} is no index of MDS shards ({type(error).__name__}: {error}); fetch or write it again"
        ) from error
    if strange := kinds - {("mds", 2)}:
        raise DataError(
            f"{name} names shards of {sorted(strange, key=repr)}; only mds of version 2 can be read, write it anew as such"
        )
    return names


class _Head(NamedTuple):
    """What a shard begins with.

    Attributes:
        offsets: where each sample begins, then where the last ends; int64 [samples + 1].
        columns: name, encoding and fixed length (None: varies) of every column, in the samples' order.
    """

    offsets: NDArray[np.int64]
    columns: list[tuple[str, str, int | None]]


def scan(file: BinaryIO, name: str) -> Iterator[Extent]:
    """Find the samples by the table at the head of a shard; see formats.ShardFormat.

    Raises:
        MustBeRewritten: the shard is compressed.
        DataError: it is damaged, or ends early.
    """
    if not name.endswith(".mds"):
        raise MustBeRewritten
    head = _read_head(file, name)
    size = file.seek(0, io.SEEK_END)
    if head.offsets[-1] != size:
        raise DataError(f"{name} ends at byte {size}, and its samples at byte {head.offsets[-1]}; fetch it again")
    starts = head.offsets.tolist()
    for start, end in itertools.pairwise(starts):
        yield Extent(start, end, 1)


def head(file: BinaryIO, name: str) -> bytes:
    """All that is before the samples."""
    size = int(_read_head(file, name).offsets[0])
    file.seek(0)
    return file.read(size)


def reader(read_head: Callable[[], bytes], name: str, columns: Sequence[str] | None) -> Reader:
    """See formats.ShardFormat; the head has the columns."""
    decode: Callable[[bytes], Record | str] | None = None

    def read(extent: int, data: bytes) -> Records:
        nonlocal decode
        if decode is None:
            decode = _sample_decoder(_read_head(io.BytesIO(read_head()), name), columns, name)
        return [decode(data)]

    return read


def lines(file: BinaryIO, name: str) -> Iterator[bytes]:
    """All samples of a compressed shard as lines of JSON; see formats.ShardFormat."""
    number = 0
    try:
        with _decompressed(file, name) as plain:
            head = _read_head(plain, name)
            decode = _sample_decoder(head, None, name)
            for length in np.diff(head.offsets).tolist():
                data = plain.read(length)
                if len(data) < length:
                    raise EOFError("the shard ends early")
                yield line_of(decode(data))
                number += 1
            if plain.read(1):
                raise EOFError("it goes on after its last sample")
    except (OSError, EOFError) as error:
        raise DataError(
            f"{name} is damaged in or before its sample {number}, before its byte {file.tell()} ({error}); fetch it again"
        ) from error


def _decompressed(file: BinaryIO, name: str) -> BinaryIO:
    """The shard as it was before it was compressed; reading raises EOFError where that ends early."""
    import zstandard

    kinds: dict[str, Callable[[], Any]] = {
        "zstd": lambda: zstandard.ZstdDecompressor(max_window_size=1 << 31).decompressobj(),
        "gz": lambda: zlib.decompressobj(wbits=31),
        "bz2": bz2.BZ2Decompressor,
    }
    kind = name.rsplit(".", 1)[-1]
    if kind not in kinds:
        raise DataError(
            f"{name} is compressed as {kind}, which cannot be read; write the shards with {', '.join(kinds)} or uncompressed"
        )
    return io.BufferedReader(_Pieces(_pieces(file, kinds[kind])), _PIECE)


def _pieces(file: BinaryIO, new_decompressor: Callable[[], Any]) -> Iterator[bytes]:
    import zstandard

    decompressor = new_decompressor()
    while data := file.read(_PIECE):
        while data:
            if decompressor.eof:
                decompressor = new_decompressor()
            try:
                yield decompressor.decompress(data)
            except (zlib.error, zstandard.ZstdError) as error:
                raise OSError(str(error)) from error
            data = decompressor.unused_data if decompressor.eof else b""
    if not decompressor.eof:
        raise EOFError("the compressed stream ends early")


class _Pieces(io.RawIOBase):
    """Pieces of bytes as a file."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._iterator = pieces
        self._rest = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._rest:
            if (piece := next(self._iterator, None)) is None:
                return 0
            self._rest = memoryview(piece)
        size = min(len(buffer), len(self._rest))
        buffer[:size] = self._rest[:size]
        self._rest = self._rest[size:]
        return size


def _read_head(file: BinaryIO, name: str) -> _Head:
    try:
        (samples,) = struct.unpack("<I", file.read(4))
        table = _read(file, 4 * (samples + 1))
        if len(table) < 4 * (samples + 1):
            raise ValueError(f"the table of its {samples} samples is not whole")
        offsets = np.frombuffer(table, "<u4").astype(np.int64)
        before = 4 + len(table)
        if not before < offsets[0] <= before + _MAX_CONFIG_BYTES or (np.diff(offsets) < 0).any():
            raise ValueError("the table of its samples makes no sense")
        config = json.loads(file.read(int(offsets[0]) - before))
        if (config["format"], config["version"]) != ("mds", 2):
            raise ValueError(f"it is of format {config['format']}, version {config['version']}, and not mds, version 2")
        columns = list(zip(config["column_names"], config["column_encodings"], config["column_sizes"], strict=True))
    except (struct.error, ValueError, KeyError, TypeError, RecursionError) as error:
        raise DataError(f"{name} is damaged at its head, before its samples ({error}); fetch it again") from error
    return _Head(offsets, columns)


def _read(file: BinaryIO, size: int) -> bytes:
    """As many of `size` bytes as there are; a size that damage has made up does not claim memory."""
    pieces = []
    while size and (piece := file.read(min(CHUNK, size))):
        pieces.append(piece)
        size -= len(piece)
    return b"".join(pieces)


def _sample_decoder(head: _Head, wanted: Sequence[str] | None, name: str) -> Callable[[bytes], Record | str]:
    """A function from the bytes of a sample to its record, or why it has none."""
    chosen = chosen_columns([column for column, _, _ in head.columns], wanted)
    for column, encoding, _ in head.columns:
        if chosen is not None and column in chosen and encoding not in _DECODERS:
            raise DataError(
                f"{name} has its column {column!r} as {encoding}, and not as text; name another, or write it as one of "
                f"{', '.join(_DECODERS)}"
            )
    varying = sum(not size for _, _, size in head.columns)

    def decode(data: bytes) -> Record | str:
        record = {}
        try:
            lengths = iter(struct.unpack_from(f"<{varying}I", data))
            position = 4 * varying
            for column, encoding, size in head.columns:
                length = size or next(lengths)
                value = data[position : position + length]
                position += length
                if encoding in _DECODERS and (chosen is None or column in chosen):
                    record[column] = _DECODERS[encoding](value)
            if position != len(data):
                raise ValueError(f"its columns take {position} of {len(data)} bytes")
        except (struct.error, ValueError, IndexError, RecursionError) as error:
            return f"cannot be decoded ({error}); write it again or remove it"
        return record

    return decode

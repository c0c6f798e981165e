"""The state of a stream as JSON: a few integers per lane, in columns of as few bits as their spread needs.

A column's values lie between its lowest and its highest, so each is written as its distance from the lowest in the bits
that the highest needs ("frame of reference" coding). Counters of different lanes are close to each other however large
they are, so the size hardly depends on the position; a column in which all lanes agree costs nothing.

It grows with the sources of text, each of which takes some 40 bits per lane: at 2048 lanes after 10^6 rows the state has
20 KB with one source of text, 34 KB with two, 62 KB with four and 116 KB with eight. So below 64 KB there is room for four;
a perfect code would take a tenth less. Sources of examples have no counters of their own and take next to nothing.
"""

from __future__ import annotations

import base64
import binascii
import json
import zlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from data_pipeline.errors import PipelineError

SCHEMA = 2
_MOST_LANES = 1 << 20
"""No batch has as many rows; a state that is damaged may say so."""


class StreamStateError(PipelineError):
    """A saved state does not fit this stream; the message says which part differs."""


class LaneState(NamedTuple):
    """Where one lane is.

    Attributes:
        counters: integers from 0 to 2^63 - 1, of which only the stream knows the meaning.
        anchor: where the window of the lane's next row of examples starts (PackedOrder.anchor); None without such rows.
    """

    counters: tuple[int, ...]
    anchor: dict[str, Any] | None = None


def state_of(
    fingerprint: Mapping[str, Any],
    columns: Sequence[str],
    lanes: Mapping[int, Sequence[int]],
    anchor: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """The state as JSON.

    Args:
        fingerprint: everything that decides the rows, by name.
        columns: names of a lane's counters.
        lanes: the counters by lane.
        anchor: that of the lane whose next row of examples is the first.
    """
    numbers = sorted(lanes)
    table = np.array([lanes[lane] for lane in numbers], dtype=np.int64).reshape(len(numbers), len(columns))
    assert table.size == 0 or table.min() >= 0, "a counter below 0"
    lowest = table.min(axis=0)
    widths = [int(high - low).bit_length() for high, low in zip(table.max(axis=0), lowest, strict=True)]
    bits = np.concatenate([_bits(table[:, i] - lowest[i], width) for i, width in enumerate(widths)])
    return {
        "schema": SCHEMA,
        "fingerprint": dict(fingerprint),
        "lanes": _ranges(numbers),
        "columns": list(columns),
        "lowest": lowest.tolist(),
        "bits": widths,
        "counters": base64.b64encode(zlib.compress(np.packbits(bits).tobytes(), 9)).decode(),
        "anchor": None if anchor is None else dict(anchor),
    }


def lanes_of(state: Mapping[str, Any]) -> dict[int, tuple[int, ...]]:
    """The counters by lane in a state.

    Raises:
        StreamStateError: it is damaged, or of another version.
    """
    _refuse_other_schema(state)
    try:
        return _unpacked(state)
    except (KeyError, TypeError, ValueError, OverflowError, zlib.error, binascii.Error) as error:
        raise _damaged(error) from error


def _unpacked(state: Mapping[str, Any]) -> dict[int, tuple[int, ...]]:
    ranges = [range(start, stop) for start, stop in state["lanes"]]
    widths, lowest = [int(bits) for bits in state["bits"]], [int(low) for low in state["lowest"]]
    num_lanes = sum(map(len, ranges))
    num_bits = num_lanes * sum(widths)
    fits = len(widths) == len(lowest) == len(state["columns"]) and all(0 <= width <= 63 for width in widths)
    if not fits or num_lanes > _MOST_LANES or not isinstance(state["fingerprint"], Mapping):
        raise ValueError("its parts do not fit together")
    # No more than there is to be, whatever the text would unpack to.
    unpacking = zlib.decompressobj()
    packed = unpacking.decompress(base64.b64decode(state["counters"], validate=True), -(-num_bits // 8) + 1)
    numbers = [lane for lanes in ranges for lane in lanes]
    if not unpacking.eof or len(packed) != -(-num_bits // 8) or len(set(numbers)) != num_lanes:
        raise ValueError("its parts do not fit together")
    bits = np.unpackbits(np.frombuffer(packed, np.uint8), count=num_bits)
    parts = np.split(bits, np.cumsum([num_lanes * width for width in widths])[:-1])
    columns = [
        _values(part.reshape(num_lanes, width)) + low for part, width, low in zip(parts, widths, lowest, strict=True)
    ]
    if any((column < 0).any() for column in columns):
        raise ValueError("a counter below 0")
    return dict(zip(numbers, zip(*(column.tolist() for column in columns), strict=True), strict=True))


def merge_states(states: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """Join the states of all ranks of a run, taken at the same step, into the state of the whole stream.

    Raises:
        StreamStateError: there is none, they are of different streams, two have the same lane, or one is damaged.
    """
    states = list(states)
    if not states:
        raise StreamStateError("there is no stream state to join; give the state of every rank")
    lanes: dict[int, tuple[int, ...]] = {}
    for state in states:
        own = lanes_of(state)
        refuse_differences(states[0], state["fingerprint"], state["columns"])
        if both := lanes.keys() & own.keys():
            raise StreamStateError(f"two stream states have the lane {min(both)}; give each rank's state once")
        lanes |= own
    try:
        anchors = [state["anchor"] for state in states if state["anchor"] is not None]
        # All anchors are of one sequence of windows, and rows after one follow from it: the first serves every lane.
        anchor = min(anchors, key=lambda anchor: int(anchor["first_row"]), default=None)
    except (KeyError, TypeError, ValueError) as error:
        raise _damaged(error) from error
    return state_of(states[0]["fingerprint"], states[0]["columns"], lanes, anchor)


def refuse_differences(state: Mapping[str, Any], fingerprint: Mapping[str, Any], columns: Sequence[str]) -> None:
    """Refuse a state that is not of the stream with this fingerprint and these counters.

    Raises:
        StreamStateError: names every part that differs, with both values.
    """
    saved, current = state["fingerprint"], json.loads(json.dumps(fingerprint))
    changed = [
        f"{part}: saved {saved.get(part)!r}, now {current.get(part)!r}"
        for part in {**saved, **current}
        if saved.get(part) != current.get(part)
    ]
    if changed:
        raise StreamStateError(
            "the saved stream state belongs to other data or settings, which would give other rows; "
            "put back what changed, or start a new run. " + "; ".join(changed)
        )
    if list(state["columns"]) != list(columns):
        raise StreamStateError("the stream state is damaged (other counters); resume from an earlier checkpoint")


def _damaged(error: Exception) -> StreamStateError:
    return StreamStateError(f"the stream state is damaged ({error!r}); resume from an earlier checkpoint")


def _refuse_other_schema(state: Mapping[str, Any]) -> None:
    if state.get("schema") != SCHEMA:
        raise StreamStateError(
            f"the stream state has schema {state.get('schema')!r}, and this version reads {SCHEMA}; "
            "resume with the version that wrote it"
        )


def _bits(values: NDArray[np.int64], width: int) -> NDArray[np.uint8]:
    """The lowest `width` bits of each value, highest first, one after the other: uint8 [values * width] of 0 and 1."""
    octets = values.astype(">u8").view(np.uint8).reshape(-1, 8)
    return np.unpackbits(octets, axis=1)[:, 64 - width :].reshape(-1)


def _values(bits: NDArray[np.uint8]) -> NDArray[np.int64]:
    """The values whose bits are the rows of `bits`, uint8 [values, width] of 0 and 1."""
    octets = np.packbits(np.pad(bits, ((0, 0), (64 - bits.shape[1], 0))), axis=1)
    return octets.reshape(-1).view(">u8").astype(np.int64)


def _ranges(numbers: Sequence[int]) -> list[list[int]]:
    """Ascending integers as [start, stop) ranges."""
    ranges: list[list[int]] = []
    for number in numbers:
        if ranges and ranges[-1][1] == number:
            ranges[-1][1] += 1
        else:
            ranges.append([number, number + 1])
    return ranges

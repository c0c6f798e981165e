from __future__ import annotations

import base64
import json
import zlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.stream.state import StreamStateError, lanes_of, merge_states, refuse_differences, state_of

FINGERPRINT = {"seed": 5, "bos": [1]}
COLUMNS = ["rows", "tokens", "offset"]
MOST = 2**63 - 1

counters = st.tuples(*[st.one_of(st.integers(0, 50), st.integers(0, MOST), st.sampled_from([0, MOST]))] * len(COLUMNS))
lane_counters = st.dictionaries(st.integers(0, 300), counters, min_size=1, max_size=40)


def through_json(state: dict[str, Any]) -> dict[str, Any]:
    return json.loads(json.dumps(state))


def a_state(lanes: dict[int, tuple[int, ...]], **changes: Any) -> dict[str, Any]:
    return through_json(state_of(FINGERPRINT, COLUMNS, lanes, None)) | changes


@settings(max_examples=100)
@given(lane_counters)
def test_counters_are_kept_exactly(lanes: dict[int, tuple[int, ...]]) -> None:
    state = a_state(lanes)
    assert lanes_of(state) == lanes
    assert state["schema"] == 2


@settings(max_examples=50)
@given(lane_counters, st.integers(1, 4), st.randoms(use_true_random=False))
def test_merging_gives_the_state_of_the_whole(lanes: dict[int, tuple[int, ...]], ranks: int, random: Any) -> None:
    parts: list[dict[int, tuple[int, ...]]] = [{} for _ in range(ranks)]
    for lane, one in lanes.items():
        random.choice(parts)[lane] = one
    anchors = [{"first_row": random.randrange(100)} for _ in parts]
    states = [
        through_json(state_of(FINGERPRINT, COLUMNS, part, anchor))
        for part, anchor in zip(parts, anchors, strict=True)
        if part
    ]
    first = min((state["anchor"] for state in states), key=lambda anchor: anchor["first_row"])
    assert merge_states(states) == through_json(state_of(FINGERPRINT, COLUMNS, lanes, first))
    # And merging can be repeated, in parts.
    assert merge_states([merge_states(states[:1]), *states[1:]]) == merge_states(states)


def realistic_lanes(num_lanes: int, num_sources: int) -> tuple[list[str], dict[int, tuple[int, ...]]]:
    """Counters like those after 10^6 rows of 4096: lanes differ by a few standard deviations of what they drew."""
    random = np.random.default_rng(0)
    columns = [np.full(num_lanes, 10**6) + random.integers(0, 2, num_lanes)]
    columns += [random.integers(0, num_sources, num_lanes), random.geometric(1 / 800, num_lanes)]
    for _ in range(num_sources):
        columns.append(26_000 + random.normal(0, 160, num_lanes).astype(int))
        columns.append(random.integers(1, 153, num_lanes))
        columns.append(4_096 * 10**6 // num_sources + random.integers(-20_000, 20_000, num_lanes))
        columns.append(random.poisson(3, num_lanes))
    names = [f"column {i}" for i in range(len(columns))]
    return names, dict(enumerate(zip(*(column.tolist() for column in columns), strict=True)))


@pytest.mark.parametrize(("num_sources", "kilobytes"), [(1, 21), (2, 35), (4, 63), (8, 118)])
def test_the_size_of_a_state_of_2048_lanes(num_sources: int, kilobytes: int) -> None:
    """Below 64 KB with up to four sources of text."""
    names, lanes = realistic_lanes(2048, num_sources)
    anchor = {"first_row": 10**9, "places": [10**9] * 4, "tokens": [10**13] * 4, "carried": [[10_000] * 64] * 4}
    fingerprint = {f"sources.{i}.{j}": "f" * 64 for i in range(num_sources) for j in range(5)}
    state = json.dumps(state_of(fingerprint, names, lanes, anchor))
    assert (kilobytes - 3) * 1000 < len(state) < kilobytes * 1000
    assert lanes_of(json.loads(state)) == lanes


def test_the_size_does_not_depend_on_the_position() -> None:
    names, lanes = realistic_lanes(2048, 1)
    far = {lane: tuple(one + 10**15 for one in each) for lane, each in lanes.items()}
    near, later = (len(json.dumps(state_of(FINGERPRINT, names, each, None))) for each in (lanes, far))
    assert later - near <= len(names) * 16


def test_states_that_cannot_be_joined() -> None:
    first, second = a_state({0: (1, 2, 3), 1: (1, 2, 3)}), a_state({2: (1, 2, 3)})
    assert lanes_of(merge_states([second, first])) == dict.fromkeys(range(3), (1, 2, 3))
    with pytest.raises(StreamStateError, match="no stream state to join"):
        merge_states([])
    with pytest.raises(StreamStateError, match="two stream states have the lane 1; give each rank's state once"):
        merge_states([first, second, a_state({1: (0, 0, 0)})])
    other = through_json(state_of({"seed": 9, "bos": [1]}, COLUMNS, {2: (1, 2, 3)}, None))
    with pytest.raises(StreamStateError, match=r"other data or settings.* seed: saved 5, now 9"):
        merge_states([first, other])


def test_every_difference_is_named() -> None:
    state = a_state({0: (1, 2, 3)})
    refuse_differences(state, {"seed": 5, "bos": (1,)}, COLUMNS)
    with pytest.raises(StreamStateError) as caught:
        refuse_differences(state, {"seed": 6, "eos": [2]}, COLUMNS)
    assert str(caught.value).endswith("seed: saved 5, now 6; bos: saved [1], now None; eos: saved None, now [2]")
    with pytest.raises(StreamStateError, match="other counters"):
        refuse_differences(state, FINGERPRINT, COLUMNS[:2])


def packed(data: bytes) -> str:
    return base64.b64encode(zlib.compress(data)).decode()


@pytest.mark.parametrize(
    "changes",
    [
        {"counters": "%%%"},
        {"counters": "AAAA"},
        {"counters": packed(b"1234567")},
        {"counters": None},
        {"bits": [3, 1]},
        {"bits": [64, 0, 0]},
        {"bits": [-1, 2, 2]},
        {"lowest": ["x", 0, 0]},
        {"lanes": [[0, 2], [0, 1]]},
        {"lanes": 3},
        {"lanes": [[0, 10**12]], "bits": [0, 0, 0], "counters": packed(b"")},
        {"lanes": [[0, 10**30]], "bits": [0, 0, 0], "counters": packed(b"")},
        {"counters": packed(bytes(10**7))},
        {"lowest": [10**30, 0, 0]},
        {"lowest": [-(10**6), 0, 0]},
        {"lowest": [2**63 - 1, 0, 0]},
        {"bits": [float("inf"), 0, 0]},
        {"fingerprint": "x"},
    ],
)
def test_damaged_states(changes: dict[str, Any]) -> None:
    state = a_state({0: (1, 2, 3), 1: (5, 6, 7)})
    with pytest.raises(StreamStateError, match=r"is damaged .*; resume from an earlier checkpoint"):
        lanes_of(state | changes)


@pytest.mark.parametrize("anchor", [3, {}, {"first_row": None}, {"first_row": "x"}])
def test_joining_states_with_a_damaged_anchor(anchor: Any) -> None:
    states = [a_state({0: (1, 2, 3)}, anchor=anchor), a_state({1: (1, 2, 3)}, anchor={"first_row": 3})]
    with pytest.raises(StreamStateError, match=r"is damaged .*; resume from an earlier checkpoint"):
        merge_states(states)
    del states[0]["anchor"]
    with pytest.raises(StreamStateError, match="is damaged"):
        merge_states(states)


def test_a_truncated_state_is_damaged() -> None:
    state = a_state({0: (1, 2, 3), 1: (5, 6, 7)})
    del state["bits"]
    with pytest.raises(StreamStateError, match="is damaged"):
        lanes_of(state)


def test_states_of_another_version() -> None:
    with pytest.raises(
        StreamStateError, match="schema 1, and this version reads 2; resume with the version that wrote"
    ):
        lanes_of(a_state({0: (1, 2, 3)}, schema=1))
    with pytest.raises(StreamStateError, match="schema None"):
        merge_states([{}])


@pytest.mark.parametrize("part", ["fingerprint", "columns"])
def test_a_state_without_a_part_is_damaged(part: str) -> None:
    state = a_state({0: (1, 2, 3)})
    del state[part]
    with pytest.raises(StreamStateError, match="is damaged"):
        merge_states([state])

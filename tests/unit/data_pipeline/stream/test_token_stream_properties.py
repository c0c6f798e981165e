"""Any sequence of stops and world sizes gives the rows of the uninterrupted stream, every document once per epoch."""

from __future__ import annotations

import gzip
import json
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet as pq

from data_pipeline.config import DataConfig, SourceConfig
from data_pipeline.stream.opening import OpenedData, open_data
from data_pipeline.stream.token_stream import PADDING, Row, TokenStream, merge_states

NUM_LANES = 8
SEQ_LEN = 32
ROWS_PER_LANE = 120
WORDS = ["the", "quick", "brown", "fox", "jumps", "over", "a", "lazy", "dog"]
BAD_LINES = ['{"text": 3}\n', '{"body": "x"}\n', '{"text": "cut', '["no object"]\n']


class Scenario:
    """Data of some form, and what an uninterrupted stream makes of it. (No dataclass: hypothesis would print it all.)"""

    def __init__(self, data: OpenedData) -> None:
        self.data = data
        self.rows: list[Row] = list(islice(self.stream(), ROWS_PER_LANE * NUM_LANES))
        self.lanes = {lane: [plain(row) for row in self.rows if row.lane == lane] for lane in range(NUM_LANES)}

    def stream(self, lanes: range = range(NUM_LANES)) -> TokenStream:
        return TokenStream(self.data.config, num_lanes=NUM_LANES, lanes=lanes, seed=5, data=self.data)


def plain(row: Row) -> tuple[Any, ...]:
    return (row.input_ids.tobytes(), row.labels.tobytes(), row.position_ids.tobytes(), row.documents)


def words(random: np.random.Generator, low: int, high: int) -> str:
    return " ".join(random.choice(WORDS, random.integers(low, high)))


def text_file(path: Path, count: int, *, bad: bool = False) -> SourceConfig:
    """Texts of 0 to 14 words, a tenth of them empty, and some bad records among them."""
    random = np.random.default_rng(count)
    lines = [json.dumps({"text": words(random, 0, 15) if random.random() > 0.1 else ""}) + "\n" for _ in range(count)]
    for at, line in enumerate(BAD_LINES if bad else []):
        lines.insert(at * count // len(BAD_LINES), line.rstrip("\n") + "\n")
    path.write_text("".join(lines))
    return SourceConfig(path=str(path))


def example_file(path: Path, count: int) -> SourceConfig:
    random = np.random.default_rng(count)
    records = [{"prompt": words(random, 1, 3), "response": words(random, 1, 3)} for _ in range(count)]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return SourceConfig(path=str(path), kind="prompt")


def split_files(folder: Path) -> dict[str, SourceConfig]:
    """Texts in extents of many documents each, which the lanes read parts of."""
    random = np.random.default_rng(7)
    counts = {"rows.parquet": 70, "frames.jsonl.gz": 30}
    for name, count in counts.items():
        texts = [words(random, 0, 15) for _ in range(count)]
        lines = "".join(json.dumps({"text": text}) + "\n" for text in texts)
        (folder / f"{name}.lines").write_text(lines)
        if name.endswith(".parquet"):
            pq.write_table(pa.table({"text": texts}), folder / name, row_group_size=40)
        else:
            (folder / name).write_bytes(gzip.compress(lines.encode()))
    return {name: SourceConfig(path=str(folder / name), weight=float(count)) for name, count in counts.items()}


def configurations(folder: Path, tokenizer: Path) -> dict[str, DataConfig]:
    code, prose = text_file(folder / "code.jsonl", 61), text_file(folder / "prose.jsonl", 13)
    tasks, chats = example_file(folder / "tasks.jsonl", 90), example_file(folder / "chats.jsonl", 25)
    tiny = text_file(folder / "tiny.jsonl", 3)
    bad = text_file(folder / "bad.jsonl", 20, bad=True)
    sources = {
        "text": {"code": replace(code, weight=3.0), "prose": prose},
        "tiny": {"tiny": tiny},
        "split": split_files(folder),
        "bad": {"bad": bad, "prose": replace(prose, weight=0.3)},
        "examples": {"tasks": tasks, "chats": replace(chats, weight=0.5)},
        "both": {"tasks": tasks, "code": replace(code, weight=0.7), "chats": chats, "prose": prose},
    }
    configs = {
        name: DataConfig(sources=each, tokenizer=tokenizer, seq_len=SEQ_LEN, too_long="drop", on_bad_record="skip")
        for name, each in sources.items()
    }
    return configs | {"cached": replace(configs["bad"], token_cache=True)}


SCENARIOS = ["text", "tiny", "split", "bad", "examples", "both", "cached"]


@pytest.fixture(scope="module")
def scenarios(tmp_path_factory: pytest.TempPathFactory, tokenizer_path: Path) -> Iterator[dict[str, Scenario]]:
    made = {}
    with pytest.MonkeyPatch.context() as patch:
        # So that small data have blocks of several documents.
        patch.setattr("data_pipeline.sources.source.BLOCKS", 24)
        patch.setattr("data_pipeline.order.BLOCKS_PER_LANE", 1)
        for name, config in configurations(tmp_path_factory.mktemp("data"), tokenizer_path).items():
            data = open_data(config, workers=0)
            assert all(len(source.block_starts) > 1 for source in data.sources)
            made[name] = Scenario(data)
        yield made


def split_lanes(ranks: int) -> list[range]:
    size = NUM_LANES // ranks
    return [range(rank * size, (rank + 1) * size) for rank in range(ranks)]


# Each the number of ranks and of the rows of all of them, in which each has as many.
legs = st.lists(st.tuples(st.sampled_from([1, 2, 4, 8]), st.integers(0, 50)), min_size=1, max_size=6)


@settings(max_examples=60, deadline=None)
@given(name=st.sampled_from(SCENARIOS), legs=legs, spare=st.integers(0, 9))
def test_any_stops_at_any_world_sizes(
    scenarios: dict[str, Scenario], name: str, legs: list[tuple[int, int]], spare: int
) -> None:
    scenario = scenarios[name]
    seen: dict[int, list[tuple[Any, ...]]] = defaultdict(list)
    state: dict[str, Any] | None = None
    for ranks, rows_of_all in legs:
        num_rows = rows_of_all // ranks
        streams = [scenario.stream(lanes) for lanes in split_lanes(ranks)]
        states = []
        for stream in streams:
            if state is not None:
                stream.load_state_dict(state)
            for row in islice(stream, num_rows):
                seen[row.lane].append(plain(row))
            states.append(json.loads(json.dumps(stream.state_dict())))
            # Rows after the last saved state are lost with the process, and come again.
            list(islice(stream, spare))
        state = json.loads(json.dumps(merge_states(states)))
    assert sum(map(len, seen.values())) == sum(ranks * (num_rows // ranks) for ranks, num_rows in legs)
    for lane, rows in seen.items():
        differing = [at for at, row in enumerate(rows) if row != scenario.lanes[lane][at]]
        assert not differing, f"lane {lane}"


@pytest.mark.parametrize("name", SCENARIOS)
@pytest.mark.parametrize("ranks", [1, 2, 4, 8])
def test_rows_do_not_depend_on_the_world_size(scenarios: dict[str, Scenario], name: str, ranks: int) -> None:
    scenario = scenarios[name]
    streams = [scenario.stream(lanes) for lanes in split_lanes(ranks)]
    rows = [row for _ in range(10) for stream in streams for row in islice(stream, len(stream.lanes))]
    assert [row.lane for row in rows] == list(range(NUM_LANES)) * 10
    assert [plain(row) for row in rows] == [plain(row) for row in scenario.rows[: len(rows)]]


@settings(max_examples=40, deadline=None)
@given(name=st.sampled_from(SCENARIOS), position=st.integers(0, 300))
def test_a_stream_resumed_amid_a_step_ends_it(scenarios: dict[str, Scenario], name: str, position: int) -> None:
    scenario = scenarios[name]
    stream = scenario.stream()
    list(islice(stream, position))
    state = json.loads(json.dumps(stream.state_dict()))
    resumed = scenario.stream()
    resumed.load_state_dict(state)
    assert resumed.state_dict() == state
    assert resumed.next_lane == stream.next_lane
    assert [plain(row) for row in islice(resumed, 30)] == [
        plain(row) for row in scenario.rows[position : position + 30]
    ]


@settings(max_examples=20, deadline=None)
@given(name=st.sampled_from(SCENARIOS), num_rows=st.integers(1, 100))
def test_a_stream_that_stands_for_others(scenarios: dict[str, Scenario], name: str, num_rows: int) -> None:
    """What workers.py does: rows are made elsewhere, in two places, and their lanes' states taken over."""
    scenario = scenarios[name]
    workers = [scenario.stream(lanes) for lanes in split_lanes(2)]
    standing, whole = scenario.stream(), scenario.stream()
    for _ in range(num_rows):
        lane = standing.next_lane
        worker = workers[lane // (NUM_LANES // 2)]
        assert next(worker).lane == lane == next(whole).lane
        standing.load_lane_state(lane, worker.lane_state(lane))
    assert standing.state_dict() == whole.state_dict()
    assert standing.counts() == whole.counts()


def test_a_stream_that_stands_for_others_can_go_back(scenarios: dict[str, Scenario]) -> None:
    worker, standing = scenarios["both"].stream(range(4)), scenarios["both"].stream(range(4))
    before = standing.state_dict()
    for row in islice(worker, 400):
        standing.load_lane_state(row.lane, worker.lane_state(row.lane))
    assert standing.state_dict() == worker.state_dict() != before
    standing.load_state_dict(before)
    assert standing.state_dict() == before


def test_ranks_that_stopped_amid_a_step_are_ended_first(scenarios: dict[str, Scenario]) -> None:
    states = []
    for lanes in split_lanes(2):
        stream = scenarios["text"].stream(lanes)
        list(islice(stream, 5))
        states.append(stream.state_dict())
    whole = scenarios["text"].stream()
    whole.load_state_dict(merge_states(states))
    assert [row.lane for row in islice(whole, 22)] == [1, 2, 3, 5, 6, 7, *range(8), *range(8)]


def oracle_tokens(scenario: Scenario, source: int, number: int) -> list[int]:
    """The tokens of a document of text, from the file."""
    config = scenario.data.sources[source].config
    path = Path(str(config.path))
    # The lines of other files are beside them.
    lines = path if path.suffix == ".jsonl" else path.with_name(f"{path.name}.lines")
    line = lines.read_text().splitlines()[number]
    try:
        text = json.loads(line)["text"]
    except (ValueError, KeyError, TypeError):
        return []
    return [1, *scenario.data.tokenizer.encode(text), 2] if text and isinstance(text, str) else []


def documents(scenario: Scenario, lane: int) -> Iterator[tuple[tuple[int, int, int], int, list[int]]]:
    """Parts of documents of one lane in order: which document, where in it the part begins, and its tokens."""
    for row in scenario.rows:
        if row.lane != lane:
            continue
        starts = [document.start for document in row.documents]
        for document, start, stop in zip(row.documents, starts, [*starts[1:], SEQ_LEN], strict=True):
            if document.source != PADDING:
                key = (document.source, document.epoch, document.number)
                yield key, document.offset, row.input_ids[start:stop].tolist()


@pytest.mark.parametrize("name", SCENARIOS)
def test_each_document_whole_and_once_per_epoch(scenarios: dict[str, Scenario], name: str) -> None:
    scenario = scenarios[name]
    seen: dict[tuple[int, int, int], list[int]] = {}
    for lane in range(NUM_LANES):
        for key, offset, tokens in documents(scenario, lane):
            assert offset == len(seen.get(key, [])), "a document came twice in an epoch, or with a gap"
            seen.setdefault(key, []).extend(tokens)
    for index, source in enumerate(scenario.data.sources):
        encoded = scenario.data.encoded[index]
        full = (
            {number for number in range(source.num_documents) if oracle_tokens(scenario, index, number)}
            if not source.config.is_examples or encoded is None
            else set(np.flatnonzero(encoded.lengths).tolist())
        )
        # The last epochs may not be over in all lanes.
        complete = range(epochs_begun(scenario, index) - 1)
        assert complete, "the test is too short for an epoch"
        for epoch in complete:
            came = {number for which, of, number in seen if which == index and of == epoch}
            assert came == full
        if not source.config.is_examples:
            whole = {number: oracle_tokens(scenario, index, number) for number in full}
            for (which, epoch, number), tokens in seen.items():
                if which == index and epoch in complete:
                    assert tokens == whole[number]


def epochs_begun(scenario: Scenario, index: int) -> int:
    """How many epochs of a source all lanes have begun (where a lane's last document is of epoch e: e)."""
    latest = dict.fromkeys(range(NUM_LANES), 0)
    for row in scenario.rows:
        for document in row.documents:
            if document.source == index:
                latest[row.lane] = max(latest[row.lane], document.epoch)
    return min(latest.values())


@pytest.mark.parametrize("name", ["text", "bad"])
def test_proportions_are_exact_to_a_document(scenarios: dict[str, Scenario], name: str) -> None:
    scenario = scenarios[name]
    weights = [source.config.weight for source in scenario.data.sources]
    longest = max(
        len(oracle_tokens(scenario, index, number))
        for index, source in enumerate(scenario.data.sources)
        for number in range(source.num_documents)
    )
    for lane in range(NUM_LANES):
        served = [0] * len(weights)
        for (source, _, _), _, tokens in documents(scenario, lane):
            served[source] += len(tokens)
        assert abs(served[0] / weights[0] - served[1] / weights[1]) <= 2 * longest / min(weights)


def test_text_and_examples_get_their_parts(scenarios: dict[str, Scenario]) -> None:
    scenario = scenarios["both"]
    for lane in range(NUM_LANES):
        served: Counter[bool] = Counter()
        for (source, _, _), _, tokens in documents(scenario, lane):
            served[scenario.data.sources[source].config.is_examples] += len(tokens)
        # Weights 1 + 1 of examples, 0.7 + 1 of text, exact to a row.
        assert -SEQ_LEN / 1.7 <= served[True] / 2 - served[False] / 1.7 <= SEQ_LEN / 2


def test_the_token_cache_changes_no_row(scenarios: dict[str, Scenario]) -> None:
    assert [plain(row) for row in scenarios["cached"].rows] == [plain(row) for row in scenarios["bad"].rows]
    state = scenarios["bad"].stream().state_dict()
    scenarios["cached"].stream().load_state_dict(state)


def test_skipped_records_disturb_nothing(scenarios: dict[str, Scenario], tmp_path: Path, tokenizer_path: Path) -> None:
    """The same file with empty documents for its bad records gives the same rows."""
    config = scenarios["bad"].data.config
    lines = Path(str(config.sources["bad"].path)).read_text().splitlines(keepends=True)
    mended = tmp_path / "bad.jsonl"
    mended.write_text("".join('{"text": ""}\n' if line in BAD_LINES or "cut" in line else line for line in lines))
    sources = config.sources | {"bad": SourceConfig(path=str(mended))}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("data_pipeline.sources.source.BLOCKS", 24)
        stream = TokenStream(
            replace(config, sources=sources, on_bad_record="fail"), num_lanes=NUM_LANES, lanes=range(NUM_LANES), seed=5
        )
        rows = list(islice(stream, len(scenarios["bad"].rows)))
    assert [plain(row) for row in rows] == [plain(row) for row in scenarios["bad"].rows]


def test_skipped_records_are_counted_over_all_lanes(scenarios: dict[str, Scenario]) -> None:
    streams = [scenarios["bad"].stream(lanes) for lanes in split_lanes(4)]
    whole = scenarios["bad"].stream()
    for stream in [*streams, whole]:
        list(islice(stream, 30 * len(stream.lanes)))
    counts = [stream.counts()["bad"]["bad_records"] for stream in streams]
    assert sum(counts) == whole.counts()["bad"]["bad_records"] > len(BAD_LINES)
    assert sum(stream.counts()["prose"]["bad_records"] for stream in streams) == 0
    # They are part of the state.
    resumed = scenarios["bad"].stream()
    resumed.load_state_dict(merge_states([stream.state_dict() for stream in streams]))
    assert resumed.counts() == whole.counts()
    cached = [scenarios["cached"].stream(lanes).counts()["bad"] for lanes in split_lanes(4)]
    assert [counts.get("bad_records", 0) for counts in cached] == [len(BAD_LINES), 0, 0, 0]

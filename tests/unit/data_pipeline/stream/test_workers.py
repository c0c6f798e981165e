from __future__ import annotations

import dataclasses
import gc
import json
import operator
import os
import platform
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline.config import DataConfig, SourceConfig
from data_pipeline.errors import PipelineError
from data_pipeline.stream.token_stream import Row, TokenStream, merge_states
from data_pipeline.stream.workers import PrefetchedStream, WorkerError, open_stream, split

ROOT = Path(__file__).resolve().parents[4]
NUM_LANES = 6
ENOUGH = 20_000  # rows, more than a socket holds
PROC = Path("/proc/self/fd")
needs_proc = pytest.mark.skipif(not PROC.exists(), reason="this system has no /proc")


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory, tokenizer_path: Path, write_jsonl: Any) -> DataConfig:
    folder = tmp_path_factory.mktemp("text")
    sources = {}
    for name, weight, count in (("foxes", 3.0, 40), ("dogs", 1.0, 9)):
        texts = [f"{name} {number} jumps over " + "the lazy dog " * (number % 11) for number in range(count)]
        path = write_jsonl(folder / f"{name}.jsonl", texts)
        sources[name] = SourceConfig(path=str(path), weight=weight)
    return DataConfig(sources=sources, tokenizer=tokenizer_path, seq_len=32, workers=2)


@pytest.fixture(scope="module", params=["text", "text and examples"])
def data(request: pytest.FixtureRequest, config: DataConfig) -> DataConfig:
    """What is read: text, or text and examples."""
    if request.param == "text":
        return config
    path = Path(config.sources["foxes"].location).with_name("pairs.jsonl")
    pairs = [{"prompt": f"fox {number}: ", "response": "over the dog " * (1 + number % 3)} for number in range(50)]
    path.write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    sources = config.sources | {"pairs": SourceConfig(path=str(path), kind="prompt", weight=2.0)}
    return dataclasses.replace(config, sources=sources, too_long="cut")


def plain(config: DataConfig, lanes: range = range(NUM_LANES)) -> TokenStream:
    return TokenStream(config, num_lanes=NUM_LANES, lanes=lanes, seed=5)


def ahead(config: DataConfig, lanes: range = range(NUM_LANES), **more: Any) -> PrefetchedStream:
    return PrefetchedStream(config, num_lanes=NUM_LANES, lanes=lanes, seed=5, **more)


def take(stream: TokenStream | PrefetchedStream, count: int) -> list[Row]:
    return [next(stream) for _ in range(count)]


def values(rows: list[Row]) -> list[tuple[Any, ...]]:
    """Everything of the rows, comparable, with the types of the arrays."""
    return [
        tuple((field.dtype.str, field.tolist()) if isinstance(field, np.ndarray) else field for field in row)
        for row in rows
    ]


def is_alive(pid: int) -> bool:
    """Whether there is such a process that is not just waiting for its parent to notice its end."""
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


def until(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.01)


class TestRows:
    @pytest.mark.parametrize("workers", [1, 2, 4, 9])
    def test_are_those_of_one_stream_in_its_order_and_so_is_the_state(self, data: DataConfig, workers: int) -> None:
        with plain(data) as expected, ahead(data, workers=workers) as stream:
            assert stream.state_dict() == expected.state_dict()
            for count in (1, 5, 20, 50):
                assert values(take(stream, count)) == values(take(expected, count))
                assert stream.state_dict() == expected.state_dict()
                assert stream.counts() == expected.counts()
            assert len(stream.worker_pids) == min(workers, NUM_LANES)

    @pytest.mark.parametrize(("before", "workers"), [(0, (1, 3)), (7, (3, 2)), (NUM_LANES * 4, (2, 1))])
    def test_go_on_from_a_state_with_another_number_of_workers(
        self, data: DataConfig, before: int, workers: tuple[int, int]
    ) -> None:
        with plain(data) as expected, ahead(data, workers=workers[0]) as first:
            take(expected, before)
            take(first, before)
            state = json.loads(json.dumps(first.state_dict()))
            with ahead(data, workers=workers[1]) as second:
                second.load_state_dict(state)
                assert second.state_dict() == expected.state_dict()
                assert values(take(second, 15)) == values(take(expected, 15))

    def test_are_packed_by_the_workers_alone(self, data: DataConfig, monkeypatch: pytest.MonkeyPatch) -> None:
        with plain(data) as expected, ahead(data) as stream:
            take(expected, NUM_LANES * 5)
            state = expected.state_dict()
            monkeypatch.setattr("data_pipeline.packing.best_fit.PackedOrder._make_window", None)
            take(stream, NUM_LANES * 5)
            assert stream.state_dict() == state
            stream.load_state_dict(state)
            take(stream, NUM_LANES * 5)
            stream.state_dict()

    def test_go_back_to_a_state_while_the_workers_are_ahead(self, data: DataConfig) -> None:
        with ahead(data) as stream:
            state = stream.state_dict()
            rows = values(take(stream, 9))
            pids = stream.worker_pids
            stream.load_state_dict(state)
            assert not any(map(is_alive, pids))
            assert values(take(stream, 9)) == rows

    def test_of_ranks_together_are_those_of_one(self, data: DataConfig) -> None:
        ranks = [range(0, 2), range(2, NUM_LANES)]
        with plain(data) as expected, ahead(data, ranks[0]) as one, ahead(data, ranks[1], workers=1) as other:
            for _ in range(3):
                assert values(take(one, 2) + take(other, 4)) == values(take(expected, NUM_LANES))
            merged = merge_states([one.state_dict(), other.state_dict()])
            assert merged == expected.state_dict()

    def test_what_the_stream_says_of_itself(self, data: DataConfig) -> None:
        with plain(data) as expected, ahead(data) as stream:
            assert stream.fingerprint == expected.fingerprint
            assert (stream.lanes, stream.num_lanes, stream.seed) == (range(NUM_LANES), NUM_LANES, 5)
            assert stream.config == data
            assert [source.name for source in stream.sources] == list(data.sources)
            assert stream.tokenizer.fingerprint == expected.tokenizer.fingerprint

    def test_workers_stop_when_enough_rows_are_ready(self, data: DataConfig) -> None:
        with ahead(data, workers=1, rows_ahead=4) as stream:
            (worker,) = iter(stream)._workers
            until(lambda: worker._messages.qsize() == 4)
            time.sleep(0.1)
            assert worker._messages.qsize() == 4
            next(stream)
            until(lambda: worker._messages.qsize() == 4)


class TestOpening:
    def test_no_workers_are_a_plain_stream(self, config: DataConfig) -> None:
        with open_stream(dataclasses.replace(config, workers=0), num_lanes=NUM_LANES, lanes=range(3), seed=5) as stream:
            assert isinstance(stream, TokenStream)

    def test_workers_are_those_of_the_configuration(self, config: DataConfig) -> None:
        with open_stream(config, num_lanes=NUM_LANES, lanes=range(3), seed=5) as stream:
            assert isinstance(stream, PrefetchedStream)
            assert stream.worker_pids == [], "they start with the first row"
            next(stream)
            assert len(stream.worker_pids) == 2

    def test_zero_workers_ahead_are_a_mistake(self, config: DataConfig) -> None:
        with pytest.raises(ValueError, match="0 workers"):
            ahead(config, workers=0)

    @given(start=st.integers(0, 9), size=st.integers(1, 40), data=st.data())
    def test_lanes_are_split_evenly(self, start: int, size: int, data: st.DataObject) -> None:
        parts = data.draw(st.integers(1, size))
        shares = split(range(start, start + size), parts)
        assert [lane for share in shares for lane in share] == list(range(start, start + size))
        assert len(shares) == parts
        assert max(map(len, shares)) - min(map(len, shares)) <= 1


class _Bomb(type(Path())):  # type: ignore[misc]
    """A path that makes a worker fail when it receives its job."""

    action: tuple[Any, tuple[Any, ...]]

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return self.action


def with_bomb(config: DataConfig, *action: Any) -> DataConfig:
    bomb = _Bomb(config.tokenizer)
    bomb.action = (action[0], action[1:])
    return dataclasses.replace(config, tokenizer=bomb)


class TestFailures:
    def test_an_error_in_the_data_comes_at_its_row_and_as_it_is(
        self, config: DataConfig, tmp_path: Path, write_jsonl: Any
    ) -> None:
        path = write_jsonl(tmp_path / "bad.jsonl", [f"document {number} " * 9 for number in range(60)])
        lines = path.read_text().splitlines()
        lines[30] = '{"content": "no text"}'
        path.write_text("\n".join(lines) + "\n")
        bad = dataclasses.replace(config, sources={"bad": SourceConfig(path=str(path))})
        rows, error = [], None
        with plain(bad) as stream:
            while error is None:
                try:
                    rows.append(next(stream))
                except PipelineError as caught:
                    error = caught
        assert "line 31" in str(error)
        with ahead(bad) as stream:
            assert values(take(stream, len(rows))) == values(rows)
            for _ in range(2):
                with pytest.raises(type(error)) as caught:
                    next(stream)
                assert str(caught.value) == str(error)

    def test_any_other_error_comes_with_its_traceback(self, config: DataConfig) -> None:
        with ahead(with_bomb(config, operator.truediv, 1, 0)) as stream:
            with pytest.raises(WorkerError) as caught:
                next(stream)
            pid = stream.worker_pids[0]
            message = str(caught.value)
            assert message.startswith(
                f"the data worker with process id {pid} on {platform.node()} (lanes 0 to 2) failed:\nTraceback (most recent call last):"
            )
            assert message.endswith("ZeroDivisionError: division by zero\n")

    def test_an_exit(self, config: DataConfig) -> None:
        with ahead(with_bomb(config, os._exit, 3)) as stream:
            with pytest.raises(WorkerError) as caught:
                next(stream)
            assert str(caught.value) == (
                f"the data worker with process id {stream.worker_pids[0]} on {platform.node()} (lanes 0 to 2) ended with code 3; "
                "what it printed is in the output of this run"
            )

    def test_a_killed_worker_is_named_within_a_second(self, config: DataConfig) -> None:
        with ahead(config, rows_ahead=8) as stream:
            take(stream, NUM_LANES)
            victim = stream.worker_pids[1]
            os.kill(victim, signal.SIGKILL)
            began = time.monotonic()
            with pytest.raises(WorkerError) as caught:
                take(stream, ENOUGH)
            assert time.monotonic() - began < 1
            assert str(caught.value) == (
                f"the data worker with process id {victim} on {platform.node()} (lanes 3 to 5) was killed by SIGKILL; if nobody did "
                "that, the machine ran out of memory: give the job more, or lower data.workers. Then start the run again"
            )
            # The state is still good: a checkpoint could be made of it.
            with plain(config) as other:
                other.load_state_dict(stream.state_dict())

    def test_a_stuck_worker_is_an_error_in_the_end(self, config: DataConfig) -> None:
        with ahead(config, workers=1, patience_seconds=0.2) as stream:
            iter(stream)
            os.kill(stream.worker_pids[0], signal.SIGSTOP)
            with pytest.raises(WorkerError) as caught:
                take(stream, ENOUGH)
            assert str(caught.value) == (
                f"the data worker with process id {stream.worker_pids[0]} on {platform.node()} (lanes 0 to 5) has sent no row for "
                "0 s, though it runs; its storage may hang (does `python -m data_pipeline verify` come to an end?), or the node is "
                "overloaded. Then start the run again"
            )

    def test_signals_that_stop_a_run_leave_its_workers_alone(self, config: DataConfig) -> None:
        with plain(config) as expected, ahead(config, rows_ahead=2) as stream:
            for pid in iter(stream).worker_pids:
                for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
                    os.kill(pid, number)
            assert values(take(stream, 40)) == values(take(expected, 40))

    def test_another_streams_state(self, config: DataConfig) -> None:
        with plain(config) as other:
            state = other.state_dict()
        with (
            ahead(dataclasses.replace(config, seq_len=16)) as stream,
            pytest.raises(PipelineError, match="seq_len"),
        ):
            stream.load_state_dict(state)

    def test_a_closed_stream(self, config: DataConfig) -> None:
        stream = ahead(config)
        stream.close()
        stream.close()
        with pytest.raises(PipelineError, match="the stream of rows is closed; open another one"):
            next(stream)


@needs_proc
class TestNothingIsLeft:
    @pytest.fixture(autouse=True)
    def same_as_before(self) -> Iterator[None]:
        """No thread and no file descriptor more than before the test."""
        gc.collect()
        threads, descriptors = threading.active_count(), len(list(PROC.iterdir()))
        yield
        gc.collect()
        assert threading.active_count() == threads
        assert len(list(PROC.iterdir())) == descriptors

    def test_after_closing(self, config: DataConfig) -> None:
        with ahead(config) as stream:
            take(stream, 3)
            pids = stream.worker_pids
        assert not any(map(is_alive, pids))

    def test_after_garbage_collection(self, config: DataConfig) -> None:
        stream = ahead(config)
        take(stream, 3)
        pids = stream.worker_pids
        assert all(map(is_alive, pids))
        del stream
        gc.collect()
        assert not any(map(is_alive, pids))

    def test_after_an_exception_in_training(self, config: DataConfig) -> None:
        def train() -> None:
            with ahead(config) as stream:
                pids.extend(iter(stream).worker_pids)
                raise KeyboardInterrupt

        pids: list[int] = []
        with pytest.raises(KeyboardInterrupt):
            train()
        assert pids
        assert not any(map(is_alive, pids))

    def test_after_workers_that_were_never_asked_for_a_row(self, config: DataConfig) -> None:
        with ahead(config) as stream:
            pids = iter(stream).worker_pids
        assert not any(map(is_alive, pids))

    @pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
    def test_a_forked_child_leaves_the_workers_alone(self, config: DataConfig) -> None:
        with plain(config) as expected, ahead(config) as stream:
            iter(stream)
            if (child := os.fork()) == 0:
                stream.close()
                os._exit(0)
            os.waitpid(child, 0)
            assert values(take(stream, 40)) == values(take(expected, 40))

    def test_after_a_killed_worker(self, config: DataConfig) -> None:
        with ahead(config) as stream:
            os.kill(iter(stream).worker_pids[0], signal.SIGKILL)
            with pytest.raises(WorkerError):
                take(stream, ENOUGH)


@needs_proc
def test_workers_are_small(config: DataConfig) -> None:
    with ahead(config, workers=1) as stream:
        next(stream)
        (pid,) = stream.worker_pids
        status = Path(f"/proc/{pid}/status").read_text()
        resident = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS"))
        assert "torch" not in Path(f"/proc/{pid}/maps").read_text()
        assert resident < 150_000, "kB"


SCRIPT = """
import pickle, sys
from pathlib import Path
from data_pipeline.stream.workers import PrefetchedStream
config = pickle.loads(bytes.fromhex({config!r}))
stream = PrefetchedStream(config, num_lanes=2, lanes=range(2), seed=5)
print(next(stream).input_ids.tolist(), *stream.worker_pids, sep="|", flush=True)
sys.stdin.read() if {waits} else None
"""


@needs_proc
class TestPrograms:
    """Scripts without the usual guard around their main part, which workers must not run again."""

    def run(self, config: DataConfig, how: str, folder: Path, *, waits: bool) -> subprocess.Popen[str]:
        import pickle

        code = SCRIPT.format(config=pickle.dumps(config).hex(), waits=waits)
        script = folder / "program.py"
        script.write_text(code)
        arguments = {"script": [str(script)], "command": ["-c", code], "prompt": ["-"]}[how]
        process = subprocess.Popen(
            [sys.executable, *arguments], cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)},
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        assert process.stdin is not None
        if how == "prompt":
            process.stdin.write(code)
            process.stdin.close()
        return process

    @pytest.mark.parametrize("how", ["script", "command", "prompt"])
    def test_workers_start_from_anywhere_and_end_with_the_program(
        self, config: DataConfig, tmp_path: Path, how: str
    ) -> None:
        with self.run(config, how, tmp_path, waits=False) as process:
            assert process.stdout is not None
            output = process.stdout.read()
        assert process.returncode == 0, output
        ids, *pids = output.split("|")
        with plain_of_two(config) as expected:
            assert json.loads(ids) == next(expected).input_ids.tolist()
        assert not any(is_alive(int(pid)) for pid in pids)

    def test_workers_end_when_the_program_is_killed(self, config: DataConfig, tmp_path: Path) -> None:
        with self.run(config, "script", tmp_path, waits=True) as process:
            assert process.stdout is not None
            _, *pids = process.stdout.readline().split("|")
            assert len(pids) == 2
            assert all(is_alive(int(pid)) for pid in pids)
            process.kill()
            until(lambda: not any(is_alive(int(pid)) for pid in pids), 5)


def plain_of_two(config: DataConfig) -> TokenStream:
    return TokenStream(config, num_lanes=2, lanes=range(2), seed=5)

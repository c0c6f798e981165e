"""One rank's saves, with a real writer and an engine of three tensors; several ranks are in tests/distributed."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.unit.training.checkpoint.checking import newest_good, verify
from tests.unit.training.minimal import minimal_config
from training import resuming, saving
from training.checkpoint import storage
from training.checkpoint.image import Copying
from training.checkpoint.retention import retention_of
from training.checkpoint.writer import Writer
from training.costs import fitting
from training.errors import CheckpointError
from training.origin import Origin
from training.progress import Progress
from training.ranks import distributed
from training.recipe import ConfigError

SHAPES = {"w": (2, 3), "b": (4,)}
STATES = {"w": ("exp_avg", "exp_avg_sq"), "b": ("exp_avg", "exp_avg_sq")}


class FakeEngine:
    """Holds a state that its test changes."""

    def __init__(self) -> None:
        self.world = SimpleNamespace(rank=0, size=1, local_size=1)
        self.device = torch.device("cpu")
        self.state = {
            key: torch.zeros(6 if name == "w" else 4)
            for name in SHAPES
            for key in (name, *(f"{name}/{state}" for state in STATES[name]))
        }

    def set(self, value: float) -> None:
        for tensor in self.state.values():
            tensor.fill_(value)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        return SHAPES

    def state_names(self) -> dict[str, tuple[str, ...]]:
        return STATES

    def optimizer_steps(self) -> dict[str, int]:
        return {"decay": 7}

    def copy_state(self, writer: Writer) -> Copying:
        return writer.take(self.state.items())

    def load_local_state(self, state: Iterator[tuple[str, torch.Tensor]], steps: dict[str, int]) -> None:
        for name, value in state:
            self.state[name].copy_(value)

    def gather(self, value: Any) -> list[Any]:
        return [value]

    gather_to_rank_0 = gather


class Bench:
    """A saver and what it was given."""

    def __init__(self, folder: Path, *overrides: str) -> None:
        self.engine = FakeEngine()
        self.said: list[str] = []
        self.batches = SimpleNamespace(
            state_dict=lambda: {"fingerprint": "x", "num_lanes": 1, "lanes": {"0": {"row": self.row}}},
            counts=lambda: {"text": {"cut": self.row}},
            load_state_dict=lambda state: setattr(self, "loaded", state),
        )
        self.row = 0
        self.loaded: Any = None
        self.updates: dict[str, Any] = {}
        record = SimpleNamespace(
            content={"base_fingerprint": "base", "config": {"run": {"seed": 5}}}, update=self.updates.update
        )
        display = SimpleNamespace(say=self.said.append)
        engine: Any = self.engine
        config = minimal_config(folder, "--checkpoint.retry_after", "0.05s", *overrides)
        config.run.dir.mkdir(parents=True, exist_ok=True)
        self.saver = saving.Saver(engine, self.batches, config, record, display, retention_of(config, None))  # type: ignore[arg-type]

    def save(self, step: int, value: float) -> None:
        self.engine.set(value)
        self.row = step
        self.saver.save(Progress(step=step, tokens_seen=10 * step))

    def resume(self, progress: Progress) -> bool:
        return self.saver.resume(progress, Origin(root=self.saver.root))

    def boundary(self) -> None:
        self.saver.go_on(self.saver.signals())

    def steps(self) -> list[int]:
        return sorted(int(path.name) for path in self.saver.root.glob("[0-9]*"))


MakeBench = Callable[..., Bench]


def refuse(problem: Exception | None, world: Any) -> None:
    if problem is not None:
        raise problem


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[MakeBench]:
    for module in (saving, resuming):
        monkeypatch.setattr(module, "from_rank_0", lambda compute, world: compute())
    monkeypatch.setattr(resuming, "gather", lambda value, world: [value])
    monkeypatch.setattr(saving, "refuse_problems", refuse)
    monkeypatch.setattr(distributed, "sum_over_ranks", list)
    monkeypatch.setattr(saving, "merge_states", lambda states: states[0])
    made: list[Bench] = []

    def make(*overrides: str) -> Bench:
        made.append(Bench(tmp_path, *overrides))
        return made[-1]

    yield make
    for each in made:
        each.saver.close()


def until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.01)


def cross_until(bench: Bench, condition: Callable[[], bool], what: str) -> None:
    def crossed() -> bool:
        bench.boundary()
        return condition()

    until(crossed, what)


def test_counts_of_all_ranks_are_summed() -> None:
    ranks = [{"code": {"bad_records": 2, "cut": 1}, "prose": {}}, {"code": {"bad_records": 3}, "prose": {"cut": 4}}]
    assert saving.sum_counts(ranks) == {"code": {"bad_records": 5, "cut": 1}, "prose": {"cut": 4}}
    assert saving.sum_counts([]) == {}


SCORED = (
    "--checkpoint.keep_best", "old.accuracy", "--eval.tasks.old.kind", "continuation_choice", "--eval.tasks.old.domain", "old",
    "--eval.tasks.old.context_tokens", "16", "--eval.tasks.old.continuation_tokens", "8",
)  # fmt: skip


def write_score(ours: Bench, step: int, score: float) -> None:
    result = {"metric": "accuracy", "score": score, "higher_is_better": True}
    folder = ours.saver.root.parent / "evals"
    folder.mkdir(exist_ok=True)
    (folder / f"{step}.json").write_text(json.dumps({"tasks": {"old": result}}))


class TestASave:
    @pytest.mark.parametrize("background", ["true", "false"])
    def test_what_is_written_is_the_state_when_it_was_asked_for(self, bench: MakeBench, background: str) -> None:
        ours = bench("--checkpoint.background", background)
        ours.save(3, 1.5)
        # Training goes on meanwhile: weights, data and progress are others by the time that it is written.
        ours.engine.set(9.0)
        ours.row = 4
        if background == "true":
            assert ours.steps() == [], "it is no checkpoint yet"
        cross_until(ours, lambda: ours.saver.saved_step == 3, "the checkpoint of step 3")
        assert ours.steps() == [3]
        found = verify(ours.saver.root / "3")
        tensors = load_file(found.path / "rank-00000-of-00001.safetensors")
        assert tensors.keys() == ours.engine.state.keys()
        assert {float(tensor.min()) for tensor in tensors.values()} == {1.5}
        assert {float(tensor.max()) for tensor in tensors.values()} == {1.5}
        manifest = found.manifest
        assert (found.step, found.tokens_seen, manifest["world_size"]) == (3, 30, 1)
        assert manifest["stream"]["lanes"] == {"0": {"row": 3}}
        assert manifest["fingerprints"]["base"] == "base"
        assert manifest["config"] == {"run": {"seed": 5}}
        assert manifest["optimizer_steps"] == {"decay": 7}
        assert manifest["states"] == {name: list(states) for name, states in STATES.items()}
        assert ours.updates["last_checkpoint"] == 3
        assert ours.updates["data"] == {"text": {"cut": 3}}
        assert not list(ours.saver.root.glob(".*")), "nothing else is left"

    def test_both_ways_write_the_same_bytes(self, bench: MakeBench, tmp_path: Path) -> None:
        files = []
        for background in ("true", "false"):
            ours = bench("--checkpoint.background", background, "--run.dir", str(tmp_path / background))
            ours.engine.state["w"].copy_(torch.arange(6.0))
            ours.saver.settle(Progress(step=1))
            files.append((ours.saver.root / "1" / "rank-00000-of-00001.safetensors").read_bytes())
        assert files[0] == files[1]

    def test_the_next_one_waits_for_the_last_and_old_ones_go(self, bench: MakeBench) -> None:
        ours = bench("--checkpoint.keep", "2")
        for step in (2, 4, 6):
            ours.save(step, float(step))
            assert ours.saver.saved_step == (step - 2 or None)
        ours.saver.finish()
        assert ours.steps() == [4, 6]
        assert verify(ours.saver.root / "4").step == 4

    def test_a_step_is_saved_once(self, bench: MakeBench) -> None:
        ours = bench()
        ours.save(2, 1.0)
        ours.save(2, 5.0)
        ours.saver.settle(Progress(step=2))
        ours.save(2, 7.0)
        tensors = load_file(ours.saver.root / "2" / "rank-00000-of-00001.safetensors")
        assert float(tensors["w"][0]) == 1.0

    def test_keep_all_deletes_none(self, bench: MakeBench) -> None:
        ours = bench("--checkpoint.keep", "1")
        ours.saver.settle(Progress(step=1))
        ours.saver.settle(Progress(step=2), keep_all=True)
        assert ours.steps() == [1, 2]

    def test_damaged_ones_take_no_good_ones_place(self, bench: MakeBench) -> None:
        ours = bench("--checkpoint.keep", "2")
        for step in (2, 4):
            ours.saver.settle(Progress(step=step))
        again = bench("--checkpoint.keep", "2")
        (again.saver.root / "4" / "rank-00000-of-00001.safetensors").unlink()
        again.saver.settle(Progress(step=6))
        # The damaged one is nothing that anybody keeps or needs gone; of the good ones there are two.
        assert again.steps() == [2, 4, 6]
        again.saver.settle(Progress(step=8))
        assert again.steps() == [4, 6, 8]

    def test_one_whose_scores_wait_for_storage_stays(self, bench: MakeBench, tmp_path: Path) -> None:
        """What is best is known when they are written."""
        best = ("--checkpoint.keep", "1", "--checkpoint.every_steps", "4", "--eval.every_steps", "4")
        (tmp_path / "held.jsonl").write_text("")
        ours = bench(*best, *SCORED, "--eval.tasks.old.path", str(tmp_path / "held.jsonl"))
        assert ours.saver._retention.best == "old.accuracy"
        for step in (4, 8, 12):
            ours.saver.settle(Progress(step=step))
            if step != 8:
                write_score(ours, step, step / 100)
        assert ours.steps() == [4, 8, 12]
        write_score(ours, 8, 0.9)
        ours.saver.drop_superfluous()
        assert ours.steps() == [8, 12], "the best and the newest"

    def test_without_a_process_the_time_of_writing_is_all_stall(
        self, bench: MakeBench, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        ours = bench("--checkpoint.background", "false")
        own, watched = storage.sync_folder, []

        def slow(folder: Path) -> None:
            time.sleep(0.2)
            own(folder)

        monkeypatch.setattr(storage, "sync_folder", slow)
        ours.saver._lifeline = SimpleNamespace(  # type: ignore[assignment]
            at=lambda what, is_watched: watched.append((what, is_watched))
        )
        began = time.perf_counter()
        ours.save(3, 1.0)
        took = time.perf_counter() - began
        assert ours.saver.saved_step == 3
        assert 0.2 < ours.saver.take_stall_seconds() <= took, "and counted once"
        assert watched[0] == ("saving step 3", False), "however long storage takes, that is no hang"

    def test_it_stands_still_for_copying_only(self, bench: MakeBench) -> None:
        ours = bench()
        ours.save(1, 1.0)
        assert ours.saver.take_stall_seconds() > 0
        assert ours.saver.take_stall_seconds() == 0

    def test_too_little_memory_is_said_before_training(self, bench: MakeBench, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(fitting, "available_memory", lambda: 100)
        with pytest.raises(ConfigError, match=r"checkpoint\.background = true: its copies of what is saved need"):
            bench().saver.prepare()
        bench("--checkpoint.background", "false").saver.prepare()


class TestResuming:
    def test_nothing_to_resume(self, bench: MakeBench) -> None:
        assert bench().resume(Progress()) is False

    def test_everything_comes_back(self, bench: MakeBench) -> None:
        first = bench()
        first.save(5, 2.5)
        first.saver.settle(Progress(step=5))
        second, progress = bench(), Progress()
        assert second.resume(progress) is True
        assert (progress.step, progress.tokens_seen, second.saver.saved_step) == (5, 50, 5)
        assert {float(value.min()) for value in second.engine.state.values()} == {2.5}
        assert second.loaded["lanes"] == {"0": {"row": 5}}

    def test_damage_everywhere_is_refused_and_not_taken_for_a_new_run(self, bench: MakeBench) -> None:
        ours = bench()
        (ours.saver.root / "8").mkdir(parents=True)
        with pytest.raises(CheckpointError) as caught:
            ours.resume(Progress())
        assert str(caught.value) == (
            f"{ours.saver.root}: every checkpoint is damaged; restore one, or remove the run directory to begin the run anew"
        )
        assert "MANIFEST.json: missing" in ours.said[0]

    def test_another_base_is_refused(self, bench: MakeBench) -> None:
        first = bench()
        first.saver.settle(Progress(step=5))
        second = bench()
        second.saver._record.content["base_fingerprint"] = "other"
        with pytest.raises(CheckpointError, match=r"was trained from another base \(base\) than model.base holds now"):
            second.resume(Progress())

    def test_what_a_killed_start_left_is_put_in_order(self, bench: MakeBench) -> None:
        first = bench()
        first.saver.settle(Progress(step=5))
        root = first.saver.root
        (root / "5").rename(root / ".5.replaced")
        (root / ".6.abc1.unfinished").mkdir()
        assert bench().resume(Progress()) is True
        assert sorted(path.name for path in root.iterdir()) == ["5"]

    def test_going_back_saves_the_step_again_with_the_data_where_they_are(self, bench: MakeBench) -> None:
        ours = bench()
        ours.save(2, 2.0)
        ours.engine.set(8.0)
        progress = Progress(step=4)
        assert ours.saver.rewind(progress) is True
        assert (progress.step, float(ours.engine.state["w"][0])) == (2, 2.0)
        ours.row = 4
        ours.saver.settle(progress)
        found = verify(ours.saver.root / "2")
        assert found.manifest["stream"]["lanes"] == {"0": {"row": 4}}
        assert ours.loaded is None, "the data are not put back"


class TestFailures:
    def make_unwritable(self, ours: Bench) -> None:
        ours.saver.root.parent.mkdir(parents=True, exist_ok=True)
        ours.saver.root.write_text("a file where the folder is to be")

    def test_training_goes_on_and_it_is_tried_again(self, bench: MakeBench) -> None:
        ours = bench()
        self.make_unwritable(ours)
        ours.save(2, 1.0)
        cross_until(ours, lambda: bool(ours.said), "a warning")
        assert ours.said[0].startswith("WARNING: the checkpoint of step 2 could not be saved: ")
        assert f"{ours.saver.root}" in ours.said[0]
        assert "nothing is saved yet. Training goes on, and it is tried again; this is failure 1 of 5" in ours.said[0]
        assert ours.saver.saved_step is None
        ours.saver.root.unlink()
        cross_until(ours, lambda: ours.saver.is_retry_due, "a second try")
        ours.save(3, 3.0)
        ours.saver.finish()
        assert ours.steps() == [3]
        assert ours.said[1] == "the checkpoint of step 3 is saved: storage works again"
        assert ours.saver.signals() == (0, 0, 0)

    def test_after_a_failure_only_time_decides_when_it_is_tried_again(self, bench: MakeBench) -> None:
        ours = bench("--checkpoint.every_steps", "2", "--checkpoint.retry_after", "1min")
        assert ours.saver.is_due(4)
        self.make_unwritable(ours)
        ours.save(4, 1.0)
        ours.saver.finish()
        assert not ours.saver.is_due(6), "the next failures would follow at once"
        ours.saver.root.unlink()
        ours.saver.settle(Progress(step=7))
        assert ours.saver.is_due(8)

    def test_the_last_tries_are_made_whatever_has_failed_before(self, bench: MakeBench) -> None:
        ours = bench("--checkpoint.max_failed", "2")
        self.make_unwritable(ours)
        ours.save(2, 1.0)
        ours.saver.finish()
        with pytest.raises(CheckpointError, match="could not be saved in 3 tries"):
            ours.saver.settle(Progress(step=3))
        assert len(ours.said) == 4

    def test_a_stop_where_the_start_began_saves_nothing(self, bench: MakeBench) -> None:
        assert bench().saver.stopped(Progress()) is False
        first = bench()
        assert first.steps() == []
        first.saver.settle(Progress(step=5))
        second, progress = bench(), Progress()
        second.resume(progress)
        self.make_nothing_writable(second)
        assert second.saver.stopped(progress) is False
        assert second.said == []
        progress.step = 6
        with pytest.raises(CheckpointError, match="the state of step 6 could not be saved"):
            second.saver.stopped(progress)

    def make_nothing_writable(self, ours: Bench) -> None:
        ours.saver.root.rename(ours.saver.root.with_name("aside"))
        self.make_unwritable(ours)

    def test_up_to_a_limit(self, bench: MakeBench) -> None:
        ours = bench("--checkpoint.max_failed", "2")
        self.make_unwritable(ours)
        ours.save(2, 1.0)
        ours.saver.finish()
        ours.save(4, 1.0)
        with pytest.raises(CheckpointError, match=r"step 4 could .* That was failure 2 of 2 in a row \(checkpoint.max"):
            ours.saver.finish()

    def test_a_run_does_not_end_without_its_last_state(self, bench: MakeBench, monkeypatch: pytest.MonkeyPatch) -> None:
        ours = bench("--checkpoint.retry_after", "1min")
        slept: list[float] = []
        own = time.sleep
        monkeypatch.setattr(
            saving.time, "sleep", lambda seconds: slept.append(seconds) if seconds >= 1 else own(seconds)
        )
        ours.saver.settle(Progress(step=2))
        root = ours.saver.root
        root.rename(root.with_name("aside"))
        self.make_unwritable(ours)
        with pytest.raises(CheckpointError) as caught:
            ours.saver.settle(Progress(step=4))
        assert str(caught.value) == (
            "the state of step 4 could not be saved in 3 tries, see above; the last good one is that of step 2, where a "
            "start of this run goes on"
        )
        assert len(ours.said) == 3
        assert slept == [1.0, 2.0], "not after the last try"

    def test_a_good_one_is_never_deleted_for_one_that_failed(self, bench: MakeBench) -> None:
        ours = bench("--checkpoint.keep", "1")
        ours.saver.settle(Progress(step=2))
        (ours.saver.root / "4").write_text("in the way of the name")
        ours.save(4, 1.0)
        # Replaced by a complete checkpoint, as a damaged one of this step would be.
        ours.saver.finish()
        assert ours.saver.saved_step == 4
        assert ours.steps() == [4]

    def test_a_writer_that_is_killed(self, bench: MakeBench) -> None:
        ours = bench()
        ours.saver.settle(Progress(step=1))
        writer: Any = ours.saver._writer
        os.kill(writer._process.pid, signal.SIGSTOP)
        ours.save(2, 1.0)
        os.kill(writer._process.pid, signal.SIGKILL)
        cross_until(ours, lambda: bool(ours.said), "a warning")
        assert "the process that writes checkpoints has ended (signal 9)" in ours.said[0]
        assert "the last good one is that of step 1" in ours.said[0]
        ours.saver.settle(Progress(step=3))
        assert ours.steps() == [1, 3]

    def test_storage_that_takes_too_long(self, bench: MakeBench) -> None:
        ours = bench("--checkpoint.write_timeout", "0.3s")
        ours.saver.settle(Progress(step=1))
        writer: Any = ours.saver._writer
        os.kill(writer._process.pid, signal.SIGSTOP)
        ours.save(2, 1.0)
        cross_until(ours, lambda: bool(ours.said), "a warning")
        assert "storage has not finished after 0.3s (checkpoint.write_timeout)" in ours.said[0]

    def test_a_rewound_step_that_could_not_be_saved_is_still_to_be_saved(self, bench: MakeBench) -> None:
        ours = bench()
        ours.saver.settle(Progress(step=2))
        progress = Progress(step=3)
        assert ours.saver.rewind(progress)
        root = ours.saver.root
        aside = root.with_name("aside")
        root.rename(aside)
        self.make_unwritable(ours)
        ours.row = 3
        ours.saver.save(progress)
        ours.saver.finish()
        assert len(ours.said) == 1
        root.unlink()
        aside.rename(root)
        ours.saver.settle(progress)
        found, _ = newest_good(root)
        assert found is not None
        assert found.manifest["stream"]["lanes"] == {"0": {"row": 3}}

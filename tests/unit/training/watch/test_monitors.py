from __future__ import annotations

import math
import sys
import threading
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from training.config import Config, to_dict
from training.recipe import load_config
from training.record.unwritten import Unwritten
from training.watch import monitors as monitors_module
from training.watch.monitors import Monitors

LINE = {
    "step": 3, "tokens_seen": 96, "loss": 2.5, "lr": 1e-3, "grad_norm": math.nan, "penalty": None, "mfu": 0.5,
    "tokens_per_second": 12.0, "target_tokens_per_second": 6.0, "flops": 1e12, "hardware_flops": 2e12,
    "communication_bytes": 10.0, "peak_memory_bytes": 7, "skipped_steps": 1, "step_seconds": 8.0, "data_seconds": 0.25,
    "communication_seconds": None, "stall_seconds": 0.0, "data_hash": "ab",
}  # fmt: skip
SCORES = {
    "old_bits": {"kind": "bits_per_byte", "score": 1.5, "n": 10},
    "choices": {"kind": "multiple_choice", "score": 0.75, "posterior": {"score": 0.875, "samples": 4}},
}


def config(recipe: Path, *overrides: str) -> Config:
    """A configuration whose run directory is there, as it is when a run has begun."""
    found = load_config(recipe, list(overrides))
    found.run.dir.mkdir(exist_ok=True)
    return found


class Told:
    """Collects what the user is told."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def __call__(self, text: str) -> None:
        self.lines.append(text)


def shown(run_dir: Path) -> dict[str, dict[int, float]]:
    """What TensorBoard shows: values by name and step."""
    events = EventAccumulator(str(run_dir / "tensorboard")).Reload()
    return {name: {each.step: each.value for each in events.Scalars(name)} for name in events.Tags()["scalars"]}


class TestTensorBoard:
    def test_a_line_and_scores(self, recipe: Path) -> None:
        found = config(recipe)
        told = Told()
        monitors = Monitors(found, rank=0, first_step=0, say=told)
        assert list(found.run.dir.iterdir()) == [], "it is opened with the first numbers"
        monitors.write_scores(0, SCORES)
        monitors.write(LINE)
        monitors.write_scores(3, {"old_bits": SCORES["old_bits"]})
        monitors.close()
        numbers = shown(found.run.dir)
        assert math.isnan(numbers.pop("train/grad_norm")[3])
        assert numbers == {
            "train/loss": {3: 2.5}, "train/lr": {3: pytest.approx(1e-3)}, "train/skipped_steps": {3: 1},
            "train/tokens_seen": {3: 96}, "speed/tokens_per_second": {3: 12}, "speed/target_tokens_per_second": {3: 6},
            "speed/mfu": {3: 0.5}, "speed/flops": {3: pytest.approx(1e12)}, "speed/hardware_flops": {3: pytest.approx(2e12)},
            "speed/communication_bytes": {3: 10}, "speed/peak_memory_bytes": {3: 7}, "seconds/step": {3: 8},
            "seconds/data": {3: 0.25}, "seconds/stall": {3: 0}, "eval/old_bits": {0: 1.5, 3: 1.5},
            "eval/choices": {0: 0.75}, "eval/choices (posterior)": {0: 0.875},
        }  # fmt: skip
        assert told.lines == []

    def test_a_resumed_run_takes_the_place_of_what_it_repeats(self, recipe: Path) -> None:
        found = config(recipe)
        first = Monitors(found, rank=0, first_step=0, say=Told())
        first.write_scores(0, SCORES)
        for step in range(1, 7):
            first.write({**LINE, "step": step, "loss": float(step)})
        first.write_scores(4, {"old_bits": {"score": 4.0}})
        first.close()
        # Its last checkpoint was that of step 4.
        second = Monitors(found, rank=0, first_step=4, say=Told())
        second.write({**LINE, "step": 5, "loss": 50.0})
        second.close()
        numbers = shown(found.run.dir)
        assert numbers["train/loss"] == {1: 1, 2: 2, 3: 3, 4: 4, 5: 50}
        assert numbers["eval/old_bits"] == {0: 1.5, 4: 4.0}

    def test_going_back_to_a_checkpoint_does_so_too(self, recipe: Path) -> None:
        found = config(recipe)
        monitors = Monitors(found, rank=0, first_step=0, say=Told())
        monitors.go_back(0)
        for step in range(1, 7):
            monitors.write({**LINE, "step": step, "loss": float(step)})
        monitors.go_back(2)
        monitors.write({**LINE, "step": 3, "loss": 30.0})
        monitors.close()
        assert shown(found.run.dir)["train/loss"] == {1: 1, 2: 2, 3: 30}

    def test_nothing_is_left_running(self, recipe: Path) -> None:
        before = set(threading.enumerate())
        monitors = Monitors(config(recipe), rank=0, first_step=0, say=Told())
        monitors.write(LINE)
        assert all(thread.daemon for thread in set(threading.enumerate()) - before)
        monitors.close()
        assert set(threading.enumerate()) == before

    @pytest.mark.parametrize(("rank", "overrides"), [(1, []), (0, ["--monitor.tensorboard", "false"])])
    def test_without_it_nothing_is_written(self, recipe: Path, rank: int, overrides: list[str]) -> None:
        found = config(recipe, *overrides)
        monitors = Monitors(found, rank=rank, first_step=0, say=Told())
        monitors.write(LINE)
        monitors.write_scores(3, SCORES)
        monitors.go_back(1)
        monitors.close()
        assert list(found.run.dir.iterdir()) == []

    def test_where_it_is_not_installed_that_is_said_once(self, recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "tensorboard.compat.proto.event_pb2", None)
        told = Told()
        monitors = Monitors(config(recipe), rank=0, first_step=0, say=told)
        for _ in range(3):
            monitors.write(LINE)
        monitors.write_scores(3, SCORES)
        monitors.close()
        (line,) = told.lines
        assert line.startswith("going on without TensorBoard: ModuleNotFoundError: ")

    def test_what_storage_refuses_is_shown_later(self, recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        found = config(recipe)
        told, unwritten_told = Told(), Told()
        unwritten = Unwritten(unwritten_told)
        monkeypatch.setattr(monitors_module, "_FLUSH_SECONDS", 0.0)
        monitors = Monitors(found, rank=0, first_step=0, say=told, unwritten=unwritten)
        monitors.write({**LINE, "step": 1, "loss": 1.0})
        away = found.run.dir.rename(found.run.dir.with_name("away"))
        for step in (2, 3):
            monitors.write({**LINE, "step": step, "loss": float(step)})
        monitors.go_back(2)
        monitors.write({**LINE, "step": 3, "loss": 30.0})
        assert not found.run.dir.exists(), "it could not come back if it was made anew"
        away.rename(found.run.dir)
        assert unwritten.retry() is None
        monitors.close()
        assert shown(found.run.dir)["train/loss"] == {1: 1, 2: 2, 3: 30}
        assert told.lines == []
        assert [line.partition(":")[0] for line in unwritten_told.lines] == [
            "WARNING", "storage takes what is written again; written late"
        ]  # fmt: skip

    def test_what_is_missing_at_the_end_is_known(self, recipe: Path) -> None:
        found = config(recipe)
        told = Told()
        unwritten = Unwritten(told)
        monitors = Monitors(found, rank=0, first_step=0, say=told, unwritten=unwritten)
        found.run.dir.rmdir()
        monitors.write(LINE)
        monitors.close()
        assert unwritten.retry() == "3 events for TensorBoard (No such file or directory)"
        (line,) = told.lines
        assert line.startswith("WARNING: storage does not take 3 events for TensorBoard: No such file or directory. ")


class FakeRun:
    def __init__(self) -> None:
        self.logged: list[dict[str, Any]] = []
        self.metrics: list[Any] = []
        self.is_finished = False

    def define_metric(self, *args: Any, **values: Any) -> None:
        self.metrics.append((args, values))

    def log(self, values: dict[str, Any]) -> None:
        self.logged.append(values)

    def finish(self) -> None:
        self.is_finished = True


class FakeWandB(ModuleType):
    """Stands for the package, which the tests don't install."""

    def __init__(self) -> None:
        super().__init__("wandb")
        self.starts: list[dict[str, Any]] = []
        self.runs: list[FakeRun] = []
        self.Settings = lambda **values: SimpleNamespace(**values)

    def init(self, **values: Any) -> FakeRun:
        self.starts.append(values)
        self.runs.append(FakeRun())
        return self.runs[-1]


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> FakeWandB:
    found = FakeWandB()
    found.__spec__ = SimpleNamespace(origin="wandb/__init__.py")  # type: ignore[assignment]
    monkeypatch.setitem(sys.modules, "wandb", found)
    return found


class TestWeightsAndBiases:
    ON = ("--monitor.wandb_project", "finetuning", "--monitor.tensorboard", "false")

    def test_what_is_sent(self, recipe: Path, wandb: FakeWandB, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("SOME_API_KEY", "sesame")
        found = config(recipe, *self.ON)
        monitors = Monitors(found, rank=0, first_step=0, say=Told())
        assert wandb.starts == []
        monitors.write(LINE)
        monitors.write_scores(3, SCORES)
        monitors.close()
        (start,), (run,) = wandb.starts, wandb.runs
        settings = vars(start.pop("settings"))
        assert {
            "save_code": False,
            "disable_code": True,
            "disable_git": True,
            "x_disable_meta": True,
        }.items() <= settings.items()
        assert start.pop("config") == to_dict(found)
        assert len(start.pop("id")) == 16
        assert start == {
            "project": "finetuning",
            "name": found.run.dir.name,
            "dir": str(found.run.dir),
            "resume": "allow",
        }
        assert "sesame" not in str((start, settings, run.logged))
        assert run.metrics == [(("*",), {"step_metric": "step"})]
        assert run.logged[0]["train/loss"] == 2.5
        assert run.logged[0]["step"] == 3
        assert "train/penalty" not in run.logged[0]
        assert run.logged[1] == {
            "step": 3,
            "eval/old_bits": 1.5,
            "eval/choices": 0.75,
            "eval/choices (posterior)": 0.875,
        }
        assert run.is_finished

    def test_every_start_continues_the_same_run_and_another_directory_is_another(
        self, recipe: Path, wandb: FakeWandB
    ) -> None:
        for directory in ("one", "one", "two"):
            found = config(recipe, *self.ON, "--run.dir", str(recipe.parent / directory))
            Monitors(found, rank=0, first_step=0, say=Told()).write(LINE)
        first, second, third = (start["id"] for start in wandb.starts)
        assert first == second != third

    def test_going_back_goes_on_in_the_same_run(self, recipe: Path, wandb: FakeWandB) -> None:
        monitors = Monitors(config(recipe, *self.ON), rank=0, first_step=0, say=Told())
        monitors.write(LINE)
        monitors.go_back(1)
        monitors.write({**LINE, "step": 2})
        (run,) = wandb.runs
        assert [values["step"] for values in run.logged] == [3, 2]

    def test_a_service_that_cannot_be_reached_does_not_end_the_run_or_the_other_monitor(
        self, recipe: Path, wandb: FakeWandB, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def unreachable(**_: Any) -> None:
            raise ConnectionError("no route to host")

        monkeypatch.setattr(wandb, "init", unreachable)
        found = config(recipe, "--monitor.wandb_project", "finetuning")
        told = Told()
        monitors = Monitors(found, rank=0, first_step=0, say=told)
        monitors.write(LINE)
        monitors.write({**LINE, "step": 4})
        monitors.close()
        assert told.lines == ["going on without wandb: ConnectionError: no route to host"]
        assert shown(found.run.dir)["train/loss"] == {3: 2.5, 4: 2.5}

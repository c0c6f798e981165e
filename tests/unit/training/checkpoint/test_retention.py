from __future__ import annotations

import json
import math
import subprocess
import sys
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline.config import DataConfig
from evals.config import EvalConfig
from tests.unit.training.minimal import problems_of, write_recipe
from training.checkpoint.retention import Retention, retention_of, scores
from training.config import CheckpointConfig, Config, TrainConfig
from training.length import resolve


def config_of(train: dict[str, Any] | None = None, **checkpoint: Any) -> Config:
    """A run of 100 steps of 10 rows of 100 tokens."""
    return Config(
        data=DataConfig(sources={}, tokenizer=Path("x"), seq_len=100),
        train=TrainConfig(**{"steps": 100, "global_batch_rows": 10, **(train or {})}),
        checkpoint=CheckpointConfig(**checkpoint),
        eval=EvalConfig(every_steps=25),
    )


class TestFromTheRecipe:
    def test_every_unit(self) -> None:
        config = config_of(
            keep_at=("7 steps", "7500 tokens", "50 %", "0.25 epochs", "12.5 %"), keep_every="1.5e4 tokens"
        )
        found = retention_of(config, rows_per_epoch=330)
        assert found.points == ((7, "7 steps"), (8, "7500 tokens"), (50, "50 %"), (9, "0.25 epochs"), (13, "12.5 %"))
        assert found.stretch == 15

    def test_epochs_of_unknown_length_are_left_out(self) -> None:
        found = retention_of(config_of(keep_at=("1 epoch", "3 steps"), keep_every="1 epoch"), None)
        assert (found.points, found.stretch) == (((3, "3 steps"),), None)

    def test_where_the_run_began(self) -> None:
        assert retention_of(config_of(), None).first_step == 0
        assert retention_of(config_of(), None, 25).first_step == 25

    def test_a_percentage_is_of_the_resolved_run(self) -> None:
        config = config_of({"epochs": 2.0}, keep_at=("50 %",))
        assert retention_of(resolve(config, 400), 400).points == ((40, "50 %"),)
        assert retention_of(resolve(config, None), None).points == ()

    def test_the_points_of_the_study(self) -> None:
        """192 rows of 4096 tokens: 786,432 tokens per step."""
        billions = (0.25, 0.5, 1, 2, 4, 8, 16, 20)
        config = Config(
            data=DataConfig(sources={}, tokenizer=Path("x"), seq_len=4096),
            train=TrainConfig(tokens=20_000_000_000, global_batch_rows=192),
            checkpoint=CheckpointConfig(keep_at=tuple(f"{n}e9 tokens" for n in billions)),
        )
        steps = [step for step, _ in retention_of(resolve(config, None), None).points]
        assert steps == [318, 636, 1272, 2544, 5087, 10173, 20346, 25432]
        assert list(resolve(config, None).length_problems()) == []

    def test_scores_matter_only_for_the_best(self) -> None:
        assert retention_of(config_of(), None).scored_every == 0
        assert retention_of(config_of(keep_best="a.accuracy"), None).scored_every == 25
        assert [step for step in range(1, 60) if Retention(every_steps=100, keep=1, scored_at=(7,)).is_due(step)] == [7]


class TestIsDue:
    def test_what_is_asked_for(self) -> None:
        retention = Retention(
            every_steps=10, keep=1, points=((7, "a"), (23, "b")), stretch=Fraction(25, 2), scored_every=16
        )
        due = [step for step in range(1, 41) if retention.is_due(step)]
        # Stretches of 12.5 steps end at 12.5, 25 and 37.5: the first steps at or after these.
        assert due == [7, 10, 13, 16, 20, 23, 25, 30, 32, 38, 40]

    @given(every=st.integers(1, 9), stretch=st.fractions(1, 20, max_denominator=50))
    def test_of_every_stretch_exactly_one_step_is_its_end(self, every: int, stretch: Fraction) -> None:
        with_it = Retention(every_steps=10**9, keep=1, stretch=stretch)
        due = [step for step in range(1, 200) if with_it.is_due(step)]
        assert due == [step for k in range(1, 200) if (step := math.ceil(k * stretch)) < 200]


class TestKept:
    def test_reasons(self) -> None:
        retention = Retention(
            every_steps=10,
            keep=2,
            points=((7, "700 tokens"), (15, "15 %"), (90, "late")),
            stretch=Fraction(20),
            best="a.b",
        )
        kept = retention.kept([10, 20, 30, 40, 50, 60], newest=50, scores={10: 1.0, 30: 3.0, 40: 3.0, 60: 9.0})
        assert kept == {
            10: ["at 700 tokens"], 20: ["at 15 %", "after every 20 steps"], 30: ["the best a.b"],
            40: ["of the newest 2", "after every 20 steps"], 50: ["of the newest 2"],
        }  # fmt: skip
        assert retention.superfluous([10, 20, 30, 40, 50, 60], newest=50) == [30]

    def test_the_newest_need_not_be_there_yet(self) -> None:
        retention = Retention(every_steps=10, keep=1)
        assert retention.kept([10, 20], newest=30) == {30: ["the newest"]}
        assert retention.superfluous([10, 20], newest=30) == [10, 20]

    def test_a_point_that_could_not_be_saved_in_time_is_made_up_for(self) -> None:
        retention = Retention(every_steps=10, keep=1, points=((15, "x"),), stretch=Fraction(15))
        assert list(retention.kept([10, 20, 30, 40], newest=40)) == [20, 30, 40]

    def test_what_was_passed_before_the_run_began_keeps_nothing(self) -> None:
        """A run that began with a checkpoint of step 45 of another: points 20 and 45 and stretches until 40 are that one's."""
        points = ((20, "20 %"), (45, "45 %"), (46, "46 %"))
        retention = Retention(every_steps=10, keep=1, points=points, stretch=Fraction(20), first_step=45)
        assert retention.kept([50, 55, 60, 70, 80, 85], newest=85) == {
            50: ["at 46 %"], 60: ["after every 20 steps"], 80: ["after every 20 steps"], 85: ["the newest"]
        }  # fmt: skip
        # Whatever says so: one that was made until then is the run's own, with all that it is kept for.
        assert list(retention.kept([20, 40, 50, 85], newest=85)) == [20, 40, 50, 85]

    def test_scores_without_a_wish_for_the_best_keep_nothing(self) -> None:
        assert list(Retention(every_steps=1, keep=1).kept([1, 2], newest=2, scores={1: 5.0})) == [2]


@st.composite
def retentions(draw: st.DrawFn) -> Retention:
    points = draw(st.lists(st.integers(1, 120), max_size=4))
    return Retention(
        every_steps=draw(st.integers(1, 15)),
        keep=draw(st.integers(1, 4)),
        points=tuple((point, f"{point} steps") for point in points),
        stretch=draw(st.none() | st.fractions(1, 40, max_denominator=20)),
        best=draw(st.sampled_from([None, "task.metric"])),
        first_step=draw(st.just(0) | st.integers(1, 120)),
    )


STEPS = st.sets(st.integers(1, 120), max_size=20)
SCORES = st.dictionaries(st.integers(1, 120), st.floats(-5, 5), max_size=20)


class TestProperties:
    @given(retention=retentions(), existing=STEPS, newest=st.integers(1, 120), scored=SCORES)
    def test_the_newest_stays_and_later_ones_are_let_alone(
        self, retention: Retention, existing: set[int], newest: int, scored: dict[int, float]
    ) -> None:
        deleted = retention.superfluous(existing, newest=newest, scores=scored)
        kept = retention.kept(existing, newest=newest, scores=scored)
        assert newest in kept
        assert set(deleted) <= {step for step in existing if step < newest}
        assert set(deleted) | set(kept) == {step for step in existing if step <= newest} | {newest}
        assert not set(deleted) & set(kept)

    @given(retention=retentions(), existing=STEPS, newest=st.integers(1, 120), scored=SCORES)
    def test_never_more_than_is_asked_for(
        self, retention: Retention, existing: set[int], newest: int, scored: dict[int, float]
    ) -> None:
        stretches = 0 if retention.stretch is None else math.floor(newest / retention.stretch)
        most = retention.keep + len(retention.points) + stretches + (retention.best is not None)
        assert len(retention.kept(existing, newest=newest, scores=scored)) <= most

    @given(retention=retentions(), existing=STEPS, newest=st.integers(1, 120), scored=SCORES)
    def test_deleting_twice_is_deleting_once(
        self, retention: Retention, existing: set[int], newest: int, scored: dict[int, float]
    ) -> None:
        left = existing - set(retention.superfluous(existing, newest=newest, scores=scored))
        assert retention.superfluous(left, newest=newest, scores=scored) == []

    @given(
        retention=retentions(),
        failing=st.sets(st.integers(1, 120)),
        scored=SCORES,
        # Where the run is killed and resumed at its newest checkpoint.
        kills=st.sets(st.integers(1, 120), max_size=5),
    )
    def test_over_a_whole_run(
        self, retention: Retention, failing: set[int], scored: dict[int, float], kills: set[int]
    ) -> None:
        """Saves that are due and do not fail, kills in between: points once passed stay, and the best so far."""
        there: set[int] = set()
        for_good: set[int] = set()
        seen: dict[int, float] = {}
        begin = step = retention.first_step
        kills = set(kills)
        while step < 120:
            step += 1
            if step in kills:
                kills.remove(step)
                step = max(there, default=begin)
                continue
            if retention.is_due(step) and step not in failing:
                before = there
                there = (there | {step}) - set(retention.superfluous(there, newest=step, scores=seen))
                assert step in there
                assert there >= set(sorted(before | {step})[-retention.keep :]), "the newest of all"
                for_good |= {point for point, _ in retention.points if point == step}
                assert for_good <= there
                if retention.best is not None and (known := [seen[s] for s in before if s in seen]):
                    assert max(seen[s] for s in there if s in seen) == max(known)
            if step in scored:
                seen[step] = scored[step]
        for point, _ in retention.points:
            later = [
                s
                for s in range(max(point, begin + 1), 121)
                if point > begin and retention.is_due(s) and s not in failing
            ]
            assert not later or later[0] in there


class TestScores:
    def write(self, folder: Path, step: int, **result: Any) -> None:
        (folder / "evals").mkdir(exist_ok=True)
        (folder / "evals" / f"{step}.json").write_text(json.dumps({"schema": 1, "tasks": {"old": result}}))

    def test_larger_is_better_whatever_the_metric(self, tmp_path: Path) -> None:
        self.write(tmp_path, 10, metric="bits_per_byte", higher_is_better=False, score=0.75)
        self.write(tmp_path, 20, metric="accuracy", higher_is_better=True, score=0.5)
        assert scores(tmp_path, "old.bits_per_byte", [10, 20, 30]) == {10: -0.75}
        assert scores(tmp_path, "old.accuracy", [10, 20, 30]) == {20: 0.5}
        assert scores(tmp_path, "old.accuracy", [10]) == {}
        assert scores(tmp_path, None, [10, 20]) == {}

    @pytest.mark.parametrize(
        "content", ["", "{", "[]", "{}", '{"tasks": 3}', '{"tasks": {"old": 3}}', '{"tasks": {"new": {}}}']
    )
    def test_what_cannot_be_read_is_no_score(self, tmp_path: Path, content: str) -> None:
        (tmp_path / "evals").mkdir()
        (tmp_path / "evals" / "10.json").write_text(content)
        assert scores(tmp_path, "old.accuracy", [10]) == {}

    def test_a_score_that_is_no_number_is_none(self, tmp_path: Path) -> None:
        self.write(tmp_path, 10, metric="accuracy", higher_is_better=True, score=None)
        assert scores(tmp_path, "old.accuracy", [10]) == {}


def checkpoint_problems(folder: Path, text: str) -> list[str]:
    """Problems of the minimal recipe, of 20 steps of 12 rows of 64 tokens, with these settings of [checkpoint]."""
    path = write_recipe(folder, more=f"[checkpoint]\n{text}\n")
    return [problem.replace(f"({path}): ", "") for problem in problems_of(path)]


class TestProblems:
    @pytest.mark.parametrize(
        "text",
        [
            'keep_at = ["1 step", "100 %", "3 epochs", "15360 tokens"]', 'keep_every = "1 step"', 'keep_every = "20 steps"',
            'keep_every = "30 epochs"',
        ],
    )  # fmt: skip
    def test_none(self, tmp_path: Path, text: str) -> None:
        assert checkpoint_problems(tmp_path, text) == []

    @pytest.mark.parametrize(
        ("text", "problem"),
        [
            (
                'keep_at = ["5 steps", "5"]',
                "checkpoint.keep_at = ['5 steps', '5'] '5' is no length; write a number and its unit: "
                '"10 %" of the run, "2e9 tokens", "0.5 epochs" or "100 steps"',
            ),
            (
                'keep_every = "1 hour"',
                "checkpoint.keep_every '1 hour' is no length; write a number and its unit: "
                '"10 %" of the run, "2e9 tokens", "0.5 epochs" or "100 steps"',
            ),
            (
                'keep_at = ["15361 tokens"]',
                "checkpoint.keep_at = ['15361 tokens'] '15361 tokens' is step 21, and the run has 20; take it out",
            ),
            ('keep_at = ["101 %"]', "checkpoint.keep_at = ['101 %'] '101 %' is step 21, and the run has 20; take it out"),
            (
                'keep_at = ["101 %", "5 steps", "2 epochs", "120 %"]',
                "checkpoint.keep_at = ['101 %', '5 steps', '2 epochs', '120 %'] '101 %' is step 21, '120 %' is step 24, and the run has 20; take them out",
            ),
            ('keep_at = ["0 %"]', "checkpoint.keep_at = ['0 %'] '0 %' is before the first step; take it out"),
            (
                'keep_every = "767 tokens"',
                "checkpoint.keep_every '767 tokens' is 0.998698 steps; give one step at least, and no more than the 20 of the run",
            ),
            (
                'keep_every = "21 steps"',
                "checkpoint.keep_every '21 steps' is 21 steps; give one step at least, and no more than the 20 of the run",
            ),
        ],
    )  # fmt: skip
    def test_lengths(self, tmp_path: Path, text: str, problem: str) -> None:
        path = write_recipe(tmp_path, more=f"[checkpoint]\n{text}\n")
        found = [each.replace(f"({path}): ", "") for each in problems_of(path)]
        assert found == [problem]

    def test_epochs_are_looked_at_once_they_are_known(self, tmp_path: Path) -> None:
        config = config_of(keep_at=("2 epochs",), keep_every="1 epoch")
        assert list(config.length_problems()) == []
        assert list(config.length_problems(500)) == []
        assert list(config.length_problems(501)) == [
            ("checkpoint.keep_at", "'2 epochs' is step 101, and the run has 100; take it out")
        ]

    def test_a_wrong_point_hides_no_other_problem(self, tmp_path: Path) -> None:
        found = checkpoint_problems(tmp_path, 'keep_at = ["x"]\n[adapter]\nkind = "monteclora"\nstart_step = 30')
        assert [problem.split(" ")[0] for problem in found] == ["checkpoint.keep_at", "adapter.start_step"]

    @pytest.mark.parametrize(
        ("best", "message"),
        [
            ("old_bits", 'must be a task of [eval] and its metric, such as "old.accuracy"'),
            (".accuracy", 'must be a task of [eval] and its metric, such as "old.accuracy"'),
            ("old_bit.bits_per_byte", "there is no [eval.tasks.old_bit]; did you mean old_bits?"),
            ("gsm8k.accuracy", "there is no [eval.tasks.gsm8k]; there are old_bits"),
            ("old_bits.accuracy", "the metric of that task is bits_per_byte; write old_bits.bits_per_byte"),
            ("old_bits.", "the metric of that task is bits_per_byte; write old_bits.bits_per_byte"),
        ],
    )
    def test_the_best(self, tmp_path: Path, best: str, message: str) -> None:
        path = write_recipe(tmp_path, more=f'[checkpoint]\nkeep_best = "{best}"\n')
        (problem,) = problems_of(path, "--eval.every_steps", "5")
        assert problem == f'checkpoint.keep_best = "{best}" ({path}): {message}'

    def test_the_best_of_no_tasks(self, tmp_path: Path) -> None:
        path = write_recipe(tmp_path)
        path.write_text(
            path.read_text().split("[eval")[0] + '[eval]\nevery_steps = 5\n[checkpoint]\nkeep_best = "a.b"\n'
        )
        assert problems_of(path) == [f'checkpoint.keep_best = "a.b" ({path}): there is no [eval.tasks.a]']

    def test_the_best_needs_scores_on_the_way(self, tmp_path: Path) -> None:
        path = write_recipe(tmp_path, more='[checkpoint]\nkeep_best = "old_bits.bits_per_byte"\n')
        (problem,) = problems_of(path)
        assert problem.endswith("needs scores on the way; set eval.every_steps, eval.every or eval.at")
        assert problems_of(path, "--eval.every_steps", "5") == []
        assert problems_of(path, "--eval.at", "5 steps") == []
        (problem,) = problems_of(path, "--eval.every_steps", "x")
        assert problem.startswith("eval.every_steps")


def test_it_needs_no_torch() -> None:
    code = "import sys, training.checkpoint.retention; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[4], check=True, timeout=60)

from __future__ import annotations

import dataclasses
import json
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from evals.config import EvalConfig, TaskConfig
from evals.errors import EvalError
from evals.harness.specs import parse_specs
from evals.scoring.stopping import Stopped
from tests.unit.training.minimal import minimal_config
from training import evaluation
from training.config import Config
from training.evaluation import Evaluation, Suites, check_inputs
from training.progress import Progress
from training.recipe import ConfigError
from training.record.unwritten import Unwritten


def tokenizer(vocab_size: int, bos_id: int | None) -> Any:
    return SimpleNamespace(vocab_size=vocab_size, bos_id=bos_id)


def random_model(tmp_path: Path) -> Config:
    config = minimal_config(tmp_path)
    model = dataclasses.replace(config.model, base=None)
    return dataclasses.replace(config, model=model, eval=EvalConfig())


def test_a_tokenizer_that_fits(tmp_path: Path) -> None:
    config = random_model(tmp_path)
    size = config.vocab_size()
    assert size is not None
    check_inputs(tokenizer(size, 1), config)
    check_inputs(tokenizer(size - 1, 1), config)


def test_every_contradiction_is_named(tmp_path: Path) -> None:
    config = random_model(tmp_path)
    task = TaskConfig(kind="bits_per_byte", domain="new", path=tmp_path / "heldout.jsonl")
    config = dataclasses.replace(config, eval=EvalConfig(tasks={"new": task}))
    size = config.vocab_size()
    assert size is not None
    with pytest.raises(ConfigError) as caught:
        check_inputs(tokenizer(size + 1, None), config)
    named = f'data.tokenizer = "{config.data.tokenizer}"'
    assert caught.value.problems == [
        f"{named}: has {size + 1} ids, the model knows only {size}",
        f"{named}: has no BOS token, which the tasks of [eval] start with",
    ]


@pytest.mark.parametrize(("rank", "left"), [(0, ["0", "8"]), (1, ["0", "12", "8", "9"])])
def test_scores_of_steps_that_will_come_again_are_dropped(tmp_path: Path, rank: int, left: list[str]) -> None:
    config = minimal_config(tmp_path)
    folder = config.run.dir / "evals"
    folder.mkdir(parents=True)
    for step in (0, 8, 9, 12):
        (folder / f"{step}.json").touch()
    # Of jobs of their own, and answers of a suite that was interrupted.
    (folder / "kept").mkdir()
    for name in ("8.forgetting.json", "12.forgetting.json", "kept/8.jsonl", "kept/9.jsonl", "kept/9.other-1.jsonl"):
        (folder / name).touch()
    engine: Any = SimpleNamespace(world=SimpleNamespace(rank=rank))
    unused: Any = None
    Evaluation(engine, unused, config, unused, unused, unused, Unwritten(print)).drop_after(8)
    assert sorted(path.stem for path in folder.glob("*.json") if path.stem.isdigit()) == left
    later = [] if rank == 0 else ["12.forgetting.json", "9.jsonl", "9.other-1.jsonl"]
    others = [path.name for path in (*folder.glob("*.forgetting.json"), *folder.glob("kept/*"))]
    assert sorted(others) == sorted(["8.forgetting.json", "8.jsonl", *later])


def test_held_out_files_are_read_before_the_start(tmp_path: Path) -> None:
    config = random_model(tmp_path)
    path = tmp_path / "bad.jsonl"
    path.write_text('{"id": "a", "text": "x"}\n{"id"\n')
    task = TaskConfig(kind="bits_per_byte", domain="new", path=path)
    config = dataclasses.replace(config, eval=EvalConfig(tasks={"new": task}, at_start=False))
    encoder: Any = SimpleNamespace(vocab_size=8, bos_id=1, eos_id=2, encode=lambda text: [2] * len(text))
    with pytest.raises(EvalError, match=r"bad\.jsonl:2"):
        check_inputs(encoder, config)


@pytest.mark.parametrize(
    ("at_start", "every", "due"),
    [(True, 0, [0, 20]), (False, 0, [20]), (True, 8, [0, 8, 16, 20]), (False, 5, [5, 10, 15, 20])],
)
def test_when_the_model_is_scored(tmp_path: Path, at_start: bool, every: int, due: list[int]) -> None:
    config = random_model(tmp_path)
    assert config.train.steps == 20
    config = dataclasses.replace(config, eval=EvalConfig(at_start=at_start, every_steps=every))
    unused: Any = None
    evaluation = Evaluation(unused, unused, config, unused, unused, unused, Unwritten(print))
    assert [step for step in range(21) if evaluation.is_due(step)] == due
    config = dataclasses.replace(config, eval=dataclasses.replace(config.eval, at_steps=(3, 8)))
    evaluation = Evaluation(unused, unused, config, unused, unused, unused, Unwritten(print))
    assert [step for step in range(21) if evaluation.is_due(step)] == sorted({*due, 3, 8})


class FakeAdapter:
    """Remembers which draws it was asked for."""

    def __init__(self) -> None:
        self.drawn: list[tuple[int, int]] = []

    def sampled(self, index: int, seed: int) -> Any:
        self.drawn.append((index, seed))
        return nullcontext()


@pytest.mark.parametrize(
    ("kind", "samples", "passed"), [("monteclora", 3, 3), ("monteclora", 0, 0), ("lora", 3, 0), ("none", 3, 0)]
)
def test_only_monteclora_is_sampled_and_with_the_runs_seed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: Any, samples: int, passed: int
) -> None:
    config = minimal_config(tmp_path)
    config = dataclasses.replace(
        config,
        adapter=dataclasses.replace(config.adapter, kind=kind),
        eval=dataclasses.replace(config.eval, posterior_samples=samples),
    )
    given: dict[str, Any] = {}
    config.run.dir.mkdir()
    monkeypatch.setattr(evaluation, "evaluate", lambda model, **settings: given.update(settings) or {"old_bits": {}})
    adapter = None if kind == "none" else FakeAdapter()
    engine: Any = SimpleNamespace(
        world=SimpleNamespace(rank=0, size=1), adapter=adapter, placement=SimpleNamespace(model=None), device="cpu"
    )
    monkeypatch.setattr(evaluation.distributed, "from_rank_0", lambda compute, world: compute())
    shown: list[tuple[int, Any]] = []
    monitors: Any = SimpleNamespace(write_scores=lambda step, results: shown.append((step, results)))
    unused: Any = SimpleNamespace(evaluating=None, cross=lambda what: False)
    encoder: Any = SimpleNamespace(bos_id=1, eos_id=2, encode=list)
    assert Evaluation(engine, encoder, config, unused, unused, monitors, Unwritten(print)).run(Progress())
    assert shown == [(0, {"old_bits": {}})]
    assert given["posterior_samples"] == passed
    if passed:
        assert adapter is not None
        with given["sampled"](2):
            assert adapter.drawn == [(2, config.run.seed)]
    else:
        assert given["sampled"] is None


@pytest.fixture
def scored(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[str]]:
    """What was asked of evaluation, which is not done, by the two who would be asked."""
    asked: dict[str, list[str]] = {"tasks": [], "suites": []}

    def held_out(model: Any, *, tasks: Any, **settings: Any) -> Any:
        asked["tasks"] += tasks
        return {name: {"score": 1.0} for name in tasks}

    def suites(self: Evaluation, tasks: Any, progress: Progress) -> Any:
        asked["suites"] += [task.spec.name for task in tasks]
        return {task.spec.name: {"score": 0.5} for task in tasks}

    monkeypatch.setattr(evaluation, "evaluate", held_out)
    monkeypatch.setattr(Evaluation, "_answered", suites)
    monkeypatch.setattr(evaluation.distributed, "from_rank_0", lambda compute, world: compute())
    return asked


said: list[str] = []


def with_suites(tmp_path: Path) -> tuple[Evaluation, Path]:
    config = minimal_config(tmp_path)
    config.run.dir.mkdir()
    wanted = dataclasses.replace(config.eval, suites=("forgetting@9",), final_suites=("winogrande",))
    engine: Any = SimpleNamespace(
        world=SimpleNamespace(rank=0, size=1), adapter=None, placement=SimpleNamespace(model=None), device="cpu"
    )
    unused: Any = SimpleNamespace(evaluating=None, cross=lambda what: False, write_scores=lambda step, results: None)
    encoder: Any = SimpleNamespace(bos_id=1, eos_id=2, encode=list)
    config = dataclasses.replace(config, eval=wanted)
    specs = [wanted.specs(is_end=False), parse_specs(wanted.final_suites)]
    suites = Suites(*(tuple(SimpleNamespace(spec=spec) for spec in each) for each in specs))  # type: ignore[arg-type]
    unused.say = said.append
    return (
        Evaluation(engine, encoder, config, unused, unused, unused, Unwritten(print), suites), config.run.dir / "evals"
    )  # fmt: skip


def test_final_suites_are_scored_at_both_ends_only(tmp_path: Path, scored: dict[str, list[str]]) -> None:
    (scoring, folder), progress = with_suites(tmp_path), Progress()
    subset = ["hellaswag@9", "arc_challenge@9", "winogrande@9"]
    for step, expected in ((0, [*subset, "winogrande"]), (5, subset), (20, [*subset, "winogrande"])):
        progress.step = step
        scored["suites"].clear()
        assert scoring.run(progress)
        assert scored["suites"] == expected
        # What has been scored is not scored twice.
        assert scoring.run(progress)
        assert scored["suites"] == expected
    written = json.loads((folder / "5.json").read_text())
    assert list(written["tasks"]) == ["old_bits", *subset]


def test_what_a_job_of_its_own_has_scored_is_not_scored_again(tmp_path: Path, scored: dict[str, list[str]]) -> None:
    (scoring, folder), progress = with_suites(tmp_path), Progress(step=5)
    folder.mkdir()
    (folder / "5.forgetting-9.json").write_text(json.dumps({"tasks": {"hellaswag@9": {}, "old_bits": {}}}))
    (folder / "5.torn.json").write_text('{"tas')
    (folder / "15.piqa.json").write_text(json.dumps({"tasks": {"winogrande@9": {}}}))
    assert scoring.run(progress)
    assert scored["suites"] == ["arc_challenge@9", "winogrande@9"]
    assert scored["tasks"] == []


def test_a_stop_within_a_suite_leaves_the_step_to_be_scored(
    tmp_path: Path, scored: dict[str, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(self: Evaluation, tasks: Any, progress: Progress) -> Any:
        raise Stopped

    monkeypatch.setattr(Evaluation, "_answered", stopped)
    (scoring, folder), progress = with_suites(tmp_path), Progress(step=5)
    assert not scoring.run(progress)
    assert not (folder / "5.json").exists()
    assert progress.eval_seconds > 0


def test_suites_that_fail_on_the_way_do_not_end_the_run(
    tmp_path: Path, scored: dict[str, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(self: Evaluation, tasks: Any, progress: Progress) -> Any:
        raise EvalError("programs cannot be isolated")

    monkeypatch.setattr(Evaluation, "_answered", failing)
    (scoring, folder), progress = with_suites(tmp_path), Progress()
    # Nothing is lost yet.
    with pytest.raises(EvalError, match="programs cannot be isolated"):
        scoring.run(progress)
    for step in (5, 20):
        progress.step = step
        said.clear()
        assert scoring.run(progress)
        assert said == [f"WARNING: suites are not scored after step {step}: programs cannot be isolated"]
        assert list(json.loads((folder / f"{step}.json").read_text())["tasks"]) == ["old_bits"]


def test_all_suites_that_cannot_be_scored_are_named_at_once(tmp_path: Path) -> None:
    config = random_model(tmp_path)
    wanted = EvalConfig(suites=("helaswag",), final_suites=("helaswag", "winogrand"), data_dir=tmp_path)
    with pytest.raises(EvalError) as caught:
        check_inputs(tokenizer(8, 1), dataclasses.replace(config, eval=wanted))
    assert "did you mean hellaswag" in str(caught.value)
    assert "did you mean winogrande" in str(caught.value)

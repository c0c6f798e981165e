"""Evaluating tasks from end to end on a tiny model."""

from __future__ import annotations

import copy
import dataclasses
import json
import math
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from evals.code.judge import judge
from evals.code.policy import Policy
from evals.code.program import Program, Verdict
from evals.code.sandbox import check
from evals.encoder import Codec
from evals.errors import EvalError
from evals.harness import programs
from evals.harness.kept import Kept
from evals.harness.run import evaluate_suites, evaluate_tasks
from evals.harness.specs import parse_specs
from evals.harness.tasks import load_tasks
from evals.scoring.generation import Generation, Prompt
from evals.scoring.scorer import Scorer
from evals.scoring.stopping import Stopped

SOLUTIONS = ["    return 1\n", "    return 2\n", "    return 1\n\n", "    return (\n"]


@pytest.fixture
def code_dir(tmp_path: Path) -> Path:
    """Two problems: return 1."""
    lines = [
        json.dumps(
            {
                "task_id": f"X/{number}",
                "prompt": f"def f{number}():\n",
                "test": "def check(candidate):\n    assert candidate() == 1\n",
                "entry_point": f"f{number}",
                "canonical_solution": SOLUTIONS[0],
            }
        )
        for number in range(2)
    ]
    (tmp_path / "humaneval.jsonl").write_text("\n".join(lines))
    return tmp_path


@dataclasses.dataclass(frozen=True)
class Written:
    """A scorer whose texts are given, in turn."""

    texts: Sequence[str]
    model: Any = None
    rank: int = 0
    world_size: int = 1
    max_length: int = 4096
    should_stop: Callable[[], bool] | None = None
    encode: Callable[[str], Sequence[int]] | None = None

    def generate(
        self, prompts: Sequence[Prompt], decode: Callable[[Sequence[int]], str], eos_ids: Collection[int]
    ) -> list[list[Generation]]:
        texts = self.texts if self.encode is None else [decode(self.encode(text)) for text in self.texts]
        return [[Generation(texts[i % len(texts)], 5, "stop") for i in range(prompt.samples)] for prompt in prompts]


def by_text(programs: Sequence[Program], *, finished: Callable[[Program, Verdict], None], **_: Any) -> None:
    """What the sandbox would say of SOLUTIONS."""
    for program in programs:
        is_right = "return 1" in program.source
        finished(program, Verdict(passed=is_right, reason="passed" if is_right else "x", seconds=0.1))


def test_suites_from_specifications_to_entries(
    make_scorer: Callable[..., Scorer], codec: Codec, data_dir: Path
) -> None:
    seen: list[tuple[Any, ...]] = []
    result = evaluate_suites(
        make_scorer(),
        codec,
        parse_specs(["new=winogrande@1", "arc_challenge"]),
        data_dir=data_dir,
        progress=lambda *done: seen.append(done),
    )
    assert {name: (entry["n"], entry["domain"]) for name, entry in result.items()} == {
        "winogrande@1": (1, "new"),
        "arc_challenge": (3, "old"),
    }
    # Of ARC's nine requests two are the same: "0" twice.
    assert seen == [("winogrande@1", 2, 2), ("arc_challenge", 9, 9)]
    assert {entry["truncated"] for entry in result.values()} == {0}


def test_loaded_tasks_are_asked_again_and_again(
    make_scorer: Callable[..., Scorer], codec: Codec, data_dir: Path
) -> None:
    tasks = load_tasks(parse_specs(["winogrande", "arc_challenge"]), data_dir=data_dir)
    assert evaluate_tasks(make_scorer(), codec, tasks) == evaluate_tasks(make_scorer(), codec, tasks)


def test_a_diverged_model_gets_nothing(
    model: Any, make_scorer: Callable[..., Scorer], codec: Codec, data_dir: Path
) -> None:
    broken = copy.deepcopy(model)
    with torch.no_grad():
        broken.lm_head.weight[3] = math.nan
    result = evaluate_suites(make_scorer(model=broken), codec, parse_specs(["winogrande"]), data_dir=data_dir)
    entry = result["winogrande"]
    assert (entry["score"], entry["nll"], entry["ece"], entry["not_finite"]) == (0.0, None, None, 4)
    assert [example["nll"] for example in entry["examples"]] == [None, None]


def test_stopping_keeps_what_was_answered(
    make_scorer: Callable[..., Scorer], codec: Codec, data_dir: Path, tmp_path: Path
) -> None:
    tasks = load_tasks(parse_specs(["winogrande", "arc_challenge"]), data_dir=data_dir)
    kept = Kept(tmp_path / "kept.jsonl", {})
    answers = iter([False, True])
    with pytest.raises(Stopped):
        evaluate_tasks(make_scorer(should_stop=lambda: next(answers)), codec, tasks, kept=kept)
    again = Kept(tmp_path / "kept.jsonl", {})
    assert again.num_found == 4
    assert evaluate_tasks(make_scorer(), codec, tasks, kept=again) == evaluate_tasks(make_scorer(), codec, tasks)


def test_too_few_records_to_show_are_explained(
    make_scorer: Callable[..., Scorer], codec: Codec, data_dir: Path
) -> None:
    (data_dir / "arc_challenge_train.jsonl").write_text((data_dir / "arc_challenge_test.jsonl").read_text())
    with pytest.raises(EvalError, match="as many records as the 7 shown examples need"):
        evaluate_suites(make_scorer(), codec, parse_specs(["arc_challenge:7"]), data_dir=data_dir)


def test_programs_are_judged_and_counted(codec: Codec, code_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(programs, "judge", by_text)
    tasks = load_tasks(parse_specs(["learning-code"]), data_dir=code_dir)
    entry = evaluate_tasks(Written(SOLUTIONS), codec, tasks)["humaneval"]  # type: ignore[arg-type]
    # 50 samples go through the four solutions in turn: 13 times the first two, 12 times the others.
    assert entry["score"] == 25 / 50
    assert [example["correct"] for example in entry["examples"]] == [0.5, 0.5]
    assert (entry["samples_per_problem"], entry["n"], entry["domain"]) == (50, 2, "new")
    assert entry["unique"] == {"all": 4.0, "passed": 2.0, "failed": 2.0}
    assert entry["harness"]["generation"] | {"until": 0} == {
        "until": 0, "max_gen_toks": 1024, "do_sample": True, "temperature": 0.2, "top_p": 0.95
    }  # fmt: skip
    assert list(entry["pass_at_k"]) == ["1", "2", "4", "8", "16", "32"]
    assert [example["id"] for example in entry["examples"]] == ["X/0", "X/1"]
    assert entry["mean_tokens"] == 5


def test_a_first_lines_indentation_is_whole(codec: Codec, code_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    monkeypatch.setattr(
        programs,
        "judge",
        lambda found, **rest: [seen.extend(program.source for program in found), by_text(found, **rest)],
    )
    # As a tokenizer that marks the beginnings of words.
    lossy = dataclasses.replace(codec, decode=lambda ids: codec.decode(ids).removeprefix(" "))
    tasks = load_tasks(parse_specs(["humaneval@1"]), data_dir=code_dir)
    evaluate_tasks(Written(SOLUTIONS[:1], encode=codec.encode), lossy, tasks)  # type: ignore[arg-type]
    assert seen == ["def f0():\n    return 1\n"]


def test_programs_are_judged_once_and_verdicts_kept(
    codec: Codec, code_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    judged: list[Program] = []

    def counting(found: Sequence[Program], **settings: Any) -> None:
        for program in found:
            if len(judged) == 4:
                time.sleep(3 * programs.EXCHANGE_SECONDS)  # these four are kept by then
                raise KeyboardInterrupt
            judged.append(program)
            by_text([program], **settings)

    monkeypatch.setattr(programs, "judge", counting)
    monkeypatch.setattr(programs, "EXCHANGE_SECONDS", 0.05)
    tasks = load_tasks(parse_specs(["learning-code"]), data_dir=code_dir)
    path = tmp_path / "kept.jsonl"
    with pytest.raises(KeyboardInterrupt):
        evaluate_tasks(Written(SOLUTIONS), codec, tasks, kept=Kept(path, {}))  # type: ignore[arg-type]
    monkeypatch.setattr(programs, "judge", lambda found, **rest: [judged.extend(found), by_text(found, **rest)])
    # What was written is kept, so the texts of another model are not even looked at.
    entry = evaluate_tasks(Written(["no"]), codec, tasks, kept=Kept(path, {}))["humaneval"]  # type: ignore[arg-type]
    assert entry["score"] == 0.5
    sources = [program.source for program in judged]
    assert len(sources) == len(set(sources)) == 8


def test_a_stop_between_programs_stops(codec: Codec, code_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(programs, "judge", by_text)
    tasks = load_tasks(parse_specs(["learning-code"]), data_dir=code_dir)
    with pytest.raises(Stopped):
        evaluate_tasks(Written(SOLUTIONS, should_stop=lambda: True), codec, tasks)  # type: ignore[arg-type]


def test_programs_that_take_long_do_not_keep_a_run_from_stopping(
    codec: Codec, code_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, is_ended = threading.Event(), threading.Event()

    def endless(found: Sequence[Program], *, finished: Callable[[Program, Verdict], None], **_: Any) -> None:
        verdict = Verdict(passed=False, reason="timed out", seconds=10.0)
        finished(found[0], verdict)
        assert asked.wait(60), "nobody asks while programs run"
        time.sleep(0.2)
        try:
            finished(found[1], verdict)
        except Stopped:
            is_ended.set()
            raise

    def second_time() -> bool:
        if kept.num_judged == 0:
            return False
        asked.set()
        return True

    class Counted(Kept):
        num_judged = 0

        def add(self, answers: Mapping[str, Any]) -> None:
            super().add(answers)
            self.num_judged += sum(key.startswith("verdict") for key in answers)

    kept = Counted(tmp_path / "kept.jsonl", {})
    monkeypatch.setattr(programs, "judge", endless)
    monkeypatch.setattr(programs, "EXCHANGE_SECONDS", 0.05)
    tasks = load_tasks(parse_specs(["learning-code"]), data_dir=code_dir)
    with pytest.raises(Stopped):
        evaluate_tasks(Written(SOLUTIONS, should_stop=second_time), codec, tasks, kept=kept)  # type: ignore[arg-type]
    assert kept.num_judged == 1, "what was judged before is kept"
    assert is_ended.is_set(), "no program outlives the evaluation"


@pytest.mark.parametrize(
    ("ranks", "workers"),
    [
        ([("a", range(2))], [2]),
        ([("a", range(64))], [8]),
        # torchrun: all ranks of a machine may use all of its cores.
        ([("a", range(16))] * 4 + [("b", range(4))] * 4, [4] * 4 + [1] * 4),
        ([("a", range(2))] * 8, [1] * 8),
        # srun: each has its own.
        ([("a", range(6 * rank, 6 * rank + 6)) for rank in range(8)], [6] * 8),
        # One hostname's cores are no other's.
        ([("a", range(4)), ("b", range(4))], [4, 4]),
    ],
)
def test_ranks_share_the_cores_they_have_together(ranks: list[tuple[str, range]], workers: list[int]) -> None:
    assert programs.workers_of(ranks) == workers


def test_instruct_programs_end_with_their_code_block(
    codec: Codec, code_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    monkeypatch.setattr(
        programs,
        "judge",
        lambda found, **rest: [seen.extend(program.source for program in found), by_text(found, **rest)],
    )
    (code_dir / "humaneval_instruct.jsonl").write_text((code_dir / "humaneval.jsonl").read_text())
    tasks = load_tasks(parse_specs(["humaneval_instruct@1"]), data_dir=code_dir)
    evaluate_tasks(Written(["    return 1\n```\nThis returns 1."]), codec, tasks)  # type: ignore[arg-type]
    assert seen == ["def f0():\n    return 1\n"]


def test_a_machine_without_isolation_is_refused_before_anything_is_asked(
    codec: Codec, code_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(policy: Policy) -> None:
        raise EvalError("programs cannot be isolated here")

    monkeypatch.setattr("evals.code.sandbox.check", refuse)
    with pytest.raises(EvalError, match="cannot be isolated here"):
        evaluate_suites(Written(SOLUTIONS), codec, parse_specs(["learning-code"]), data_dir=code_dir)  # type: ignore[arg-type]


def test_the_real_sandbox_judges(codec: Codec, code_dir: Path) -> None:
    try:
        check(Policy())
    except EvalError as error:
        pytest.skip(str(error))
    assert programs.judge is judge
    tasks = load_tasks(parse_specs(["learning-code@1"]), data_dir=code_dir)
    entry = evaluate_tasks(Written(SOLUTIONS), codec, tasks)["humaneval@1"]  # type: ignore[arg-type]
    assert entry["score"] == 0.5
    assert entry["reasons"] == {"passed": 25, "failed assertion": 13, "raised SyntaxError": 12}

"""Scoring against a brute-force loop, and its independence of batching and of the number of processes."""

from __future__ import annotations

import importlib.util
import json
import math
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from evals.config import TaskConfig
from evals.errors import EvalError
from evals.held_out.evaluate import evaluate

REPOSITORY = Path(__file__).parents[3]
WORKER = Path(__file__).with_name("evaluate_worker.py")
TEXTS = [f"document {i}: " + "".join(chr(97 + (i * 5 + j * j) % 26) for j in range(9 * i + 5)) for i in range(7)]


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def worker() -> ModuleType:
    spec = importlib.util.spec_from_file_location("evaluate_worker", WORKER)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def model(worker: ModuleType) -> Any:
    return worker.tiny_llama()


def score(model: Any, worker: ModuleType, path: Path, **settings: Any) -> Any:
    defaults = {"tasks": worker.tasks(path), "seq_len": 16, "batch_tokens": 48, "device": "cpu"}
    return evaluate(model, encode=worker.encode, bos_id=1, **(defaults | settings))


def brute_force_nll(model: Any, ids: list[int], first: int) -> float:
    """One sequence, no padding, fp64, one token at a time."""
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([ids])).logits[0].double()
    return -sum(float(torch.log_softmax(logits[i - 1], 0)[ids[i]]) for i in range(first, len(ids)))


def test_bits_per_byte_is_the_brute_force_loop(model: Any, worker: ModuleType, jsonl: Callable[..., Path]) -> None:
    model.eval()
    result = score(model, worker, jsonl(TEXTS))["bits"]
    expected = {}
    for index, text in enumerate(TEXTS):
        ids = [1, *worker.encode(text)]
        windows = [ids[start : start + 17] for start in range(0, len(ids) - 1, 16)]
        expected[f"d{index}"] = sum(brute_force_nll(model, window, 1) for window in windows)
    assert {e["id"]: e["nll"] for e in result["examples"]} == pytest.approx(expected, rel=1e-5)
    bits = sum(expected.values()) / math.log(2)
    assert result["score"] == pytest.approx(bits / sum(len(t.encode()) for t in TEXTS), rel=1e-5)
    assert (result["metric"], result["higher_is_better"], result["domain"]) == ("bits_per_byte", False, "old")
    assert (result["n"], result["chance"]) == (7, None)


def test_choices_are_scored_given_their_context(model: Any, worker: ModuleType, jsonl: Callable[..., Path]) -> None:
    from evals.held_out import continuation_choice

    model.eval()
    path = jsonl(TEXTS)
    result = score(model, worker, path)["choice"]
    task = worker.tasks(path)["choice"]
    examples = continuation_choice.build(task, encode=worker.encode, bos_id=1, seq_len=16)
    for example, record in zip(examples, result["examples"], strict=True):
        expected = [-brute_force_nll(model, list(row.ids), row.first) for row in example.rows]
        assert record["loglikelihoods"] == pytest.approx(expected, abs=1e-4)
        assert record["correct"] == float(max(expected) == expected[record["answer"]])
    assert result["score"] == pytest.approx(sum(r["correct"] for r in result["examples"]) / 9)
    assert result["chance"] == 0.25


@pytest.mark.parametrize("batch_tokens", [1, 64, 16000])
def test_scores_do_not_depend_on_batching(
    model: Any, worker: ModuleType, jsonl: Callable[..., Path], batch_tokens: int
) -> None:
    path = jsonl(TEXTS)
    assert_same(score(model, worker, path, batch_tokens=batch_tokens), score(model, worker, path))


def test_a_model_without_preferences_scores_chance(worker: ModuleType, jsonl: Callable[..., Path]) -> None:
    uniform = worker.tiny_llama()
    torch.nn.init.zeros_(uniform.lm_head.weight)
    result = score(uniform, worker, jsonl(TEXTS))
    assert result["choice"]["score"] == 0.25
    assert result["bits"]["score"] == pytest.approx(math.log2(259), rel=1e-6)


def test_a_diverged_model_is_reported_not_hidden(worker: ModuleType, jsonl: Callable[..., Path]) -> None:
    broken = worker.tiny_llama()
    torch.nn.init.constant_(broken.lm_head.weight, math.nan)
    result = score(broken, worker, jsonl(TEXTS))
    assert math.isnan(result["bits"]["score"])
    assert result["choice"]["score"] == 0
    assert (result["choice"]["nll"], result["choice"]["ece"]) == (None, None)


def test_modes_are_restored_module_by_module(worker: ModuleType, jsonl: Callable[..., Path]) -> None:
    model = worker.tiny_llama().train()
    frozen = model.model.layers[0].mlp
    frozen.eval()
    seen = []
    model.register_forward_pre_hook(lambda module, _: seen.append((module.training, torch.is_grad_enabled())))
    score(model, worker, jsonl(TEXTS))
    assert set(seen) == {(False, False)}
    assert model.training
    assert model.model.layers[1].mlp.training
    assert not frozen.training
    assert torch.is_grad_enabled()


def test_stopping_is_asked_before_every_forward(worker: ModuleType, jsonl: Callable[..., Path]) -> None:
    model = worker.tiny_llama().train()
    forwards: list[int] = []
    model.register_forward_pre_hook(lambda *_: forwards.append(1))
    assert score(model, worker, jsonl(TEXTS), should_stop=lambda: len(forwards) == 2) is None
    assert len(forwards) == 2
    assert model.training


def test_progress_counts_forwards_on_rank_0(model: Any, worker: ModuleType, jsonl: Callable[..., Path]) -> None:
    calls: list[tuple[int, int]] = []
    score(model, worker, jsonl(TEXTS), progress=lambda *call: calls.append(call))
    assert calls == [(done, len(calls)) for done in range(1, len(calls) + 1)]
    assert len(calls) > 3


def test_no_tasks_need_no_forward(model: Any, worker: ModuleType, tmp_path: Path) -> None:
    assert score(model, worker, tmp_path, tasks={}) == {}


def test_draws_are_averaged_and_leave_the_rest_alone(
    model: Any, worker: ModuleType, jsonl: Callable[..., Path]
) -> None:
    from evals.held_out import continuation_choice

    model.eval()
    path, sampled = jsonl(TEXTS), worker.sampler(model)
    plain = score(model, worker, path)
    result = score(model, worker, path, posterior_samples=3, sampled=sampled)
    posterior = {name: result[name].pop("posterior") for name in result}
    assert result == plain
    assert not any("posterior" in task for task in plain.values())

    examples = continuation_choice.build(worker.tasks(path)["choice"], encode=worker.encode, bos_id=1, seq_len=16)
    means = torch.zeros(9, 4, dtype=torch.float64)
    texts = [[1, *worker.encode(text)] for text in TEXTS]
    windows = [ids[start : start + 17] for ids in texts for start in range(0, len(ids) - 1, 16)]
    likelihoods = torch.zeros(len(windows), 3, dtype=torch.float64)
    for draw in range(3):
        with sampled(draw):
            values = [[-brute_force_nll(model, list(row.ids), row.first) for row in ex.rows] for ex in examples]
            likelihoods[:, draw] = torch.tensor([-brute_force_nll(model, window, 1) for window in windows])
        means += torch.softmax(torch.tensor(values, dtype=torch.float64), -1) / 3
    answers = torch.tensor([example.details["answer"] for example in examples])
    assert posterior["choice"]["samples"] == posterior["bits"]["samples"] == 3
    assert posterior["choice"]["nll"] == pytest.approx(float(-means.log().gather(1, answers[:, None]).mean()), abs=1e-4)
    assert posterior["choice"]["score"] == pytest.approx(float((means.argmax(1) == answers).double().mean()))
    assert posterior["choice"]["mutual_information"] > 0.01
    bits = float((math.log(3) - likelihoods.logsumexp(1)).sum()) / math.log(2)
    assert posterior["bits"]["score"] == pytest.approx(bits / sum(len(text.encode()) for text in TEXTS), rel=1e-5)


def test_draws_do_not_depend_on_batching(model: Any, worker: ModuleType, jsonl: Callable[..., Path]) -> None:
    path, draws = jsonl(TEXTS), {"posterior_samples": 2, "sampled": worker.sampler(model)}
    assert_same(
        score(model, worker, path, batch_tokens=1, **draws), score(model, worker, path, batch_tokens=800, **draws)
    )


def test_every_draw_scores_every_row_and_can_be_stopped_in_between(
    model: Any, worker: ModuleType, jsonl: Callable[..., Path]
) -> None:
    path, sampled, drawn = jsonl(TEXTS), worker.sampler(model), []
    calls: list[tuple[int, int]] = []

    def recorded(index: int) -> Any:
        drawn.append(index)
        return sampled(index)

    draws = {"posterior_samples": 2, "sampled": recorded}
    score(model, worker, path, progress=lambda *call: calls.append(call), **draws)
    batches, rest = divmod(len(calls), 3)
    assert rest == 0
    assert calls == [(done, len(calls)) for done in range(1, 3 * batches + 1)]
    assert drawn == [0, 1], "one draw for all of its forwards"
    assert batches > 3

    weight = model.lm_head.weight.detach().clone()
    calls.clear()
    assert (
        score(
            model,
            worker,
            path,
            progress=lambda *call: calls.append(call),
            should_stop=lambda: len(calls) == batches + 1,
            **draws,
        )
        is None
    )
    assert len(calls) == batches + 1
    assert torch.equal(model.lm_head.weight, weight)


def test_draws_that_cannot_be_made(model: Any, worker: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(EvalError, match="posterior_samples = 4 needs `sampled`, which draws the weights"):
        score(model, worker, tmp_path, tasks={}, posterior_samples=4)
    with pytest.raises(EvalError, match="posterior_samples = -1 is negative"):
        score(model, worker, tmp_path, tasks={}, posterior_samples=-1)


def test_errors_name_the_task(model: Any, worker: ModuleType, tmp_path: Path) -> None:
    missing = TaskConfig(kind="bits_per_byte", path=tmp_path / "no.jsonl", domain="new")
    with pytest.raises(EvalError, match=r"task 'code': .*cannot be read"):
        score(model, worker, tmp_path, tasks={"code": missing})
    unknown = TaskConfig(kind="riddles", path=tmp_path, domain="new")  # type: ignore[arg-type]
    with pytest.raises(EvalError, match="task 'code': 'riddles' is not a kind of task"):
        score(model, worker, tmp_path, tasks={"code": unknown})


@pytest.mark.dist
def test_two_processes_give_the_scores_of_one(
    model: Any, worker: ModuleType, jsonl: Callable[..., Path], tmp_path: Path
) -> None:
    path = jsonl(TEXTS)
    one = jsonl(["a single row for two ranks"], "one.jsonl")
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, str(WORKER)]
    processes = [subprocess.Popen([*command, str(rank), str(tmp_path)], env=environment) for rank in range(2)]
    try:
        assert [process.wait(timeout=120) for process in processes] == [0, 0]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    ranks = [json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in range(2)]
    assert ranks[0] == ranks[1]  # results and number of forwards
    assert ranks[0]["stopped"] is None
    expected = score(model, worker, path, posterior_samples=2, sampled=worker.sampler(model))
    assert_same(ranks[0]["result"], expected)
    single = TaskConfig(kind="bits_per_byte", path=one, domain="old")
    assert_same(ranks[0]["few"], score(model, worker, one, tasks={"one": single}, seq_len=64))


def assert_same(a: dict[str, Any], b: dict[str, Any]) -> None:
    assert a.keys() == b.keys()
    for name in a:
        assert a[name]["score"] == pytest.approx(b[name]["score"], abs=1e-5)
        assert a[name]["fingerprint"] == b[name]["fingerprint"]
        for key in ("nll", "ece", "posterior"):
            assert a[name].get(key) == pytest.approx(b[name].get(key), abs=1e-5), key
        for x, y in zip(a[name]["examples"], b[name]["examples"], strict=True):
            assert x == {
                key: pytest.approx(value, abs=1e-3, rel=1e-5) if isinstance(value, float | list) else value
                for key, value in y.items()
            }

"""Which tokens of responses are scored, against transformers' own loss and probabilities."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import LlamaConfig, LlamaForCausalLM

from evals.config import TaskConfig
from evals.errors import EvalError
from evals.held_out.evaluate import check_tasks, evaluate
from evals.held_out.response_bits_per_byte import _row, build

BOS, EOS = 1, 2
ANSWERS = [("two plus two is", " four"), ("the sea", " is blue and é"), ("", "no prompt at all"), ("x", "y" * 40)]


def encode(text: str) -> list[int]:
    """A token per byte, but for "ab", which is one."""
    ids: list[int] = []
    for byte in text.encode():
        joins = byte == ord("b") and ids[-1:] == [ord("a") + 3]
        ids[len(ids) - joins :] = [259 if joins else byte + 3]
    return ids


@pytest.fixture
def answers(tmp_path: Path) -> Callable[..., Path]:
    def write(records: list[dict[str, Any]]) -> Path:
        path = tmp_path / "answers.jsonl"
        path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
        return path

    return write


def records(pairs: list[tuple[str, str]]) -> list[dict[str, Any]]:
    return [{"id": f"a{i}", "prompt": prompt, "response": response} for i, (prompt, response) in enumerate(pairs)]


def task(path: Path, **settings: Any) -> TaskConfig:
    return TaskConfig(kind="response_bits_per_byte", path=path, domain="new", **settings)


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    size = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=260, max_position_embeddings=64, bos_token_id=BOS, **size))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model.eval()


@pytest.mark.parametrize("end", [(), (EOS,)])
def test_the_score_is_the_loss_on_the_response(
    model: LlamaForCausalLM, answers: Callable[..., Path], end: tuple[int, ...]
) -> None:
    tasks = {"answers": task(answers(records(ANSWERS)))}
    result = evaluate(
        model, encode=encode, bos_id=BOS, eos_id=end[0] if end else None, tasks=tasks, seq_len=64, batch_tokens=100, device="cpu"
    )  # fmt: skip
    assert result is not None
    found = result["answers"]
    bits = {}
    for number, (prompt, response) in enumerate(ANSWERS):
        before, scored = [BOS, *encode(prompt)], [*encode(response), *end]
        labels = torch.tensor([[-100] * len(before) + scored])
        with torch.no_grad():
            loss = model(input_ids=torch.tensor([before + scored]), labels=labels).loss
        bits[f"a{number}"] = float(loss) * len(scored) / math.log(2)
    assert {e["id"]: e["nll"] / math.log(2) for e in found["examples"]} == pytest.approx(bits, rel=1e-4)
    size = sum(len(response.encode()) for _, response in ANSWERS)
    assert found["score"] == pytest.approx(sum(bits.values()) / size, rel=1e-4)
    assert {e["id"]: e["bytes"] for e in found["examples"]} == {"a0": 5, "a1": 15, "a2": 16, "a3": 40}
    assert (found["kind"], found["metric"], found["higher_is_better"], found["chance"], found["n"]) == (
        *("response_bits_per_byte", "bits_per_byte", False, None, 4),
    )


def test_records_of_one_document_are_taken_together(model: LlamaForCausalLM, answers: Callable[..., Path]) -> None:
    of = [record | {"of": "one" if index < 3 else "other"} for index, record in enumerate(records(ANSWERS))]
    tasks = {"answers": task(answers(of), document_field="of")}
    result = evaluate(
        model, encode=encode, bos_id=BOS, eos_id=EOS, tasks=tasks, seq_len=64, batch_tokens=100, device="cpu"
    )
    assert result is not None
    found = result["answers"]
    assert [e["document"] for e in sorted(found["examples"], key=lambda e: e["id"])] == ["one"] * 3 + ["other"]
    # Of two clusters: y and x are their bits and bytes.
    bits, size = {"one": 0.0, "other": 0.0}, {"one": 0, "other": 0}
    for example in found["examples"]:
        bits[example["document"]] += example["nll"] / math.log(2)
        size[example["document"]] += example["bytes"]
    total = sum(bits.values()) / sum(size.values())
    residuals = [bits[name] - total * size[name] for name in bits]
    assert found["score"] == pytest.approx(total)
    assert found["stderr"] == pytest.approx(math.sqrt(2 * sum(r**2 for r in residuals)) / sum(size.values()))


def test_draws_of_the_weights_mix_the_probabilities_of_whole_responses(answers: Callable[..., Path]) -> None:
    from evals.held_out.response_bits_per_byte import summarize_posterior

    config = task(answers(records([("q", "abcd")])))
    examples = build(config, encode=encode, bos_id=BOS, seq_len=64)
    result = summarize_posterior(config, examples, [[[math.log(0.5)]], [[math.log(0.125)]]])
    assert result == {"samples": 2, "score": pytest.approx(-math.log2(0.3125) / 4)}


@given(prompt=st.text("abc", max_size=8), response=st.text("abc", min_size=1, max_size=8))
def test_a_token_that_joins_prompt_and_response_is_scored(prompt: str, response: str) -> None:
    row = _row(prompt, response, encode, BOS, (EOS,))
    assert row.ids == (BOS, *encode(prompt + response), EOS)
    joined = prompt.endswith("a") and response.startswith("b")
    assert row.first == 1 + len(encode(prompt)) - joined


def test_more_examples_are_a_superset_and_too_long_ones_are_left_out(answers: Callable[..., Path]) -> None:
    # BOS, "q", i bytes and EOS: i + 3 tokens.
    path = answers(records([("q", "r" * i) for i in range(30)]))
    for eos_id, longest in ((EOS, 13), (None, 14)):
        few, many = (
            build(task(path, max_examples=n), encode=encode, bos_id=BOS, eos_id=eos_id, seq_len=16) for n in (3, 100)
        )
        assert (few, len(few)) == (many[:3], 3)
        # The empty response of a0 is no example either.
        assert {example.id for example in many} == {f"a{i}" for i in range(1, longest + 1)}
    other = build(task(path, max_examples=100, seed=1), encode=encode, bos_id=BOS, eos_id=EOS, seq_len=16)
    assert {example.id for example in other} == {f"a{i}" for i in range(1, 14)}
    assert [example.id for example in other] != [example.id for example in many][:13]


def test_fields_and_a_template(answers: Callable[..., Path]) -> None:
    path = answers([{"question": "why?", "hint": "no", "answer": "so"}])
    settings = {"prompt_field": "question", "response_field": "answer"}
    plain, written = (
        build(task(path, **settings, template=template), encode=encode, bos_id=BOS, seq_len=64)
        for template in (None, "{hint}: {question} {{}} {hint}\n")
    )
    assert plain[0].rows[0].ids == (BOS, *encode("why?so"))
    (row,) = written[0].rows
    assert (row.ids, row.first) == ((BOS, *encode("no: why? {} no\nso")), 1 + len("no: why? {} no\n"))
    assert written[0].id == "1"


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (
            {"prompt": "a", "text": "b"},
            r"answers\.jsonl:1: no response string .* an object with prompt, response and id",
        ),
        ({"prompt": 1, "response": "b"}, r"answers\.jsonl:1: no prompt string"),
        (
            {"prompt": "a", "response": "b", "of": None},
            r"answers\.jsonl:1: no of string .* with prompt, response, of and id",
        ),
        ({"prompt": "a", "response": "\ud800"}, r"answers\.jsonl:1: response is not valid Unicode"),
        ({"prompt": "a", "response": " \n"}, r"none of 1 records has a response and fits .* into rows of 16 tokens"),
        ({"prompt": "a" * 20, "response": "b"}, r"none of 1 records has a response and fits"),
    ],
)
def test_a_file_that_gives_no_examples_is_explained(
    answers: Callable[..., Path], record: dict[str, Any], message: str
) -> None:
    of = "of" if "of" in record else None
    with pytest.raises(EvalError, match="task 'mine': .*" + message):
        check_tasks(
            {"mine": task(answers([record]), document_field=of)}, encode=encode, bos_id=BOS, eos_id=EOS, seq_len=16
        )

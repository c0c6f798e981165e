"""Entries of results, from answers that are known."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from evals.arithmetic.calibration import expected_calibration_error
from evals.harness.entries import entry
from evals.harness.run import build_requests
from evals.harness.specs import parse_specs
from evals.harness.tasks import LoadedTask, load_tasks


def answered(loaded: LoadedTask, answers: Sequence[Any]) -> dict[str, Any]:
    """The entry when the requests are answered so, in their order."""
    build_requests(loaded)
    for instance, answer in zip(loaded.task.instances, answers, strict=True):
        instance.resps.append(answer)
    loaded.task.apply_filters()
    return entry(loaded)


@pytest.fixture
def arc(data_dir: Path) -> LoadedTask:
    """Three questions, the second of three choices is right: "0", "0", "a roof", then "1", "2", "a roof" ..."""
    return load_tasks(parse_specs(["forgetting"])[1:2], data_dir=data_dir)[0]


CHOICES = [[-1.0, -2.0, -9.0], [-3.0, -1.0, -4.0], [-5.0, -4.0, -6.0]]


def test_scores_and_probabilities_by_hand(arc: LoadedTask) -> None:
    result = answered(arc, [(value, False) for values in CHOICES for value in values])
    # Per character " a roof" wins everywhere by acc_norm: -9 / 6 > -2 / 1 is false, -9/6 = -1.5 < -1.
    by_length = [[value / size for value, size in zip(values, (1, 1, 6), strict=True)] for values in CHOICES]
    right = [float(np.argmax(values) == 1) for values in by_length]
    assert [example["correct"] for example in result["examples"]] == right == [0.0, 0.0, 0.0]
    assert result["metrics"]["acc"]["value"] == pytest.approx(2 / 3)
    assert (result["score"], result["stderr"]) == (0.0, 0.0)
    log_z = [math.log(sum(math.exp(value) for value in values)) for values in CHOICES]
    nll = [z - values[1] for z, values in zip(log_z, CHOICES, strict=True)]
    assert [example["nll"] for example in result["examples"]] == pytest.approx(nll)
    assert result["nll"] == pytest.approx(sum(nll) / 3)
    confidence = [math.exp(max(values) - z) for z, values in zip(log_z, CHOICES, strict=True)]
    assert result["ece"] == pytest.approx(expected_calibration_error(confidence, [0, 1, 1]))
    assert result["chance"] == pytest.approx(1 / 3)
    assert {key: result[key] for key in ("kind", "domain", "suite", "metric", "higher_is_better", "n")} == {
        "kind": "harness", "domain": "old", "suite": "forgetting", "metric": "accuracy", "higher_is_better": True, "n": 3
    }  # fmt: skip
    assert result["harness"] == {
        "task": "arc_challenge", "version": 1.0, "num_fewshot": 0, "metric": "acc_norm", "filter": "none",
        "lm_eval": "0.4.13",
    }  # fmt: skip
    json.dumps(result, allow_nan=False)


@pytest.mark.parametrize("broken", [0, 1, 2])
def test_a_guess_among_unknown_answers_is_not_right(broken: int, arc: LoadedTask) -> None:
    answers = [[(value, False) for value in (-9.0, -1.0, -90.0)] for _ in range(3)]
    assert answered(arc, list(chain.from_iterable(answers)))["score"] == 1.0
    answers[1][broken] = (-math.inf, False)
    result = answered(arc, list(chain.from_iterable(answers)))
    assert [example["correct"] for example in result["examples"]] == [1.0, 0.0, 1.0]
    assert [example["nll"] is None for example in result["examples"]] == [False, True, False]
    assert (result["nll"], result["ece"]) == (None, None)
    assert result["metrics"]["acc"]["value"] == pytest.approx(2 / 3)
    json.dumps(result, allow_nan=False)


def test_choices_in_the_prompt_have_probabilities_too(data_dir: Path) -> None:
    (loaded,) = load_tasks(parse_specs(["winogrande"]), data_dir=data_dir)
    result = answered(loaded, [(-1.0, False), (-2.0, False), (-3.0, False), (-1.0, False)])
    assert [example["correct"] for example in result["examples"]] == [1.0, 1.0]
    expected = [math.log(1 + math.exp(-1.0)), math.log(1 + math.exp(-2.0))]
    assert [example["nll"] for example in result["examples"]] == pytest.approx(expected)
    assert result["chance"] == 0.5


def test_the_fingerprint_is_of_what_is_asked(arc: LoadedTask, data_dir: Path) -> None:
    answers = [(value, False) for values in CHOICES for value in values]
    first = answered(arc, answers)["fingerprint"]
    assert first == answered(arc, [(-1.0, True)] * 9)["fingerprint"]
    path = data_dir / "arc_challenge_test.jsonl"
    original = path.read_text()
    for old, new in (("2 apples and", "two apples and"), ('"B"}', '"A"}'), ("a roof", "roofs")):
        assert old in original
        path.write_text(original.replace(old, new))
        (changed,) = load_tasks(parse_specs(["arc_challenge"]), data_dir=data_dir)
        assert answered(changed, answers)["fingerprint"] != first


@pytest.fixture
def make_task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., LoadedTask]:
    """A task file on two records."""
    import datasets.config

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")

    def make(**fields: Any) -> LoadedTask:
        records = [{"text": "eins zwei", "choices": ["a", "bb"], "gold": [0, 1]}]
        records += [{"text": "drei", "choices": ["c", "d"], "gold": [1, 1]}]
        (tmp_path / "records.jsonl").write_text("\n".join(map(json.dumps, records)))
        config = {
            "task": "own",
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": {"test": str(tmp_path / "records.jsonl")}},
            "test_split": "test",
            "doc_to_text": "",
            "doc_to_target": "{{text}}",
            **fields,
        }
        (tmp_path / "own.yaml").write_text(json.dumps(config))
        return load_tasks(parse_specs([str(tmp_path / "own.yaml")]))[0]

    return make


def test_text_as_a_whole_is_scored_in_bits_per_byte(make_task: Callable[..., LoadedTask]) -> None:
    metrics = [{"metric": "bits_per_byte", "aggregation": "bits_per_byte", "higher_is_better": False}]
    loaded = make_task(output_type="loglikelihood_rolling", metric_list=metrics)
    result = answered(loaded, [-9.0, -2.0])
    assert (result["metric"], result["higher_is_better"], result["chance"]) == ("bits_per_byte", False, None)
    assert result["score"] == pytest.approx(11 / 13 / math.log(2))
    assert result["examples"] == [{"id": "0", "nll": 9.0, "bytes": 9}, {"id": "1", "nll": 2.0, "bytes": 4}]


def test_several_right_choices_share_the_probability(make_task: Callable[..., LoadedTask]) -> None:
    metrics = [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}]
    loaded = make_task(
        output_type="multiple_choice",
        metric_list=metrics,
        doc_to_text="text",
        doc_to_choice="choices",
        doc_to_target="gold",
    )
    result = answered(loaded, [(-1.0, False), (-3.0, False), (-1.0, False), (-3.0, False)])
    assert [example["correct"] for example in result["examples"]] == [1.0, 0.0]
    assert result["examples"][0]["nll"] == pytest.approx(0.0)


def test_a_figure_that_is_no_credit_keeps_its_name(make_task: Callable[..., LoadedTask]) -> None:
    metrics = [{"metric": "f1", "aggregation": "f1", "higher_is_better": True}]
    loaded = make_task(
        output_type="multiple_choice", metric_list=metrics, doc_to_text="text", doc_to_choice="choices", doc_to_target=1
    )
    result = answered(loaded, [(-1.0, False), (-3.0, False), (-4.0, False), (-3.0, False)])
    assert result["metric"] == "f1"
    assert result["score"] == pytest.approx(2 / 3)  # one of two found, none wrongly: precision 1, recall 1/2
    assert result["stderr"] is None
    assert "correct" not in result["examples"][0]


def test_answers_are_read_through_every_filter(make_task: Callable[..., LoadedTask]) -> None:
    loaded = make_task(
        output_type="generate_until",
        doc_to_target="{{text[0]}}",
        generation_kwargs={"until": ["."], "max_gen_toks": 4},
        metric_list=[{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
        filter_list=[
            {
                "name": "strict",
                "filter": [{"function": "regex", "regex_pattern": "is (.)$"}, {"function": "take_first"}],
            },
            {"name": "loose", "filter": [{"function": "regex", "regex_pattern": "(.)$"}, {"function": "take_first"}]},
        ],
    )
    result = answered(loaded, ["it is e", "or d"])
    assert {name: figure["value"] for name, figure in result["metrics"].items()} == {
        "exact_match,strict": 0.5,
        "exact_match,loose": 1.0,
    }
    assert (result["score"], result["harness"]["filter"]) == (0.5, "strict")
    assert [example["correct"] for example in result["examples"]] == [1.0, 0.0]
    assert result["chance"] == 0.0
    assert result["harness"]["generation"]["max_gen_toks"] == 4

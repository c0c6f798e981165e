"""The whole pipeline against the harness's own, on the real data sets: same metrics, same answers to each example."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from evals.encoder import Codec
from evals.harness.kept import Kept
from evals.harness.run import evaluate_tasks
from evals.harness.specs import parse_specs
from evals.harness.tasks import LoadedTask, load_tasks, quiet
from evals.scoring.scorer import Scorer


def harness_results(
    model_dir: Path, model: Any, tasks: list[LoadedTask], limit: int, max_length: int = 1024
) -> dict[str, Any]:
    """What lm_eval says of the same tasks, with its own language model."""
    from lm_eval.evaluator import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from transformers import AutoTokenizer

    with warnings.catch_warnings(), quiet():
        warnings.simplefilter("ignore")
        tokenizer = AutoTokenizer.from_pretrained(model_dir)
        lm = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=16, max_length=max_length)
        found: dict[str, Any] = simple_evaluate(
            model=lm, tasks=[task.task for task in tasks], limit=limit, log_samples=True, bootstrap_iters=0
        )
    return found


def test_forgetting_equals_the_harness(
    model_dir: Path, model: Any, codec: Codec, make_scorer: Callable[..., Scorer], shared_data: Path
) -> None:
    limit = 200
    tasks = load_tasks(parse_specs([f"forgetting@{limit}"]), data_dir=shared_data)
    ours = evaluate_tasks(make_scorer(), codec, tasks)
    theirs = harness_results(model_dir, model, tasks, limit)
    assert list(ours) == ["hellaswag@200", "arc_challenge@200", "winogrande@200"]
    for name, entry in ours.items():
        task, metric = name.partition("@")[0], entry["harness"]["metric"]
        official, samples = theirs["results"][task], theirs["samples"][task]
        assert entry["n"] == len(samples) == limit
        assert entry["score"] == official[f"{metric},none"]
        for key, figure in entry["metrics"].items():
            assert figure["value"] == official[f"{key},none"]
        for example, sample in zip(entry["examples"], samples, strict=True):
            assert example["id"] == str(sample["doc_id"])
            assert example["correct"] == sample[metric], (name, example["id"])
        # A model that always says the same would pass, too.
        assert 0.02 < entry["score"] < 0.98


def test_gsm8k_equals_the_harness(
    model_dir: Path, model: Any, codec: Codec, make_scorer: Callable[..., Scorer], shared_data: Path
) -> None:
    limit = 12
    tasks = load_tasks(parse_specs([f"learning-math@{limit}"]), data_dir=shared_data)
    tasks[0].task.config.generation_kwargs["max_gen_toks"] = 24
    kept = Kept()
    ours = evaluate_tasks(make_scorer(), codec, tasks, kept=kept)[f"gsm8k@{limit}"]
    theirs = harness_results(model_dir, model, tasks, limit)
    official = theirs["results"]["gsm8k"]
    assert ours["harness"]["num_fewshot"] == 5
    assert set(ours["metrics"]) == {"exact_match,strict-match", "exact_match,flexible-extract"}
    for key, figure in ours["metrics"].items():
        assert figure["value"] == official[key]
    assert ours["score"] == official["exact_match,strict-match"]
    samples = [sample for sample in theirs["samples"]["gsm8k"] if sample["filter"] == "strict-match"]
    texts = [sample["resps"][0][0] for sample in samples]
    assert len(set(texts)) > limit // 2
    assert sorted(texts) == sorted(answer[0][0] for answer in kept._answers.values())


def test_prompts_of_local_hellaswag_begin_as_published(shared_data: Path) -> None:
    from evals.harness.run import build_requests

    tasks = load_tasks(parse_specs(["hellaswag@2"]), data_dir=shared_data)
    build_requests(tasks[0])
    # As in the published data set: ctx_a "A man is sitting on a roof.", ctx_b "he".
    assert tasks[0].task.instances[0].args == (
        "Roof shingle removal: A man is sitting on a roof. He",
        " is using wrap to wrap a pair of skis.",
    )


def test_contexts_that_are_too_long_are_cut_as_in_the_harness(
    model_dir: Path, model: Any, codec: Codec, make_scorer: Callable[..., Scorer], shared_data: Path
) -> None:
    tasks = load_tasks(parse_specs(["arc_challenge@40"]), data_dir=shared_data)
    ours = evaluate_tasks(make_scorer(max_length=96), codec, tasks)["arc_challenge@40"]
    samples = harness_results(model_dir, model, tasks, 40, max_length=96)["samples"]["arc_challenge"]
    assert [example["correct"] for example in ours["examples"]] == [sample["acc_norm"] for sample in samples]
    lengths = [len(codec.encode("".join(arguments))) + 1 for sample in samples for arguments in sample["arguments"]]
    assert ours["truncated"] == sum(length > 97 for length in lengths) > 20

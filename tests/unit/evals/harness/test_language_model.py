"""The harness's LM on our scorer: encoding, windows, samples, counting, and what is kept."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM

from evals.encoder import Codec, load_codec
from evals.errors import EvalError
from evals.harness import language_model
from evals.harness.kept import Kept
from evals.harness.language_model import ScorerLM, end_ids
from evals.scoring.rows import Row
from evals.scoring.scorer import Answer, Scorer

CONTEXTS = ["Question: How many apples?\nAnswer:", "", "A roof ", "Sarah was  ", "\n", "x" * 90]


@pytest.fixture(scope="module")
def hflm(model_dir: Path, model: Any) -> Callable[..., HFLM]:
    from transformers import AutoTokenizer

    def make(**settings: Any) -> HFLM:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tokenizer = AutoTokenizer.from_pretrained(model_dir)
            return HFLM(pretrained=model, tokenizer=tokenizer, batch_size=4, **settings)

    return make


def requests(request_type: str, arguments: Sequence[tuple[Any, ...]]) -> list[Instance]:
    return [
        Instance(request_type, {}, found, idx, metadata=("task", idx, 1))  # type: ignore[arg-type]
        for idx, found in enumerate(arguments)
    ]


def pairs() -> list[Instance]:
    return requests("loglikelihood", [(context, end) for context in CONTEXTS for end in (" is 13", " on", " a roof.")])


@pytest.mark.parametrize("max_length", [1024, 24])
def test_loglikelihoods_equal_the_harnesss(
    max_length: int, hflm: Callable[..., HFLM], make_scorer: Callable[..., Scorer], codec: Codec
) -> None:
    lm = ScorerLM(make_scorer(max_length=max_length), codec)
    ours = lm.loglikelihood(pairs())
    theirs = hflm(max_length=max_length).loglikelihood(pairs(), disable_tqdm=True)
    for (value, is_greedy), (reference, reference_is_greedy) in zip(ours, theirs, strict=True):
        assert value == pytest.approx(reference, abs=1e-4)
        assert is_greedy == bool(reference_is_greedy)
    # Only the longest context is longer than 24 tokens; it is asked for three times.
    too_long = sum(len(lm.tok_encode("".join(pair.args))) > max_length + 1 for pair in pairs())
    assert lm.truncated["task"] == too_long == (3 if max_length == 24 else 0)


@pytest.mark.parametrize("max_length", [1024, 16])
def test_rolling_windows_equal_the_harnesss(
    max_length: int, hflm: Callable[..., HFLM], make_scorer: Callable[..., Scorer], codec: Codec
) -> None:
    texts = [("Sarah was a much better surgeon than Maria so Sarah always got the easier cases.",), ("A roof.",)]
    ours = ScorerLM(make_scorer(max_length=max_length), codec).loglikelihood_rolling(
        requests("loglikelihood_rolling", texts)
    )
    theirs = hflm(max_length=max_length).loglikelihood_rolling(requests("rolling", texts), disable_tqdm=True)
    assert ours == pytest.approx(theirs, abs=1e-3)


def test_greedy_texts_equal_the_harnesss(
    hflm: Callable[..., HFLM], make_scorer: Callable[..., Scorer], codec: Codec
) -> None:
    kwargs = {"until": ["."], "max_gen_toks": 12, "do_sample": False}
    asked = [(context, kwargs) for context in CONTEXTS if context]
    ours = ScorerLM(make_scorer(), codec).generate_until(requests("generate_until", asked))
    theirs = hflm(max_length=1024).generate_until(requests("generate_until", asked), disable_tqdm=True)
    assert ours == theirs
    assert len(set(ours)) > 2


def test_repeated_requests_are_samples(make_scorer: Callable[..., Scorer], codec: Codec) -> None:
    kwargs = {"until": [], "max_gen_toks": 6, "do_sample": True, "temperature": 1.5}
    first, second = requests("generate_until", [("A roof", kwargs), ("Sarah", kwargs)])
    asked = [first] * 3 + [second] * 3
    texts = ScorerLM(make_scorer(), codec, seed=1).generate_until(asked)
    assert len(set(texts)) > 3
    assert texts == ScorerLM(make_scorer(batch_tokens=32), codec, seed=1).generate_until(asked)
    assert texts != ScorerLM(make_scorer(), codec, seed=2).generate_until(asked)


def test_greedy_texts_are_written_once(make_scorer: Callable[..., Scorer], codec: Codec) -> None:
    (request,) = requests("generate_until", [("A roof", {"until": [], "max_gen_toks": 3})])
    kept = Kept()
    (texts,) = ScorerLM(make_scorer(), codec, kept=kept).write([request], [4])
    assert len(texts) == 4
    assert len(set(texts)) == 1
    assert [len(answer) for answer in kept._answers.values()] == [1]


def test_a_context_is_cut_to_leave_room_for_the_answer(make_scorer: Callable[..., Scorer], codec: Codec) -> None:
    kwargs = {"until": [], "max_gen_toks": 8}
    lm = ScorerLM(make_scorer(max_length=16), codec)
    lm.generate_until(requests("generate_until", [("A roof", kwargs), ("x" * 40, kwargs)]))
    assert lm.truncated["task"] == 1


def test_what_leaves_no_room_is_named(make_scorer: Callable[..., Scorer], codec: Codec) -> None:
    lm = ScorerLM(make_scorer(max_length=16), codec)
    with pytest.raises(EvalError, match="task, example 0: max_new_tokens = 16 leaves no room"):
        lm.generate_until(requests("generate_until", [("A", {"max_gen_toks": 16})]))
    with pytest.raises(EvalError, match=r"task, example 0: .* tokens of a row are to be scored"):
        lm.loglikelihood(requests("loglikelihood", [("A", " b" * 40)]))
    with pytest.raises(EvalError, match="task, example 0: generation_kwargs num_beams cannot be followed"):
        lm.generate_until(requests("generate_until", [("A", {"num_beams": 2})]))


def test_what_is_not_finite_is_never_preferred_and_counted(
    model: Any, make_scorer: Callable[..., Scorer], codec: Codec
) -> None:
    import copy

    broken = copy.deepcopy(model)
    with torch.no_grad():
        broken.model.layers[0].mlp.down_proj.weight[0, 0] = math.nan
    lm = ScorerLM(make_scorer(model=broken), codec)
    assert lm.loglikelihood(pairs()[:2]) == [(-math.inf, False)] * 2
    assert lm.not_finite["task"] == 2
    lm.generate_until(requests("generate_until", [("A", {"max_gen_toks": 3})]))
    assert lm.not_finite["task"] == 3


class Counting:
    """A scorer that answers by arithmetic, counts what it is asked, and can be interrupted."""

    rank, world_size, max_length, batch_tokens = 0, 1, 1024, 1024
    model, should_stop = None, None

    def __init__(self, interrupted_after: int | None = None) -> None:
        self.asked: list[Row] = []
        self._left = interrupted_after

    def score(self, rows: Sequence[Row]) -> list[Answer]:
        if self._left is not None:
            self._left -= 1
            if self._left < 0:
                raise KeyboardInterrupt
        self.asked += rows
        return [Answer(-float(sum(row.ids)), row.first % 2 == 0) for row in rows]


def test_rows_are_kept_every_few_forwards() -> None:
    items = [(str(n), Row(tuple(range(n + 2)), 1)) for n in (3, 3, 1, 9, 1, 1)]
    chunks = [[len(row.ids) for _, row in chunk] for chunk in language_model._row_chunks(items, 10)]
    # A row that is longer than all of them together may be is asked alone.
    assert chunks == [[5, 5], [3], [11], [3, 3]]
    assert list(language_model._row_chunks([], 10)) == []


def test_an_interrupted_evaluation_goes_on(codec: Codec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(language_model, "ROWS_AT_ONCE", 4)
    path = tmp_path / "kept.jsonl"
    first, second, seen = Counting(interrupted_after=2), Counting(), []
    with pytest.raises(KeyboardInterrupt):
        ScorerLM(first, codec, kept=Kept(path, {})).loglikelihood(pairs())  # type: ignore[arg-type]
    with open(path, "ab") as file:
        file.write(b'{"key": "torn')
    lm = ScorerLM(second, codec, kept=Kept(path, {}), progress=lambda *done: seen.append(done))  # type: ignore[arg-type]
    answers = lm.loglikelihood(pairs())
    asked = [(row.ids, row.first) for row in [*first.asked, *second.asked]]
    assert len(asked) == len(set(asked)) == len(pairs()), "no request is asked twice, none is left out"
    assert len(first.asked) == 8
    whole = Counting()
    assert answers == ScorerLM(whole, codec).loglikelihood(pairs())  # type: ignore[arg-type]
    assert seen == [(12, 18), (16, 18), (18, 18)]


def test_a_tokenizer_that_adds_nothing_is_not_added_to(model_dir: Path, tmp_path: Path) -> None:
    import json

    content = json.loads((model_dir / "tokenizer.json").read_text()) | {"post_processor": None}
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    plain = load_codec(tmp_path)
    assert not plain.is_bos_added
    lm = ScorerLM(Counting(), plain)  # type: ignore[arg-type]
    assert lm.tok_encode("A roof") == list(plain.encode("A roof"))
    assert lm.tok_encode("A roof", add_special_tokens=True) == [plain.bos_id, *plain.encode("A roof")]
    # Without a context it still needs something to begin with.
    assert lm._pair("", " a")[0] == [plain.bos_id]


def test_texts_end_where_tokenizer_or_model_say(model: Any, codec: Codec) -> None:
    assert end_ids(codec, model) == {1}
    model.generation_config.eos_token_id = [1, 7]
    try:
        assert end_ids(codec, model) == {1, 7}
    finally:
        model.generation_config.eos_token_id = 1
    assert end_ids(codec, None) == {1}

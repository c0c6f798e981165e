"""Answers against lm-evaluation-harness' own model class, on the questions of real data sets."""

from __future__ import annotations

import gzip
import json
import logging
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from benchmarks.eval_scoring import FILES, WORDINGS
from evals.scoring.rows import Row, fit
from evals.scoring.scorer import Scorer
from training.model.attention import ATTENTION

DATA = Path(__file__).resolve().parents[4].parent / "shared" / "data"
QUESTIONS = 200
VOCAB = 1000
MAX_LENGTH = 96
"""Short enough that some of the contexts are cut off."""

Pair = tuple[str, str]

pytestmark = pytest.mark.skipif(not DATA.is_dir(), reason=f"the data sets are not in {DATA}")


def winogrande(record: dict[str, Any]) -> list[Pair]:
    """The sentence up to its blank with one of two options is the context, the rest is scored."""
    before, after = record["sentence"].split("_")
    return [(before + record[option], f" {after.strip()}") for option in ("option1", "option2")]


SETS = {name: (FILES[name], WORDINGS[name]) for name in FILES} | {
    "winogrande": ("winogrande_validation.jsonl.gz", winogrande)
}


@pytest.fixture(scope="module")
def pairs() -> dict[str, list[Pair]]:
    found: dict[str, list[Pair]] = {}
    for name, (file_name, wording) in SETS.items():
        with gzip.open(DATA / file_name, "rt", encoding="utf-8") as file:
            records = [json.loads(line) for line, _ in zip(file, range(QUESTIONS), strict=False)]
        found[name] = [pair for record in records for pair in wording(record)]
    return found


@pytest.fixture(scope="module")
def tokenizer(pairs: dict[str, list[Pair]]) -> Any:
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB, special_tokens=["<s>", "</s>"], initial_alphabet=alphabet, show_progress=False
    )
    made.train_from_iterator([text for of_set in pairs.values() for pair in of_set for text in pair], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<s>", eos_token="</s>")


@pytest.fixture(scope="module")
def make_peer(tokenizer: Any) -> Callable[[Any], Any]:
    from lm_eval.models.huggingface import HFLM

    logging.getLogger("lm_eval").setLevel(logging.ERROR)

    def make(model: Any) -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return HFLM(pretrained=model, tokenizer=tokenizer, batch_size=16, max_length=MAX_LENGTH)

    return make


KINDS: dict[str, dict[str, Any]] = {
    "llama": {},
    "llama_palimpsest": {"attention": ATTENTION},
    "gpt2": {"model_type": "gpt2"},
}


def first_choices(model: Any, context: list[int]) -> list[int]:
    """The two tokens that the model would write after the end of a context."""
    ids = list(context[-MAX_LENGTH + 1 :])
    for _ in range(2):
        with torch.no_grad():
            ids.append(int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
    return ids[-2:]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", SETS)
def test_answers_are_those_of_hflm(
    name: str,
    kind: str,
    pairs: dict[str, list[Pair]],
    make_model: Callable[..., Any],
    make_peer: Callable[[Any], Any],
) -> None:
    model = make_model(**({"vocab_size": VOCAB} | KINDS[kind]))
    peer = make_peer(model)
    requests = [(pair, *peer._encode_pair(*pair)) for pair in pairs[name]]
    requests += [(pair, context, first_choices(model, context)) for pair, context, _ in requests[:40]]
    rows = [Row((*context, *continuation), first=len(context)) for _, context, continuation in requests]
    expected = peer._loglikelihood_tokens(requests, disable_tqdm=True)
    found = Scorer(model=model, device="cpu", pad_id=0, max_length=MAX_LENGTH, batch_tokens=2048).score(rows)

    errors = [abs(ours.loglikelihood - theirs) for ours, (theirs, _) in zip(found, expected, strict=True)]
    assert len(found) >= 2 * QUESTIONS + 40
    assert max(errors) <= 1e-4
    assert [answer.is_greedy for answer in found] == [is_greedy for _, is_greedy in expected]
    assert all(answer.is_greedy for answer in found[-40:])
    assert not all(answer.is_greedy for answer in found)
    if name == "hellaswag":
        assert any(fit(row, MAX_LENGTH)[1] for row in rows), "some contexts are cut off"

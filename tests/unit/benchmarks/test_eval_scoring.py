"""The scoring benchmark: both sides get the same questions, and what is compared and counted is true."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
import torch

from benchmarks import eval_scoring
from benchmarks.eval_scoring import Size
from evals.scoring.scorer import Answer, Scorer

TINY = Size(hidden=64, layers=1, questions=3, repetitions=1, device=torch.device("cpu"), dtype=torch.float32)


def test_questions_are_worded_as_lm_eval_does(tmp_path: Path) -> None:
    hellaswag = {"activity_label": "Roof", "ctx": "A man sits. he [step] waits", "endings": ["a [title] b", "c"]}
    arc = {"question": "Why?", "choices": {"text": ["Because.", "No."], "label": ["A", "B"]}}
    for name, record in (("hellaswag", hellaswag), ("arc_challenge", arc)):
        with gzip.open(tmp_path / eval_scoring.FILES[name], "wt", encoding="utf-8") as file:
            file.write(2 * (json.dumps(record) + "\n"))

    (first, second) = eval_scoring.read_pairs(tmp_path, "hellaswag", 1)
    assert first == ("Roof: A man sits. he waits", " a. b")
    assert second == ("Roof: A man sits. he waits", " c")
    assert len(eval_scoring.read_pairs(tmp_path, "hellaswag", 2)) == 4
    assert eval_scoring.read_pairs(tmp_path, "arc_challenge", 1) == [
        ("Question: Why?\nAnswer:", " Because."),
        ("Question: Why?\nAnswer:", " No."),
    ]


def test_both_sides_answer_the_same_questions() -> None:
    pairs = [pair for name in eval_scoring.FILES for pair in eval_scoring.invented_pairs(name, 3)]
    tokenizer = eval_scoring.make_tokenizer([text for pair in pairs for text in pair])
    model = eval_scoring.make_model(TINY)
    peer = eval_scoring.make_peer(model, tokenizer)
    scorer = Scorer(model=model, device="cpu", pad_id=0, max_length=2048)
    requests = eval_scoring.make_requests(pairs, peer)

    theirs = peer._loglikelihood_tokens(requests.tokens, disable_tqdm=True)
    for ours in (
        scorer.score(requests.rows),
        eval_scoring.without_tries(scorer, requests.rows),
        eval_scoring.from_texts(pairs, scorer, tokenizer),
    ):
        error, flips = eval_scoring.compare(ours, theirs)
        assert error < 1e-4
        assert flips == 0
    assert eval_scoring.peer_from_texts(pairs, peer) == theirs

    counted = eval_scoring.count_forwarded(peer, requests.tokens, scorer, requests.rows)
    assert counted["rows without padding"] == sum(len(c) + len(e) - 1 for _, c, e in requests.tokens)
    assert counted["ours"] < counted["HFLM"] == counted["rows without padding"], "one row at a time has no padding"


def test_contenders_take_turns(capsys: pytest.CaptureFixture[str]) -> None:
    order: list[str] = []
    names = ("ours", "HFLM")
    found = dict(eval_scoring.measure({name: lambda name=name: order.append(name) for name in names}, 3))
    assert order == ["ours", "HFLM", *("ours", "HFLM", "HFLM", "ours") * 2]
    assert {name: len(seconds) for name, seconds in found.items()} == {"ours": 4, "HFLM": 4}


def test_answers_that_differ_are_seen() -> None:
    ours = [Answer(-1.0, True), Answer(-2.0, False)]
    assert eval_scoring.compare(ours, [(-1.5, True), (-2.25, True)]) == (0.5, 1)
    assert eval_scoring.compare(ours, [(-1.0, True), (-2.0, False)]) == pytest.approx((0.0, 0))

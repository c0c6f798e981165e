"""A task's generation settings, compared with the harness's own reading of them."""

from __future__ import annotations

from typing import Any

import pytest
from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs

from evals.errors import EvalError
from evals.harness.generation_settings import generation_settings, without_lengths


@pytest.mark.parametrize(
    "kwargs",
    [
        {},
        {"until": "\n\n"},
        {"until": ["Question:", "</s>"], "do_sample": False, "temperature": 0.0},
        {"until": ["\ndef"], "max_gen_toks": 1024, "do_sample": True, "temperature": 0.2, "top_p": 0.95},
        {"until": [], "max_new_tokens": 7, "temperature": 0.7},
        {"do_sample": False, "temperature": 0.7, "max_tokens": 5, "max_gen_toks": 3},
    ],
)
def test_settings_are_read_as_the_harness_does(kwargs: dict[str, Any]) -> None:
    ours, theirs = generation_settings(kwargs, "</s>"), dict(normalize_gen_kwargs(kwargs))
    assert list(ours.stop) == handle_stop_sequences(theirs["until"], eos="</s>")
    assert ours.max_new_tokens == theirs["max_gen_toks"]
    assert (ours.temperature > 0) == theirs["do_sample"]
    if theirs["do_sample"]:
        assert (ours.temperature, ours.top_p) == (theirs["temperature"], theirs.get("top_p", 1.0))


def test_samples_without_a_temperature_are_drawn_at_1() -> None:
    assert generation_settings({"do_sample": True}).temperature == 1.0


def test_what_cannot_be_followed_is_refused() -> None:
    with pytest.raises(EvalError, match="generation_kwargs num_beams cannot be followed; only "):
        generation_settings({"num_beams": 4})


def test_lengths_are_taken_out_under_every_name() -> None:
    assert without_lengths({"max_gen_toks": 1, "max_tokens": 2, "until": ["a"]}) == {"until": ["a"]}

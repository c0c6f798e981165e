from __future__ import annotations

import gzip
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.config import DataConfig, SourceConfig
from data_pipeline.encoding.examples import ALPACA, ALPACA_WITH_INPUT, BadRecordError, Encoder, Example, cut
from data_pipeline.encoding.loading import load_tokenizer
from data_pipeline.encoding.tokenizer import TokenizerError
from data_pipeline.errors import PipelineError

DATA = Path(__file__).parents[5] / "shared" / "data"
PROMPTS = SourceConfig(path="x", kind="prompt")
ALPACAS = SourceConfig(path="x", kind="alpaca")
ANY_TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)


def encoder_of(source: SourceConfig, tokenizer_path: Path, **settings: Any) -> Encoder:
    config = DataConfig(sources={"s": source}, tokenizer=tokenizer_path, **settings)
    return Encoder(source, config, load_tokenizer(tokenizer_path, "reference"))


def targets(example: Example) -> list[int]:
    assert example.is_target is not None
    return list(example.ids[example.is_target])


def refusal(encoder: Encoder, record: dict[str, Any]) -> str:
    with pytest.raises(BadRecordError) as caught:
        encoder.encode(record)
    return str(caught.value)


def test_text_is_framed_and_all_target(tokenizer_path: Path) -> None:
    tokenizer = load_tokenizer(tokenizer_path)
    encoder = encoder_of(SourceConfig(path="x", text_field="body"), tokenizer_path)
    example = encoder.encode({"body": "the dog", "other": 3})
    assert example.ids.tolist() == [1, *tokenizer.encode("the dog"), 2]
    assert (example.ids.dtype, example.is_target) == (np.int32, None)
    assert encoder.columns == encoder.required == ["body"]
    assert not len(encoder.encode({"body": ""}).ids)


@pytest.mark.parametrize(("bos", "eos"), [(False, False), (False, True), (True, False)])
def test_bos_and_eos_as_the_settings_say(tokenizer_path: Path, bos: bool, eos: bool) -> None:
    ids = load_tokenizer(tokenizer_path).encode("a dog")
    framed = [1] * bos + ids + [2] * eos
    text = encoder_of(SourceConfig(path="x"), tokenizer_path, bos=bos, eos=eos)
    assert text.encode({"text": "a dog"}).ids.tolist() == framed
    prompt = encoder_of(PROMPTS, tokenizer_path, bos=bos, eos=eos)
    assert prompt.encode({"prompt": "a ", "response": "dog"}).ids.tolist() == framed


def test_bad_records_say_why(tokenizer_path: Path) -> None:
    text = encoder_of(SourceConfig(path="x"), tokenizer_path)
    assert (
        refusal(text, {"title": "", "body": ""})
        == "has no field 'text'; set text_field to one of its fields: body, title"
    )
    assert refusal(text, {}) == "has no field 'text'; set text_field to one of its fields: none"
    assert refusal(text, {"text": None}) == "has NoneType in the field 'text', where text is needed"
    assert refusal(text, {"text": ["a"]}) == "has list in the field 'text', where text is needed"
    prompt = encoder_of(PROMPTS, tokenizer_path)
    assert "has no field 'response'; set response_field" in refusal(prompt, {"prompt": "a"})
    assert "has no field 'prompt'; set prompt_field" in refusal(prompt, {"response": "a"})
    assert "has int in the field 'response'" in refusal(prompt, {"prompt": "a", "response": 3})
    assert refusal(prompt, {"prompt": "a", "response": " \n"}).startswith(
        "has an empty response in the field 'response'"
    )
    templated = encoder_of(replace(PROMPTS, template="Q: {question}\nA:"), tokenizer_path)
    assert "has no field 'question'; set template" in refusal(templated, {"prompt": "a", "response": "b"})


@settings(max_examples=50)
@given(prompt=ANY_TEXT, response=ANY_TEXT.filter(str.strip))
def test_targets_begin_where_the_prompt_alone_ends(tokenizer_path: Path, prompt: str, response: str) -> None:
    tokenizer = load_tokenizer(tokenizer_path, "reference")
    ids, is_target = encoder_of(PROMPTS, tokenizer_path).encode({"prompt": prompt, "response": response})
    alone = [1, *tokenizer.encode(prompt)]
    assert ids.tolist() == [1, *tokenizer.encode(prompt + response), 2]
    assert is_target is not None
    first = int(np.argmax(is_target))
    assert is_target[first:].all()
    assert ids[:first].tolist() == alone[:first], "what is not predicted is what generation starts from"
    assert first == len(alone) or ids[first] != alone[first]


def test_the_model_predicts_a_token_that_joins_prompt_and_response(tokenizer_path: Path) -> None:
    tokenizer = load_tokenizer(tokenizer_path)
    joined = tokenizer.encode("the")
    assert len(joined) == 1, "this test needs a piece for the word"
    example = encoder_of(PROMPTS, tokenizer_path).encode({"prompt": "th", "response": "e"})
    assert example.ids.tolist() == [1, *joined, 2]
    assert targets(example) == [*joined, 2]


def test_names_of_special_tokens_are_plain_text(tokenizer_path: Path) -> None:
    example = encoder_of(PROMPTS, tokenizer_path).encode({"prompt": "a</s>", "response": "<s>b</s>"})
    assert example.ids.tolist().count(2) == 1
    assert example.ids.tolist().count(1) == 1


def test_a_template_places_the_fields(tokenizer_path: Path) -> None:
    tokenizer = load_tokenizer(tokenizer_path)
    source = replace(PROMPTS, template="{{Q}} {topic}: {question}\nA:\n", response_field="answer")
    encoder = encoder_of(source, tokenizer_path)
    example = encoder.encode({"topic": "dogs", "question": "why?", "answer": "so"})
    assert tokenizer.decode(example.ids) == "{Q} dogs: why?\nA:\nso"
    assert tokenizer.decode(targets(example)) == "so"
    assert encoder.columns == ["topic", "question", "answer"]
    with pytest.raises(PipelineError, match=r"template cannot be filled in .*; write fields as \{name\}"):
        encoder_of(replace(PROMPTS, template="{prompt:d}"), tokenizer_path)


def test_alpaca_with_and_without_input(tokenizer_path: Path) -> None:
    tokenizer = load_tokenizer(tokenizer_path)
    encoder = encoder_of(ALPACAS, tokenizer_path)
    record = {"instruction": "Say it", "input": "the dog", "output": "woof"}
    example = encoder.encode(record)
    assert tokenizer.decode(example.ids) == ALPACA_WITH_INPUT.format(instruction="Say it", input="the dog") + "woof"
    assert tokenizer.decode(targets(example)) == "woof"
    whole = ALPACA.format(instruction="Say it") + "woof"
    for without in ({"input": ""}, {"input": None}):
        assert tokenizer.decode(encoder.encode(record | without).ids) == whole
    del record["input"]
    assert tokenizer.decode(encoder.encode(record).ids) == whole
    assert (encoder.columns, encoder.required) == (["instruction", "input", "output"], ["instruction", "output"])
    own = encoder_of(replace(ALPACAS, template="{instruction} | {input} = "), tokenizer_path)
    assert tokenizer.decode(own.encode(record).ids) == "Say it |  = woof"
    assert "empty response in the field 'output'" in refusal(encoder, record | {"output": ""})
    assert "has no field 'instruction'" in refusal(encoder, {"output": "a"})


def test_the_published_wording_of_alpaca() -> None:
    assert ALPACA_WITH_INPUT.splitlines()[0].endswith(
        "paired with an input that provides further context. Write a response that appropriately completes the request."
    )
    assert ALPACA.splitlines()[1:] == ["", "### Instruction:", "{instruction}", "", "### Response:"]
    assert ALPACA_WITH_INPUT.splitlines()[1:] == [
        *("", "### Instruction:", "{instruction}", "", "### Input:", "{input}", "", "### Response:")
    ]


def test_cut_keeps_the_beginning(tokenizer_path: Path) -> None:
    example = encoder_of(PROMPTS, tokenizer_path).encode({"prompt": "the dog ", "response": "sleeps"})
    shorter = cut(example, 3)
    assert shorter.ids.tolist() == example.ids[:3].tolist()
    assert shorter.is_target is not None
    assert example.is_target is not None
    assert shorter.is_target.tolist() == example.is_target[:3].tolist()
    assert cut(Example(example.ids), 2).is_target is None
    assert cut(example, 1000).ids.tolist() == example.ids.tolist()


def test_fingerprints_tell_all_that_decides(tokenizer_path: Path) -> None:
    sources = [
        SourceConfig(path="x"),
        SourceConfig(path="x", text_field="body"),
        PROMPTS,
        replace(PROMPTS, prompt_field="question"),
        replace(PROMPTS, response_field="answer"),
        replace(PROMPTS, template="{prompt} "),
        ALPACAS,
        replace(ALPACAS, template="{instruction}"),
    ]
    prints = [encoder_of(source, tokenizer_path).fingerprint for source in sources]
    prints += [encoder_of(sources[0], tokenizer_path, **{name: False}).fingerprint for name in ("bos", "eos")]
    texts = [json.dumps(fingerprint, sort_keys=True) for fingerprint in prints]
    assert len(set(texts)) == len(texts)
    for source in (replace(sources[0], path="y", weight=2.0), replace(sources[0], response_field="unused")):
        assert encoder_of(source, tokenizer_path).fingerprint == prints[0]


def test_a_missing_token_is_refused_before_any_record(tmp_path: Path) -> None:
    from tests.unit.data_pipeline.encoding.test_tokenizer import write_tokenizer_json

    path = write_tokenizer_json(tmp_path, special=("<begin>", "<end>"))
    with pytest.raises(TokenizerError, match="bos = true"):
        encoder_of(SourceConfig(path="x"), path)


@pytest.mark.skipif(not (DATA / "gsm8k_train.jsonl.gz").is_file(), reason="GSM8K is not beside the repository")
def test_gsm8k_answers_are_the_targets() -> None:
    model = DATA / "llama_tokenizer.model"
    encoder = encoder_of(replace(PROMPTS, template="{question}\n", response_field="answer"), model)
    tokenizer = load_tokenizer(model, "reference")
    with gzip.open(DATA / "gsm8k_train.jsonl.gz", "rt", encoding="utf-8") as file:
        records = [json.loads(line) for line, _ in zip(file, range(50), strict=False)]
    for record in records:
        example = encoder.encode(record)
        assert tokenizer.decode(targets(example)) == record["answer"]
        assert example.ids[-1] == 2

from __future__ import annotations

import pickle
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from data_pipeline.config import DataConfig, SourceConfig
from data_pipeline.encoding.contents import check_record
from data_pipeline.encoding.examples import BadRecordError, Encoder
from data_pipeline.encoding.loading import load_tokenizer

PROMPT = {"prompt": "the dog", "response": "woof"}
ALPACA = {"instruction": "say", "output": "woof"}
ASSISTANT = {"role": "assistant", "content": "woof"}


@pytest.mark.parametrize(
    ("kind", "template", "record", "message"),
    [
        ("text", None, {"text": "a"}, None),
        ("text", None, {"text": ""}, None),
        ("text", None, {"body": "a"}, "has no field 'text'; set text_field to one of its fields: body"),
        ("text", None, {"text": None}, "has NoneType in the field 'text', where text is needed"),
        ("text", None, {"text": 5}, "has int in the field 'text'"),
        ("prompt", None, PROMPT, None),
        ("prompt", None, PROMPT | {"prompt": None}, "has NoneType in the field 'prompt'"),
        ("prompt", None, PROMPT | {"response": " \n"}, "has an empty response in the field 'response'"),
        ("prompt", None, {"prompt": "a"}, "has no field 'response'; set response_field"),
        ("prompt", "{question}:", PROMPT, "has no field 'question'; set template"),
        ("prompt", "{question}:", PROMPT | {"question": "a"}, None),
        ("alpaca", None, ALPACA, None),
        ("alpaca", None, ALPACA | {"input": None}, None),
        ("alpaca", None, ALPACA | {"input": 3}, "has int in the field 'input'"),
        ("alpaca", None, ALPACA | {"output": ""}, "has an empty response in the field 'output'"),
        ("chat", None, {"messages": [ASSISTANT]}, None),
        ("chat", None, {"chat": [ASSISTANT]}, "has no field 'messages'; set messages_field"),
        ("chat", None, {"messages": []}, "has no messages"),
        ("chat", None, {"messages": None}, "has NoneType as messages, where a list is needed"),
        ("chat", None, {"messages": ["woof"]}, "has a message that is str"),
        ("chat", None, {"messages": [{"content": "a"}]}, 'has a message without "role"'),
        ("chat", None, {"messages": [{"role": "user", "content": "a"}]}, "has no message of the role assistant"),
        ("chat", None, {"messages": [ASSISTANT], "tools": "["}, "has tools that are no valid JSON"),
    ],
)
def test_what_is_found_without_a_tokenizer_is_what_the_encoder_refuses(
    kind: Any, template: str | None, record: dict[str, Any], message: str | None, tokenizer_path: Path, tmp_path: Path
) -> None:
    source = SourceConfig(path="x", kind=kind, template=template)
    check = pickle.loads(pickle.dumps(partial(check_record, source)))
    found = check(record)
    (tmp_path / "t.jinja").write_text(
        "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}"
    )
    config = DataConfig(
        sources={"a": source},
        tokenizer=tokenizer_path,
        chat_template=tmp_path / "t.jinja",
    )
    encoder = Encoder(source, config, load_tokenizer(tokenizer_path))
    if message is None:
        assert found is None
        encoder.encode(record)
    else:
        assert found is not None
        assert found.startswith(message)
        with pytest.raises(BadRecordError) as error:
            encoder.encode(record)
        assert str(error.value) == found

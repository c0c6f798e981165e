from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_pipeline.config import DataConfig, SourceConfig
from data_pipeline.encoding.chat import ChatTemplate, ChatTemplateError
from data_pipeline.encoding.examples import BadRecordError, Encoder, Example
from data_pipeline.encoding.loading import load_tokenizer
from data_pipeline.encoding.tokenizer import Tokenizer

Messages = list[dict[str, Any]]

CHATML = (
    "{%- for message in messages %}{{ '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}"
    "{%- endfor %}{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{%- endif %}"
)
CHATML_MARKED = (
    "{%- for message in messages %}{%- if message.role == 'assistant' %}{{ '<|im_start|>assistant\\n' }}"
    "{% generation %}{{ message.content + '<|im_end|>' }}{% endgeneration %}{{ '\\n' }}"
    "{%- else %}{{ '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}{%- endif %}"
    "{%- endfor %}{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{%- endif %}"
)
LLAMA2 = (
    "{%- for message in messages %}"
    "{%- if message.role == 'user' %}{{ bos_token + '[INST] ' + message.content + ' [/INST]' }}"
    "{%- elif message.role == 'assistant' %}{{ ' ' + message.content + ' ' + eos_token }}"
    "{%- else %}{{ raise_exception('Only user and assistant roles are supported!') }}{%- endif %}{%- endfor %}"
)
FORGETFUL = (
    "{%- for message in messages %}{%- if message.role != 'assistant' or loop.last %}"
    "{{ '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}{%- endif %}{%- endfor %}"
)
CHAT: Messages = [
    {"role": "system", "content": "You are a dog."},
    {"role": "user", "content": "Bark, 3 times: é中😀"},
    {"role": "assistant", "content": "wuff  wuff\n\nwuff 😀é"},
    {"role": "user", "content": "Again?"},
    {"role": "assistant", "content": " No. "},
]


@pytest.fixture(scope="module")
def json_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small byte-level BPE with the tokens of ChatML."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    engine = Tokenizer(models.BPE())
    engine.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    engine.decoder = decoders.ByteLevel()
    special = ["<s>", "<|im_start|>", "<|im_end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    engine.train_from_iterator(["the assistant and the user bark and say wuff wuff. " * 20], trainer)
    folder = tmp_path_factory.mktemp("bpe")
    engine.save(str(folder / "tokenizer.json"))
    write_config(folder, CHATML)
    return folder


def write_config(folder: Path, template: object, **more: object) -> None:
    tokens = {"bos_token": "<s>", "eos_token": "<|im_end|>", "tokenizer_class": "PreTrainedTokenizerFast"}
    (folder / "tokenizer_config.json").write_text(json.dumps(tokens | {"chat_template": template} | more))


def file_of(folder: Path, template: str) -> Path:
    path = folder / "template.jinja"
    path.write_text(template, encoding="utf-8")
    return path


def encoder_of(path: Path, **settings: Any) -> Encoder:
    source = SourceConfig(path="x", kind="chat")
    config = DataConfig(sources={"s": source}, tokenizer=path, **settings)
    return Encoder(source, config, load_tokenizer(path))


def pieces(tokenizer: Tokenizer, example: Example) -> list[str]:
    """The text of every stretch of targets."""
    ids, is_target = example
    assert is_target is not None
    edges = np.flatnonzero(np.diff(np.concatenate([[0], is_target.astype(int), [0]]))).reshape(-1, 2)
    return [tokenizer.decode(ids[start:stop]) for start, stop in edges.tolist()]


def refusal(encoder: Encoder, messages: object, **fields: object) -> str:
    with pytest.raises(BadRecordError) as caught:
        encoder.encode({"messages": messages, **fields})
    return str(caught.value)


@pytest.mark.parametrize("chat", [CHAT, CHAT[1:3], CHAT[1:4]])
def test_ids_and_targets_are_those_of_transformers(json_folder: Path, tmp_path: Path, chat: Messages) -> None:
    from transformers import PreTrainedTokenizerFast

    oracle = PreTrainedTokenizerFast.from_pretrained(json_folder)
    expected = oracle.apply_chat_template(
        chat, chat_template=CHATML_MARKED, tokenize=True, return_dict=True, return_assistant_tokens_mask=True
    )
    path = file_of(tmp_path, CHATML_MARKED)
    example = encoder_of(json_folder, bos=False, chat_template=path).encode({"messages": chat})
    assert example.ids.tolist() == expected["input_ids"]
    assert example.is_target is not None
    assert example.is_target.astype(int).tolist() == list(expected["assistant_masks"])
    assert 0 < sum(expected["assistant_masks"]) < len(expected["input_ids"])


def test_a_template_without_marks_gives_the_same(json_folder: Path, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(json_folder)
    compared = encoder_of(json_folder).encode({"messages": CHAT})
    marked = encoder_of(json_folder, chat_template=file_of(tmp_path, CHATML_MARKED)).encode({"messages": CHAT})
    assert pieces(tokenizer, compared) == ["wuff  wuff\n\nwuff 😀é<|im_end|>", " No. <|im_end|>"]
    assert compared.ids.tolist() == marked.ids.tolist()
    assert np.array_equal(compared.is_target, marked.is_target)


def test_bos_is_put_before_the_chat_once_and_eos_is_the_templates(json_folder: Path, tmp_path: Path) -> None:
    own = encoder_of(json_folder).encode({"messages": CHAT})
    assert own.ids[0] == 0
    with_bos = file_of(tmp_path, "{{ bos_token }}" + CHATML)
    assert encoder_of(json_folder, chat_template=with_bos).encode({"messages": CHAT}).ids.tolist() == own.ids.tolist()
    without = encoder_of(json_folder, bos=False, eos=False).encode({"messages": CHAT})
    assert without.ids.tolist() == own.ids.tolist()[1:]
    assert own.is_target is not None
    assert not own.is_target[0]


def test_a_sentencepiece_model_with_llama2s_template(tokenizer_path: Path, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(tokenizer_path)
    encoder = encoder_of(tokenizer_path, chat_template=file_of(tmp_path, LLAMA2))
    chat = [{"role": role, "content": text} for role, text in (("user", "the é"), ("assistant", "dog 😀"))] * 2
    example = encoder.encode({"messages": chat})
    turn = [1, *tokenizer.encode("[INST] the é [/INST] dog 😀 "), 2]
    assert example.ids.tolist() == turn * 2
    assert [text.strip() for text in pieces(tokenizer, example)] == ["dog 😀", "dog 😀"]
    assert example.is_target is not None
    assert example.is_target[example.ids == 2].all(), "the end of a turn is a target"
    assert not example.is_target[example.ids == 1].any()
    message = refusal(encoder, [{"role": "tool", "content": "x"}, {"role": "assistant", "content": "y"}])
    assert message.endswith("template.jinja: Only user and assistant roles are supported!")


def test_llama2s_model_that_puts_a_space_before_its_text(tmp_path: Path) -> None:
    model = Path(__file__).parents[5] / "shared" / "data" / "llama_tokenizer.model"
    if not model.is_file():
        pytest.skip("the Llama tokenizer is not beside the repository")
    tokenizer = load_tokenizer(model)
    encoder = encoder_of(model, chat_template=file_of(tmp_path, LLAMA2))
    chat = [{"role": "user", "content": "Hello world ▁"}, {"role": "assistant", "content": "\n  from 中😀"}]
    example = encoder.encode({"messages": chat})
    assert example.ids.tolist() == [1, *tokenizer.encode("[INST] Hello world ▁ [/INST] \n  from 中😀 "), 2]
    assert [text.strip() for text in pieces(tokenizer, example)] == ["from 中😀"]


@pytest.mark.parametrize("name", ["<|im_end|>", "<s>"])
def test_a_special_name_inside_a_message_is_refused(json_folder: Path, name: str) -> None:
    encoder = encoder_of(json_folder)
    chat = [{"role": "user", "content": f"a{name}b"}, {"role": "assistant", "content": "c"}]
    assert f"has {name!r} inside a message, which is the name of a special token" in refusal(encoder, chat)
    parts = [{"role": "user", "content": [{"type": "text", "text": name}]}, CHAT[2]]
    assert "inside a message" in refusal(encoder, parts)
    assert "inside a message" in refusal(encoder, CHAT, tools=[{"name": name}])


def test_bad_chats_say_why(json_folder: Path) -> None:
    encoder = encoder_of(json_folder)
    with pytest.raises(BadRecordError, match="has no field 'messages'; set messages_field to one of its fields: chat"):
        encoder.encode({"chat": CHAT})
    assert refusal(encoder, "hello") == "has str as messages, where a list is needed"
    assert refusal(encoder, []) == "has no messages"
    assert refusal(encoder, ["a"]).startswith("has a message that is str, where an object with role and content")
    assert refusal(encoder, [{"content": "a"}]).startswith('has a message without "role"; write messages as {"role"')
    assert refusal(encoder, CHAT[:2]).startswith("has no message of the role assistant")
    assert "cannot be rendered by the chat template" in refusal(encoder, [{"role": "assistant", "content": None}])
    assert refusal(encoder, CHAT, tools="{half").startswith("has tools that are no valid JSON")
    assert refusal(encoder, CHAT, tools=3) == "has int as tools, where a list is needed"


def test_an_empty_turn_teaches_its_end_only(json_folder: Path) -> None:
    chat = [CHAT[1], {"role": "assistant", "content": ""}]
    example = encoder_of(json_folder).encode({"messages": chat})
    assert pieces(load_tokenizer(json_folder), example) == ["<|im_end|>"]


def test_messages_in_the_form_of_sharegpt_and_of_tables(json_folder: Path) -> None:
    encoder = encoder_of(json_folder)
    roles = {"system": "system", "user": "human", "assistant": "gpt"}
    sharegpt = [{"from": roles[message["role"]], "value": message["content"]} for message in CHAT]
    expected = encoder.encode({"messages": CHAT})
    table = [message | {"name": None} for message in CHAT]
    for chat in (sharegpt, table):
        example = encoder.encode({"messages": chat, "tools": None})
        assert example.ids.tolist() == expected.ids.tolist()
        assert np.array_equal(example.is_target, expected.is_target)


def test_tools_reach_the_template(json_folder: Path, tmp_path: Path) -> None:
    path = file_of(tmp_path, "{% if tools %}{{ tools | tojson }}{% endif %}" + CHATML)
    tools = [{"name": "bark", "parameters": {}}]
    encoder = encoder_of(json_folder, chat_template=path)
    tokenizer = load_tokenizer(json_folder)
    example = encoder.encode({"messages": CHAT, "tools": tools})
    assert json.dumps(tools) in tokenizer.decode(example.ids)
    assert encoder.encode({"messages": CHAT, "tools": json.dumps(tools)}).ids.tolist() == example.ids.tolist()
    assert (encoder.columns, encoder.required) == (["messages", "tools"], ["messages"])


def test_lone_surrogates_in_messages(json_folder: Path) -> None:
    tokenizer = load_tokenizer(json_folder)
    chat = [{"role": "user", "content": "a\ud83d\ude00\udfff"}, {"role": "assistant", "content": "b\ud800"}]
    example = encoder_of(json_folder).encode({"messages": chat})
    assert pieces(tokenizer, example) == ["b\ufffd<|im_end|>"]
    assert "a😀\ufffd<|im_end|>" in tokenizer.decode(example.ids)


def test_a_template_that_rewrites_earlier_turns_is_refused(json_folder: Path, tmp_path: Path) -> None:
    encoder = encoder_of(json_folder, chat_template=file_of(tmp_path, FORGETFUL))
    with pytest.raises(
        ChatTemplateError, match=r"template.jinja writes earlier turns in another way .*\{% generation %\}"
    ):
        encoder.encode({"messages": CHAT})


def test_where_the_template_comes_from(json_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_bytes((json_folder / "tokenizer.json").read_bytes())
    tokenizer = load_tokenizer(tmp_path)
    with pytest.raises(
        ChatTemplateError, match=r"there is no chat template beside the tokenizer .* name a Jinja file in"
    ):
        ChatTemplate(tokenizer)
    chat: Messages = [{"role": "assistant", "content": "x"}]
    named = [{"name": "rag", "template": "1"}, {"name": "default", "template": "2" + CHATML}]
    write_config(tmp_path, named)
    assert ChatTemplate(load_tokenizer(tmp_path)).render(chat)[0].startswith("2<")
    (tmp_path / "chat_template.jinja").write_text("3" + CHATML)
    beside = ChatTemplate(load_tokenizer(tmp_path))
    assert beside.render(chat)[0].startswith("3<")
    given = ChatTemplate(tokenizer, file_of(tmp_path, "4" + CHATML))
    assert given.render(chat)[0].startswith("4<")
    assert given.fingerprint != beside.fingerprint
    with pytest.raises(ChatTemplateError, match=r"missing.jinja cannot be read .* name another file"):
        ChatTemplate(tokenizer, tmp_path / "missing.jinja")


def test_templates_that_cannot_serve(json_folder: Path, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(json_folder)
    with pytest.raises(ChatTemplateError, match=r"template.jinja is no valid Jinja: line 2: "):
        ChatTemplate(tokenizer, file_of(tmp_path, "a\n{% for %}"))
    with pytest.raises(ChatTemplateError, match=r"template.jinja writes today's date"):
        ChatTemplate(tokenizer, file_of(tmp_path, "{{ strftime_now('%Y') }}" + CHATML))
    dated = "{% if not date_string is defined %}{% set date_string = strftime_now('%d %b %Y') %}{% endif %}{{ date_string }}"
    text, _ = ChatTemplate(tokenizer, file_of(tmp_path, dated + CHATML)).render(CHAT)
    assert text.startswith("26 Jul 2024<|im_start|>")
    unsafe = ChatTemplate(tokenizer, file_of(tmp_path, "{{ messages.__class__.__mro__ }}" + CHATML))
    with pytest.raises(BadRecordError, match="unsafe"):
        unsafe.render(CHAT)


def test_a_token_that_only_the_files_beside_the_model_know(tokenizer_path: Path, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(tokenizer_path.read_bytes())
    write_config(tmp_path, CHATML, added_tokens_decoder={"2": {"content": "</s>"}, "999": {"content": "<|im_start|>"}})
    encoder = encoder_of(tmp_path)
    with pytest.raises(ChatTemplateError, match=r"writes <\|im_start\|>, a token that was added .* the tokenizer.json"):
        encoder.encode({"messages": CHAT})


@pytest.mark.parametrize("found", [["default"], [{"name": ["default"]}], [{"name": "default"}], 3])
def test_named_templates_that_are_none(json_folder: Path, tmp_path: Path, found: object) -> None:
    folder = tmp_path / "tokenizer"
    folder.mkdir()
    (folder / "tokenizer.json").write_bytes((json_folder / "tokenizer.json").read_bytes())
    write_config(folder, found)
    with pytest.raises(ChatTemplateError, match="there is no chat template beside the tokenizer"):
        encoder_of(folder)


def test_tools_that_are_nested_too_deep(json_folder: Path) -> None:
    assert "has tools that are no valid JSON" in refusal(encoder_of(json_folder), CHAT, tools="[" * 100_000)


@pytest.mark.parametrize("role", [["human"], {}, 3, None])
def test_a_role_of_sharegpt_that_is_no_text(json_folder: Path, role: object) -> None:
    assert 'has a message without "role"' in refusal(encoder_of(json_folder), [{"from": role, "value": "x"}])

"""Texts that a model writes: those of transformers and of the harness, whatever else is in the batch."""

from __future__ import annotations

import gzip
import itertools
import json
import random
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

import training.model.attention  # noqa: F401, makes "palimpsest" known
from evals.errors import EvalError
from evals.scoring import writing
from evals.scoring.generation import INTERVAL, Generation, Prompt, generate
from evals.scoring.stopping import Stopped

DATA = Path(__file__).resolve().parents[5] / "shared" / "data"
EOS = 2
MakeModel = Callable[..., Any]


def words(ids: Sequence[int]) -> str:
    """Tokens as text: each a word, 0 a special one that is not shown."""
    return "".join(f" {token}" for token in ids if token > 0)


def run(model: Any, prompts: Sequence[Prompt], **changes: Any) -> list[list[Generation]]:
    settings: dict[str, Any] = {
        "decode": words, "eos_ids": {EOS}, "device": "cpu", "pad_id": 0, "max_length": 128, "batch_tokens": 4000
    } | changes  # fmt: skip
    return generate(model, prompts, **settings)


def mixed_prompts(**changes: Any) -> list[Prompt]:
    """Prompts of all lengths, greedy and sampled, with and without stop strings."""
    draw = random.Random(4)
    return [
        Prompt(**{
            "ids": tuple(draw.randrange(3, 101) for _ in range(draw.choice([1, 5, 20, 20, 41]))),
            "max_new_tokens": draw.choice([1, 9, 30]), "samples": draw.choice([1, 1, 6]), "seed": 3,
            "temperature": draw.choice([0.0, 0.7, 1.5]), "top_p": draw.choice([1.0, 0.9]), "top_k": draw.choice([0, 20]),
            "stop": draw.choice([(), (" 17", " 4"), ("9 1",)]),
        } | changes)
        for _ in range(20)
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("model_type", "attention"), [("llama", "sdpa"), ("llama", "palimpsest"), ("llama", "eager"), ("gpt2", "sdpa")]
)
def test_greedy_texts_are_those_of_transformers(make_model: MakeModel, model_type: str, attention: str) -> None:
    model = make_model(model_type, attention)
    prompts = mixed_prompts(temperature=0.0, samples=1)
    for prompt, (text,) in zip(prompts, run(model, prompts), strict=True):
        ids = torch.tensor([prompt.ids])
        expected = model.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=prompt.max_new_tokens,
            eos_token_id=EOS, pad_token_id=0,
        )[0, len(prompt.ids) :].tolist()  # fmt: skip
        if text.finish == "eos":
            assert expected[-1] == EOS
            assert text == Generation(words(expected[:-1]), len(expected), "eos")
        elif text.finish == "length":
            assert text == Generation(words(expected), prompt.max_new_tokens, "length")
        else:
            found = min(words(expected).find(stop) for stop in prompt.stop if stop in words(expected))
            assert text.text == words(expected)[:found]
            assert words(expected[: text.tokens]).startswith(text.text)
            assert text.finish == "stop"


def test_texts_do_not_depend_on_what_else_is_written(make_model: MakeModel) -> None:
    model, prompts = make_model(), mixed_prompts()
    expected = run(model, prompts)
    assert {text.finish for texts in expected for text in texts} >= {"stop", "length"}
    assert (
        len(
            {
                text.text
                for text in expected[next(i for i, p in enumerate(prompts) if p.samples == 6 and p.temperature > 1)]
            }
        )
        > 1
    )
    for batch_tokens in (1, 150, 600):
        assert run(model, prompts, batch_tokens=batch_tokens) == expected
    assert run(model, prompts[::-1]) == expected[::-1]
    assert [run(model, [prompt])[0] for prompt in prompts[:8]] == expected[:8]


def test_first_samples_of_many_are_the_samples_of_few(make_model: MakeModel) -> None:
    few, many = (Prompt(ids=(5, 6), max_new_tokens=6, samples=samples, temperature=1.0) for samples in (3, 10))
    model = make_model()
    assert run(model, [few])[0] == run(model, [many])[0][:3]
    other = Prompt(ids=(5, 6), max_new_tokens=6, samples=3, temperature=1.0, seed=1)
    assert run(model, [few]) != run(model, [other])


def test_pairs_of_tokens_have_the_probabilities_of_the_model(make_model: MakeModel) -> None:
    model, count = make_model(), 4000
    prompt = Prompt(ids=(9, 8, 7), max_new_tokens=2, samples=count, temperature=1.7, top_k=3)
    seen = Counter(text.text for text in run(model, [prompt], eos_ids=())[0])

    def likeliest(ids: tuple[int, ...]) -> dict[int, float]:
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([ids])).logits[0, -1]
        values, tokens = (logits / prompt.temperature).topk(3)
        return dict(zip(tokens.tolist(), values.softmax(-1).tolist(), strict=True))

    expected = {
        words((first, second)): count * p * q
        for first, p in likeliest(prompt.ids).items()
        for second, q in likeliest((*prompt.ids, first)).items()
    }
    assert set(seen) <= set(expected)
    statistic = sum((seen[pair] - number) ** 2 / number for pair, number in expected.items() if number > 1)
    assert torch.special.gammaincc(torch.tensor(4.0), torch.tensor(statistic / 2)) > 1e-3


def test_a_prompt_is_read_once_for_all_its_samples(make_model: MakeModel) -> None:
    model = make_model()
    prompts = [
        Prompt(ids=tuple(range(3, 60 - k)), max_new_tokens=5, samples=20, temperature=2.0, seed=k) for k in range(4)
    ]
    with watched(model) as forwards:
        texts = run(model, prompts, batch_tokens=700, eos_ids=())
    read = sum(rows * tokens for rows, tokens, _ in forwards if tokens > 1)
    assert read == sum(len(prompt.ids) for prompt in prompts)
    assert sum(rows for rows, tokens, _ in forwards if tokens == 1) <= 1.5 * sum(
        text.tokens for of in texts for text in of
    )


@pytest.mark.parametrize("batch_tokens", [20, 150, 400])
def test_the_batch_stays_within_its_budget(
    make_model: MakeModel, monkeypatch: pytest.MonkeyPatch, batch_tokens: int
) -> None:
    # Little room, so that sequences outgrow it and are put back.
    monkeypatch.setattr(writing, "ROOM", 3)
    model = make_model()
    prompts = [Prompt(ids=tuple(range(3, 9 + k)), max_new_tokens=30, samples=3, temperature=2.0) for k in range(6)]
    expected = run(model, prompts, eos_ids=())
    with watched(model) as forwards:
        texts = run(model, prompts, batch_tokens=batch_tokens, eos_ids=())
    assert texts == expected
    assert max([rows * keys for rows, _, keys in forwards if rows > 1], default=0) <= batch_tokens
    read = sum(rows * tokens for rows, tokens, _ in forwards if tokens > 1)
    assert read > sum(len(prompt.ids) for prompt in prompts), "some are read again"


class watched:
    """Rows, tokens per row and keys per row of every forward; keys without what alignment adds."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.forwards: list[tuple[int, int, int]] = []

    def __enter__(self) -> list[tuple[int, int, int]]:
        self.handle = self.model.register_forward_pre_hook(self.note, with_kwargs=True)
        return self.forwards

    def __exit__(self, *_: object) -> None:
        self.handle.remove()

    def note(self, _module: Any, _arguments: Any, keywords: dict[str, Any]) -> None:
        rows, tokens = keywords["input_ids"].shape
        self.forwards.append((rows, tokens, int(keywords["position_ids"].max()) + 1))


def test_where_the_logits_say_nothing_a_text_ends(make_model: MakeModel) -> None:
    model = make_model()
    prompts = [Prompt(ids=(5, k), max_new_tokens=20) for k in range(10, 30)]
    expected = run(model, prompts, eos_ids=())
    broken = int(expected[3][0].text.split()[5])

    def spoil(_module: Any, arguments: Any, keywords: dict[str, Any], output: Any) -> Any:
        output.logits[keywords["input_ids"][:, -1] == broken] = float("nan")
        return output

    handle = model.register_forward_hook(spoil, with_kwargs=True)
    found = run(model, prompts, eos_ids=())
    handle.remove()
    for (text,), (whole,) in zip(found, expected, strict=True):
        tokens = [int(word) for word in whole.text.split()]
        if broken in tokens[:-1]:
            length = tokens.index(broken) + 1
            assert text == Generation(words(tokens[:length]), length, "not_finite")
        else:
            assert text == whole
    assert sum(text.finish == "not_finite" for (text,) in found) >= 1


def test_a_prompt_that_is_not_finite_has_no_text(make_model: MakeModel) -> None:
    model = make_model()
    with torch.no_grad():
        model.get_input_embeddings().weight[50] = float("nan")
    broken, whole = Prompt(ids=(5, 50), max_new_tokens=4), Prompt(ids=(5, 6, 7, 8), max_new_tokens=4)
    (text,), (other,) = run(model, [broken, whole], eos_ids=())
    assert text == Generation("", 0, "not_finite")
    assert other == run(model, [whole], eos_ids=())[0][0]
    assert other.tokens == 4


def test_of_a_prompt_that_is_too_long_the_end_is_read(make_model: MakeModel) -> None:
    model, ids = make_model(), tuple(range(3, 60))
    long, short = Prompt(ids=ids, max_new_tokens=12), Prompt(ids=ids[-20:], max_new_tokens=12)
    sampled = [Prompt(ids=p.ids, max_new_tokens=12, temperature=1.0, samples=4) for p in (long, short)]
    for first, second in ((long, short), sampled):
        assert run(model, [first], max_length=32) == run(model, [second], max_length=32)


def test_all_that_is_wrong_is_said_at_once(make_model: MakeModel) -> None:
    model = make_model()
    prompts = [
        Prompt(ids=(3,), max_new_tokens=5),
        Prompt(ids=(), max_new_tokens=128),
        Prompt(ids=(3,), max_new_tokens=5, top_p=0.0),
    ]
    with pytest.raises(EvalError) as raised:
        run(model, prompts)
    assert str(raised.value) == (
        "prompt 1: has no tokens; give it at least the token that begins a text; prompt 1: max_new_tokens = 128 leaves no "
        "room for the prompt in the model's 128 tokens; set it to 127 or less; prompt 2: top_p = 0.0; use a probability above "
        "0, 1 for all tokens"
    )
    with pytest.raises(EvalError, match=r"; and 20 more$"):
        run(model, [prompts[2]] * 30)
    model.config.sliding_window = 6
    with pytest.raises(EvalError, match="sees 6 tokens at a time, and sequences of 7 are to be written"):
        run(model, [Prompt(ids=(3, 4), max_new_tokens=5)])


def test_nothing_is_compiled_for_it(make_model: MakeModel) -> None:
    model, compiled = make_model(), []

    def backend(graph: Any, _inputs: Any) -> Any:
        compiled.append(graph)
        return graph.forward

    prompt = Prompt(ids=(5, 6), max_new_tokens=4)
    expected = run(model, [prompt])
    for layer in model.model.layers:
        layer.compile(backend=backend)
    assert run(model, [prompt]) == expected
    assert compiled == []
    with torch.no_grad():
        model(input_ids=torch.tensor([[5, 6]]), use_cache=False)
    assert len(compiled) > 0, "otherwise they are"


def test_no_prompts_no_texts(make_model: MakeModel) -> None:
    assert run(make_model(), []) == []


def test_it_stops_when_asked_and_tells_how_far_it_is(make_model: MakeModel) -> None:
    model = make_model().train()
    prompts = [Prompt(ids=(5, k), max_new_tokens=INTERVAL * (1 + k % 3)) for k in range(10, 20)]
    told: list[tuple[int, int]] = []
    run(model, prompts, eos_ids=(), progress=lambda *done: told.append(done))
    assert told[-1] == (10, 10)
    assert told == sorted(told)
    assert len(told) > 2
    answers = itertools.chain([False, False], itertools.repeat(True))
    with watched(model) as forwards, pytest.raises(Stopped):
        run(model, prompts, should_stop=lambda: next(answers))
    assert len(forwards) == 2 * INTERVAL
    assert model.training


def records(name: str) -> list[dict[str, Any]]:
    path = DATA / f"{name}.jsonl.gz"
    if not path.exists():
        pytest.skip(f"needs {path}")
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


@pytest.fixture(scope="module")
def real_prompts() -> dict[str, list[str]]:
    """All of HumanEval; of GSM8K those with five shots."""
    train, test = records("gsm8k_train"), records("gsm8k_test")
    draw = random.Random(0)

    def question(one: dict[str, Any]) -> str:
        shots = "\n\n".join(f"Question: {shot['question']}\nAnswer: {shot['answer']}" for shot in draw.sample(train, 5))
        return f"{shots}\n\nQuestion: {one['question']}\nAnswer:"

    return {
        "humaneval": [record["prompt"] for record in records("humaneval")],
        "gsm8k": [question(one) for one in test[:48]],
    }


@pytest.fixture(scope="module")
def tokenizer(real_prompts: dict[str, list[str]]) -> Any:
    pieces = Tokenizer(models.BPE())
    pieces.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    pieces.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=1000, special_tokens=["<eos>"], initial_alphabet=alphabet, show_progress=False
    )
    pieces.train_from_iterator(real_prompts["humaneval"] + real_prompts["gsm8k"], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=pieces, eos_token="<eos>", pad_token="<eos>")


@pytest.mark.parametrize(
    ("suite", "stop", "max_new_tokens"),
    [
        ("humaneval", ["\nclass", "\ndef", "\n#", "\nif", "\nprint", " a", "))"], 48),
        ("gsm8k", ["Question:", "</s>", "<|im_end|>", "th", "."], 48),
    ],
)
def test_greedy_texts_are_those_of_the_harness(
    real_prompts: dict[str, list[str]], tokenizer: Any, suite: str, stop: list[str], max_new_tokens: int
) -> None:
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    torch.manual_seed(1)
    shape = LlamaConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=len(tokenizer), max_position_embeddings=2048, initializer_range=0.4, eos_token_id=0, bos_token_id=None,
    )  # fmt: skip
    model = LlamaForCausalLM(shape).eval()
    texts = real_prompts[suite]
    lm = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=32, max_length=2048)
    requests = [
        Instance(
            "generate_until",
            {},
            (text, {"until": list(stop), "max_gen_toks": max_new_tokens, "do_sample": False}),
            number,
        )
        for number, text in enumerate(texts)
    ]
    expected = lm.generate_until(requests, disable_tqdm=True)
    prompts = [
        Prompt(ids=tuple(ids), max_new_tokens=max_new_tokens, stop=(*stop, "<eos>"))
        for ids in tokenizer(texts)["input_ids"]
    ]
    for attention in ("sdpa", "palimpsest"):
        model.set_attn_implementation(attention)
        found = generate(
            model, prompts, decode=lambda ids: str(tokenizer.decode(ids, skip_special_tokens=True)), eos_ids={0},
            device="cpu", pad_id=0, max_length=2048, batch_tokens=20_000,
        )  # fmt: skip
        ended = Counter(text.finish for (text,) in found)
        assert min(ended["stop"], ended["length"]) > len(texts) // 20
        different = [number for number, (text,) in enumerate(found) if text.text != expected[number]]
        assert len(different) <= len(texts) // 50
        for number in different:
            assert narrowest_choice(model, prompts[number]) < 1e-5, (found[number], expected[number])


@torch.no_grad()
def narrowest_choice(model: Any, prompt: Prompt) -> float:
    """The least difference between the two likeliest logits on the way of the likeliest tokens."""
    ids, narrowest = list(prompt.ids), float("inf")
    for _ in range(prompt.max_new_tokens):
        best, second = model(input_ids=torch.tensor([ids])).logits[0, -1].topk(2).values.tolist()
        narrowest = min(narrowest, best - second)
        ids.append(int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
    return narrowest

"""The loss of packed rows is that of every document in a forward of its own, and of its responses alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from data_pipeline import DataConfig, SourceConfig, TokenStream
from data_pipeline.demo.tokenizer import train_tokenizer
from training.batches import stack
from training.model.attention import ATTENTION
from training.model.loss import IGNORE, summed_cross_entropy

WORDS = ("the", "quick", "brown", "fox", "jumps", "over", "a", "lazy", "dog", "and", "sleeps", "on", "warm", "stones")
SEQ_LEN = 64
NUM_LANES = 4


def sentence(number: int, size: int) -> str:
    return " ".join(np.random.default_rng([number, size]).choice(WORDS, size))


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> DataConfig:
    """Text much longer and much shorter than a row, and instructions that leave rows unfilled."""
    folder = tmp_path_factory.mktemp("data")
    tokenizer = folder / "tokenizer.model"
    tokenizer.write_bytes(train_tokenizer([[sentence(number, 40) for number in range(40)]], 300))
    texts = [{"text": sentence(number, 3 + 29 * (number % 4))} for number in range(12)]
    pairs = [
        {"prompt": sentence(number, 4) + ":", "response": " " + sentence(-number % 97, 2 + number % 9)}
        for number in range(12)
    ]
    for name, records in (("texts", texts), ("pairs", pairs)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    sources = {
        "texts": SourceConfig(path=str(folder / "texts.jsonl")),
        "pairs": SourceConfig(path=str(folder / "pairs.jsonl"), kind="prompt"),
    }
    return DataConfig(sources=sources, tokenizer=tokenizer, seq_len=SEQ_LEN, workers=0)


@pytest.fixture(scope="module", params=["eager", "sdpa", ATTENTION])
def model(request: pytest.FixtureRequest) -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(3)
    shape = LlamaConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=320, max_position_embeddings=256, attn_implementation=request.param, initializer_range=0.2,
    )  # fmt: skip
    return LlamaForCausalLM(shape).eval()


def tokens_and_targets(
    config: DataConfig, stream: TokenStream, source: str, number: int
) -> tuple[list[int], list[bool]]:
    """A document's tokens, and which of them are to be predicted, made of its file without the stream's help."""
    with open(config.sources[source].location, encoding="utf-8") as file:
        record = json.loads(file.readlines()[number])
    bos, eos = [stream.tokenizer.bos_id], [stream.tokenizer.eos_id]
    if source == "texts":
        ids = [*bos, *stream.tokenizer.encode(record["text"]), *eos]
        return ids, [True] * len(ids)
    # The prompts end in a colon and responses begin with a space, where no token crosses over.
    prompt, whole = (
        stream.tokenizer.encode(text) for text in (record["prompt"], record["prompt"] + record["response"])
    )
    assert whole[: len(prompt)] == prompt
    ids = [*bos, *whole, *eos]
    return ids, [place > len(prompt) for place in range(len(ids))]


@torch.no_grad()
def loss_alone(model: nn.Module, ids: list[int], is_target: list[bool], start: int, stop: int) -> tuple[float, int]:
    """Sum of -log p over the targets that follow ids[start:stop], in a forward of these alone, and their number."""
    logits = model(input_ids=torch.tensor([ids[start:stop]]), use_cache=False).logits[0].double()
    log_p = torch.log_softmax(logits, dim=-1)
    places = [place for place in range(start, min(stop, len(ids) - 1)) if is_target[place + 1]]
    return -sum(float(log_p[place - start, ids[place + 1]]) for place in places), len(places)


@torch.no_grad()
def test_packed_and_unpacked_losses_agree(config: DataConfig, model: nn.Module) -> None:
    packed_sum, packed_targets, alone_sum, alone_targets = 0.0, 0, 0.0, 0
    seen: set[str] = set()
    with TokenStream(config, num_lanes=NUM_LANES, lanes=range(NUM_LANES), seed=5) as stream:
        for _ in range(4):
            rows = [next(stream) for _ in range(NUM_LANES)]
            batch = stack(rows)
            # Only ours takes the boundaries; the others find them in the positions.
            logits = model(
                input_ids=batch.input_ids, position_ids=batch.position_ids, use_cache=False,
                cu_seq_lens_q=batch.cu_seqlens, max_length_q=batch.max_seqlen,
            ).logits  # fmt: skip
            labels = torch.full((batch.input_ids.numel(),), IGNORE)
            labels[batch.target_index] = batch.targets
            packed_sum += float(summed_cross_entropy(logits, labels.view_as(batch.input_ids)))
            packed_targets += len(batch.targets)
            for row in rows:
                starts = [document.start for document in row.documents] + [SEQ_LEN]
                for document, stop in zip(row.documents, starts[1:], strict=True):
                    if document.source == -1:
                        seen.add("padding")
                        continue
                    name = stream.sources[document.source].name
                    ids, is_target = tokens_and_targets(config, stream, name, document.number)
                    end = document.offset + stop - document.start
                    seen |= {name, f"{name} cut"} if document.offset or end < len(ids) - 1 else {name}
                    loss, targets = loss_alone(model, ids, is_target, document.offset, end)
                    alone_sum, alone_targets = alone_sum + loss, alone_targets + targets
    assert seen == {"texts", "texts cut", "pairs", "padding"}, "every kind of document is among them"
    assert packed_targets == alone_targets
    assert packed_sum / packed_targets == pytest.approx(alone_sum / alone_targets, abs=1e-5)


def test_only_responses_are_targets(config: DataConfig) -> None:
    """Over an epoch, the targets of every example are its response and the end, and nothing else."""
    pairs = [json.loads(line) for line in Path(config.sources["pairs"].location).read_text().splitlines()]
    found: dict[int, str] = {}
    with TokenStream(config, num_lanes=NUM_LANES, lanes=range(NUM_LANES), seed=5) as stream:
        eos = stream.tokenizer.eos_id
        while len(found) < len(pairs):
            row = next(stream)
            starts = [document.start for document in row.documents] + [SEQ_LEN]
            for document, stop in zip(row.documents, starts[1:], strict=True):
                labels = row.labels[document.start : stop]
                if document.source == -1:
                    assert (labels == IGNORE).all(), "padding is never a target"
                elif stream.sources[document.source].name == "pairs":
                    *ids, last = labels[labels != IGNORE].tolist()
                    assert last == eos
                    found[document.number] = stream.tokenizer.decode(ids)
    assert [found[number] for number in range(len(pairs))] == [pair["response"] for pair in pairs]


def test_the_loss_ignores_what_is_no_target() -> None:
    torch.manual_seed(0)
    logits, labels = torch.randn(2, 5, 11), torch.randint(0, 11, (2, 5))
    labels[0, 1:4] = labels[1, 0] = IGNORE
    changed = logits.clone()
    changed[labels == IGNORE] = 1e4
    before: Any = summed_cross_entropy(logits, labels)
    assert summed_cross_entropy(changed, labels) == before
    one_by_one = [
        -torch.log_softmax(logits[i, j], 0)[labels[i, j]] for i in range(2) for j in range(5) if labels[i, j] != IGNORE
    ]
    assert float(before) == pytest.approx(float(sum(one_by_one)), rel=1e-6)

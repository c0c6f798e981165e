"""The loss of single examples: ours from packed rows, transformers' from a padded batch of the same examples."""

from __future__ import annotations

import json
import sys

import instructions
import torch
import torch.nn.functional as F
from ours_instructions import configuration
from trainer_instructions import Columns, collator
from transformers import AutoModelForCausalLM, DataCollatorForSeq2Seq

from data_pipeline.stream.token_stream import PADDING, TokenStream
from training.batches import MicroBatch, stack
from training.model.attention import ATTENTION
from training.model.loss_head import LossHead, LossRequest

ROWS = 2
"""Packed rows whose examples are compared."""


def of_packed_row(model: torch.nn.Module, head: LossHead, micro: MicroBatch, begin: int, end: int) -> float:
    """Summed loss of the example at these positions of a row, nats."""
    chosen = (micro.target_index >= begin) & (micro.target_index < end)
    with head.asked(LossRequest(index=micro.target_index[chosen], targets=micro.targets[chosen])):
        sums = model(
            input_ids=micro.input_ids, position_ids=micro.position_ids, use_cache=False,
            cu_seq_lens_q=micro.cu_seqlens, cu_seq_lens_k=micro.cu_seqlens,
            max_length_q=micro.max_seqlen, max_length_k=micro.max_seqlen,
        ).logits  # fmt: skip
    return float(sums[0])


def of_padded_batch(
    model: torch.nn.Module, examples: list[instructions.Example], pad: DataCollatorForSeq2Seq
) -> list[float]:
    """Summed loss of each example, nats."""
    columns = Columns(examples)
    batch = pad([columns[index] for index in range(len(columns))])
    labels = batch.pop("labels")[:, 1:]
    logits = model(**batch, use_cache=False).logits[:, :-1].float()
    losses = F.cross_entropy(logits.transpose(1, 2), labels, ignore_index=instructions.IGNORE, reduction="none")
    sums: list[float] = losses.sum(dim=1).tolist()
    return sums


@torch.no_grad()
def main() -> None:
    """Compare."""
    asked = instructions.arguments(str(__doc__))
    examples = instructions.read_examples(asked.folder)
    models = [
        AutoModelForCausalLM.from_pretrained(asked.folder / "base", attn_implementation=name).eval()
        for name in (ATTENTION, "sdpa")
    ]
    head, pad = LossHead(models[0]), collator(asked.folder)
    config = configuration(asked.folder, asked.seq_len, ROWS)
    stream = TokenStream(config.data, num_lanes=1, lanes=range(1), seed=0)
    found = []
    for _ in range(ROWS):
        row = next(stream)
        micro = stack([row])
        documents = [document for document in row.documents if document.source != PADDING]
        ends = [document.start for document in row.documents[1:]] + [asked.seq_len]
        ours = [of_packed_row(models[0], head, micro, d.start, end) for d, end in zip(documents, ends, strict=False)]
        theirs = of_padded_batch(models[1], [examples[document.number] for document in documents], pad)
        found += [abs(a / b - 1) for a, b in zip(ours, theirs, strict=True)]
    print(json.dumps({"examples": len(found), "largest_relative_difference": max(found)}), flush=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    sys.exit(main())

"""One rank of a two-process evaluation; started by test_scoring.py. Arguments: rank, folder with heldout.jsonl."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import torch
import torch.distributed as dist
from transformers import LlamaConfig, LlamaForCausalLM

from evals.config import TaskConfig
from evals.held_out.evaluate import evaluate

SIZE = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}


def tiny_llama() -> LlamaForCausalLM:
    """The same random weights in every process."""
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=259, max_position_embeddings=64, bos_token_id=1, **SIZE)
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for parameter in model.parameters():  # far enough from uniform for clear preferences
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model


def encode(text: str) -> list[int]:
    """A token per byte."""
    return [byte + 3 for byte in text.encode()]


def tasks(path: Path) -> dict[str, TaskConfig]:
    """One task of each kind."""
    return {
        "bits": TaskConfig(kind="bits_per_byte", path=path, domain="old"),
        "choice": TaskConfig(
            kind="continuation_choice", path=path, domain="new", max_examples=9, context_tokens=8, continuation_tokens=4
        ),
    }


def sampler(model: LlamaForCausalLM) -> Callable[[int], AbstractContextManager[None]]:
    """Draws of the output head, the same in every process: its weights plus noise that only the index decides."""

    @contextmanager
    def sampled(index: int) -> Iterator[None]:
        weight = model.lm_head.weight
        mean = weight.detach().clone()
        with torch.no_grad():
            weight += 0.5 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(100 + index))
            try:
                yield
            finally:
                weight.copy_(mean)

    return sampled


def main(rank: int, folder: Path) -> None:
    """Evaluate, and write the result and the number of forwards of this rank."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    model = tiny_llama()
    forwards = []
    model.register_forward_pre_hook(lambda *_: forwards.append(1))

    def run(path: Path, **settings: object) -> object:
        return evaluate(
            model,
            encode=encode,
            bos_id=1,
            tasks=tasks(path),
            seq_len=16,
            batch_tokens=48,
            device="cpu",
            rank=rank,
            world_size=2,
            **settings,
        )

    result = run(folder / "heldout.jsonl", posterior_samples=2, sampled=sampler(model))
    forwards.clear()
    stopped = run(folder / "heldout.jsonl", should_stop=lambda: len(forwards) > 3)
    few = evaluate(
        model,
        encode=encode,
        bos_id=1,
        tasks={"one": TaskConfig(kind="bits_per_byte", path=folder / "one.jsonl", domain="old")},
        seq_len=64,
        batch_tokens=48,
        device="cpu",
        rank=rank,
        world_size=2,
    )
    content = {"result": result, "stopped": stopped, "few": few, "forwards": len(forwards)}
    (folder / f"rank{rank}.json").write_text(json.dumps(content))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))

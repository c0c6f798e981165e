"""What a model writes after prompts: greedy or sampled, in batches, on one device or on all ranks together."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

import torch
import torch.distributed as dist

from evals.agreement import gathered
from evals.errors import EvalError
from evals.scoring.eval_mode import eval_mode
from evals.scoring.kv_cache import unsupported
from evals.scoring.prompts import Generation, Prompt, fit
from evals.scoring.stop_sequences import Decode, cut
from evals.scoring.stopping import Stopped
from evals.scoring.writing import Writer, Written

__all__ = ["Generation", "Prompt", "fit", "generate"]

INTERVAL = 8
"""Forwards between two agreements of the ranks, on whether all are done and whether to stop."""

_PIECES = 8
"""Parts of a rank's share of the samples at least, if prompts have samples enough: what ranks can differ by."""


def generate(
    model: torch.nn.Module,
    prompts: Sequence[Prompt],
    *,
    decode: Decode,
    eos_ids: Collection[int],
    device: torch.device | str,
    pad_id: int,
    max_length: int,
    batch_tokens: int,
    rank: int = 0,
    world_size: int = 1,
    should_stop: Callable[[], bool] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> list[list[Generation]]:
    """Write what follows each prompt, `samples` times.

    With `world_size` > 1 this is a collective: every rank calls it with the same arguments, does the same number of
    forwards, without work towards the end if need be, and returns all texts.

    Args:
        model: a Hugging Face causal LM or a DeepSpeed engine around one.
        prompts: in any order.
        decode: token ids -> text, without special tokens.
        eos_ids: tokens that end a text.
        device: where inputs go.
        pad_id: a token id to fill rows with; which one makes no difference.
        max_length: tokens in the longest model input. Of a longer prompt the last ones are read, see `fit`.
        batch_tokens: sequences times the length of the longest, on each rank: what bounds the memory for keys and values.
            A single sequence may be longer.
        rank: this process.
        world_size: processes that call this together.
        should_stop: asked every INTERVAL forwards, equally often on all ranks; its answer must be the same on all.
        progress: called on rank 0 as progress(texts finished, of how many) about its own share.

    Returns:
        The samples of each prompt in order.

    Raises:
        EvalError: a prompt's settings, or the model's attention, cannot be used.
        Stopped: `should_stop` said yes.
    """
    problems = [
        f"prompt {index}: {problem}" for index, prompt in enumerate(prompts) for problem in prompt.problems(max_length)
    ]
    longest = max((len(fit(prompt, max_length)[0]) + prompt.max_new_tokens for prompt in prompts), default=0)
    config = getattr(model, "module", model).config
    problems = problems or unsupported(config, longest)
    if problems:
        raise EvalError(_joined(problems))
    written = _deal(prompts, max_length, rank=rank, world_size=world_size)
    writer = Writer(
        model, written, decode=decode, eos_ids=eos_ids, device=device, pad_id=pad_id, batch_tokens=batch_tokens
    )
    # Layers that are compiled would be compiled anew for one length after the other.
    with eval_mode(model), torch.compiler.set_stance("force_eager"):
        while _is_any(writer.is_busy, world_size, device):
            if should_stop is not None and should_stop():
                raise Stopped
            for _ in range(INTERVAL):
                if writer.is_busy:
                    writer.advance()
                elif world_size > 1:
                    writer.idle()
            if progress is not None and rank == 0 and written:
                progress(writer.finished, len(written))
    own = {(text.index, text.sample): _generation(text, decode) for text in written}
    everyone = {place: text for part in gathered(own, world_size) for place, text in part.items()}
    return [[everyone[index, sample] for sample in range(prompt.samples)] for index, prompt in enumerate(prompts)]


def _deal(prompts: Sequence[Prompt], max_length: int, *, rank: int, world_size: int) -> list[Written]:
    """This rank's share of the samples, those with the longest prompts first.

    Samples of a prompt stay together, so that few ranks read it, in pieces that are small against a rank's share.
    """
    read = [fit(prompt, max_length)[0] for prompt in prompts]
    order = sorted(range(len(prompts)), key=lambda index: (-len(read[index]), read[index], index))
    size = max(1, sum(prompt.samples for prompt in prompts) // (world_size * _PIECES))
    pieces = [
        [(index, sample) for sample in range(start, min(start + size, prompts[index].samples))]
        for index in order
        for start in range(0, prompts[index].samples, size)
    ]
    return [
        Written(prompt=prompts[index], index=index, sample=sample, read=read[index])
        for piece in pieces[rank::world_size]
        for index, sample in piece
    ]


def _generation(written: Written, decode: Decode) -> Generation:
    text = decode(written.new[:-1] if written.finish == "eos" else written.new)
    ended = cut(text, written.prompt.stop)
    return Generation(ended, len(written.new), "stop" if ended != text else written.finish)


def _is_any(is_so: bool, world_size: int, device: torch.device | str) -> bool:
    if world_size == 1:
        return is_so
    count = torch.tensor(int(is_so), device=device)
    dist.all_reduce(count)
    return bool(count.item())


def _joined(problems: list[str], most: int = 10) -> str:
    more = [f"and {len(problems) - most} more"] if len(problems) > most else []
    return "; ".join(problems[:most] + more)

"""Sequences written side by side: a forward reads the prompts of those that join, or gives all the others a token more."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from evals.scoring.kv_cache import Prefix, SlotCache, detached, mask_for, prefixes
from evals.scoring.prompts import Prompt
from evals.scoring.sampling import NOT_FINITE, choose, sequence_key, uniforms
from evals.scoring.stop_sequences import Decode, StopSearch

ROOM = 128
"""Tokens that every sequence has room for when another one joins. Those that write more may be put back later."""

_WORTH_A_COPY = 4
"""Sequences that are done leave the batch when they are one of so many, because all others are copied then."""


class Written:
    """A sequence: what is read, what is written so far, and why it ended."""

    def __init__(self, *, prompt: Prompt, index: int, sample: int, read: tuple[int, ...]) -> None:
        """Begin sample number `sample` of prompt number `index`, of which the tokens `read` are read."""
        self.prompt = prompt
        self.index = index
        self.sample = sample
        self.read = read
        self.new: list[int] = []
        self.finish = ""
        """Empty until it ends; then "stop", "eos", "length" or "not_finite"."""
        self.key = sequence_key(prompt.seed, read, sample)

    @property
    def length(self) -> int:
        """Tokens read and written."""
        return len(self.read) + len(self.new)

    @property
    def last(self) -> int:
        """The last token."""
        return self.new[-1] if self.new else self.read[-1]

    @property
    def ids(self) -> tuple[int, ...]:
        """Tokens read and written."""
        return self.read + tuple(self.new)


class Writer:
    """Writes sequences to their end, one forward at a time.

    Sequences wait in their order until the batch has room for them. Those that begin with the same tokens are read once.
    When the batch outgrows `batch_tokens`, the last ones go back, to be read again with what they have written: that is
    one forward for all their tokens, and less than to keep room for texts that hardly ever are as long as they may be.
    """

    def __init__(
        self,
        model: nn.Module,
        sequences: Sequence[Written],
        *,
        decode: Decode,
        eos_ids: Collection[int],
        device: torch.device | str,
        pad_id: int,
        batch_tokens: int,
    ) -> None:
        """See `evals.scoring.generation.generate`."""
        self._model = model
        unwrapped: Any = getattr(model, "module", model)
        self._attention: str = unwrapped.config._attn_implementation
        self._eos_ids = frozenset(eos_ids)
        self._device = device
        self._pad_id = pad_id
        self._batch_tokens = batch_tokens
        self._searches = {stop: StopSearch(decode, stop) for stop in {sequence.prompt.stop for sequence in sequences}}
        self._waiting = deque(sequences)
        self._to_read = Counter(sequence.ids for sequence in sequences)
        """How many that wait begin with these tokens."""
        self._read: dict[tuple[int, ...], Prefix] = {}
        """What others that wait will begin with."""
        self._running: list[Written] = []
        """Those in the rows of the cache, also some that are done."""
        self._cache = SlotCache()
        self.finished = 0
        """Sequences that are done."""

    @property
    def is_busy(self) -> bool:
        """Whether there is more to write."""
        return bool(self._waiting) or any(not sequence.finish for sequence in self._running)

    def advance(self) -> None:
        """Do one forward."""
        joining = self._joining() if self._make_room() else {}
        unread = [ids for ids in joining if ids not in self._read]
        if unread:
            self._read.update(zip(unread, self._prefill(unread), strict=True))
        if joining:
            self._join(joining)
        if not unread:
            self._write()

    def idle(self) -> None:
        """Do one forward for the sake of the other ranks: with a sharded model, each needs all."""
        ids = torch.full((1, 1), self._pad_id, device=self._device)
        self._model(input_ids=ids, position_ids=torch.zeros_like(ids), use_cache=False, logits_to_keep=1)

    def _make_room(self) -> bool:
        """Take out those that are done, if it is worth it, and those that there is no more room for; whether any left."""
        going_on = [row for row, sequence in enumerate(self._running) if not sequence.finish]
        room = self._batch_tokens // _longest(self._running)
        is_worth_it = (len(self._running) - len(going_on)) * _WORTH_A_COPY >= len(self._running)
        if len(self._running) <= max(room, 1) and not is_worth_it:
            return False
        kept, back = going_on[: max(room, 1)], going_on[max(room, 1) :]
        for row in reversed(back):
            self._waiting.appendleft(self._running[row])
            self._to_read[self._running[row].ids] += 1
        if len(kept) < len(self._running):
            self._cache.keep(kept)
        self._running = [self._running[row] for row in kept]
        return True

    def _joining(self) -> dict[tuple[int, ...], list[Written]]:
        """Take from those that wait as many as there is room for; by what has to be read for them."""
        joining: dict[tuple[int, ...], list[Written]] = {}
        rows, longest = len(self._running), _longest(self._running)
        while self._waiting:
            longest = max(longest, self._waiting[0].length)
            room = min(ROOM, self._waiting[0].prompt.max_new_tokens)
            if rows and (rows + 1) * (longest + room) > self._batch_tokens:
                break
            sequence = self._waiting.popleft()
            joining.setdefault(sequence.ids, []).append(sequence)
            rows += 1
        return joining

    def _prefill(self, unread: Sequence[tuple[int, ...]]) -> list[Prefix]:
        """Read tokens in one forward; the padding is on the right, where causal attention does not see it.

        The logits of the last tokens are not looked at: they are given again, as the first that are written on from.
        """
        width = max(map(len, unread))
        ids = torch.tensor([[*ids, *[self._pad_id] * (width - len(ids))] for ids in unread], device=self._device)
        cache = DynamicCache()
        self._model(
            input_ids=ids, position_ids=torch.arange(width, device=self._device).expand_as(ids), past_key_values=cache,
            use_cache=True, logits_to_keep=1,
        )  # fmt: skip
        return prefixes(cache, [len(ids) for ids in unread])

    def _join(self, joining: Mapping[tuple[int, ...], list[Written]]) -> None:
        """Give sequences that have been read their rows."""
        groups = [(self._read.pop(ids), group) for ids, group in joining.items()]
        self._cache.join([(prefix, len(group)) for prefix, group in groups])
        for ids, (prefix, group) in zip(joining, groups, strict=True):
            self._running += group
            self._to_read[ids] -= len(group)
            if self._to_read[ids] > 0:
                self._read[ids] = detached(prefix)

    def _write(self) -> None:
        """Give every row a token; those of sequences that are done write where nobody looks."""
        places = [[sequence.last, sequence.length - 1] for sequence in self._running]
        ids, positions = torch.tensor(places, device=self._device).T
        is_seen = self._cache.place(positions, max(position for _, position in places))
        logits = self._model(
            input_ids=ids[:, None], attention_mask=mask_for(self._attention, is_seen), position_ids=positions[:, None],
            past_key_values=self._cache, use_cache=True, logits_to_keep=1,
        ).logits[:, -1]  # fmt: skip
        for sequence, token in zip(self._running, self._choose(logits), strict=True):
            if not sequence.finish:
                sequence.finish = self._append(sequence, token)
                self.finished += bool(sequence.finish)

    def _choose(self, logits: Tensor) -> list[int]:
        """The next token of each row from its logits [rows, vocabulary]."""
        draws = uniforms([each.key for each in self._running], [len(each.new) for each in self._running])
        prompts = [each.prompt for each in self._running]
        rows = [[each.temperature, each.top_p, each.top_k, draw] for each, draw in zip(prompts, draws, strict=True)]
        temperature, top_p, top_k, uniform = torch.tensor(rows, dtype=torch.float64).to(self._device).T
        chosen = choose(logits, temperature=temperature.float(), top_p=top_p, top_k=top_k.long(), uniform=uniform)
        tokens: list[int] = chosen.tolist()
        return tokens

    def _append(self, sequence: Written, token: int) -> str:
        """Append a token and say whether and why the sequence ends with it."""
        if token == NOT_FINITE:
            return "not_finite"
        sequence.new.append(token)
        if token in self._eos_ids:
            return "eos"
        if self._searches[sequence.prompt.stop].is_complete(sequence.new):
            return "stop"
        return "length" if len(sequence.new) == sequence.prompt.max_new_tokens else ""


def _longest(sequences: Iterable[Written]) -> int:
    return max((sequence.length for sequence in sequences), default=1)

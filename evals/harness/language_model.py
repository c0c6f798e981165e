"""The harness's LM, answered by our scorer."""

from __future__ import annotations

import functools
import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from evals.encoder import Codec
from evals.errors import EvalError
from evals.harness.generation_settings import generation_settings
from evals.harness.kept import Kept, key_of
from evals.scoring.generation import Generation, Prompt
from evals.scoring.generation import fit as fit_prompt
from evals.scoring.rows import Row, fit
from evals.scoring.scorer import Scorer

ROWS_AT_ONCE = 4096
"""Rows between two times that answers are kept."""

FORWARDS_AT_ONCE = 64
"""Forwards of each rank that these rows may take, about; what is kept every minute is not lost."""

SAMPLES_AT_ONCE = 256
"""Written texts between two times that answers are kept, on each rank."""


class ScorerLM(TemplateLM):
    """A model for the harness: encodes as its HFLM does, asks the scorer, and counts what could not be asked in full.

    On several ranks all of them hold all requests (for the harness each is rank 0 of 1), and the scorer deals them out.
    A log-likelihood that is not finite is reported as -inf, so that no comparison prefers it.

    Attributes:
        truncated: requests per task whose context was longer than the model's; its last part was read, as in the harness.
        not_finite: answers per task that are not numbers.
    """

    def __init__(
        self,
        scorer: Scorer,
        codec: Codec,
        *,
        kept: Kept | None = None,
        seed: int = 0,
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        """Wrap a model.

        Args:
            scorer: the model.
            codec: its tokenizer.
            kept: answers from before, and where new ones go.
            seed: seed of the samples of tasks that write text.
            progress: called on rank 0 as progress(requests answered, of how many).
        """
        super().__init__()
        self.scorer, self.codec, self.seed = scorer, codec, seed
        self.kept = kept if kept is not None else Kept()
        self.truncated: Counter[str] = Counter()
        self.not_finite: Counter[str] = Counter()
        self._progress = progress
        # A question's context comes with each of its answers, one after the other.
        self._encode = functools.lru_cache(maxsize=64)(lambda text: tuple(codec.encode(text)))

    @property
    def eot_token_id(self) -> int:
        """Id of the end-of-text token, or of what stands in for it."""
        return self.codec.eos_id if self.codec.eos_id is not None else self.codec.prefix_id

    @property
    def prefix_token_id(self) -> int:
        """Id of what stands before a text without context."""
        return self.codec.prefix_id

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        """Ids of a text; by default with the beginning-of-text token if the tokenizer adds it by itself."""
        is_bos_added = self.codec.is_bos_added if add_special_tokens is None else add_special_tokens
        prefix = [self.codec.bos_id] if is_bos_added and self.codec.bos_id is not None else []
        return [*prefix, *self._encode(string)]

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = True) -> list[tuple[float, bool]]:
        """(log p(continuation | context), whether it is the greedy one) of every request, in nats."""
        rows = [_row(*self._pair(*request.args)) for request in requests]
        for request, row in zip(requests, rows, strict=True):
            self.truncated[request.task_name] += self._fit(row, request)[1]
        answers = self._score(rows)
        for request, (loglikelihood, _) in zip(requests, answers, strict=True):
            self.not_finite[request.task_name] += not math.isfinite(loglikelihood)
        return answers

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = True) -> list[float]:
        """The log p(text) of every request, in nats, over windows that do not overlap in what is scored."""
        rows: list[Row] = []
        counts = []
        for request in requests:
            windows = get_rolling_token_windows(
                token_list=self.tok_encode(request.args[0]),
                prefix_token=self.prefix_token_id,
                max_seq_len=self.scorer.max_length,
                context_len=1,
            )
            of_text = [_row(*make_disjoint_window(window)) for window in windows]
            rows += of_text
            counts.append(len(of_text))
        answers = iter(self._score(rows))
        sums = [sum(next(answers)[0] for _ in range(count)) for count in counts]
        for request, total in zip(requests, sums, strict=True):
            self.not_finite[request.task_name] += not math.isfinite(total)
        return sums

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = True) -> list[str]:
        """What follows each request's context. A request that is there n times is answered by n samples."""
        copies = Counter(id(request) for request in requests)
        distinct = list({id(request): request for request in requests}.values())
        written = self.write(distinct, [copies[id(request)] for request in distinct])
        texts = {id(request): iter(texts) for request, texts in zip(distinct, written, strict=True)}
        return [next(texts[id(request)]).text for request in requests]

    def write(
        self, requests: Sequence[Instance], samples: Sequence[int], *, is_after_newline: bool = False
    ) -> list[list[Generation]]:
        """Texts that follow each request's context, as many as `samples` says; greedy ones are all the same.

        Args:
            requests: each with a context and generation settings.
            samples: texts to write for each of them.
            is_after_newline: contexts end with a line end, and spaces after it count, see Codec.decode_after_newline.

        Raises:
            EvalError: settings that cannot be followed, or leave no room for a context.
            Stopped: the scorer was asked to stop.
        """
        prompts = [self._prompt(request, count) for request, count in zip(requests, samples, strict=True)]
        for request, prompt in zip(requests, prompts, strict=True):
            self.truncated[request.task_name] += fit_prompt(prompt, self.scorer.max_length)[1]
        written = self._generate(prompts, is_after_newline)
        for request, texts in zip(requests, written, strict=True):
            self.not_finite[request.task_name] += sum(text.finish == "not_finite" for text in texts)
        return [texts * (count // len(texts)) for texts, count in zip(written, samples, strict=True)]

    def _loglikelihood_tokens(self, requests: list[Any], **kwargs: Any) -> list[tuple[float, bool]]:
        return self._score([_row(context, continuation) for _, context, continuation in requests])

    def _pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        if context:
            pair: tuple[list[int], list[int]] = self._encode_pair(context, continuation)
            return pair
        ids = self.tok_encode(continuation, add_special_tokens=False)
        return (ids[:1], ids[1:]) if ids[:1] == [self.prefix_token_id] else ([self.prefix_token_id], ids)

    def _fit(self, row: Row, request: Instance) -> tuple[Row, bool]:
        try:
            return fit(row, self.scorer.max_length)
        except EvalError as error:
            raise EvalError(f"{request.task_name}, example {request.doc_id}: {error}") from error

    def _prompt(self, request: Instance, samples: int) -> Prompt:
        context, kwargs = request.args
        try:
            settings = generation_settings(kwargs, self.codec.eos_text)
            prompt = Prompt(
                ids=tuple(self.tok_encode(context)) or (self.prefix_token_id,),
                max_new_tokens=settings.max_new_tokens,
                stop=settings.stop,
                samples=samples if settings.temperature > 0 else 1,
                temperature=settings.temperature,
                top_p=settings.top_p,
                top_k=settings.top_k,
                seed=self.seed,
            )
            if problems := prompt.problems(self.scorer.max_length):
                raise EvalError("; ".join(problems))
        except EvalError as error:
            raise EvalError(f"{request.task_name}, example {request.doc_id}: {error}") from error
        return prompt

    def _score(self, rows: Sequence[Row]) -> list[tuple[float, bool]]:
        """Answers to rows: those that are kept, and the others asked chunk by chunk and kept."""
        keys = [key_of(row.ids, row.first) for row in rows]
        missing = {key: row for key, row in zip(keys, rows, strict=True) if key not in self.kept}
        done = len(rows) - len(missing)
        tokens = FORWARDS_AT_ONCE * self.scorer.batch_tokens * self.scorer.world_size
        for chunk in _row_chunks(list(missing.items()), tokens):
            answers = self.scorer.score([row for _, row in chunk])
            self.kept.add(
                {
                    key: [answer.loglikelihood if math.isfinite(answer.loglikelihood) else None, bool(answer.is_greedy)]
                    for (key, _), answer in zip(chunk, answers, strict=True)
                }
            )
            done += len(chunk)
            self._report(done, len(rows))
        kept = [self.kept[key] for key in keys]
        return [(-math.inf if value is None else value, is_greedy) for value, is_greedy in kept]

    def _generate(self, prompts: Sequence[Prompt], is_after_newline: bool) -> list[list[Generation]]:
        decode = self.codec.decode_after_newline if is_after_newline else self.codec.decode
        keys = [
            key_of(
                p.ids, p.max_new_tokens, p.stop, p.samples, p.temperature, p.top_p, p.top_k, p.seed, is_after_newline
            )
            for p in prompts
        ]
        missing = {key: prompt for key, prompt in zip(keys, prompts, strict=True) if key not in self.kept}
        done = len(prompts) - len(missing)
        most = max((prompt.samples for prompt in missing.values()), default=1)
        eos_ids = end_ids(self.codec, self.scorer.model)
        for chunk in _chunks(list(missing.items()), max(1, SAMPLES_AT_ONCE * self.scorer.world_size // most)):
            written = self.scorer.generate([prompt for _, prompt in chunk], decode, eos_ids)
            self.kept.add({key: [list(text) for text in texts] for (key, _), texts in zip(chunk, written, strict=True)})
            done += len(chunk)
            self._report(done, len(prompts))
        return [[Generation(*text) for text in self.kept[key]] for key in keys]

    def _report(self, done: int, total: int) -> None:
        if self._progress is not None and self.scorer.rank == 0:
            self._progress(done, total)


def end_ids(codec: Codec, model: Any) -> set[int]:
    """Tokens that end a text: the tokenizer's, and those of the model's generation settings."""
    config = getattr(getattr(model, "module", model), "generation_config", None)
    named = getattr(config, "eos_token_id", None)
    ids = set(named) if isinstance(named, list | tuple) else {named}
    return {token_id for token_id in ids | {codec.eos_id} if token_id is not None}


def _row(context: Sequence[int], continuation: Sequence[int]) -> Row:
    return Row((*context, *continuation), len(context))


def _row_chunks(items: list[tuple[str, Row]], tokens: int) -> Iterator[list[tuple[str, Row]]]:
    """Rows of at most so many tokens together, and ROWS_AT_ONCE."""
    chunk: list[tuple[str, Row]] = []
    left = tokens
    for item in items:
        if chunk and (len(chunk) == ROWS_AT_ONCE or len(item[1].ids) > left):
            yield chunk
            chunk, left = [], tokens
        chunk.append(item)
        left -= len(item[1].ids)
    if chunk:
        yield chunk


def _chunks(items: list[Any], size: int) -> list[list[Any]]:
    return [items[start : start + size] for start in range(0, len(items), size)]

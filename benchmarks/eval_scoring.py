"""How fast questions with choices are scored: evals' Scorer, and lm-evaluation-harness' HFLM, with the same model.

The questions are the first ones of HellaSwag and ARC-challenge, as lm-evaluation-harness words them; where the files of
`--data` are absent, questions of words that occur in no language, of the same shape. Both contenders score them from
token ids to answers, and from texts to answers; they take turns, and a ratio is taken within a repetition. Each gets the
size of batches that suits it best. Nothing is timed before both have given the same answers.

Without a GPU: one thread, fp32, and the claims are about the processor's time, which other load on the machine disturbs
less; that elapsed is printed. With one: bf16, and elapsed time.

    python benchmarks/eval_scoring.py [--quick | --bench] [--json PATH] [--data FOLDER]
"""

from __future__ import annotations

import dataclasses
import functools
import gzip
import importlib.metadata
import json
import logging
import random
import re
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch

# Run by path, a script sees its own folder where it needs the repository.
ROOT = Path(__file__).resolve().parents[1]
sys.path[0] = str(ROOT)

from benchmarks.claims import claim, options, show, turns, write_json  # noqa: E402
from benchmarks.data_corpus import REAL_DATA  # noqa: E402
from evals.scoring.rows import Row  # noqa: E402
from evals.scoring.scorer import Answer, Scorer  # noqa: E402
from evals.scoring.tries import pack  # noqa: E402

PEER = f"lm-eval HFLM {importlib.metadata.version('lm_eval')}"
FILES = {"hellaswag": "hellaswag_validation.jsonl.gz", "arc_challenge": "arc_challenge_test.jsonl.gz"}
VOCAB = 32_000
BATCH_SIZES = (1, 4, 8, 32, 64)
"""Rows per forward of HFLM; the last is what its `auto` takes where memory does not end before."""
BATCH_TOKENS = (1024, 2048, 8192, 32768)
"""Tokens per forward of ours."""
GOAL_SPEED, GOAL_ERROR = ">=2.5", "<=1e-4"
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 1.0}
"""Difference of two log-likelihoods that makes times meaningless."""

Pair = tuple[str, str]
"""Context and continuation."""


@dataclass(frozen=True, kw_only=True)
class Size:
    """What is measured."""

    hidden: int
    layers: int
    questions: int
    """Of each data set."""
    repetitions: int
    device: torch.device
    dtype: torch.dtype


def hellaswag(record: dict[str, Any]) -> list[Pair]:
    """The four pairs of a question, worded as by lm-evaluation-harness but for capitals in the middle."""
    context = _without_brackets(f"{record['activity_label']}: {record['ctx']}")
    return [(context, f" {_without_brackets(ending)}") for ending in record["endings"]]


def _without_brackets(text: str) -> str:
    text = text.strip().replace(" [title]", ". ")
    return re.sub(r"\[.*?\]", "", text).replace("  ", " ")


def arc_challenge(record: dict[str, Any]) -> list[Pair]:
    """The pairs of a question, worded as by lm-evaluation-harness."""
    return [(f"Question: {record['question']}\nAnswer:", f" {text}") for text in record["choices"]["text"]]


WORDINGS: dict[str, Callable[[dict[str, Any]], list[Pair]]] = {"hellaswag": hellaswag, "arc_challenge": arc_challenge}


def read_pairs(data: Path, name: str, count: int) -> list[Pair]:
    """The pairs of the first `count` questions of a data set."""
    with gzip.open(data / FILES[name], "rt", encoding="utf-8") as file:
        return [pair for line, _ in zip(file, range(count), strict=False) for pair in WORDINGS[name](json.loads(line))]


def invented_pairs(name: str, count: int) -> list[Pair]:
    """Pairs of invented words, with as many words as the real ones have on average."""
    context, continuation = {"hellaswag": (45, 22), "arc_challenge": (25, 5)}[name]
    rng = random.Random(name)
    words = ["".join(rng.choices("aeioulnrst", k=rng.randint(2, 8))) for _ in range(5000)]

    def text(mean: int) -> str:
        return " ".join(rng.choices(words, k=max(1, round(rng.gauss(mean, mean / 3)))))

    return [
        (context_, f" {text(continuation)}") for context_ in (text(context) for _ in range(count)) for _ in range(4)
    ]


def make_tokenizer(texts: Sequence[str]) -> Any:
    """A byte-level BPE of these texts."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB, special_tokens=["<s>", "</s>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")


def make_model(size: Size) -> Any:
    """A LLaMA with random weights, large enough for clear preferences."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCAB, hidden_size=size.hidden, intermediate_size=size.hidden * 8 // 3, num_hidden_layers=size.layers,
        num_attention_heads=size.hidden // 64, max_position_embeddings=2048, initializer_range=1.5 * size.hidden**-0.5,
    )  # fmt: skip
    return LlamaForCausalLM(config).to(size.device, size.dtype).eval()


def make_peer(model: Any, tokenizer: Any) -> Any:
    """HFLM around the model."""
    from lm_eval.models.huggingface import HFLM

    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    return HFLM(pretrained=model, tokenizer=tokenizer, batch_size=1, max_length=2048)


@dataclass(frozen=True, kw_only=True)
class Requests:
    """The same questions for both contenders."""

    pairs: list[Pair]
    tokens: list[tuple[tuple[str, str], list[int], list[int]]]
    """As HFLM takes them: what to cache the answer under, context, continuation."""
    rows: list[Row]


def make_requests(pairs: list[Pair], peer: Any) -> Requests:
    """Encode as lm-evaluation-harness does."""
    tokens = [(pair, *peer._encode_pair(*pair)) for pair in pairs]
    rows = [Row((*context, *continuation), first=len(context)) for _, context, continuation in tokens]
    return Requests(pairs=pairs, tokens=tokens, rows=rows)


def from_texts(pairs: Sequence[Pair], scorer: Scorer, tokenizer: Any) -> list[Answer]:
    """Encode every text once, all in one call, and score."""
    texts = list(dict.fromkeys([context for context, _ in pairs] + [context + rest for context, rest in pairs]))
    ids = dict(zip(texts, tokenizer(texts, add_special_tokens=False)["input_ids"], strict=True))
    return scorer.score([Row(tuple(ids[context + rest]), first=len(ids[context])) for context, rest in pairs])


def peer_from_texts(pairs: Sequence[Pair], peer: Any) -> list[Any]:
    """What lm-evaluation-harness does with a task's requests."""
    from lm_eval.api.instance import Instance

    requests = [Instance("loglikelihood", {}, pair, index) for index, pair in enumerate(pairs)]
    answers: list[Any] = peer.loglikelihood(requests, disable_tqdm=True)
    return answers


def without_tries(scorer: Scorer, rows: list[Row]) -> list[Answer]:
    """Score as for a model that cannot compute branches: rows share what is wholly the beginning of another's input."""
    with mock.patch("evals.scoring.scorer.can_share", return_value=False):
        return scorer.score(rows)


def fastest(work: Callable[[int], object], sizes: Sequence[int], name: str) -> int:
    """Of some sizes of batches the one with which a contender is fastest on some of the questions."""
    seconds = {size: min(_timed(functools.partial(work, size)) for _ in range(2)) for size in sizes}
    print(f"{name}:", *(f"{size}: {value[0]:.2f} s" for size, value in seconds.items()), flush=True)
    return min(seconds, key=lambda size: seconds[size])


def _timed(work: Callable[[], object]) -> tuple[float, float]:
    """Seconds that count (elapsed with a GPU, else of the processor), and seconds elapsed."""
    elapsed, processor = time.perf_counter(), time.process_time()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    passed = time.perf_counter() - elapsed
    return (passed if torch.cuda.is_available() else time.process_time() - processor), passed


def measure(contenders: dict[str, Callable[[], object]], repetitions: int) -> Iterator[tuple[str, list[float]]]:
    """Seconds of each repetition by contender, which take turns; before that, each works once without being timed."""
    measured: dict[str, list[tuple[float, float]]] = {name: [] for name in contenders}
    for work in contenders.values():
        work()
    for order in turns(contenders, repetitions):
        for name in order:
            measured[name].append(_timed(contenders[name]))
    for name, times in measured.items():
        counted, elapsed = zip(*times, strict=True)
        print(
            f"  {name:32} {statistics.median(counted):7.2f} s, {statistics.median(elapsed):.2f} s elapsed", flush=True
        )
        yield name, list(counted)


def compare(ours: Sequence[Answer], theirs: Sequence[Any]) -> tuple[float, int]:
    """Largest difference of two log-likelihoods, and in how many answers is_greedy differs."""
    pairs = list(zip(ours, theirs, strict=True))
    return max(abs(a.loglikelihood - b[0]) for a, b in pairs), sum(a.is_greedy != b[1] for a, b in pairs)


def count_forwarded(peer: Any, tokens: list[Any], scorer: Scorer, rows: list[Row]) -> dict[str, int]:
    """Tokens through the model, padding included: ours, without tries, and HFLM's."""
    counted: list[int] = []
    hook = scorer.model.register_forward_pre_hook(
        lambda _, positional, named: counted.append(
            (named.get("input_ids", positional[0] if positional else None)).numel()
        ),
        with_kwargs=True,
    )
    forwarded = {}
    try:
        for name, work in {"ours": lambda: scorer.score(rows),
                           "HFLM": lambda: peer._loglikelihood_tokens(tokens, disable_tqdm=True)}.items():  # fmt: skip
            counted.clear()
            work()
            forwarded[name] = sum(counted)
    finally:
        hook.remove()
    forwarded["rows without padding"] = sum(len(row.ids) - 1 for row in rows)
    return forwarded


def size_of(size: str) -> Size:
    """What is measured on this machine."""
    if torch.cuda.is_available():
        device, dtype, (hidden, layers, questions) = torch.device("cuda", 0), torch.bfloat16, (2048, 16, 1000)
    else:
        device, dtype, (hidden, layers, questions) = torch.device("cpu"), torch.float32, (512, 8, 40)
    if size == "quick":
        hidden, layers = hidden // 2, layers // 2
    questions = questions * {"quick": 5, "bench": 3, "full": 10}[size] // 10
    return Size(hidden=hidden, layers=layers, questions=questions, repetitions=3, device=device, dtype=dtype)


def main() -> None:
    """Measure, print a line per claim, and write the numbers where `--json` says."""
    parser = options(
        __doc__, quick="a small model and few questions, in about a minute", bench="12 questions of each set"
    )
    parser.add_argument("--data", type=Path, default=REAL_DATA, help="folder of the data sets")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    size = size_of(arguments.size)

    is_real = all((arguments.data / name).is_file() for name in FILES.values())
    if not is_real:
        print(f"{arguments.data} has not {' and '.join(FILES.values())}: invented questions of the same shape")
    read = (lambda name, count: read_pairs(arguments.data, name, count)) if is_real else invented_pairs
    tokenizer = make_tokenizer([text for name in FILES for pair in read(name, 1000) for text in pair])
    model = make_model(size)
    peer = make_peer(model, tokenizer)
    scorer = Scorer(model=model, device=size.device, pad_id=0, max_length=2048)
    by_set = {name: make_requests(read(name, size.questions), peer) for name in FILES}
    every = make_requests([pair for requests in by_set.values() for pair in requests.pairs], peer)

    error, flips = compare(scorer.score(every.rows), peer._loglikelihood_tokens(every.tokens, disable_tqdm=True))
    print(f"{len(every.rows)} answers: largest difference {error:.1e} nats, {flips} differ in is_greedy")
    if error > TOLERANCE[size.dtype]:
        raise SystemExit("the contenders do not compute the same; their times mean nothing")
    some = slice(0, None, max(1, len(every.rows) // 160))
    batch_tokens = fastest(
        lambda size: dataclasses.replace(scorer, batch_tokens=size).score(every.rows[some]),
        BATCH_TOKENS,
        "ours by tokens",
    )
    scorer = dataclasses.replace(scorer, batch_tokens=batch_tokens)

    def ask_peer(size: int) -> None:
        peer.batch_size_per_gpu = size
        peer._loglikelihood_tokens(every.tokens[some], disable_tqdm=True)

    batch_size = peer.batch_size_per_gpu = fastest(ask_peer, BATCH_SIZES, "HFLM by rows")

    seconds: dict[str, dict[str, list[float]]] = {}
    forwarded: dict[str, dict[str, int]] = {}
    for name, requests in {**by_set, "both": every}.items():
        forwarded[name] = count_forwarded(peer, requests.tokens, scorer, requests.rows)
        tries = pack(requests.rows, limit=4096, attention=2.0 * size.hidden)
        forwarded[name]["nodes of tries"] = sum(len(trie.tokens) for trie in tries)
        print(f"{name}: tokens forwarded:", ", ".join(f"{who} {count:,}" for who, count in forwarded[name].items()))
    contenders: dict[str, dict[str, Callable[[], object]]] = {
        "ids": {
            "ours": lambda: scorer.score(every.rows),
            "ours without tries": lambda: without_tries(scorer, every.rows),
            "HFLM": lambda: peer._loglikelihood_tokens(every.tokens, disable_tqdm=True),
        },
        "texts": {
            "ours": lambda: from_texts(every.pairs, scorer, tokenizer),
            "HFLM": lambda: peer_from_texts(every.pairs, peer),
        },
    }
    for start, both in contenders.items():
        print(f"from {start} to answers:")
        seconds[start] = dict(measure(both, size.repetitions))
    theirs = {start: times["HFLM"] for start, times in seconds.items()}
    claims = [
        claim("eval_scoring_speed_without_tries", theirs["ids"], seconds["ids"]["ours without tries"], "none", PEER),
        claim("eval_scoring_speed_from_texts", theirs["texts"], seconds["texts"]["ours"], GOAL_SPEED, PEER),
        claim("eval_scoring_speed", theirs["ids"], seconds["ids"]["ours"], GOAL_SPEED, PEER),
        {**claim("eval_scoring_error", [error], [1.0], GOAL_ERROR, PEER), "is_greedy_differs": flips},
    ]
    show(claims[:-1])
    # In more digits than a ratio of times.
    print(f"claim=eval_scoring_error ratio={error:.1e} goal={GOAL_ERROR} spread={error:.1e}..{error:.1e} peer={PEER}")
    if arguments.json:
        settings = {
            "vocabulary": VOCAB, "hidden": size.hidden, "layers": size.layers, "questions": size.questions,
            "is_real": is_real, "device": str(size.device), "dtype": str(size.dtype), "batch_size_of_peer": batch_size,
            "batch_tokens": scorer.batch_tokens, "versions": {"torch": torch.__version__},
        }  # fmt: skip
        write_json(
            arguments.json,
            arguments.size,
            {"settings": settings, "processor_seconds": seconds, "tokens_forwarded": forwarded, "claims": claims},
        )


if __name__ == "__main__":
    main()

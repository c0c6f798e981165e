"""Texts written after prompts: ours and lm-evaluation-harness's HFLM, on the same random model, in turns.

- sampled: code prompts (HumanEval's where `--data` has them, else functions of the standard library cut in the middle), 16
  samples of each at temperature 0.2 and top-p 0.95, with HumanEval's stop strings;
- greedy: word problems with five solved ones before each (GSM8K's, else made-up sums), with GSM8K's stop strings.

HFLM gets every sample as a request of its own, as the harness does with `repeats`, and its best batch size of those
tried. Both get the prompts as texts and return texts, whose tokens count. The end-of-text token is made likely enough
for texts to have different lengths, as real ones do. Greedy texts are compared, and how many differ is printed. Without a
GPU: one thread, fp32; with one: bf16 and the shape of a 7B model.

    python benchmarks/eval_generation.py [--quick | --bench] [--json PATH] [--data FOLDER]
"""

from __future__ import annotations

import gzip
import inspect
import json
import logging
import random
import shlex
import statistics
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

# Run by path, a script sees its own folder where it needs the repository.
sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks.claims import claim, options, show, turns, write_json  # noqa: E402
from benchmarks.data_corpus import REAL_DATA  # noqa: E402
from evals.scoring.generation import Prompt, generate  # noqa: E402

CODE_STOP = ("\nclass", "\ndef", "\n#", "\nif", "\nprint")
WORD_STOP = ("Question:", "</s>", "<|im_end|>")
EOS = "<eos>"
MAX_LENGTH = 2048
PEER_BATCHES = {"quick": (16, 64), "bench": (16, 64), "full": (16, 64, 192)}
"""Batch sizes of HFLM that are tried, by the size of the run."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """What is written."""

    name: str
    prompts: list[str]
    samples: int
    temperature: float
    top_p: float
    max_new_tokens: int
    stop: tuple[str, ...]
    batch_tokens: int = 16384


def records(data: Path, name: str) -> list[dict[str, Any]]:
    """All records of a data set, none if the file is not there."""
    path = data / f"{name}.jsonl.gz"
    if not path.exists():
        return []
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def code_prompts(data: Path) -> list[str]:
    """HumanEval's, or beginnings of functions."""
    if found := records(data, "humaneval"):
        return [record["prompt"] for record in found]
    functions = [function for module in (textwrap, shlex, inspect, statistics) for function in vars(module).values()
                 if inspect.isfunction(function)]  # fmt: skip
    sources = [inspect.getsource(function) for function in functions]
    return [source[: max(80, len(source) // 3)] for source in sources]


def word_prompts(data: Path) -> list[str]:
    """GSM8K's with five of its training questions before each, others for each, as in the harness; or sums."""
    train, test = records(data, "gsm8k_train"), records(data, "gsm8k_test")
    if not test:
        train = [{"question": f"Ann has {k} apples and buys {2 * k} more. How many has she?",
                  "answer": f"{k} + {2 * k} = {3 * k}\n#### {3 * k}"} for k in range(3, 103)]  # fmt: skip
        test = train[5:]
    draw = random.Random(0)

    def with_shots(question: str) -> str:
        shots = [f"Question: {one['question']}\nAnswer: {one['answer']}" for one in draw.sample(train, 5)]
        return "\n\n".join([*shots, f"Question: {question}\nAnswer:"])

    return [with_shots(one["question"]) for one in test]


def make_tokenizer(texts: list[str], vocabulary: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE trained on the texts."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, special_tokens=[EOS], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=EOS, pad_token=EOS)


def make_model(vocabulary: int, *, is_small: bool) -> LlamaForCausalLM:
    """A LLaMA with random weights."""
    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    hidden, layers = (256, 4) if is_small else (384, 6)
    if device == "cuda":
        hidden, layers = (2048, 16) if is_small else (4096, 32)
    config = LlamaConfig(
        hidden_size=hidden, intermediate_size=hidden * 5 // 2, num_hidden_layers=layers, num_attention_heads=hidden // 64,
        vocab_size=vocabulary, max_position_embeddings=MAX_LENGTH, initializer_range=0.05, eos_token_id=0,
        bos_token_id=None, pad_token_id=None,
    )  # fmt: skip
    with torch.device(device):
        model = LlamaForCausalLM(config).to(torch.bfloat16 if device == "cuda" else torch.float32).eval()
    with torch.no_grad():
        model.lm_head.weight.mul_(3)
    return model


Write = Callable[[Case], list[str]]


def ours(model: Any, tokenizer: Any) -> Write:
    """Samples of a prompt follow each other in what it returns."""

    def decode(ids: Any) -> str:
        text: str = tokenizer.decode(ids, skip_special_tokens=True)
        return text

    def write(case: Case) -> list[str]:
        prompts = [
            Prompt(
                ids=tuple(ids), max_new_tokens=case.max_new_tokens, stop=(*case.stop, EOS), samples=case.samples,
                temperature=case.temperature, top_p=case.top_p,
            )
            for ids in tokenizer(case.prompts)["input_ids"]
        ]  # fmt: skip
        written = generate(
            model, prompts, decode=decode, eos_ids={tokenizer.eos_token_id}, device=model.device,
            pad_id=tokenizer.pad_token_id, max_length=MAX_LENGTH, batch_tokens=case.batch_tokens,
        )  # fmt: skip
        return [text.text for of_prompt in written for text in of_prompt]

    return write


def theirs(model: Any, tokenizer: Any, batch: int) -> Write:
    """HFLM at a batch size."""
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    lm = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch, max_length=MAX_LENGTH)

    def write(case: Case) -> list[str]:
        settings: dict[str, Any] = {"until": list(case.stop), "max_gen_toks": case.max_new_tokens, "do_sample": False}
        if case.temperature:
            settings |= {"do_sample": True, "temperature": case.temperature, "top_p": case.top_p, "top_k": 0}
        requests = [
            Instance("generate_until", {}, (prompt, settings), index)
            for index, prompt in enumerate(case.prompts)
            for _ in range(case.samples)
        ]
        texts: list[str] = lm.generate_until(requests, disable_tqdm=True)
        return texts

    return write


@torch.no_grad()
def end_texts(model: Any, tokenizer: Any, case: Case) -> None:
    """Make the end of a text likelier, until texts have at most 0.6 of their greatest length on average."""
    weight = model.lm_head.weight[tokenizer.eos_token_id]
    weight *= float(model.lm_head.weight.norm(dim=-1).mean() / weight.norm())
    some = replace(case, prompts=case.prompts[::3], samples=min(case.samples, 4))
    for _ in range(40):
        texts = ours(model, tokenizer)(some)
        if sum(len(ids) + 1 for ids in tokenizer(texts)["input_ids"]) <= 0.6 * case.max_new_tokens * len(texts):
            break
        weight *= 1.15


@contextmanager
def counted(model: torch.nn.Module) -> Iterator[list[int]]:
    """Tokens that go through the model, and forwards."""
    counts = [0, 0]

    def count(_module: Any, _arguments: Any, keywords: dict[str, Any]) -> None:
        counts[0] += keywords["input_ids"].numel()
        counts[1] += 1

    handle = model.register_forward_pre_hook(count, with_kwargs=True)
    try:
        yield counts
    finally:
        handle.remove()


def timed(write: Write, case: Case, model: Any, tokenizer: Any) -> dict[str, Any]:
    """Seconds, tokens of the texts, tokens through the model."""
    with counted(model) as counts:
        start = time.perf_counter()
        texts = write(case)
        seconds = time.perf_counter() - start
    tokens = sum(len(ids) + 1 for ids in tokenizer(texts)["input_ids"])
    return {"texts": texts, "seconds": seconds, "tokens": tokens, "rate": tokens / seconds, "through": counts[0],
            "forwards": counts[1]}  # fmt: skip


def measure(case: Case, model: Any, tokenizer: Any, *, size: str) -> dict[str, Any]:
    """Both in turns, after the peer's batch sizes have been tried once."""
    end_texts(model, tokenizer, case)
    batches = PEER_BATCHES[size]
    tried = {batch: timed(theirs(model, tokenizer, batch), case, model, tokenizer) for batch in batches}
    batch = max(tried, key=lambda size: tried[size]["rate"])
    writes = {"ours": ours(model, tokenizer), "HFLM": theirs(model, tokenizer, batch)}
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in writes}
    for order in turns(writes, 4 if size == "full" else 2):
        for name in order:
            runs[name].append(timed(writes[name], case, model, tokenizer))
    texts = [run.pop("texts") for name in writes for run in runs[name]]
    different = None
    if not case.temperature:
        different = sum(a != b for a, b in zip(texts[0], texts[-1], strict=True))
        print(f"{case.name}: {different} of {len(texts[0])} texts differ from HFLM's")
    for name, of_one in runs.items():
        last = of_one[-1]
        print(
            f"{case.name}  {name:5}  {statistics.median(run['rate'] for run in of_one):.0f} tokens/s, texts of "
            f"{last['tokens'] / len(texts[0]):.0f} tokens, {last['through']} tokens through the model in {last['forwards']} forwards"
            + (f", batches of {batch}" if name == "HFLM" else ""),
            flush=True,
        )
    return {
        "batch": batch,
        "tried": {size: run["rate"] for size, run in tried.items()},
        "runs": runs,
        "different": different,
    }


def main() -> None:
    """Measure, print a line per claim, and write the numbers where `--json` says."""
    parser = options(
        __doc__, quick="a smaller model and fewer prompts, a minute or two", bench="fewer prompts, shorter texts"
    )
    parser.add_argument("--data", type=Path, default=REAL_DATA, help="folder of the real data sets")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        torch.set_num_threads(1)
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    logging.getLogger("transformers").setLevel(logging.ERROR)

    import lm_eval

    peer = f"lm-eval HFLM {lm_eval.__version__}"
    code, words = code_prompts(arguments.data), word_prompts(arguments.data)
    print("data:", "real sets" if records(arguments.data, "humaneval") else f"synthetic, nothing in {arguments.data}")
    size, is_small = arguments.size, arguments.size == "quick"
    tokenizer = make_tokenizer(code + words[:200], 4096 if is_small else 8192)
    model = make_model(len(tokenizer), is_small=is_small)
    many = {"quick": (8, 8), "bench": (3, 8), "full": (12, 48)}[size]
    cases = [
        Case(name="sampled", prompts=code[: many[0]], samples=16, temperature=0.2, top_p=0.95,
             max_new_tokens=160 if size == "full" else 96, stop=CODE_STOP),
        Case(name="greedy", prompts=words[: many[1]], samples=1, temperature=0.0, top_p=1.0,
             max_new_tokens={"quick": 48, "bench": 64, "full": 128}[size], stop=WORD_STOP),
    ]  # fmt: skip
    measured = {case.name: measure(case, model, tokenizer, size=size) for case in cases}
    claims = [
        claim(f"eval_generation_{name}_speed", *([run["rate"] for run in found["runs"][who]] for who in ("ours", "HFLM")),
              ">=1", f"{peer} at its best batch size")
        for name, found in measured.items()
    ]  # fmt: skip
    show(claims)
    if arguments.json:
        settings = {"device": str(model.device), "dtype": str(model.dtype), "hidden": model.config.hidden_size,
                    "layers": model.config.num_hidden_layers, "torch": torch.__version__}  # fmt: skip
        write_json(arguments.json, arguments.size, {"settings": settings, "measured": measured, "claims": claims})


if __name__ == "__main__":
    main()

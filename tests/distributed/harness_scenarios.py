"""Suites of the harness on real ranks, each with the whole of a tiny model; see test_harness.py."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from transformers import LlamaConfig, LlamaForCausalLM

from evals.code.policy import Policy
from evals.code.program import Program, Verdict
from evals.encoder import Codec
from evals.errors import EvalError
from evals.harness import language_model, programs
from evals.harness.kept import Kept
from evals.harness.run import evaluate_tasks
from evals.harness.specs import parse_specs
from evals.harness.tasks import load_tasks
from evals.scoring.scorer import Scorer
from evals.scoring.stopping import Stopped

CODEC = Codec(
    encode=lambda text: [byte % 128 + 2 for byte in text.encode()],
    decode=lambda ids: bytes(max(0, i - 2) for i in ids).decode("ascii"),
    bos_id=0,
    eos_id=1,
    is_bos_added=True,
)


def make_data(folder: Path) -> None:
    """Five WinoGrande questions and two problems to program."""
    people = ("Ann", "Bob", "Cleo", "Dan", "Eve")
    questions = [
        {"sentence": f"{name} beat Maria so _ won.", "option1": name, "option2": "Maria", "answer": "1"}
        for name in people
    ]
    (folder / "winogrande_validation.jsonl").write_text("\n".join(map(json.dumps, questions)))
    problems = [{"task_id": f"X/{i}", "prompt": f"def f{i}():\n", "test": "", "entry_point": f"f{i}"} for i in range(2)]
    (folder / "humaneval.jsonl").write_text("\n".join(map(json.dumps, problems)))


def evaluate(folder: str) -> dict[str, Any]:
    """Evaluate, be stopped, go on, and have one rank fail; what every rank saw of it."""
    if not dist.is_initialized():
        dist.init_process_group("gloo")
    rank, world_size = dist.get_rank(), dist.get_world_size()
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=130, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=128,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    judged: list[str] = []

    def by_text(found: Sequence[Program], *, finished: Callable[[Program, Verdict], None], **_: Any) -> None:
        for program in found:
            judged.append(program.source)
            finished(program, Verdict(passed=len(program.source) % 2 == 0, reason="passed", seconds=0.0))

    def failing(found: Sequence[Program], **rest: Any) -> None:
        if rank == world_size - 1:
            raise OSError(12, "no sandbox on this rank")
        by_text(found, **rest)

    tasks = load_tasks(
        parse_specs(["winogrande", "learning-code"]), data_dir=Path(folder), max_length=128, max_new_tokens=4
    )
    scorer = {"model": model, "device": "cpu", "pad_id": 0, "max_length": 128, "rank": rank, "world_size": world_size}
    language_model.ROWS_AT_ONCE = 4
    path, ranks = Path(folder) / f"kept-{world_size}.jsonl", {"rank": rank, "world_size": world_size}

    stops = iter([False, True])
    stopped, failed = False, ""
    try:
        evaluate_tasks(
            Scorer(**scorer, should_stop=lambda: next(stops)),
            CODEC,
            tasks,
            kept=Kept(path, {}, **ranks),  # type: ignore[arg-type]
        )
    except Stopped:
        stopped = True
    kept = Kept(path, {}, **ranks)
    programs.judge = failing  # type: ignore[assignment]
    try:
        evaluate_tasks(Scorer(**scorer), CODEC, tasks, kept=kept, policy=Policy())  # type: ignore[arg-type]
    except (EvalError, OSError) as error:
        failed = str(error)
    programs.judge = by_text  # type: ignore[assignment]
    judged.clear()
    again = Kept(path, {}, **ranks)
    result = evaluate_tasks(Scorer(**scorer), CODEC, tasks, kept=again)  # type: ignore[arg-type]
    return {
        "stopped": stopped,
        "found": kept.num_found,
        "failed": failed,
        "found_again": again.num_found,
        "judged": judged,
        "result": result,
    }

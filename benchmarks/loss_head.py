"""What the loss costs from the last hidden states on: ours at the targets, in chunks, and transformers' on all logits.

A step is the output head, the sum of cross-entropy over the targets divided by their number, and the backward pass down
to the hidden states, and to the head's weight where it trains. Both get the same hidden states, weight, targets and
dtype, and take turns; a ratio is taken within a repetition, the median over the repetitions is the claim, the extremes
are its spread. Nothing is timed before both have given the same loss and gradients.

Without a GPU: one thread, fp32; beside the elapsed time there is that of the processor, which other load on the machine
disturbs less. With one: bf16 and the shape of a 7B model's head. Peak memory is measured for each alone, weight and
inputs included (`probes.py` says how). Half of the labels are masked; for information also none.

    python benchmarks/loss_head.py [--quick | --bench] [--json PATH]
"""

from __future__ import annotations

import functools
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers.loss.loss_utils import ForCausalLMLoss

# Run by path, a script sees its own folder where it needs the repository.
sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks.claims import claim, options, show, turns, write_json  # noqa: E402
from benchmarks.probes import measure_memory  # noqa: E402
from training.model.loss import IGNORE  # noqa: E402
from training.model.loss_head import LossHead, LossRequest, chunk_rows  # noqa: E402

PEER = f"transformers {transformers.__version__}"
VOCAB = 32_000
GOAL_TIME, GOAL_MEMORY = "<=0.6", "<=0.5"
LOSS_TOLERANCE = 1e-6
GRADIENT_TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1e-2}
"""Largest relative difference of the losses, and of the gradients as vectors."""


class Head(nn.Module):
    """A model that is nothing but its output head."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.lm_head = nn.Linear(hidden, VOCAB, bias=False)

    def get_output_embeddings(self) -> nn.Module:
        """The head, as transformers names it."""
        return self.lm_head

    def forward(self, hidden: Tensor) -> Tensor:
        """Map hidden [rows, tokens, hidden] to whatever the head gives."""
        output: Tensor = self.lm_head(hidden)
        return output


@dataclass(frozen=True, kw_only=True)
class Case:
    """What is computed."""

    hidden: int
    tokens: int
    masked: float
    """Share of the labels that are no target."""
    is_trained: bool
    """Whether the head's weight gets a gradient."""
    device: torch.device
    dtype: torch.dtype

    @property
    def name(self) -> str:
        """Short, for claims."""
        return f"{'trained' if self.is_trained else 'frozen'}_head_masked_{100 * self.masked:.0f}"

    def inputs(self) -> tuple[Head, Tensor, Tensor]:
        """Head, hidden states [1, tokens, hidden] and labels [1, tokens]; they depend on the case alone."""
        generator = torch.Generator().manual_seed(0)
        head = Head(self.hidden)
        nn.init.normal_(head.lm_head.weight, std=self.hidden**-0.5, generator=generator)
        states = torch.randn(1, self.tokens, self.hidden, generator=generator)
        labels = torch.randint(VOCAB, (1, self.tokens), generator=generator)
        labels[torch.rand(1, self.tokens, generator=generator) < self.masked] = IGNORE
        head = head.to(self.device, self.dtype).requires_grad_(self.is_trained)
        return head, states.to(self.device, self.dtype).requires_grad_(), labels.to(self.device)

    def wait(self) -> None:
        """Let the device finish."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


Step = Callable[[], tuple[Tensor, list[Tensor]]]
"""Returns the loss and the gradients."""


def ours(case: Case) -> Step:
    """The loss at the targets, which are known beforehand, as training knows them from the data."""
    model, states, labels = case.inputs()
    head = LossHead(model)
    index = torch.nonzero(labels.flatten() != IGNORE).flatten()
    request = LossRequest(index=index, targets=labels.flatten()[index])

    def step() -> tuple[Tensor, list[Tensor]]:
        with head.asked(request):
            loss = model(states)[0] / len(index)
        loss.backward()
        return loss.detach(), _take_gradients(model, states)

    return step


def theirs(case: Case) -> Step:
    """What a causal language model of transformers does with labels; they are shifted already, as ours are."""
    model, states, labels = case.inputs()
    count = (labels != IGNORE).sum()

    def step() -> tuple[Tensor, list[Tensor]]:
        loss = ForCausalLMLoss(model(states), None, VOCAB, num_items_in_batch=count, shift_labels=labels)
        loss.backward()
        return loss.detach(), _take_gradients(model, states)

    return step


CONTENDERS = {"ours": ours, "transformers": theirs}


def _take_gradients(model: Head, states: Tensor) -> list[Tensor]:
    tensors = (states, model.lm_head.weight)
    gradients = [tensor.grad for tensor in tensors if tensor.grad is not None]
    for tensor in tensors:
        tensor.grad = None
    return gradients


def check(case: Case) -> dict[str, float]:
    """Relative differences of loss and gradients.

    Raises:
        SystemExit: they are larger than rounding explains; then no time means anything.
    """
    (loss, gradients), (expected, expected_gradients) = (make(case)() for make in CONTENDERS.values())
    found = {"loss": float((loss - expected).abs() / expected)}
    for name, a, b in zip(("grad_hidden", "grad_weight"), gradients, expected_gradients, strict=False):
        found[name] = float((a.float() - b.float()).norm() / b.float().norm())
    worst = max(value for name, value in found.items() if name != "loss")
    is_same = found["loss"] <= LOSS_TOLERANCE and worst <= GRADIENT_TOLERANCE[case.dtype]
    if len(gradients) != len(expected_gradients) or not is_same:
        raise SystemExit(f"{case.name}: ours and {PEER} do not compute the same: {found}")
    return found


def measure_seconds(case: Case, repetitions: int) -> dict[str, dict[str, list[float]]]:
    """Seconds of each repetition, elapsed and of the processor, by contender."""
    steps = {name: make(case) for name, make in CONTENDERS.items()}
    measured: dict[str, dict[str, list[float]]] = {name: {"elapsed": [], "processor": []} for name in steps}
    for step in steps.values():
        step()
    for order in turns(steps, repetitions):
        for name in order:
            case.wait()
            elapsed, processor = time.perf_counter(), time.process_time()
            steps[name]()
            case.wait()
            measured[name]["elapsed"].append(time.perf_counter() - elapsed)
            measured[name]["processor"].append(time.process_time() - processor)
    return measured


def cases(size: str) -> list[Case]:
    """What is measured."""
    if torch.cuda.is_available():
        shape: dict[str, Any] = {"hidden": 4096, "tokens": 4096 if size == "quick" else 8192}
        shape |= {"device": torch.device("cuda", 0), "dtype": torch.bfloat16}
    else:
        shape = {"hidden": 256, "tokens": 1024} if size == "quick" else {"hidden": 512, "tokens": 2048}
        shape |= {"device": torch.device("cpu"), "dtype": torch.float32}
    shares = (0.5, 0.0) if size == "full" else (0.5,)
    return [Case(**shape, masked=masked, is_trained=trained) for masked in shares for trained in (False, True)]


def claims_of(case: Case, seconds: dict[str, dict[str, list[float]]], peak: dict[str, int]) -> list[dict[str, Any]]:
    """What was measured, against the goals where half of the labels are masked."""
    has_goal = case.masked == 0.5
    clocks = {"time": "elapsed"} if case.device.type == "cuda" else {"time": "elapsed", "processor_time": "processor"}
    found = [
        claim(f"loss_head_{name}_{case.name}", seconds["ours"][clock], seconds["transformers"][clock],
              GOAL_TIME if has_goal else "none", PEER)
        for name, clock in clocks.items()
    ]  # fmt: skip
    memory, peers = ([float(peak[name])] for name in CONTENDERS)
    return [*found, claim(f"loss_head_memory_{case.name}", memory, peers, GOAL_MEMORY if has_goal else "none", PEER)]


def main() -> None:
    """Measure, print a line per claim, and write the numbers where `--json` says."""
    parser = options(__doc__, quick="a small shape, in under a minute", bench="half of the labels masked")
    arguments = parser.parse_args()
    torch.set_num_threads(1)

    measured: dict[str, Any] = {}
    claims: list[dict[str, Any]] = []
    for case in cases(arguments.size):
        differences = check(case)
        seconds = measure_seconds(case, 2 if arguments.size == "quick" else 6)
        memory = {name: measure_memory(functools.partial(make, case), case.device) for name, make in CONTENDERS.items()}
        measured[case.name] = {
            "relative_differences": differences,
            "seconds": seconds,
            "memory": {name: sizes._asdict() for name, sizes in memory.items()},
        }
        print(f"{case.name}: relative differences", *(f"{what} {value:.1e}" for what, value in differences.items()))
        for name, times in seconds.items():
            print(
                f"{case.name}  {name:12}  {1e3 * statistics.median(times['elapsed']):.0f} ms elapsed, "
                f"{1e3 * statistics.median(times['processor']):.0f} ms of the processor, "
                f"peak {memory[name].peak / 2**20:.0f} MiB, of which {memory[name].held / 2**20:.0f} before the step",
                flush=True,
            )
        claims += claims_of(case, seconds, {name: sizes.peak for name, sizes in memory.items()})
    show(claims)
    if arguments.json:
        settings = {
            "vocabulary": VOCAB, "hidden": case.hidden, "tokens": case.tokens, "device": str(case.device),
            "dtype": str(case.dtype), "threads": 1, "chunk_rows": chunk_rows(VOCAB, case.device.type),
            "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        }  # fmt: skip
        write_json(arguments.json, arguments.size, {"settings": settings, "measured": measured, "claims": claims})


if __name__ == "__main__":
    main()

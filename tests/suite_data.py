"""Small data sets in the layout of the real ones, for suites without internet."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

WORDS = [
    "the",
    "a",
    "boat",
    "river",
    "stone",
    "child",
    "dog",
    "runs",
    "sleeps",
    "opens",
    "finds",
    "red",
    "old",
    "quiet",
    "under",
    "over",
    "near",
    "with",
    "door",
    "hill",
]


def sentence(draw: random.Random, words: int) -> str:
    return " ".join(draw.choice(WORDS) for _ in range(words)).capitalize() + "."


def hellaswag(draw: random.Random, number: int) -> dict[str, Any]:
    context = f"{sentence(draw, 6)} {sentence(draw, 3)[:-1]}"
    endings = [sentence(draw, draw.randint(2, 6)).lower() for _ in range(4)]
    return {"ind": number, "activity_label": "Boating", "ctx": context, "endings": endings, "label": draw.randrange(4)}


def arc_challenge(draw: random.Random, number: int) -> dict[str, Any]:
    texts = [sentence(draw, draw.randint(1, 3)) for _ in range(4)]
    choices = {"text": texts, "label": ["A", "B", "C", "D"]}
    question = f"{sentence(draw, 7)[:-1]}?"
    return {"id": f"q{number}", "question": question, "choices": choices, "answerKey": draw.choice("ABCD")}


def winogrande(draw: random.Random, number: int) -> dict[str, Any]:
    first, second = draw.sample(["Ann", "Bob", "Eve", "Tom"], 2)
    text = f"{first} met {second} near the river because _ {sentence(draw, 3).lower()}"
    return {"sentence": text, "option1": first, "option2": second, "answer": draw.choice("12")}


def gsm8k(draw: random.Random, number: int) -> dict[str, Any]:
    a, b = draw.randint(2, 9), draw.randint(2, 9)
    return {"question": f"{a} dogs and {b} dogs?", "answer": f"{a}+{b}=<<{a}+{b}={a + b}>>{a + b}\n#### {a + b}"}


def humaneval(draw: random.Random, number: int) -> dict[str, Any]:
    name = f"add{number}"
    return {
        "task_id": f"HumanEval/{number}",
        "prompt": f'def {name}(x):\n    """Return x + {number}."""\n',
        "canonical_solution": f"    return x + {number}\n",
        "test": f"def check(candidate):\n    assert candidate(1) == {number + 1}\n",
        "entry_point": name,
    }


FILES = {
    "hellaswag_validation": hellaswag,
    "arc_challenge_test": arc_challenge,
    "winogrande_validation": winogrande,
    "gsm8k_train": gsm8k,
    "gsm8k_test": gsm8k,
    "humaneval": humaneval,
}


def make_suite_data(folder: Path, examples: int = 12) -> Path:
    """Write every data set with this many examples; return the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, make in FILES.items():
        draw = random.Random(name)
        lines = [json.dumps(make(draw, number)) for number in range(examples)]
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder

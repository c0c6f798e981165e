"""The stream in training runs: killed and resumed at other world sizes, and a worker that dies."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.distributed.data_scenarios import write_recipe
from tests.ranks import RanksFailed, run_ranks

pytestmark = pytest.mark.dist

STEPS = 12
SETTINGS = ["--train.steps", str(STEPS), "--data.workers", "1", "--data.too_long", "cut", "--checkpoint.every_steps", "4",
            "--checkpoint.export", "false", "--adapter.kind", "lora"]  # fmt: skip


@pytest.fixture(scope="module")
def recipe(tiny_recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_recipe(tiny_recipe, tmp_path_factory.mktemp("mixed"))


def train(recipe: Path, out: Path, world_size: int, function: str = "train", **more: Any) -> list[dict[str, Any]]:
    settings = [*SETTINGS, "--run.dir", str(out), *more.pop("settings", [])]
    name = f"tests.distributed.data_scenarios:{function}"
    return run_ranks(name, world_size, recipe=str(recipe), settings=settings, **more)


def metrics(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def hashes(out: Path) -> list[tuple[int, str]]:
    return [(line["step"], line["data_hash"]) for line in metrics(out)]


def record(out: Path) -> dict[str, Any]:
    return json.loads((out / "run.json").read_text())


def num_cut(recipe: Path, tokenizer: Path, seq_len: int) -> int:
    """How many examples are longer than a row, of which the prompts are only a part; by sentencepiece, from the file."""
    import sentencepiece

    encode = sentencepiece.SentencePieceProcessor(model_file=str(tokenizer)).encode
    pairs = map(json.loads, recipe.with_name("pairs.jsonl").read_text().splitlines())
    bos_and_eos = 2
    return sum(len(encode(pair["prompt"] + pair["response"])) + bos_and_eos > seq_len for pair in pairs)


def test_killed_and_resumed_on_one_and_on_four_ranks(recipe: Path, tiny_recipe: Path, tmp_path: Path) -> None:
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    assert [done["code"] for done in train(recipe, straight, 2)] == [0, 0]
    assert [step for step, _ in hashes(straight)] == list(range(1, STEPS + 1))
    assert len({value for _, value in hashes(straight)}) == STEPS

    # Killed without a word after two steps more than the checkpoint of step 4.
    with pytest.raises(RanksFailed, match=r"(code |codes \[)-9"):
        train(recipe, killed, 2, dies_at=6)
    assert record(killed)["status"] == "running"
    assert [path.name for path in (killed / "checkpoints").glob("[0-9]*")] == ["4"]

    for world_size in (1, 4):
        out = shutil.copytree(killed, tmp_path / f"resumed-on-{world_size}")
        # Workers are no part of what is trained: one less or more gives the same rows.
        done = train(recipe, out, world_size, settings=["--data.workers", str(world_size // 2)])
        assert [rank["code"] for rank in done] == [0] * world_size
        assert [start["world_size"] for start in record(out)["starts"]] == [2, world_size]
        assert hashes(out) == hashes(straight), f"other batches on {world_size} ranks"
        losses = [line["loss"] for line in metrics(out)]
        assert losses == pytest.approx([line["loss"] for line in metrics(straight)], abs=1e-5)

    cut = num_cut(recipe, tiny_recipe.with_name("tokenizer.model"), seq_len=64)
    assert 0 < cut < 24
    counts = {"text": {"bad_records": 0}, "pairs": {"bad_records": 0, "too_long": 0, "cut": cut}}
    for out in (straight, *(tmp_path / f"resumed-on-{world_size}" for world_size in (1, 4))):
        assert record(out)["data"] == counts
    assert record(straight)["tokenizer_engine"]


def test_a_dead_worker_fails_the_step_on_all_ranks(recipe: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    # Rows that it has sent are still trained on, which are more than a few steps of this size.
    ranks = train(recipe, out, 2, "train_with_a_dead_worker", rank=1, at=3, settings=["--train.steps", "500"])
    assert [rank["code"] for rank in ranks] == [1, 1]
    assert [rank["alive"] for rank in ranks] == [[], []], "workers outlive the run"
    (victim,) = ranks[1]["pids"]
    found = record(out)
    assert found["status"] == "failed"
    assert 3 <= found["step"] < 500
    assert f"process id {victim} on " in found["error"]
    assert "was killed by SIGKILL" in found["error"]


def test_ranks_wait_for_the_one_that_indexes_and_hear_of_each_others_problems() -> None:
    first, second = run_ranks("tests.distributed.data_scenarios:open_together", 2, seconds=6.0, patience=3.0)
    assert first["left"] - first["entered"] >= 6
    assert second["entered"] >= first["left"]
    assert [first["problem"], second["problem"]] == ["rank 1: no such disk"] * 2

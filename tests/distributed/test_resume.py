"""Checkpoints on real ranks: bit-identical at the same world size, equal batches and losses at another."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.ranks import run_ranks

pytestmark = pytest.mark.dist


HIDDEN_KEY = ("--hidden_key.enabled", "true", "--hidden_key.key_pattern", "span")
KINDS = {
    "none": ("none",),
    # The cooperative phase begins before the checkpoint of step 6, or after it.
    "monteclora": ("monteclora", "--adapter.start_step", "3", "--adapter.dropout", "0.1"),
    "monteclora_later": ("monteclora", "--adapter.start_step", "8", "--adapter.posthoc", "true", *HIDDEN_KEY),
    "hidden_key": ("lora", *HIDDEN_KEY, "--hidden_key.compensation", "js", "--hidden_key.compensation_weight", "10"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_resume_at_any_world_size(kind: str, tiny_recipe: Path, tmp_path: Path) -> None:
    overrides = ["--adapter.kind", *KINDS[kind], "--run.dir", str(tmp_path / "run"), "--train.precision", "bf16"]
    common: dict[str, Any] = {"recipe": str(tiny_recipe), "overrides": overrides, "last": 12}
    straight = run_ranks("tests.distributed.scenarios:save_then_continue", 2, first=6, **common)[0]
    again = run_ranks("tests.distributed.scenarios:resume_and_continue", 2, **common)[0]
    assert again["step"] == 6
    assert again["after"] == straight["after"], "a resumed run must be the uninterrupted one, bit for bit"

    (alone,) = run_ranks("tests.distributed.scenarios:resume_and_continue", 1, **common)
    assert [line[3] for line in alone["after"]] == [line[3] for line in straight["after"]]
    assert [line[0] for line in alone["after"]] == pytest.approx([line[0] for line in straight["after"]], abs=1e-2)


def test_from_one_rank_to_two(tiny_recipe: Path, tmp_path: Path) -> None:
    overrides = ["--adapter.kind", "lora", "--run.dir", str(tmp_path / "run")]
    common: dict[str, Any] = {"recipe": str(tiny_recipe), "overrides": overrides, "last": 26}
    overrides += ["--train.steps", "30"]
    (straight,) = run_ranks("tests.distributed.scenarios:save_then_continue", 1, first=6, **common)
    before = set(Path("/dev/shm").glob("deepspeed_*"))
    both = run_ranks("tests.distributed.scenarios:resume_and_continue", 2, **common)
    assert set(Path("/dev/shm").glob("deepspeed_*")) <= before, "shared memory outlives the ranks"
    assert both[0] == both[1]
    assert [line[3] for line in both[0]["after"]] == [line[3] for line in straight["after"]]
    assert [line[0] for line in both[0]["after"]] == pytest.approx([line[0] for line in straight["after"]], abs=1e-5)

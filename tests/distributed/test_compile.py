"""torch.compile changes neither losses nor gradients, and compiles nothing after the first steps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.ranks import run_ranks

pytestmark = pytest.mark.dist

STEPS = 6
CASES = {
    "full": ["--adapter.kind", "none", "--model.activation_checkpointing", "1"],
    "lora": ["--adapter.kind", "lora", "--adapter.dropout", "0.1"],
    "monteclora": ["--adapter.kind", "monteclora", "--adapter.dropout", "0.1", "--model.activation_checkpointing", "full"],
}  # fmt: skip


@pytest.fixture(scope="module")
def found(tiny_recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    cache = tmp_path_factory.mktemp("inductor")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TORCHINDUCTOR_CACHE_DIR", str(cache))
        return run_ranks(
            "tests.distributed.compile_scenarios:compiled_and_not", 1, recipe=str(tiny_recipe), cases=CASES, steps=STEPS,
            timeout=540,
        )[0]  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_losses_and_gradients_are_the_same(name: str, found: Any) -> None:
    for ours, plain in zip(found[name]["compiled"], found[name]["plain"], strict=True):
        assert ours == pytest.approx(plain, rel=1e-5)


@pytest.mark.parametrize("name", CASES)
def test_after_three_steps_nothing_is_compiled(name: str, found: Any) -> None:
    graphs = found[name]["graphs"]
    assert graphs[0] > 0
    # Once more where the longest document of a micro-batch has another length for the first time.
    assert graphs[2:] == [graphs[2]] * (STEPS - 2), graphs

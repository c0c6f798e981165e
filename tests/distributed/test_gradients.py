"""Every parameter's gradient on two ZeRO-3 ranks is that of one process of ordinary PyTorch.

What is compared are parameters and AdamW's moments after a few steps: the first moment is a weighted sum of the gradients.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from monteclora.penalty import Draw, variational_penalty
from tests.distributed.scenarios import Plain
from tests.ranks import run_ranks
from training.checkpoint.image import shard_name

pytestmark = pytest.mark.dist

STEPS = 5
# An untrained model is so unsure that passes hardly differ: with this weight their divergence is a good part of the gradient.
HIDDEN_KEY = ("--hidden_key.enabled", "true", "--hidden_key.key_rate", "0.3", "--hidden_key.hidden_rate", "0.2",
              "--hidden_key.compensation_weight", "1000")  # fmt: skip
PATTERNS = ("--adapter.rank_pattern", '{"*.mlp.*" = 8, "*.0.*" = 2}', "--adapter.alpha_pattern", '{"q_proj" = 3}',
            "--adapter.loraplus_ratio", "4")  # fmt: skip
CASES: dict[str, tuple[str, ...]] = {
    "switch": ("monteclora", *PATTERNS, "--adapter.start_step", "2", "--adapter.coop_lr_ratio", "3"),
    "posthoc": ("monteclora", "--adapter.start_step", "3", "--adapter.posthoc", "true", "--adapter.modules_to_save", "norm,lm_head"),
    "saved": ("lora", "--adapter.modules_to_save", "norm,embed_tokens", "--adapter.dropout", "0.1"),
    "kl": ("monteclora", *HIDDEN_KEY),
    "both": ("monteclora", *HIDDEN_KEY, "--hidden_key.both_branches", "true", "--hidden_key.layers", "all"),
    "js": ("monteclora", "--adapter.dropout", "0.3", *HIDDEN_KEY, "--hidden_key.compensation", "js",
           "--hidden_key.other_dropout", "kept"),
    "no_compensation": ("none", *HIDDEN_KEY, "--hidden_key.compensation", "none", "--hidden_key.key_pattern", "span"),
}  # fmt: skip
RECOMPUTED = ("--model.activation_checkpointing", "full")
VARIANTS: dict[str, dict[str, Any]] = {
    "partitioned": {"threshold": 0},
    "persistent": {"threshold": 100_000},
    "partitioned_recomputed": {"threshold": 0, "more": RECOMPUTED},
    "persistent_recomputed": {"threshold": 100_000, "more": RECOMPUTED},
    "partitioned_reentrant": {"threshold": 0, "is_reentrant": True},
    "persistent_reentrant": {"threshold": 100_000, "is_reentrant": True},
    "replicated": {"threshold": 0, "more": ("--train.placement", "replicated")},
}
TRIED = {
    name: tuple(VARIANTS)
    if name in ("switch", "kl")
    else ("partitioned", "persistent_recomputed", "partitioned_reentrant", "replicated")
    for name in CASES
}
"""Variants of each case."""

# The penalty alone, whatever the loss: without noise, and of quantities that are not drawn.
PENALTY = ("monteclora", "--adapter.noise_scale", "0", "--adapter.analytic_kl", "true", "--adapter.coop_weight", "0",
           "--train.gradient_clipping", "0")  # fmt: skip
MICRO_BATCHES = (1, 2, 4)


def overrides(case: tuple[str, ...], *more: str) -> list[str]:
    return ["--adapter.kind", *case, *more]


def cases() -> dict[str, dict[str, Any]]:
    return {
        f"{name}-{label}": {**VARIANTS[label], "overrides": overrides(CASES[name], *VARIANTS[label].get("more", ()))}
        for name, labels in TRIED.items()
        for label in labels
    }


def penalty_cases() -> dict[str, dict[str, Any]]:
    return {
        f"penalty-{rows}": {"threshold": 0, "overrides": overrides(PENALTY, "--train.micro_batch_rows", str(rows))}
        for rows in MICRO_BATCHES
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("states")


@pytest.fixture(scope="module")
def two_ranks(tiny_recipe: Path, folder: Path) -> list[dict[str, Any]]:
    return run_ranks(
        "tests.distributed.scenarios:states", 2, recipe=str(tiny_recipe), cases=cases(), steps=STEPS,
        folder=str(folder), timeout=600,
    )  # fmt: skip


@pytest.fixture(scope="module")
def plain(tiny_recipe: Path) -> dict[str, tuple[list[list[Any]], dict[str, Tensor]]]:
    found = {}
    for name, case in CASES.items():
        run = Plain(str(tiny_recipe), overrides(case))
        found[name] = (run.train(STEPS), dict(run.state()))
    return found


def whole_state(folder: Path, shapes: dict[str, list[int]], world_size: int = 2) -> dict[str, Tensor]:
    """The ranks' slices put together."""
    shards = [load_file(folder / shard_name(rank, world_size)) for rank in range(world_size)]
    state = {}
    for key in shards[0]:
        shape = shapes[key.partition("/")[0]]
        state[key] = torch.cat([shard[key] for shard in shards])[: math.prod(shape)].reshape(shape)
    return state


@pytest.mark.parametrize(("name", "variant"), [(name, variant) for name, labels in TRIED.items() for variant in labels])
def test_two_ranks_equal_plain_pytorch(
    name: str, variant: str, two_ranks: list[dict[str, Any]], plain: dict[str, Any], folder: Path
) -> None:
    ours = two_ranks[0][f"{name}-{variant}"]
    curve, state = plain[name]
    assert ours["curve"] == two_ranks[1][f"{name}-{variant}"]["curve"]
    for mine, theirs in zip(ours["curve"], curve, strict=True):
        assert mine[3] == theirs[3], "the batches differ"
        assert [value is None for value in mine] == [value is None for value in theirs]
        # A divergence of 1e-5 nats is the rest of terms that cancel, each rounded at the size of a log probability.
        for column, rounding in ((0, 0.0), (1, 0.0), (2, 0.0), (4, 2e-5)):
            if theirs[column] is not None:
                assert mine[column] == pytest.approx(theirs[column], rel=1e-4, abs=rounding), column
    found = whole_state(folder / f"{name}-{variant}", ours["shapes"])
    assert found.keys() == state.keys()
    for key, value in state.items():
        largest = float(value.abs().max())
        # Where a gradient is nearly 0, its rounding decides the size of AdamW's step: a twentieth of one is allowed.
        tolerance = 5e-3 / 20 if "/" not in key else 3e-5 * largest + 1e-9
        torch.testing.assert_close(
            found[key], value, rtol=1e-4, atol=tolerance, msg=lambda text, key=key: f"{key}: {text}"
        )


@pytest.mark.parametrize("name", CASES)
def test_neither_partitioning_nor_recomputation_changes_a_bit(
    name: str, two_ranks: list[dict[str, Any]], folder: Path
) -> None:
    # Another placement adds up in another order.
    first, *others = (f"{name}-{variant}" for variant in TRIED[name] if variant != "replicated")
    wanted = whole_state(folder / first, two_ranks[0][first]["shapes"])
    for other in others:
        assert two_ranks[0][other]["curve"] == two_ranks[0][first]["curve"], other
        found = whole_state(folder / other, two_ranks[0][other]["shapes"])
        assert [key for key, value in wanted.items() if not torch.equal(value, found[key])] == [], other


def test_what_trains_has_moved_and_nothing_else(two_ranks: list[dict[str, Any]], plain: dict[str, Any]) -> None:
    variational = (".log_std", ".log_concentration")
    for name, (_, state) in plain.items():
        moved = {
            key.removesuffix("/exp_avg") for key, value in state.items() if key.endswith("/exp_avg") and value.any()
        }
        assert moved == {key for key in state if "/" not in key}, name
    # A and B have had the steps before the cooperative phase, s and t those in it.
    steps = two_ranks[0]["switch-partitioned"]["steps"]
    assert steps == {"low_rank_A": STEPS, "low_rank_B": STEPS, "variational": STEPS - 2}
    assert all(key.endswith(variational) or "lora_" in key for key in two_ranks[0]["switch-partitioned"]["shapes"])


def test_a_penalty_and_a_compensation_are_told_only_where_there_is_one(two_ranks: list[dict[str, Any]]) -> None:
    def column(name: str, index: int) -> list[bool]:
        return [line[index] is not None for line in two_ranks[0][f"{name}-partitioned"]["curve"]]

    assert column("kl", 2) == column("both", 2) == column("js", 2) == [True] * STEPS
    assert column("switch", 2) == [False, False, True, True, True]
    assert column("posthoc", 2) == [False, False, False, True, True]
    assert column("saved", 2) == column("no_compensation", 2) == [False] * STEPS
    assert column("kl", 4) == column("js", 4) == column("both", 4) == [True] * STEPS
    assert column("switch", 4) == column("no_compensation", 4) == [False] * STEPS


def test_ranks_draw_different_noise(two_ranks: list[dict[str, Any]]) -> None:
    for name in ("switch", "kl", "both"):
        one, other = (rank[f"{name}-partitioned"]["draw"] for rank in two_ranks)
        assert len(one) == len(other) > 0
        assert one != other


def test_neither_accumulation_nor_world_size_changes_the_penaltys_weight(tiny_recipe: Path, tmp_path: Path) -> None:
    adapter = Plain(str(tiny_recipe), overrides(PENALTY)).adapter
    assert adapter is not None
    penalty: Any = 0.0
    for posterior in adapter.posteriors.values():
        # The analytic KL is without a draw, and the cooperative term without weight.
        std, pi = torch.ones_like(posterior.log_std), torch.zeros_like(posterior.log_concentration)
        draw = Draw(posterior.log_std, posterior.log_concentration, std, pi)
        penalty += variational_penalty(draw, posterior.sizes(std).rank, posterior.config)
    (penalty / len(adapter.layers)).backward()
    wanted = {name: parameter.grad for name, parameter in adapter.named_parameters().items() if "monteclora" in name}
    assert len(wanted) == 4
    for world_size in (1, 2):
        folder = tmp_path / str(world_size)
        folder.mkdir()
        found = run_ranks(
            "tests.distributed.scenarios:states", world_size, recipe=str(tiny_recipe), cases=penalty_cases(), steps=1,
            folder=str(folder),
        )[0]  # fmt: skip
        for name in penalty_cases():
            state = whole_state(folder / name, found[name]["shapes"], world_size)
            for parameter, gradient in wanted.items():
                # AdamW's first moment after one step, with beta1 = 0.9.
                torch.testing.assert_close(state[f"{parameter}/exp_avg"], 0.1 * gradient, rtol=1e-5, atol=1e-10)


SPLITS = {1: (1, 2, 8), 2: (1, 4), 4: (1, 2)}
"""Ranks, and rows per micro-batch, that 8 rows are split into."""


def split_cases(world_size: int) -> dict[str, dict[str, Any]]:
    common = ("--train.gradient_clipping", "0", "--optim.warmup_steps", "0")
    return {
        f"{kind}-{placement}-{rows}": {
            "threshold": 0,
            "overrides": overrides(
                (kind, *common), "--train.placement", placement, "--train.micro_batch_rows", str(rows)
            ),
        }
        for kind in ("none", "lora")
        for placement in ("zero3", "replicated")
        for rows in SPLITS[world_size]
    }


def test_gradients_do_not_depend_on_the_split_of_a_batch(tiny_recipe: Path, tmp_path: Path) -> None:
    wanted: dict[str, dict[str, Tensor]] = {}
    for kind in ("none", "lora"):
        run = Plain(
            str(tiny_recipe), overrides((kind, "--train.gradient_clipping", "0", "--train.micro_batch_rows", "8"))
        )
        run.step(0)
        wanted[kind] = {name: value for name, value in run.state() if name.endswith("/exp_avg")}
    for world_size in SPLITS:
        folder = tmp_path / str(world_size)
        folder.mkdir()
        cases = split_cases(world_size)
        found = run_ranks(
            "tests.distributed.scenarios:states", world_size, recipe=str(tiny_recipe), cases=cases, steps=1,
            folder=str(folder), timeout=480,
        )[0]  # fmt: skip
        for name in cases:
            state = whole_state(folder / name, found[name]["shapes"], world_size)
            for key, moment in wanted[name.partition("-")[0]].items():
                place, tolerance = f"{world_size} ranks, {name}, {key}", 2e-6 * float(moment.abs().max()) + 1e-12
                torch.testing.assert_close(
                    state[key], moment, rtol=1e-5, atol=tolerance, msg=lambda text, place=place: f"{place}: {text}"
                )

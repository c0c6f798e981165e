import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import monteclora
from monteclora.config import (
    LoRAConfig,
    MonteCLoRAConfig,
    adapted,
    count_adapter_parameters,
    is_inside,
    is_target,
    model_problems,
)

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize(
    ("config", "field", "words"),
    [
        (LoRAConfig(rank=0), "rank", "is 0; a low-rank update needs a rank of 1 or more"),
        (MonteCLoRAConfig(rank=-1), "rank", "is -1"),
        (LoRAConfig(rank_pattern={"q_proj": 4, "k_proj": 0}), "rank_pattern.k_proj", "is 0; a low-rank update needs"),
        (LoRAConfig(alpha=0.0), "alpha", "is 0.0; give a positive number"),
        (LoRAConfig(alpha=float("nan")), "alpha", "is nan"),
        (LoRAConfig(alpha=float("inf")), "alpha", "is inf"),
        (LoRAConfig(alpha_pattern={"q_proj": -2.0}), "alpha_pattern.q_proj", "is -2.0; give a positive number"),
        (LoRAConfig(rslora=True), "rslora", "needs alpha"),
        (LoRAConfig(dropout=1.0), "dropout", "is 1.0; give a probability in [0, 1)"),
        (LoRAConfig(dropout=-0.1), "dropout", "is -0.1"),
        (LoRAConfig(dropout=float("nan")), "dropout", "is nan"),
        (LoRAConfig(loraplus_ratio=0.0), "loraplus_ratio", "is 0.0; give a positive number"),
        (LoRAConfig(targets=()), "targets", "is empty; name at least one linear layer"),
        (LoRAConfig(targets=("q_proj", "")), "targets", "holds an empty pattern"),
        (LoRAConfig(modules_to_save=("",)), "modules_to_save", "holds an empty pattern"),
        (LoRAConfig(rank_pattern={"": 4}), "rank_pattern", "holds an empty pattern"),
        (LoRAConfig(alpha_pattern={"": 4}), "alpha_pattern", "holds an empty pattern"),
        (MonteCLoRAConfig(num_samples=0), "num_samples", "is 0; a mixture needs 1 or more Gaussians"),
        (MonteCLoRAConfig(noise_scale=-1e-5), "noise_scale", "is -1e-05; give 0 (off) or a positive number"),
        (MonteCLoRAConfig(kl_weight=float("inf")), "kl_weight", "is inf"),
        (MonteCLoRAConfig(coop_weight=-1.0), "coop_weight", "is -1.0"),
        (MonteCLoRAConfig(dirichlet_prior=0.0), "dirichlet_prior", "is 0.0; a concentration is positive"),
        (MonteCLoRAConfig(dirichlet_prior=-1.0), "dirichlet_prior", "is -1.0"),
        (MonteCLoRAConfig(estimator="exact"), "estimator", "choose `collapsed` or `sampled`"),  # type: ignore[arg-type]
        (MonteCLoRAConfig(start_step=-1), "start_step", "is -1; give 0 (noise from the start)"),
        (MonteCLoRAConfig(coop_lr_ratio=0.0), "coop_lr_ratio", "is 0.0; give a positive number"),
    ],
)
def test_every_value_out_of_range_is_one_problem(config: LoRAConfig, field: str, words: str) -> None:
    [(name, message)] = config.problems()
    assert name == field
    assert words in message


@pytest.mark.parametrize(
    ("settings", "field", "message"),
    [
        ({"rank": 4.0}, "rank", "is 4.0; give a whole number"),
        ({"rank": True}, "rank", "is True; give a whole number"),
        ({"rank": "8"}, "rank", "is '8'; give a whole number"),
        ({"rank": None}, "rank", "is None; give a whole number"),
        ({"alpha": "16"}, "alpha", "is '16'; give a number or None"),
        ({"dropout": None}, "dropout", "is None; give a number"),
        ({"rslora": 1}, "rslora", "is 1; give True or False"),
        ({"targets": "q_proj"}, "targets", "is 'q_proj'; give a list, each entry a text"),
        ({"targets": (1,)}, "targets", "is (1,); give a list, each entry a text"),
        ({"targets": None}, "targets", "is None; give a list, each entry a text"),
        ({"modules_to_save": {"a": 1}}, "modules_to_save", "is {'a': 1}; give a list, each entry a text"),
        (
            {"rank_pattern": {"q_proj": 4.0}},
            "rank_pattern",
            "is {'q_proj': 4.0}; give a table of patterns, each with a whole number",
        ),
        ({"rank_pattern": {1: 4}}, "rank_pattern", "is {1: 4}; give a table of patterns, each with a whole number"),
        (
            {"rank_pattern": [("q", 4)]},
            "rank_pattern",
            "is [('q', 4)]; give a table of patterns, each with a whole number",
        ),
        (
            {"alpha_pattern": {"q": None}},
            "alpha_pattern",
            "is {'q': None}; give a table of patterns, each with a number",
        ),
        ({"num_samples": 4.5}, "num_samples", "is 4.5; give a whole number"),
        ({"noise_scale": "1e-5"}, "noise_scale", "is '1e-5'; give a number"),
        ({"estimator": None}, "estimator", "is None; give `collapsed` or `sampled`"),
        ({"start_step": 1e3}, "start_step", "is 1000.0; give a whole number"),
        ({"posthoc": "yes"}, "posthoc", "is 'yes'; give True or False"),
    ],
)
def test_a_value_of_a_wrong_type_is_one_problem(settings: dict[str, Any], field: str, message: str) -> None:
    """And the only one: values out of range are looked for among those that have their types."""
    assert list(MonteCLoRAConfig(**settings, loraplus_ratio=-1.0).problems()) == [(field, message)]
    if field in LoRAConfig.__dataclass_fields__:
        assert list(LoRAConfig(**settings).problems()) == [(field, message)]


def test_lists_of_patterns_are_taken_as_tuples() -> None:
    """As JSON and TOML have them."""
    config = LoRAConfig(targets=["q_proj"], modules_to_save=["lm_head"])  # type: ignore[arg-type]
    assert config == LoRAConfig(targets=("q_proj",), modules_to_save=("lm_head",))
    assert list(config.problems()) == []


def test_all_problems_are_found_at_once() -> None:
    config = MonteCLoRAConfig(rank=0, dropout=2.0, num_samples=0, start_step=-3)
    assert [name for name, _ in config.problems()] == ["rank", "dropout", "num_samples", "start_step"]


def test_defaults_have_no_problem_and_are_those_of_the_study() -> None:
    assert [*LoRAConfig().problems(), *MonteCLoRAConfig().problems()] == []
    assert [*LoRAConfig(rslora=True, alpha=16).problems()] == []
    seven = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    assert LoRAConfig().targets == seven
    assert LoRAConfig(rank=64).alpha_of("q_proj") == 128


@given(rank=st.integers(1, 512), alpha=st.floats(0.1, 1000))
def test_scaling_of_the_update(rank: int, alpha: float) -> None:
    assert LoRAConfig(rank=rank).scaling_of("q_proj") == 2
    assert LoRAConfig(rank=rank, alpha=alpha).scaling_of("q_proj") == alpha / rank
    assert LoRAConfig(rank=rank, alpha=alpha, rslora=True).scaling_of("q_proj") == alpha / math.sqrt(rank)


def test_patterns_give_layers_ranks_and_alphas_of_their_own() -> None:
    config = LoRAConfig(
        rank=8,
        alpha=32,
        rank_pattern={"layers.0.*": 2, "q_proj": 4},
        alpha_pattern={"q_proj": 6, "*_proj": 10},
    )
    names = ("layers.0.q_proj", "layers.1.q_proj", "layers.1.v_proj", "lm_head")
    assert [config.rank_of(name) for name in names] == [2, 4, 8, 8]
    assert [config.alpha_of(name) for name in names] == [6, 6, 10, 32]
    assert [config.scaling_of(name) for name in names] == [3, 1.5, 1.25, 4]
    # Without an alpha, 2 x rank means each layer's own.
    assert LoRAConfig(rank=8, rank_pattern={"q_proj": 4}).alpha_of("layers.1.q_proj") == 8


@pytest.mark.parametrize(
    ("name", "pattern", "expected"),
    [
        ("model.layers.3.self_attn.q_proj", "q_proj", True),
        ("model.layers.3.self_attn.q_proj", "?_proj", True),
        ("model.layers.3.self_attn.q_proj", "proj", False),
        ("model.layers.3.self_attn.q_proj", "model.layers.[0-3].*", True),
        ("model.layers.4.self_attn.q_proj", "model.layers.[0-3].*", False),
        ("model.layers.3.self_attn.q_proj", "self_attn.q_proj", False),
        ("model.layers.3.self_attn.q_proj", "Q_PROJ", False),
        ("lm_head", "*", True),
    ],
)
def test_a_pattern_with_a_dot_is_compared_with_the_full_name(name: str, pattern: str, expected: bool) -> None:
    assert is_target(name, ("never", pattern)) is expected


@pytest.mark.parametrize(
    ("name", "pattern", "expected"),
    [
        ("classifier.dense", "classifier", True),
        ("classifier", "classifier", True),
        ("roberta.encoder.layer.0.output.dense", "classifier", False),
        ("model.layers.1.mlp.up_proj", "model.layers.1", True),
        ("model.layers.11.mlp.up_proj", "model.layers.1", False),
        ("lm_head", "head", False),
    ],
)
def test_a_module_is_inside_those_around_it(name: str, pattern: str, expected: bool) -> None:
    assert is_inside(name, ("never", pattern)) is expected


LAYERS = {
    "model.layers.0.q_proj": (16, 16),
    "model.layers.0.k_proj": (16, 8),
    "model.layers.1.q_proj": (16, 16),
    "model.layers.1.k_proj": (16, 8),
    "lm_head": (16, 40),
}
MODULES = ["model", "model.embed_tokens", "model.layers", "model.layers.0", "model.layers.1", *LAYERS]
CALLED = "the model's linear layers are called k_proj, lm_head, q_proj"


def problems(layers: dict[str, tuple[int, int]] = LAYERS, **settings: Any) -> list[tuple[str, str]]:
    config = LoRAConfig(**{"rank": 2, "targets": ("q_proj", "k_proj"), **settings})
    assert list(config.problems()) == []
    return list(model_problems(config, layers, MODULES))


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"targets": ("*",)},
        {"targets": ("model.layers.[01].q_proj",), "rank": 15},
        {"rank": 15, "rank_pattern": {"k_proj": 7}, "alpha_pattern": {"model.layers.1.*": 3}},
        {"targets": ("q_proj", "lm_head"), "modules_to_save": ("embed_tokens", "model.layers.1")},
    ],
)
def test_what_fits_the_model_is_no_problem(settings: dict[str, Any]) -> None:
    assert problems(**settings) == []


def test_adapted_layers_are_the_targets_outside_of_what_trains_in_full() -> None:
    config = LoRAConfig(targets=("k_proj", "lm_head"), modules_to_save=("model.layers.1",))
    assert adapted(LAYERS, config) == ["model.layers.0.k_proj", "lm_head"]


def test_every_target_that_matches_nothing_is_told_with_what_there_is() -> None:
    assert problems(targets=("query", "q_proj", "value")) == [
        ("targets", f"'query' matches no linear layer; {CALLED}"),
        ("targets", f"'value' matches no linear layer; {CALLED}"),
    ]
    # The common mistake: a pattern that would match part of a name.
    assert problems(targets=("layers.0.q_proj",)) == [
        (
            "targets",
            f"'layers.0.q_proj' matches no linear layer; {CALLED}; a pattern with a dot is compared with the full name, "
            "of which one is model.layers.0.q_proj",
        )
    ]
    assert problems({}, targets=("a.b",)) == [
        ("targets", "'a.b' matches no linear layer; the model has no linear layer")
    ]


@pytest.mark.parametrize("setting", ["rank_pattern", "alpha_pattern"])
def test_a_pattern_for_layers_that_are_not_adapted_is_told(setting: str) -> None:
    """One that matches no layer, one that no target does, and one inside of what trains in full."""
    patterns: dict[str, Any] = {"query": 2, "lm_head": 2, "model.layers.1.*": 2, "k_proj": 2}
    assert problems(modules_to_save=("model.layers.1",), **{setting: patterns}) == [
        (setting, f"'{pattern}' matches no layer that targets adapt; one of those is model.layers.0.q_proj")
        for pattern in ("query", "lm_head", "model.layers.1.*")
    ]


def test_a_module_that_is_not_there_is_told() -> None:
    assert problems(modules_to_save=("score", "embed_tokens")) == [
        ("modules_to_save", "'score' matches no module; the model consists of model, lm_head")
    ]


def test_targets_inside_modules_to_save_alone_are_told() -> None:
    assert problems(targets=("q_proj",), modules_to_save=("layers",)) == [
        ("targets", "match only layers inside modules_to_save, which train in full; take them out of one")
    ]


@pytest.mark.parametrize("rank", [8, 9])
def test_a_rank_must_be_below_the_smaller_side_and_is_told_once(rank: int) -> None:
    advice = "for this layer alone with rank_pattern, or leave it out of targets"
    assert problems(rank=rank) == [
        ("rank", f"is {rank}, no low rank for model.layers.0.k_proj, which is 16 x 8; give less than 8, {advice}")
    ]
    found = problems(rank=rank, rank_pattern={"model.layers.1.*": 16})
    assert [name for name, _ in found] == ["rank", "rank_pattern.model.layers.1.*"]
    assert found[1][1] == (
        f"is 16, no low rank for model.layers.1.q_proj, which is 16 x 16; give less than 16, {advice}"
    )
    assert problems(rank=rank, targets=("q_proj", "lm_head")) == []


def test_parameter_count() -> None:
    # Llama-2-7B, 32 blocks, all seven linears at rank 32: 79.95 M.
    sides = [(4096, 4096)] * 4 + [(4096, 11008)] * 2 + [(11008, 4096)]
    layers = {f"layers.{i}.{j}": side for i in range(32) for j, side in enumerate(sides)}
    assert count_adapter_parameters(layers, LoRAConfig(rank=32)) == 79_953_920
    extra = 32 * 7 * (32 + 4)
    assert count_adapter_parameters(layers, MonteCLoRAConfig(rank=32)) == 79_953_920 + extra
    pattern = LoRAConfig(rank=32, rank_pattern={"layers.0.*": 16})
    assert count_adapter_parameters(layers, pattern) == 79_953_920 * 63 // 64


def test_configuration_is_read_without_torch() -> None:
    program = (
        "import sys; from monteclora import MonteCLoRAConfig; import monteclora.config; print('torch' in sys.modules)"
    )
    out = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert out.strip() == "False"


def test_the_package_says_that_it_is_typed() -> None:
    """Or type checkers of its users would take all of it for Any."""
    assert (Path(monteclora.__file__).parent / "py.typed").is_file()


def test_public_names_exist() -> None:
    assert dir(monteclora) == sorted(monteclora.__all__)
    assert all(getattr(monteclora, name).__name__ == name for name in monteclora.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        monteclora.nothing  # noqa: B018

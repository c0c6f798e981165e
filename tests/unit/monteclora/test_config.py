import subprocess
import sys
from pathlib import Path

import pytest

import monteclora
from monteclora.config import LoRAConfig, MonteCLoRAConfig, count_adapter_parameters, is_target

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize(
    ("config", "field", "words"),
    [
        (LoRAConfig(rank=0), "rank", "is 0;"),
        (LoRAConfig(alpha=0.0), "alpha", "positive"),
        (LoRAConfig(alpha=float("nan")), "alpha", "is nan"),
        (LoRAConfig(dropout=1.0), "dropout", "[0, 1)"),
        (LoRAConfig(dropout=-0.1), "dropout", "is -0.1"),
        (LoRAConfig(targets=()), "targets", "is empty"),
        (LoRAConfig(targets=("q_proj", "")), "targets", "empty pattern"),
        (MonteCLoRAConfig(rank=-1), "rank", "is -1"),
        (MonteCLoRAConfig(num_samples=0), "num_samples", "1 or more"),
        (MonteCLoRAConfig(noise_scale=-1e-5), "noise_scale", "0 (off)"),
        (MonteCLoRAConfig(kl_weight=float("inf")), "kl_weight", "is inf"),
        (MonteCLoRAConfig(coop_weight=-1.0), "coop_weight", "is -1.0"),
        (MonteCLoRAConfig(dirichlet_prior=0.0), "dirichlet_prior", "positive"),
        (MonteCLoRAConfig(estimator="exact"), "estimator", "`collapsed` or `sampled`"),  # type: ignore[arg-type]
    ],
)
def test_every_value_out_of_range_is_one_problem(config: LoRAConfig, field: str, words: str) -> None:
    [(name, message)] = config.problems()
    assert name == field
    assert words in message


def test_defaults_have_no_problem() -> None:
    assert [*LoRAConfig().problems(), *MonteCLoRAConfig().problems()] == []
    assert LoRAConfig(rank=8, alpha=32).scaling == 4


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


def test_parameter_count() -> None:
    # Llama-2-7B, 32 blocks, all seven linears at rank 32: 79.95 M.
    block = [(4096, 4096)] * 4 + [(4096, 11008)] * 2 + [(11008, 4096)]
    assert count_adapter_parameters(block * 32, LoRAConfig(rank=32)) == 79_953_920
    extra = 32 * 7 * (32 + 4)
    assert count_adapter_parameters(block * 32, MonteCLoRAConfig(rank=32)) == 79_953_920 + extra


def test_configuration_is_read_without_torch() -> None:
    program = (
        "import sys; from monteclora import MonteCLoRAConfig; import monteclora.config; print('torch' in sys.modules)"
    )
    out = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert out.strip() == "False"


def test_public_names_exist() -> None:
    assert all(getattr(monteclora, name).__name__ == name for name in monteclora.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        monteclora.nothing  # noqa: B018

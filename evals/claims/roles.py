"""Which method of the comparison a run is, by its configuration alone.

Full finetuning is a run without adapter and without HiddenKey at the smallest weight decay among such runs of its set; at a
larger one it is the method with weight decay, and with dropout on attention weights the one with attention dropout.
Runs of one method and rank that differ in further settings are several arms, whose labels say in what.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

FULL, DECAY, DROPOUT, FULL_HIDDEN_KEY = "full", "full_weight_decay", "full_attention_dropout", "full_hidden_key"
LORA, HIDDEN_KEY = "lora", "lora_hidden_key"
MONTECLORA, MONTECLORA_HIDDEN_KEY = "monteclora", "monteclora_hidden_key"
NAMES: Mapping[str, str] = {
    FULL: "full finetuning",
    DECAY: "full + weight decay",
    DROPOUT: "full + attention dropout",
    FULL_HIDDEN_KEY: "full + HiddenKey",
    LORA: "LoRA",
    HIDDEN_KEY: "LoRA + HiddenKey",
    MONTECLORA: "MonteCLoRA",
    MONTECLORA_HIDDEN_KEY: "MonteCLoRA + HiddenKey",
}
"""Role -> what people call it, in the order in which they are shown."""
DISTINGUISHING_SECTIONS = ("optim", "adapter", "hidden_key", "model")
DISTINGUISHING = ("train.global_batch_rows", "train.gradient_clipping", "train.precision", "data.seq_len")
"""Sections and further settings in which two arms of one role and rank may differ."""
SHARED = {
    "optim.lr", "model.base", "model.revision", "model.architecture", "model.allow_pickled_weights", "model.allow_remote_code",
    "model.activation_checkpointing", "model.compile", "model.kernels", "adapter.init_from",
}  # fmt: skip
"""Settings of those sections that tell no arms apart: the learning rate, which an arm is made of, the base, which is the same
for all, paths, and what changes how a step is computed but not its result."""
OF_MONTECLORA = (
    "num_samples", "noise_scale", "kl_weight", "coop_weight", "dirichlet_prior", "estimator", "analytic_kl", "start_step",
    "posthoc", "coop_lr_ratio",
)  # fmt: skip
"""Settings of the section adapter that plain LoRA has no use for."""

Config = Mapping[str, Any]


@dataclass(frozen=True, order=True)
class Arm:
    """Runs that differ in learning rate and seed alone.

    Attributes:
        role: a key of NAMES.
        rank: of the adapter; 0 without one.
        variant: settings and their values that tell it from other arms of the same role and rank.
    """

    role: str
    rank: int = 0
    variant: tuple[tuple[str, str], ...] = ()

    @property
    def label(self) -> str:
        """Its name for people, such as LoRA r16."""
        name = NAMES[self.role] + (f" r{self.rank}" if self.rank else "")
        settings = ", ".join(f"{path.partition('.')[2].replace('_', ' ')} {value}" for path, value in self.variant)
        return f"{name} ({settings})" if settings else name


def arms_of(configs: Mapping[str, Config]) -> dict[str, Arm]:
    """Run id -> the arm it is of; runs whose adapter is unknown here are left out.

    Args:
        configs: run id -> its configuration as in run.json, of runs on the same data from the same base.
    """
    roles = {run: role for run, config in configs.items() if (role := _role(config)) is not None}
    least = min((_decay(configs[run]) for run, role in roles.items() if role == FULL), default=0.0)
    roles = {run: DECAY if role == FULL and _decay(configs[run]) > least else role for run, role in roles.items()}
    ranks = {run: _rank(configs[run]) for run in roles}
    groups: dict[tuple[str, int], list[str]] = {}
    for run, role in roles.items():
        groups.setdefault((role, ranks[run]), []).append(run)
    found = {}
    for (role, rank), runs in groups.items():
        settings = {run: _settings(configs[run]) for run in runs}
        values: dict[str, set[str]] = {}
        for path, value in (item for each in settings.values() for item in each.items()):
            values.setdefault(path, set()).add(value)
        # A setting that only later commits record has one value, and that it is absent tells nothing.
        varied = sorted(path for path, several in values.items() if len(several) > 1)
        for run in runs:
            found[run] = Arm(role, rank, tuple((path, settings[run].get(path, "not recorded")) for path in varied))
    return found


def in_order(arms: Sequence[Arm]) -> list[Arm]:
    """Arms as they are shown: by role, rank, and what else they differ in."""
    return sorted(set(arms), key=lambda arm: (list(NAMES).index(arm.role), arm.rank, arm.variant))


def setting(config: Config, path: str) -> Any:
    """A setting by its dotted name; None where it is not recorded."""
    value: Any = config
    for key in path.split("."):
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def _role(config: Config) -> str | None:
    has_hidden_key = setting(config, "hidden_key.enabled") is True
    match setting(config, "adapter.kind"):
        case "none":
            if has_hidden_key:
                return FULL_HIDDEN_KEY
            return DROPOUT if setting(config, "model.attention_dropout") else FULL
        case "lora":
            return HIDDEN_KEY if has_hidden_key else LORA
        case "monteclora":
            return MONTECLORA_HIDDEN_KEY if has_hidden_key else MONTECLORA
    return None


def _settings(config: Config) -> dict[str, str]:
    """Dotted name -> value of all that may tell a run from others of its role and rank; what is switched off does not."""
    is_on = {
        "adapter": setting(config, "adapter.kind") != "none",
        "hidden_key": setting(config, "hidden_key.enabled") is True,
    }
    sections = {name: setting(config, name) for name in DISTINGUISHING_SECTIONS if is_on.get(name, True)}
    known = {name: section for name, section in sections.items() if isinstance(section, Mapping)}
    found = {f"{name}.{key}": value for name, section in known.items() for key, value in section.items()}
    found |= {path: value for path in DISTINGUISHING if (value := setting(config, path)) is not None}
    unused = [f"adapter.{key}" for key in OF_MONTECLORA] if setting(config, "adapter.kind") != "monteclora" else []
    return {path: _text(value) for path, value in found.items() if path not in SHARED and path not in unused}


def _decay(config: Config) -> float:
    value = setting(config, "optim.weight_decay")
    return float(value) if isinstance(value, int | float) else 0.0


def _rank(config: Config) -> int:
    rank = setting(config, "adapter.rank")
    return rank if setting(config, "adapter.kind") != "none" and isinstance(rank, int) else 0


def _text(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(map(_text, value))
    return f"{value:g}" if isinstance(value, float) else str(value)

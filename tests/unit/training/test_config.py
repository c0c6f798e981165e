from __future__ import annotations

import ast
import dataclasses
import importlib.util
import inspect
import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args, get_origin, get_type_hints

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline.config import DataConfig, SourceConfig
from evals.config import EvalConfig, TaskConfig
from monteclora.config import LoRAConfig, MonteCLoRAConfig
from monteclora.hidden_key.config import HiddenKeyConfig
from tests.unit.training.minimal import minimal_config, write_adapter, write_base
from training.config import (
    AdapterConfig,
    ArchitectureConfig,
    CheckpointConfig,
    Config,
    HiddenKeySection,
    ModelConfig,
    MonitorConfig,
    OptimConfig,
    RunConfig,
    TrainConfig,
    base_shape,
    is_installed,
    to_dict,
)
from training.length import GRAMMAR

AT_LEAST_1 = "must be at least 1"
NOT_NEGATIVE = "must not be negative"
SMALL_LLAMA = {
    "model_type": "llama", "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 40,
}  # fmt: skip
TRAPEZOID = {"schedule": "trapezoid", "cooldown_steps": 1}

WRONG: list[tuple[type, dict[str, Any], str, str]] = [
    (RunConfig, {"seed": -1}, "seed", "must be between 0 and 4294967295"),
    (RunConfig, {"seed": 2**32}, "seed", "must be between 0 and 4294967295"),
    (ArchitectureConfig, {"hidden_size": 0}, "hidden_size", AT_LEAST_1),
    (ArchitectureConfig, {"intermediate_size": 0}, "intermediate_size", AT_LEAST_1),
    (ArchitectureConfig, {"num_layers": 0}, "num_layers", AT_LEAST_1),
    (ArchitectureConfig, {"num_heads": 0}, "num_heads", AT_LEAST_1),
    (ArchitectureConfig, {"num_kv_heads": 0}, "num_kv_heads", AT_LEAST_1),
    (ArchitectureConfig, {"vocab_size": -5}, "vocab_size", AT_LEAST_1),
    (ArchitectureConfig, {"max_positions": 0}, "max_positions", AT_LEAST_1),
    (
        ArchitectureConfig, {"num_heads": 5, "num_kv_heads": 5}, "num_heads",
        "must divide hidden_size (192) into heads of an even width",
    ),
    (
        ArchitectureConfig, {"num_heads": 64, "num_kv_heads": 64}, "num_heads",
        "must divide hidden_size (192) into heads of an even width",
    ),
    (ArchitectureConfig, {"num_kv_heads": 4}, "num_kv_heads", "must divide num_heads (6)"),
    (ArchitectureConfig, {"num_kv_heads": 12}, "num_kv_heads", "must divide num_heads (6)"),
    (ModelConfig, {"attention_dropout": 1.0}, "attention_dropout", "must be at least 0 and below 1 (0 switches it off)"),
    (ModelConfig, {"attention_dropout": -0.1}, "attention_dropout", "must be at least 0 and below 1 (0 switches it off)"),
    (TrainConfig, {"steps": 0}, "steps", AT_LEAST_1),
    (TrainConfig, {"global_batch_rows": 0}, "global_batch_rows", AT_LEAST_1),
    (TrainConfig, {"micro_batch_rows": 0}, "micro_batch_rows", AT_LEAST_1),
    (TrainConfig, {"log_every_steps": 0}, "log_every_steps", AT_LEAST_1),
    (TrainConfig, {"max_skipped_steps": 0}, "max_skipped_steps", AT_LEAST_1),
    (TrainConfig, {"gradient_clipping": -0.1}, "gradient_clipping", "must not be negative (0 switches clipping off)"),
    (TrainConfig, {"sequence_parallel": 0}, "sequence_parallel", AT_LEAST_1),
    (TrainConfig, {"tokens": 0}, "tokens", AT_LEAST_1),
    (TrainConfig, {"epochs": 0.0}, "epochs", "must be greater than 0"),
    (
        TrainConfig, {"tokens": 1, "epochs": 1.0}, "epochs",
        "says how long the run is, and so does tokens; set one of them",
    ),
    (TrainConfig, {"spike_guard": -1.0}, "spike_guard", "must not be negative (0 switches the guard off)"),
    (TrainConfig, {"spike_window": 1}, "spike_window", "must be at least 2: one loss has no deviation"),
    (OptimConfig, {"lr": 0.0}, "lr", "must be greater than 0"),
    (OptimConfig, {"beta1": 1.0}, "beta1", "must be in [0, 1)"),
    (OptimConfig, {"beta2": -0.1}, "beta2", "must be in [0, 1)"),
    (OptimConfig, {"eps": 0.0}, "eps", "must be greater than 0"),
    *(
        (
            OptimConfig, {"lr_ratio": {"*.norm.*": 2.0, "*": ratio}}, "lr_ratio.*",
            f"is {ratio}; give a positive number, 1 = the learning rate of the others",
        )
        for ratio in (0.0, -1.0, math.inf, math.nan)
    ),
    (OptimConfig, {"weight_decay": -1.0}, "weight_decay", NOT_NEGATIVE),
    (OptimConfig, {"warmup_steps": -1}, "warmup_steps", NOT_NEGATIVE),
    (OptimConfig, {"cooldown_steps": -1}, "cooldown_steps", NOT_NEGATIVE),
    (OptimConfig, {"final_lr_fraction": 1.1}, "final_lr_fraction", "must be in [0, 1]"),
    (OptimConfig, {"final_lr_fraction": -0.1}, "final_lr_fraction", "must be in [0, 1]"),
    (OptimConfig, {"schedule": "trapezoid"}, "cooldown_steps", "must be at least 1 with the trapezoid schedule"),
    (
        OptimConfig, {"schedule": "cosine", "cooldown_steps": 5}, "cooldown_steps",
        "is used by the schedules trapezoid and inverse_sqrt only, not by 'cosine'; remove it",
    ),
    (
        OptimConfig, {"schedule": "linear", "cooldown": "5 %"}, "cooldown",
        "is used by the schedules trapezoid and inverse_sqrt only, not by 'linear'; remove it",
    ),
    (OptimConfig, {"inverse_sqrt_steps": 0}, "inverse_sqrt_steps", AT_LEAST_1),
    (
        OptimConfig, {"warmup": "5 %", "warmup_steps": 3}, "warmup", "says the same as warmup_steps; set one of them",
    ),
    (
        OptimConfig, {**TRAPEZOID, "cooldown": "5 %"}, "cooldown", "says the same as cooldown_steps; set one of them",
    ),
    (OptimConfig, {"warmup": "5"}, "warmup", f"is no length; {GRAMMAR}"),
    (OptimConfig, {"schedule": "trapezoid", "cooldown": "5 hours"}, "cooldown", f"is no length; {GRAMMAR}"),
    (MonitorConfig, {"profile_first_step": -1}, "profile_first_step", NOT_NEGATIVE),
    (MonitorConfig, {"profile_steps": 0}, "profile_steps", AT_LEAST_1),
    (MonitorConfig, {"wandb_project": " "}, "wandb_project", "must name a project, or be left out"),
    (CheckpointConfig, {"every_steps": 0}, "every_steps", AT_LEAST_1),
    (CheckpointConfig, {"keep": 0}, "keep", AT_LEAST_1),
    (
        CheckpointConfig, {"export": False, "export_merged": True}, "export_merged",
        "is true, but export is false, so nothing is exported; set one of them otherwise",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "values", "field", "message"), WRONG, ids=lambda value: str(value)[:40])
def test_a_value_out_of_range_is_one_problem_with_its_field_and_rule(
    kind: type, values: dict[str, Any], field: str, message: str
) -> None:
    assert list(kind(**values).problems()) == [(field, message)]


@pytest.mark.parametrize(
    "config",
    [
        RunConfig(seed=0), RunConfig(seed=2**32 - 1),
        ArchitectureConfig(), ArchitectureConfig(num_kv_heads=1), ArchitectureConfig(hidden_size=2, num_heads=1, num_kv_heads=1),
        TrainConfig(), TrainConfig(steps=1, global_batch_rows=1, micro_batch_rows=1, gradient_clipping=0.0),
        OptimConfig(), OptimConfig(beta1=0.0, beta2=0.0, final_lr_fraction=1.0), OptimConfig(**TRAPEZOID),
        OptimConfig(schedule="trapezoid", cooldown="0.1 %"), OptimConfig(schedule="inverse_sqrt", inverse_sqrt_steps=1),
        OptimConfig(schedule="inverse_sqrt", cooldown_steps=3), OptimConfig(warmup="1 epoch"),
        TrainConfig(tokens=1, spike_guard=0.0, spike_window=2, sequence_parallel=1), TrainConfig(epochs=0.01),
        CheckpointConfig(), CheckpointConfig(every_steps=1, keep=1), ModelConfig(), AdapterConfig(), HiddenKeySection(),
        HiddenKeySection(enabled=True),
    ],
    ids=str,
)  # fmt: skip
def test_defaults_and_values_at_the_edge_are_no_problem(config: Any) -> None:
    assert list(config.problems()) == []


def test_several_problems_of_a_section_are_all_found() -> None:
    found = list(OptimConfig(lr=-1.0, beta1=2.0, beta2=2.0, eps=-1.0, warmup_steps=-1).problems())
    assert [name for name, _ in found] == ["lr", "beta1", "beta2", "eps", "warmup_steps"]


class TestBaseModel:
    def test_the_architecture_is_checked_only_while_there_is_no_base(self, tmp_path: Path) -> None:
        wrong = ArchitectureConfig(num_layers=0)
        assert list(ModelConfig(architecture=wrong).problems()) == [("architecture.num_layers", AT_LEAST_1)]
        assert list(ModelConfig(base=str(write_base(tmp_path / "m")), architecture=wrong).problems()) == []

    def test_a_hub_name_is_taken_as_it_is(self) -> None:
        assert list(ModelConfig(base="somebody/a-model").problems()) == []
        assert list(ModelConfig(base="somebody/a-model", revision="v2").problems()) == []

    def test_only_a_hub_name_has_revisions(self, tmp_path: Path) -> None:
        base = write_base(tmp_path / "m", **SMALL_LLAMA)
        for other in (str(base), None):
            assert list(ModelConfig(base=other, revision="v2").problems()) == [
                ("revision", "is of a base with a hub name, and model.base is none; leave it out")
            ]

    def test_a_missing_folder(self, tmp_path: Path) -> None:
        assert list(ModelConfig(base=str(tmp_path / "none")).problems()) == [("base", "no such model folder")]

    def test_the_demos_missing_base_names_the_command_that_trains_it(self, tmp_path: Path) -> None:
        ((_, message),) = ModelConfig(base=str(tmp_path / "base" / "export")).problems()
        assert message.startswith("no such model folder; ")
        assert "python -m launch demo --until base" in message

    def test_a_folder_without_a_configuration(self, tmp_path: Path) -> None:
        ((field, message),) = ModelConfig(base=str(tmp_path)).problems()
        assert (field, message) == ("base", "the folder has no config.json, so it is not a Hugging Face model")

    def test_pickled_weights_and_code_are_refused_unless_they_are_allowed_by_name(self, tmp_path: Path) -> None:
        (tmp_path / "config.json").write_text('{"auto_map": {"AutoModelForCausalLM": "modeling.Model"}}')
        (tmp_path / "pytorch_model.bin").write_bytes(b"")
        base = str(tmp_path)
        pickled, code = ModelConfig(base=base).problems()
        assert pickled == (
            "base",
            "the folder has only pickled weights (*.bin), no *.safetensors; convert them, or set "
            "model.allow_pickled_weights = true if you trust where they come from",
        )
        assert code == (
            "base",
            "brings Python code of its own (auto_map in its config.json), which would run with your rights; set "
            "model.allow_remote_code = true if you have read it",
        )
        assert list(ModelConfig(base=base, allow_pickled_weights=True).problems()) == [code]
        assert list(ModelConfig(base=base, allow_remote_code=True).problems()) == [pickled]
        assert list(ModelConfig(base=base, allow_pickled_weights=True, allow_remote_code=True).problems()) == []

    def test_everything_that_does_not_fit_the_configuration_is_one_problem(self, tmp_path: Path) -> None:
        base = write_base(tmp_path / "m", **SMALL_LLAMA)
        assert list(ModelConfig(base=str(base)).problems()) == []
        wider = json.loads((base / "config.json").read_text()) | {"hidden_size": 32}
        (base / "config.json").write_text(json.dumps(wider))
        ((field, message),) = ModelConfig(base=str(base)).problems()
        first, *lines = message.split("\n    ")
        assert (field, first) == ("base", "the folder's safetensors can't be used:")
        assert lines[0] == "lm_head.weight is 40 x 16, and must be 40 x 32"
        assert lines[-1] == "... and 1 more"
        assert len(lines) == 21

    def test_damage_is_told_of_every_kind_of_model(self, tmp_path: Path) -> None:
        base = write_base(tmp_path / "m", model_type="other")
        (base / "model.safetensors").write_bytes(b"short")
        ((field, message),) = ModelConfig(base=str(base)).problems()
        assert (field, message.count("\n")) == ("base", 1)
        assert message.endswith(
            "\n    model.safetensors is damaged or no safetensors file: its 5 bytes hold no whole header"
        )

    @pytest.mark.parametrize("value", ["off", "full", "auto", "1", "4"])
    def test_layers_to_recompute(self, value: str) -> None:
        assert list(ModelConfig(activation_checkpointing=value).problems()) == []

    @pytest.mark.parametrize("value", ["", "on", "true", "0", "-1", "1.5", "\N{SUPERSCRIPT TWO}"])
    def test_no_number_of_layers_to_recompute(self, value: str) -> None:
        assert list(ModelConfig(activation_checkpointing=value).problems()) == [
            ("activation_checkpointing", 'must be "off", "full", "auto" or a number of layers, at least 1')
        ]

    def test_more_layers_to_recompute_than_there_are(self, tmp_path: Path) -> None:
        found = list(ModelConfig(activation_checkpointing="5").problems())
        assert found == [("activation_checkpointing", "is more than the 4 layers that the model has; use full")]
        base = write_base(tmp_path / "m", **SMALL_LLAMA)
        ((_, message),) = ModelConfig(base=str(base), activation_checkpointing="3").problems()
        assert message == "is more than the 2 layers that the model has; use full"
        assert list(ModelConfig(base="somebody/a-model", activation_checkpointing="99").problems()) == []

    @pytest.mark.parametrize("text", ["", "{", "[1]", '"x"'])
    def test_an_unreadable_shape_is_no_shape(self, tmp_path: Path, text: str) -> None:
        (tmp_path / "config.json").write_text(text)
        assert base_shape(str(tmp_path)) is None

    def test_a_readable_shape(self, tmp_path: Path) -> None:
        assert base_shape(str(write_base(tmp_path / "m", hidden_size=7)))["hidden_size"] == 7  # type: ignore[index]


class TestMonitor:
    def test_weights_and_biases_must_be_installed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
        assert list(MonitorConfig(wandb_project="p").problems()) == [
            ("wandb_project", "needs wandb, which is not installed: pip install wandb, or leave the setting out")
        ]
        assert list(MonitorConfig().problems()) == []
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: SimpleNamespace(origin="wandb/__init__.py"))
        assert list(MonitorConfig(wandb_project="p").problems()) == []

    def test_its_folder_of_other_runs_is_not_the_package(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "a_package_nobody_has").mkdir()
        monkeypatch.syspath_prepend(tmp_path)
        assert not is_installed("a_package_nobody_has")
        (tmp_path / "a_package_nobody_has" / "__init__.py").touch()
        importlib.invalidate_caches()
        assert is_installed("a_package_nobody_has")


class TestAdapter:
    def test_full_finetuning_has_no_adapter(self) -> None:
        assert AdapterConfig(kind="none").build() is None

    @pytest.mark.parametrize(("kind", "expected"), [("lora", LoRAConfig), ("monteclora", MonteCLoRAConfig)])
    def test_the_adapters_own_config_gets_every_field(self, kind: Any, expected: type) -> None:
        values = {
            "rank": 3, "alpha": 5.5, "dropout": 0.25, "targets": ("up_proj",), "num_samples": 7, "noise_scale": 0.5,
            "kl_weight": 0.125, "coop_weight": 2.0, "dirichlet_prior": 0.75, "estimator": "sampled", "analytic_kl": True,
            "rank_pattern": {"up_proj": 2}, "alpha_pattern": {"up_proj": 3.0}, "rslora": True, "loraplus_ratio": 16.0,
            "modules_to_save": ("lm_head",), "start_step": 5, "posthoc": True, "coop_lr_ratio": 5.0,
        }  # fmt: skip
        # Were a field added to an adapter, this test must give it a value of its own.
        assert values.keys() == {f.name for f in dataclasses.fields(MonteCLoRAConfig)}
        defaults = MonteCLoRAConfig()
        assert all(getattr(defaults, name) != value for name, value in values.items())
        built = AdapterConfig(kind=kind, **values).build()  # type: ignore[arg-type]
        assert type(built) is expected
        assert dataclasses.asdict(built) == {f.name: values[f.name] for f in dataclasses.fields(expected)}

    def test_the_adapters_rules_are_checked(self) -> None:
        ((field, _),) = AdapterConfig(kind="lora", rank=0).problems()
        assert field == "rank"
        assert list(AdapterConfig(kind="lora", rank=4.0).problems()) == [  # type: ignore[arg-type]
            ("rank", "is 4.0; give a whole number")
        ]

    @pytest.mark.parametrize("kind", ["lora", "monteclora"])
    def test_an_adapter_to_start_with(self, tmp_path: Path, kind: Any) -> None:
        adapter = AdapterConfig(kind=kind, init_from=tmp_path / "adapter")
        assert list(adapter.problems()) == [("init_from", "no such folder")]
        (tmp_path / "adapter").mkdir()
        missing = "the folder has no adapter_config.json, so it is not a saved adapter"
        assert list(adapter.problems()) == [("init_from", missing)]
        write_adapter(tmp_path / "adapter")
        assert list(adapter.problems()) == []

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            ("", "the folder's adapter_config.json can't be read; save the adapter again"),
            ("[1]", "the folder's adapter_config.json can't be read; save the adapter again"),
            ('{"r": 8}', "is of type None in its adapter_config.json; only LORA can be read"),
            ('{"peft_type": "IA3"}', "is of type IA3 in its adapter_config.json; only LORA can be read"),
            (
                '{"peft_type": "LORA", "use_dora": true, "bias": "all"}',
                "is more than a plain LoRA: its adapter_config.json sets use_dora = True, bias = 'all'; merge it into its "
                "base with PEFT and set model.base to the result",
            ),
        ],
    )
    def test_an_adapter_to_start_with_is_a_plain_lora(self, tmp_path: Path, content: str, message: str) -> None:
        (tmp_path / "adapter_config.json").write_text(content)
        assert list(AdapterConfig(kind="lora", init_from=tmp_path).problems()) == [("init_from", message)]

    def test_full_finetuning_starts_with_no_adapter(self, tmp_path: Path) -> None:
        assert list(AdapterConfig(kind="none", init_from=tmp_path).problems()) == [
            (
                "init_from",
                "is the start of an adapter, and adapter.kind is none; choose lora or monteclora, or remove it",
            )
        ]


class TestHiddenKey:
    def test_it_is_off_unless_enabled(self) -> None:
        assert HiddenKeySection().build() is None
        assert HiddenKeySection(enabled=True).build() == HiddenKeyConfig()

    def test_its_own_config_gets_every_field(self) -> None:
        values: dict[str, Any] = {
            "key_rate": 0.3, "key_method": "dropattention", "key_pattern": "element", "hidden_rate": 0.05,
            "hidden_pattern": "span", "rescale": False, "compensation": "js", "compensation_weight": 0.5,
            "both_branches": True, "layers": "all", "other_dropout": "kept",
        }  # fmt: skip
        # Were a field added, this test must give it a value of its own.
        assert values.keys() == {f.name for f in dataclasses.fields(HiddenKeyConfig)}
        assert all(getattr(HiddenKeyConfig(), name) != value for name, value in values.items())
        assert HiddenKeySection(enabled=True, **values).build() == HiddenKeyConfig(**values)

    def test_its_rules_are_checked(self) -> None:
        ((field, _),) = HiddenKeySection(enabled=True, key_rate=1.0).problems()
        assert field == "key_rate"

    def test_it_must_do_something(self) -> None:
        nothing = HiddenKeySection(enabled=True, key_rate=0.0, hidden_rate=0.0, compensation="none")
        assert list(nothing.problems()) == [
            (
                "enabled",
                "is true, but key_rate and hidden_rate are 0 and there is no compensation; nothing would be done",
            )
        ]
        # The divergence of two passes alone is R-Drop, with the adapter's dropout or noise.
        for values in ({"enabled": False}, {"key_rate": 0.1}, {"hidden_rate": 0.1}, {"compensation": "kl"}):
            assert list(dataclasses.replace(nothing, **values).problems()) == []

    @pytest.mark.parametrize(
        ("values", "passes"),
        [
            ({}, (1, 1)), ({"enabled": True}, (2, 1)), ({"enabled": True, "compensation": "js"}, (2, 1)),
            ({"enabled": True, "both_branches": True}, (2, 2)), ({"both_branches": True}, (1, 1)),
            ({"enabled": True, "compensation": "none"}, (1, 1)), ({"enabled": True, "compensation_weight": 0.0}, (1, 1)),
        ],
    )  # fmt: skip
    def test_passes_over_a_row(self, values: dict[str, Any], passes: tuple[int, int]) -> None:
        assert HiddenKeySection(**values).passes() == passes


class TestWholeConfig:
    def problems(self, config: Config, world_size: int = 1, **sections: Any) -> list[tuple[str, str]]:
        return list(dataclasses.replace(config, **sections).problems(world_size))

    def test_every_section_is_checked_under_its_name(self, tmp_path: Path) -> None:
        config = minimal_config(tmp_path)
        found = self.problems(
            config,
            run=RunConfig(seed=-1),
            model=ModelConfig(base=str(tmp_path / "none")),
            adapter=AdapterConfig(rank=0),
            data=DataConfig(
                sources={"text": SourceConfig(path=str(tmp_path / "train.jsonl"), weight=-1.0)},
                tokenizer=tmp_path / "tokenizer.model",
            ),
            train=TrainConfig(steps=0),
            optim=OptimConfig(lr=0.0),
            checkpoint=CheckpointConfig(keep=0),
            eval=EvalConfig(batch_tokens=0),
        )
        assert {name for name, _ in found} == {
            "run.seed", "model.base", "adapter.rank", "data.sources.text.weight", "train.steps", "optim.lr",
            "checkpoint.keep", "eval.batch_tokens",
        }  # fmt: skip

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"every": "1e4 tokens", "every_steps": 3}, "says the same as eval.every_steps; set one of them"),
            ({"every": "often"}, "is no length; write a number and its unit"),
            ({"every": "0 steps"}, "is nothing; give a length, or leave it out"),
        ],
    )
    def test_evaluations_on_the_way(self, tmp_path: Path, settings: dict[str, Any], message: str) -> None:
        ((name, found),) = self.problems(minimal_config(tmp_path), eval=EvalConfig(**settings))
        assert name == "eval.every"
        assert found.startswith(message)
        assert self.problems(minimal_config(tmp_path), eval=EvalConfig(every="1e4 tokens")) == []

    @pytest.mark.parametrize(
        ("settings", "name", "message"),
        [
            ({"at": ("5 steps",), "at_steps": (5,)}, "at", "says the same as eval.at_steps; set one of them"),
            ({"at": ("5 steps", "soon")}, "at", "'soon' is no length; write a number and its unit"),
            (
                {"at": ("0 tokens",)},
                "at",
                "'0 tokens' is before the first step; eval.at_start scores the model as loaded",
            ),
            ({"at_steps": (0,)}, "at_steps", "[0] has steps before the first; at_start scores the model as loaded"),
            ({"at_steps": (5, 9000)}, "at_steps", "has step 9000, and the run has 20; take it out"),
            ({"at": ("200 %",)}, "at", "has step 40, and the run has 20; take it out"),
        ],
    )
    def test_points_at_which_the_model_is_scored(
        self, tmp_path: Path, settings: dict[str, Any], name: str, message: str
    ) -> None:
        ((field, found),) = self.problems(minimal_config(tmp_path), eval=EvalConfig(**settings))
        assert field == f"eval.{name}"
        assert found.startswith(message)
        assert self.problems(minimal_config(tmp_path), eval=EvalConfig(at=("5 steps", "100 %"))) == []

    def test_the_best_checkpoint_may_be_that_of_a_suites_task(self, tmp_path: Path) -> None:
        config = minimal_config(tmp_path)
        best = CheckpointConfig(keep_best="hellaswag@200.accuracy")
        wanted = EvalConfig(suites=("forgetting@200",), every="5 steps")
        assert self.problems(config, checkpoint=best, eval=wanted) == []
        rounded = CheckpointConfig(keep_best="hellaswag@200.acc_norm")
        assert self.problems(config, checkpoint=rounded, eval=wanted) == [
            ("checkpoint.keep_best", "the metric of that task is accuracy; write hellaswag@200.accuracy")
        ]
        ((name, message),) = self.problems(
            config, checkpoint=best, eval=EvalConfig(suites=("forgetting@",), every="5 steps")
        )
        assert name == "eval.suites"
        assert "'' is not a number of examples" in message

    def test_warmup_and_cooldown_must_fit_into_the_run(self, tmp_path: Path) -> None:
        config = minimal_config(tmp_path)
        optim = OptimConfig(schedule="trapezoid", warmup_steps=15, cooldown_steps=6)
        assert self.problems(config, optim=optim) == [
            ("optim.warmup_steps", "and the cooldown are longer than the run: 15 + 6 > 20 steps")
        ]
        assert self.problems(config, optim=dataclasses.replace(optim, cooldown_steps=5)) == []

    def test_an_adapter_needs_a_base(self, tmp_path: Path) -> None:
        config = minimal_config(tmp_path, "--model.base", "none")
        assert self.problems(config, adapter=AdapterConfig(kind="lora")) == [
            ("model.base", "must be set when adapter.kind is 'lora': adapters need a pretrained base")
        ]

    @pytest.mark.parametrize("kind", ["none", "lora"])
    def test_only_monteclora_has_a_posterior_to_draw_from(self, tmp_path: Path, kind: Any) -> None:
        config = minimal_config(tmp_path)
        evals = dataclasses.replace(config.eval, posterior_samples=3)
        assert self.problems(config, adapter=AdapterConfig(kind=kind), eval=evals) == [
            (
                "eval.posterior_samples",
                "needs adapter.kind monteclora: nothing else has a posterior to draw from; use 0",
            )
        ]
        assert self.problems(config, adapter=AdapterConfig(kind="monteclora"), eval=evals) == []

    @pytest.mark.parametrize("start_step", [20, 21])
    def test_the_cooperative_phase_must_begin(self, tmp_path: Path, start_step: int) -> None:
        config = minimal_config(tmp_path)  # 20 steps
        adapter = AdapterConfig(kind="monteclora", start_step=start_step)
        assert self.problems(config, adapter=adapter) == [
            ("adapter.start_step", "is never reached: the run has 20 steps; give a smaller number")
        ]
        assert self.problems(config, adapter=dataclasses.replace(adapter, start_step=19)) == []
        assert self.problems(config, adapter=dataclasses.replace(adapter, kind="lora")) == []

    def test_post_hoc_needs_an_adapter_that_has_been_trained(self, tmp_path: Path) -> None:
        config = minimal_config(tmp_path)
        adapter = AdapterConfig(kind="monteclora", posthoc=True)
        ((name, message),) = self.problems(config, adapter=adapter)
        assert name == "adapter.posthoc"
        assert "set adapter.start_step (steps of LoRA before them) or adapter.init_from (a saved adapter)" in message
        write_adapter(tmp_path)
        for values in ({"start_step": 3}, {"init_from": tmp_path}, {"kind": "none"}, {"kind": "lora"}):
            assert self.problems(config, adapter=dataclasses.replace(adapter, **values)) == []

    def test_an_adapter_must_fit_the_bases_layers(self, tmp_path: Path) -> None:
        config = minimal_config(tmp_path)
        write_base(tmp_path / "base", **SMALL_LLAMA)
        adapter = AdapterConfig(kind="lora", rank=16, rank_pattern={"query": 2})
        found = self.problems(config, adapter=adapter)
        assert [name for name, _ in found] == ["adapter.rank_pattern", "adapter.rank"]
        assert self.problems(config, adapter=AdapterConfig(kind="lora", rank=7)) == []
        # Its own rules come first, full finetuning has no layers to fit, and of other models nothing is known.
        assert [name for name, _ in self.problems(config, adapter=AdapterConfig(kind="lora", rank=0))] == [
            "adapter.rank"
        ]
        assert self.problems(config, adapter=dataclasses.replace(adapter, kind="none")) == []
        write_base(tmp_path / "base", **{**SMALL_LLAMA, "model_type": "phi3"})
        assert self.problems(config, adapter=adapter) == []
        for values in ({"hidden_size": None}, {"num_attention_heads": 0}, {"vocab_size": "many"}):
            write_base(tmp_path / "base", **SMALL_LLAMA)
            (tmp_path / "base" / "config.json").write_text(json.dumps({**SMALL_LLAMA, "model_type": "llama", **values}))
            said = "the folder's config.json does not say the sizes of a LLaMA: one is missing, or is no number"
            assert ("model.base", said) in self.problems(config, adapter=adapter)

    @pytest.mark.parametrize(
        "value", [{"dropout": 1.0}, {"loraplus_ratio": 0.0}, {"num_samples": 0}], ids=lambda value: next(iter(value))
    )
    def test_a_setting_that_has_nothing_to_do_with_layers_hides_none_of_their_problems(
        self, tmp_path: Path, value: dict[str, Any]
    ) -> None:
        config = minimal_config(tmp_path)
        write_base(tmp_path / "base", **SMALL_LLAMA)
        found = self.problems(config, adapter=AdapterConfig(kind="monteclora", rank=16, targets=("query",), **value))
        assert [name for name, _ in found] == [f"adapter.{next(iter(value))}", "adapter.targets"]
        found = self.problems(config, adapter=AdapterConfig(kind="monteclora", rank=16, **value))
        assert [name for name, _ in found] == [f"adapter.{next(iter(value))}", "adapter.rank"]

    @pytest.mark.parametrize(
        ("name", "value"), [("rank_pattern", {"q_proj": 0}), ("alpha_pattern", {"q_proj": 0.0}), ("targets", ())]
    )
    def test_layers_are_not_compared_with_a_setting_out_of_range(self, tmp_path: Path, name: str, value: Any) -> None:
        config = minimal_config(tmp_path)
        write_base(tmp_path / "base", **SMALL_LLAMA)
        ((found, _),) = self.problems(config, adapter=AdapterConfig(kind="lora", rank=16, **{name: value}))
        assert found.startswith(f"adapter.{name}")

    def test_an_adapter_to_start_with_has_the_same_rank(self, tmp_path: Path) -> None:
        config = minimal_config(tmp_path)
        adapter = AdapterConfig(kind="lora", rank=4, init_from=write_adapter(tmp_path / "adapter", r=8))
        assert self.problems(config, adapter=adapter) == [
            ("adapter.rank", "is 4, but the adapter in adapter.init_from has rank 8; give the same")
        ]
        assert self.problems(config, adapter=dataclasses.replace(adapter, rank=8)) == []
        # Which layers a pattern is for is known only from the model.
        assert self.problems(config, adapter=dataclasses.replace(adapter, rank_pattern={"*": 8})) == []
        write_adapter(tmp_path / "adapter", r=8, rank_pattern={"q_proj": 4})
        assert self.problems(config, adapter=adapter) == []

    @pytest.mark.parametrize("kind", ["lora", "monteclora"])
    def test_muon_is_for_whole_matrices(self, tmp_path: Path, kind: Any) -> None:
        config = minimal_config(tmp_path)
        optim = OptimConfig(kind="muon")
        assert self.problems(config, optim=optim, adapter=AdapterConfig(kind=kind)) == [
            (
                "optim.kind",
                "muon makes the updates of whole weight matrices orthogonal, and an adapter has none; use adamw or lionw, "
                "or set adapter.kind to none",
            )
        ]
        assert self.problems(config, optim=optim, adapter=AdapterConfig()) == []

    @pytest.mark.parametrize("setting", ["no_decay", "lr_ratio"])
    def test_patterns_of_parameters_match_something_that_trains(self, tmp_path: Path, setting: str) -> None:
        def optim(*patterns: str) -> OptimConfig:
            return OptimConfig(**{setting: patterns if setting == "no_decay" else dict.fromkeys(patterns, 2.0)})

        def unmatched(pattern: str, one: str) -> tuple[str, str]:
            return f"optim.{setting}", f"'{pattern}' matches no parameter that trains; one of those is {one}"

        config = minimal_config(tmp_path)
        write_base(tmp_path / "base", **SMALL_LLAMA)
        full, lora = AdapterConfig(), AdapterConfig(kind="lora", rank=2, targets=("up_proj",))
        embedding, first = "model.embed_tokens.weight", "model.layers.0.mlp.up_proj.lora_A"
        fits_both = optim("*.embed_tokens.*", "*.1.*")
        assert self.problems(config, adapter=full, optim=fits_both) == []
        assert self.problems(config, adapter=full, optim=optim("lm_head", "*.2.*", "*.lora_A")) == [
            unmatched(pattern, embedding) for pattern in ("lm_head", "*.2.*", "*.lora_A")
        ]
        assert self.problems(config, adapter=lora, optim=fits_both) == [unmatched("*.embed_tokens.*", first)]
        saved = dataclasses.replace(lora, modules_to_save=("embed_tokens",))
        assert self.problems(config, adapter=saved, optim=fits_both) == []
        assert self.problems(config, adapter=lora, optim=optim("*.log_std")) == [unmatched("*.log_std", first)]
        posterior = dataclasses.replace(lora, kind="monteclora")
        assert self.problems(config, adapter=posterior, optim=optim("*.log_std")) == []
        # An adapter out of range has no parameters to compare with, and of other models nothing is known.
        out_of_range = dataclasses.replace(lora, rank=0)
        assert [name for name, _ in self.problems(config, adapter=out_of_range, optim=fits_both)] == ["adapter.rank"]
        write_base(tmp_path / "base", model_type="phi3")
        assert self.problems(config, adapter=full, optim=optim("lm_head")) == []
        # Without a base it is the architecture's.
        model = ModelConfig(architecture=ArchitectureConfig(num_layers=1))
        assert self.problems(config, adapter=full, model=model, optim=fits_both) == [unmatched("*.1.*", embedding)]

    @pytest.mark.parametrize("kind", ["lora", "monteclora"])
    def test_hidden_key_is_the_only_dropout_unless_told_otherwise(self, tmp_path: Path, kind: Any) -> None:
        config = minimal_config(tmp_path)
        adapter, hidden_key = AdapterConfig(kind=kind, dropout=0.1), HiddenKeySection(enabled=True)
        assert self.problems(config, adapter=adapter, hidden_key=hidden_key) == [
            (
                "adapter.dropout",
                "is other dropout than HiddenKey's, and the paper trains without it; set it to 0, or "
                "hidden_key.other_dropout to kept",
            )
        ]
        for other in (HiddenKeySection(), HiddenKeySection(enabled=True, other_dropout="kept")):
            assert self.problems(config, adapter=adapter, hidden_key=other) == []
        for values in ({"dropout": 0.0}, {"kind": "none"}):
            without = dataclasses.replace(adapter, **values)
            assert self.problems(config, adapter=without, hidden_key=hidden_key) == []

    def test_hidden_key_and_attention_dropout_together_must_be_asked_for(self, tmp_path: Path) -> None:
        config, model = minimal_config(tmp_path), ModelConfig(attention_dropout=0.1)
        assert self.problems(config, model=model, hidden_key=HiddenKeySection(enabled=True)) == [
            (
                "model.attention_dropout",
                "is other dropout than HiddenKey's, which switches it off; leave it out, or set hidden_key.other_dropout to kept",
            )
        ]
        for hidden_key in (HiddenKeySection(), HiddenKeySection(enabled=True, other_dropout="kept")):
            assert self.problems(config, model=model, hidden_key=hidden_key) == []

    def test_a_merged_export_needs_an_adapter(self, tmp_path: Path) -> None:
        config, merged = minimal_config(tmp_path), CheckpointConfig(export_merged=True)
        assert self.problems(config, checkpoint=merged) == [
            (
                "checkpoint.export_merged",
                "merges an adapter, and adapter.kind is none, whose export is a full model; remove it",
            )
        ]
        assert self.problems(config, checkpoint=merged, adapter=AdapterConfig(kind="lora")) == []

    def test_a_merged_export_changes_no_tied_embeddings(self, tmp_path: Path) -> None:
        config, merged = minimal_config(tmp_path), CheckpointConfig(export_merged=True)
        adapter = AdapterConfig(kind="lora", rank=4, targets=("q_proj", "lm_head"))
        write_base(tmp_path / "base", **SMALL_LLAMA, tie_word_embeddings=True)
        assert self.problems(config, checkpoint=merged, adapter=adapter) == [
            (
                "checkpoint.export_merged",
                "would change the input embeddings too, whose weight lm_head shares in this base; take lm_head out of "
                "adapter.targets, or set it to false",
            )
        ]
        assert self.problems(config, adapter=adapter) == []
        assert self.problems(config, checkpoint=merged, adapter=dataclasses.replace(adapter, targets=("q_proj",))) == []
        write_base(tmp_path / "base", **SMALL_LLAMA)
        assert self.problems(config, checkpoint=merged, adapter=adapter) == []

    def test_rows_must_not_be_longer_than_the_bases_positions(self, tmp_path: Path) -> None:
        config = minimal_config(tmp_path)
        data = dataclasses.replace(config.data, seq_len=257)
        assert self.problems(config, data=data) == [
            ("data.seq_len", "is longer than the 256 positions the model is made for")
        ]
        assert self.problems(config, data=dataclasses.replace(data, seq_len=256)) == []

    def test_rows_must_not_be_longer_than_the_architectures_positions(self, tmp_path: Path) -> None:
        config = minimal_config(tmp_path, "--model.base", "none")
        model = ModelConfig(architecture=ArchitectureConfig(max_positions=63))
        assert self.problems(config, model=model) == [
            ("data.seq_len", "is longer than the 63 positions the model is made for")
        ]

    def test_positions_of_a_hub_name_are_not_known(self, tmp_path: Path) -> None:
        config = dataclasses.replace(minimal_config(tmp_path), model=ModelConfig(base="somebody/a-model"))
        assert config.max_positions() is None
        assert self.problems(config) == []

    @pytest.mark.parametrize("is_folder", [False, True])
    def test_the_tokenizer_must_be_the_bases(self, tmp_path: Path, is_folder: bool) -> None:
        config = minimal_config(tmp_path)
        ours, theirs = tmp_path / "mine" / "tokenizer.model", tmp_path / "base" / "tokenizer.model"
        ours.parent.mkdir()
        ours.write_bytes(b"one")
        theirs.write_bytes(b"other")
        data = dataclasses.replace(config.data, tokenizer=ours.parent if is_folder else ours)
        assert self.problems(config, data=data) == [
            ("data.tokenizer", f"is another tokenizer than the base was trained with: {theirs} differs")
        ]
        theirs.write_bytes(b"one")
        assert self.problems(config, data=data) == []

    def test_a_base_without_a_tokenizer_or_with_one_of_another_kind_is_trusted(self, tmp_path: Path) -> None:
        config = minimal_config(tmp_path)
        assert self.problems(config) == []
        (tmp_path / "base" / "tokenizer.json").write_text("{}")
        assert self.problems(config) == []

    def test_the_vocabulary_is_the_bases_or_the_architectures(self, tmp_path: Path) -> None:
        config = minimal_config(tmp_path)
        write_base(tmp_path / "base", vocab_size=77)
        assert config.vocab_size() == 77
        for base, size in ((None, 2048), ("somebody/a-model", None)):
            assert dataclasses.replace(config, model=ModelConfig(base=base)).vocab_size() == size

    def test_a_task_must_fit_into_a_row(self, tmp_path: Path) -> None:
        config = minimal_config(tmp_path)
        task = TaskConfig(
            kind="continuation_choice", domain="old", path=tmp_path / "heldout.jsonl",
            context_tokens=60, continuation_tokens=5,
        )  # fmt: skip
        ((name, _),) = self.problems(config, eval=EvalConfig(tasks={"choice": task}))
        assert name == "eval.tasks.choice.context_tokens"

    def test_the_world_size_must_divide_the_batch(self, tmp_path: Path) -> None:
        config = minimal_config(tmp_path)  # 12 rows
        assert self.problems(config, world_size=5) == [
            (
                "train.global_batch_rows",
                "must be divisible by the world size, which is 5; "
                "use a world size such as 2, 3, 4, 6, or change the batch",
            )
        ]

    @given(rows=st.integers(1, 2000), world=st.integers(1, 300), micro=st.integers(1, 16))
    def test_batches_are_refused_exactly_when_rows_do_not_split_evenly(self, rows: int, world: int, micro: int) -> None:
        config = Config(
            data=DataConfig(sources={}, tokenizer=Path("x")),
            train=TrainConfig(global_batch_rows=rows, micro_batch_rows=micro),
        )
        found = dict(config._batch_problems(world))
        assert (not found) == (rows % (world * micro) == 0)
        if rows % world:
            message = found["train.global_batch_rows"]
            near = message.split("such as ")[1].split(", or")[0].split(", ")
            assert near
            assert all(rows % int(size) == 0 for size in near)
        elif found:
            assert found == {
                "train.micro_batch_rows": f"must divide the {rows // world} rows that each rank has per step at world size {world}"
            }

    def test_as_plain_values_it_survives_json(self, tmp_path: Path) -> None:
        config = minimal_config(tmp_path)
        plain = to_dict(config)
        assert json.loads(json.dumps(plain)) == plain
        assert plain["data"]["sources"]["text"]["path"] == str(tmp_path / "train.jsonl")
        assert plain["adapter"]["targets"] == list(config.adapter.targets)
        assert plain["model"]["architecture"]["tie_embeddings"] is True
        patterns = to_dict(dataclasses.replace(config.adapter, rank_pattern={"*.mlp.*": 2}, init_from=tmp_path))
        assert (patterns["rank_pattern"], patterns["init_from"]) == ({"*.mlp.*": 2}, str(tmp_path))
        assert plain["eval"]["tasks"]["old_bits"]["kind"] == "bits_per_byte"


def config_classes(owner: type = Config) -> list[type]:
    """Every configuration class reachable from the whole."""
    found = [owner]
    for hint in get_type_hints(owner).values():
        inner = get_args(hint)[1] if get_origin(hint) is dict else hint
        if dataclasses.is_dataclass(inner):
            found += config_classes(inner)  # type: ignore[arg-type]
    return found


@pytest.mark.parametrize("kind", config_classes(), ids=lambda kind: kind.__name__)
def test_every_setting_has_a_docstring_which_becomes_its_help(kind: type) -> None:
    (tree,) = ast.parse(inspect.getsource(kind)).body
    assert isinstance(tree, ast.ClassDef)
    for node, after in zip(tree.body, [*tree.body[1:], None], strict=True):
        if isinstance(node, ast.AnnAssign):
            is_docstring = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
            assert is_docstring, f"{kind.__name__}.{ast.unparse(node.target)} has no docstring"


@pytest.mark.parametrize("kind", config_classes(), ids=lambda kind: kind.__name__)
def test_configuration_classes_are_frozen_and_keyword_only(kind: type) -> None:
    parameters = kind.__dataclass_params__  # type: ignore[attr-defined]
    assert parameters.frozen
    assert all(f.kw_only for f in dataclasses.fields(kind))

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from monteclora import Adapter, attach_adapter
from tests.unit.training.minimal import minimal_config
from training.config import ArchitectureConfig, Config
from training.errors import ModelError
from training.model.build import random_model
from training.optim import make_optimizer, parameter_groups, set_learning_rates

SMALL = ArchitectureConfig(
    hidden_size=16, intermediate_size=24, num_layers=2, num_heads=4, num_kv_heads=2, vocab_size=40, max_positions=32
)
DECAY = ("--optim.weight_decay", "0.1", "--optim.lr", "0.5")


def full(folder: Path, *overrides: str) -> tuple[Config, dict[str, nn.Parameter]]:
    """Full finetuning: configuration and parameters."""
    config = minimal_config(folder, *DECAY, *overrides)
    return config, dict(random_model(SMALL, dtype=torch.float32, seed=0).named_parameters())


def adapted(folder: Path, kind: str, *overrides: str) -> tuple[Config, dict[str, nn.Parameter], Adapter]:
    """An adapter: configuration, parameters that train, and the adapter."""
    config = minimal_config(folder, *DECAY, "--adapter.kind", kind, "--adapter.rank", "4", *overrides)
    model = random_model(SMALL, dtype=torch.float32, seed=0)
    chosen = config.adapter.build()
    assert chosen is not None
    adapter = attach_adapter(model, chosen, seed=0)
    return config, {name: p for name, p in model.named_parameters() if p.requires_grad}, adapter


def by_name(groups: list[dict[str, Any]], parameters: dict[str, nn.Parameter]) -> dict[str, tuple[float, set[str]]]:
    """Weight decay and the names of the parameters of every group; every parameter is in exactly one."""
    names = {id(p): name for name, p in parameters.items()}
    grouped = [id(p) for group in groups for p in group["params"]]
    assert sorted(grouped) == sorted({id(p) for p in parameters.values()})
    assert all(group["params"] for group in groups)
    assert len({group["name"] for group in groups}) == len(groups)
    return {group["name"]: (group["weight_decay"], {names[id(p)] for p in group["params"]}) for group in groups}


class TestFull:
    def test_matrices_decay_and_nothing_else_does(self, tmp_path: Path) -> None:
        config, parameters = full(tmp_path)
        groups = by_name(parameter_groups(parameters, None, config), parameters)
        matrices = {name for name, p in parameters.items() if p.ndim == 2}
        assert groups == {"decay": (0.1, matrices), "no_decay": (0.0, parameters.keys() - matrices)}
        assert len(matrices) == 2 * 7 + 1
        assert {"model.norm.weight", "model.layers.1.input_layernorm.weight"} < groups["no_decay"][1]

    def test_an_empty_group_is_left_out(self, tmp_path: Path) -> None:
        groups = parameter_groups({"w": nn.Parameter(torch.ones(2, 2))}, None, minimal_config(tmp_path))
        assert [group["name"] for group in groups] == ["decay"]

    def test_a_partitioned_matrix_is_still_a_matrix(self, tmp_path: Path) -> None:
        parameters = {name: nn.Parameter(torch.ones(0)) for name in ("w", "model.layers.0.w")}
        for parameter in parameters.values():
            parameter.ds_shape = torch.Size([3, 4])  # type: ignore[attr-defined]
        config = minimal_config(tmp_path, "--optim.kind", "muon", "--adapter.kind", "none")
        assert [group["name"] for group in parameter_groups(parameters, None, config)] == ["decay", "muon"]

    def test_a_parameter_with_two_names_is_there_once(self, tmp_path: Path) -> None:
        tied = nn.Parameter(torch.ones(2, 2))
        parameters = {"model.embed_tokens.weight": tied, "lm_head.weight": tied, "b": nn.Parameter(torch.ones(2))}
        groups = parameter_groups(parameters, None, minimal_config(tmp_path))
        assert [len(group["params"]) for group in groups] == [1, 1]

    def test_parameters_that_a_pattern_takes_out_of_the_decay(self, tmp_path: Path) -> None:
        config, parameters = full(tmp_path, "--optim.no_decay", "*.embed_tokens.*,*.1.mlp.*,*norm*")
        groups = by_name(parameter_groups(parameters, None, config), parameters)
        assert groups.keys() == {"decay", "no_decay"}
        without = {name for name in parameters if ".1.mlp." in name or "norm" in name or "embed" in name}
        assert groups["no_decay"] == (0.0, without)

    def test_the_first_pattern_that_matches_is_the_learning_rates(self, tmp_path: Path) -> None:
        ratios = '{"*.layers.1.*norm*" = 2.0, "*.layers.1.*" = 0.25, "*norm*" = 3.0}'
        config, parameters = full(tmp_path, "--optim.lr_ratio", ratios)
        groups = parameter_groups(parameters, None, config)
        named = by_name(groups, parameters)
        second = {name for name in parameters if ".layers.1." in name}
        norms = {name for name in parameters if "norm" in name}
        assert named == {
            "decay": (0.1, parameters.keys() - second - norms),
            "no_decay[*.layers.1.*norm*]": (0.0, second & norms),
            "decay[*.layers.1.*]": (0.1, second - norms),
            "no_decay[*norm*]": (0.0, norms - second),
        }
        ratio = {"decay": 1, "no_decay[*.layers.1.*norm*]": 2, "decay[*.layers.1.*]": 0.25, "no_decay[*norm*]": 3}
        assert {group["name"]: group["initial_lr"] for group in groups} == {k: 0.5 * v for k, v in ratio.items()}
        set_learning_rates(groups, 0.125, 3, None)
        assert {group["name"]: group["lr"] for group in groups} == {k: 0.125 * v for k, v in ratio.items()}
        assert {group["initial_lr"] / 0.5 for group in groups} == set(ratio.values())

    @pytest.mark.parametrize("setting", ["no_decay", "lr_ratio"])
    def test_a_pattern_that_matches_nothing(self, tmp_path: Path, setting: str) -> None:
        """Of a model that could not be looked at before."""
        value = {"no_decay": "*.wte.*", "lr_ratio": '{"*.wte.*" = 2.0}'}[setting]
        config, parameters = full(tmp_path, f"--optim.{setting}", value)
        message = (
            f"optim.{setting}: '*.wte.*' matches no parameter that trains; one of those is model.embed_tokens.weight"
        )
        with pytest.raises(ModelError, match=f"^{re.escape(message)}$"):
            parameter_groups(parameters, None, config)


class TestMuon:
    def test_it_is_for_matrices_inside_decoder_layers(self, tmp_path: Path) -> None:
        config, parameters = full(tmp_path, "--optim.kind", "muon")
        groups = parameter_groups(parameters, None, config)
        named = by_name(groups, parameters)
        inside = {name for name, p in parameters.items() if p.ndim == 2 and ".layers." in name}
        assert len(inside) == 14
        assert named["muon"] == (0.1, inside)
        assert named["decay"] == (0.1, {"model.embed_tokens.weight"})
        assert named.keys() == {"muon", "decay", "no_decay"}
        assert {group["name"] for group in groups if group["uses_muon"]} == {"muon"}

    def test_patterns_split_its_matrices_too(self, tmp_path: Path) -> None:
        overrides = ("--optim.no_decay", "*.q_proj.*", "--optim.lr_ratio", '{"*.layers.0.*_proj.*" = 2.0}')
        config, parameters = full(tmp_path, "--optim.kind", "muon", *overrides)
        groups = parameter_groups(parameters, None, config)
        assert by_name(groups, parameters).keys() == {
            "muon", "muon_no_decay", "muon[*.layers.0.*_proj.*]", "muon_no_decay[*.layers.0.*_proj.*]", "decay", "no_decay",
        }  # fmt: skip
        assert all(group["uses_muon"] == group["name"].startswith("muon") for group in groups)

    def test_a_model_without_such_matrices(self, tmp_path: Path) -> None:
        config = minimal_config(tmp_path, "--optim.kind", "muon", "--adapter.kind", "none")
        message = "optim.kind muon is for the matrices inside decoder layers (*.layers.<k>.*), and the model has none"
        with pytest.raises(ModelError, match=f"^{re.escape(message)}$"):
            parameter_groups({"transformer.h.0.w": nn.Parameter(torch.ones(2, 2))}, None, config)


class TestAdapter:
    def test_it_has_its_own_groups(self, tmp_path: Path) -> None:
        config, parameters, adapter = adapted(
            tmp_path, "monteclora", "--adapter.modules_to_save", "norm,embed_tokens", "--adapter.loraplus_ratio", "4"
        )
        groups = parameter_groups(parameters, adapter, config)
        named = by_name(groups, parameters)
        assert {name: decay for name, (decay, _) in named.items()} == {
            "low_rank_A": 0.1, "low_rank_B": 0.1, "variational": 0.0, "saved": 0.1, "saved_no_decay": 0.0,
        }  # fmt: skip
        assert named["saved"][1] == {"model.embed_tokens.weight"}
        assert all(name.endswith("lora_B") for name in named["low_rank_B"][1])
        for key in ("lr", "initial_lr"):
            assert {group["name"]: group[key] for group in groups} == {
                name: 2.0 if name == "low_rank_B" else 0.5 for name in named
            }

    def test_patterns_split_its_groups(self, tmp_path: Path) -> None:
        config, parameters, adapter = adapted(
            tmp_path, "lora", "--adapter.modules_to_save", "norm,embed_tokens", "--adapter.loraplus_ratio", "4",
            "--optim.no_decay", "*.mlp.*,*embed*", "--optim.lr_ratio", '{"*.q_proj.lora_?" = 3.0}',
        )  # fmt: skip
        groups = parameter_groups(parameters, adapter, config)
        named = by_name(groups, parameters)
        assert {name: decay for name, (decay, _) in named.items()} == {
            "low_rank_A": 0.1, "low_rank_A_no_decay": 0.0, "low_rank_A[*.q_proj.lora_?]": 0.1, "low_rank_B": 0.1,
            "low_rank_B_no_decay": 0.0, "low_rank_B[*.q_proj.lora_?]": 0.1, "saved_no_decay": 0.0,
        }  # fmt: skip
        assert "model.embed_tokens.weight" in named["saved_no_decay"][1]
        set_learning_rates(groups, 0.1, 0, adapter)
        rates = {group["name"]: group["lr"] for group in groups}
        assert rates["low_rank_A"] == rates["low_rank_A_no_decay"] == rates["saved_no_decay"] == pytest.approx(0.1)
        assert rates["low_rank_A[*.q_proj.lora_?]"] == pytest.approx(0.3)
        assert rates["low_rank_B"] == pytest.approx(0.4)
        assert rates["low_rank_B[*.q_proj.lora_?]"] == pytest.approx(1.2)

    def test_its_phases_set_learning_rates(self, tmp_path: Path) -> None:
        """Post hoc: LoRA first, then nothing but the variational parameters, each with the group's ratio on top."""
        config, parameters, adapter = adapted(
            tmp_path, "monteclora", "--adapter.start_step", "2", "--adapter.posthoc", "true",
            "--adapter.coop_lr_ratio", "5", "--optim.lr_ratio", '{"*.layers.0.*" = 0.5}',
        )  # fmt: skip
        groups = parameter_groups(parameters, adapter, config)
        assert len(groups) == 6
        for step, expected in ((1, {"low_rank_A": 1.0, "low_rank_B": 1.0, "variational": 1.0}),
                               (2, {"low_rank_A": 0.0, "low_rank_B": 0.0, "variational": 5.0})):  # fmt: skip
            set_learning_rates(groups, 0.25, step, adapter)
            for group in groups:
                own = 0.5 if group["name"].endswith("[*.layers.0.*]") else 1.0
                assert group["lr"] == 0.25 * expected[group["role"]] * own
                assert group["initial_lr"] == 0.5 * own

    def test_groups_that_are_frozen_from_the_first_step(self, tmp_path: Path) -> None:
        """They have a learning rate to be compared with nevertheless: LionW divides by it."""
        config, parameters, adapter = adapted(tmp_path, "monteclora")
        adapter.controls.is_random = adapter.controls.freezes_low_rank = True
        groups = parameter_groups(parameters, adapter, config)
        assert {group["initial_lr"] for group in groups} == {0.5}

    @pytest.mark.parametrize("kind", ["adamw", "lionw"])
    def test_an_optimizer_of_them_leaves_what_is_frozen_as_it_is(self, tmp_path: Path, kind: str) -> None:
        config, parameters, adapter = adapted(
            tmp_path, "monteclora", "--adapter.start_step", "1", "--adapter.posthoc", "true", "--optim.kind", kind
        )
        groups = parameter_groups(parameters, adapter, config)
        optimizer = make_optimizer(groups, config.optim)
        moved = []
        for step in range(2):
            set_learning_rates(optimizer.param_groups, 0.1, step, adapter)
            before = {name: p.detach().clone() for name, p in parameters.items()}
            for p in parameters.values():
                p.grad = torch.ones_like(p)
            optimizer.step()
            moved.append({name for name, p in parameters.items() if not torch.equal(p, before[name])})
        assert moved[0] == parameters.keys()
        assert moved[1] == {name for name in parameters if "lora_" not in name}

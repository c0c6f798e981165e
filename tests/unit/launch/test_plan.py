from __future__ import annotations

import argparse
import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import pytest
from transformers import LlamaForCausalLM

from launch.__main__ import main
from launch.plan import cluster as known
from launch.plan.cluster import Cluster, memory_of
from launch.plan.command import add_arguments, cluster_of, work_of
from launch.plan.costs import costs_of
from launch.plan.goodput import Failures
from launch.plan.options import Work, best_per_placement, enough_nodes, fits, options, recommend
from launch.plan.shapes import SHAPES as KNOWN
from launch.plan.shapes import PlanError, known_shape, shape_of
from monteclora import attach_adapter
from monteclora.config import LoRAConfig
from tests.unit.training.costs.test_shape import LLAMA_2_7B, LLAMA_3_8B, SHAPES, llama
from tests.unit.training.minimal import minimal_config, write_base
from training.config import AdapterConfig, Config
from training.costs.communication import Collective
from training.costs.flops import step_flops
from training.costs.memory import GiB, Setup, Trained, ZeroOptions, estimate, usable_bytes
from training.costs.shape import Shape
from training.model.build import count_parameters
from training.recipe import ConfigError

TARGETS = {
    "all": AdapterConfig().targets,
    "attention": ("q_proj", "v_proj"),
    "output head too": ("o_proj", "lm_head"),
    "some layers": ("model.layers.1.mlp.*", "k_proj"),
}
MORE: dict[str, dict[str, Any]] = {
    "as it is": {},
    "patterns": {"rank_pattern": {"model.layers.1.*": 2, "*_proj": 1}, "rslora": True, "alpha": 4.0},
    "norms in full": {"modules_to_save": ("*norm",)},
    "a block in full": {"modules_to_save": ("model.layers.0", "norm")},
}
EIGHT = Cluster(
    nodes=1, gpus_per_node=8, gpu="H100", memory_bytes=memory_of(80), peak_flops=989e12, between=50e9, inside=361e9
)
ZERO = ZeroOptions(reduce_bucket=16_777_216, prefetch_bucket=15_099_494, persistence_threshold=3_670_016)


def work(adapter: LoRAConfig | None = None, rows: int = 192, shape: Shape = LLAMA_2_7B) -> Work:
    return Work(setup=Setup(model=Trained(shape, adapter), zero=ZERO), rows_per_step=rows)


@pytest.mark.parametrize("name", SHAPES)
class TestRealModels:
    @pytest.fixture
    def config(self, tmp_path: Path, name: str) -> Config:
        """A recipe whose base has the shape."""
        config = minimal_config(tmp_path)
        SHAPES[name].save_pretrained(tmp_path / "base")
        return config

    @pytest.mark.parametrize("kind", ["none", "lora", "monteclora"])
    @pytest.mark.parametrize("targets", TARGETS)
    @pytest.mark.parametrize("more", MORE)
    def test_trained_and_total(self, config: Config, name: str, kind: Any, targets: str, more: str) -> None:
        adapter = AdapterConfig(kind="none", rank=1, num_samples=5, targets=TARGETS[targets], **MORE[more])
        config = dataclasses.replace(config, adapter=adapter)
        real = LlamaForCausalLM(SHAPES[name])
        if kind != "none":
            attach_adapter(real, dataclasses.replace(adapter, kind=kind).build())  # type: ignore[arg-type]
        model = work_of(config, shape_of(config), kind, ZERO).setup.model
        counted = count_parameters(real)
        assert (model.base_size + model.adapter_size, model.size) == (counted["total"], counted["trainable"])


class TestShapes:
    def test_published_sizes(self) -> None:
        sizes = {name: known_shape(name).num_parameters() for name in KNOWN}
        assert sizes == {
            "llama-2-7b": 6_738_415_616, "llama-2-13b": 13_015_864_320, "llama-2-70b": 68_976_648_192,
            "llama-3-8b": 8_030_261_248, "llama-3-70b": 70_553_706_496,
            "llama-3.1-8b": 8_030_261_248, "llama-3.1-70b": 70_553_706_496,
        }  # fmt: skip
        assert (known_shape("llama-2-7b"), known_shape("llama-3-8b")) == (LLAMA_2_7B, LLAMA_3_8B)

    @pytest.mark.parametrize(
        ("base", "hint"),
        [
            ("somebody/a-model", "--shape with one of llama-2-7b, llama-2-13b, "), ("/none/Llama-2-7b-hf", "--shape llama-2-7b, "),
            ("meta-llama/Llama-3.1-8B", "--shape llama-3.1-8b, "), ("meta-llama/Meta-Llama-3-8B", "--shape llama-3-8b, "), ("meta-llama/Llama-2-70b-hf", "--shape llama-2-70b, "),
        ],
    )  # fmt: skip
    def test_one_that_is_not_known_here(self, tmp_path: Path, base: str, hint: str) -> None:
        config = minimal_config(tmp_path)
        config = dataclasses.replace(config, model=dataclasses.replace(config.model, base=base))
        with pytest.raises(PlanError) as caught:
            shape_of(config)
        assert str(caught.value).startswith(f"model.base = {base!r} has no config.json here; give {hint}")
        assert str(caught.value).endswith("or download the model and give its folder")

    def test_an_adapter_with_nothing_to_adapt(self, tmp_path: Path) -> None:
        config = minimal_config(tmp_path)
        adapter = dataclasses.replace(config.adapter, targets=("query", "value"))
        shape = Shape(hidden=8, intermediate=16, layers=1, heads=2, kv_heads=2, head_dim=4, vocab=9, is_tied=True)
        with pytest.raises(
            PlanError, match=r"^adapter\.targets 'query' matches no linear layer; .*; adapter\.targets 'value'"
        ):
            work_of(dataclasses.replace(config, adapter=adapter), shape, "lora", ZERO)

    def test_another_kind_of_model(self, tmp_path: Path) -> None:
        config = minimal_config(tmp_path)
        write_base(tmp_path / "base", n_embd=8)
        with pytest.raises(PlanError) as caught:
            shape_of(config)
        assert str(caught.value) == f"{tmp_path}/base/config.json has no 'hidden_size': not a LLaMA-style model"

    def test_sizes_that_make_no_sense(self, tmp_path: Path) -> None:
        config = minimal_config(tmp_path)
        (tmp_path / "base" / "config.json").write_text(json.dumps(llama().to_dict() | {"hidden_size": "64"}))
        with pytest.raises(
            PlanError, match=r"base/config.json can't be right: hidden_size is '64'; download the model again"
        ):
            shape_of(config)

    def test_the_bases_file_is_read(self, tmp_path: Path) -> None:
        config = minimal_config(tmp_path)
        (tmp_path / "base" / "config.json").write_text(json.dumps(llama(head_dim=12).to_dict()))
        assert shape_of(config).head_dim == 12


class TestNetwork:
    def test_large_messages_inside_a_node(self) -> None:
        gathered = Collective(name="", size=13.48e9, ranks=8)
        # 13.48 GB x 7/8 at 361 GB/s.
        assert EIGHT.seconds(gathered, 1e12) == pytest.approx(0.0327, rel=0.01)

    def test_between_nodes_the_nics_share_the_load(self) -> None:
        cluster = dataclasses.replace(EIGHT, nodes=8)
        # (8 - 1) / 8 of 13.48 GB through 8 NICs of 36.5 GB/s.
        assert cluster.seconds(Collective(name="", size=13.48e9, ranks=64), 1e12) == pytest.approx(0.0404, rel=0.01)

    def test_small_messages_are_slow(self) -> None:
        cluster = dataclasses.replace(EIGHT, nodes=8)
        sent = Collective(name="", size=13.48e9, ranks=64)
        # Measured: 6 of 36.5 GB/s at 16 MiB.
        assert cluster.seconds(sent, 16 * 2**20) / cluster.seconds(sent, 1e12) == pytest.approx(36.5 / 6, rel=0.02)

    def test_the_floor_of_what_stays_inside_a_node(self) -> None:
        cluster = dataclasses.replace(EIGHT, nodes=8, between=1.0)
        assert cluster.floor_seconds(Collective(name="", size=8e9, ranks=8)) == pytest.approx(7e9 / 361e9)

    def test_the_floor_of_what_crosses_at_the_nics_full_rate(self) -> None:
        cluster = dataclasses.replace(EIGHT, nodes=8, between=5e9)
        # 7/8 of it through 8 NICs.
        assert cluster.floor_seconds(Collective(name="", size=8e9, ranks=64)) == pytest.approx(7e9 / 8 / 5e9)

    def test_a_rank_sends_its_own_positions_through_its_own_nic(self) -> None:
        cluster = dataclasses.replace(EIGHT, nodes=2, between=5e9)
        sent = Collective(name="positions", size=8e9, ranks=16)
        assert cluster.floor_seconds(sent) == pytest.approx(4e9 / 5e9)
        assert cluster.seconds(sent, 1e15) == pytest.approx(4e9 / 5e9 / known.NETWORK_EFFICIENCY, rel=1e-5)

    def test_nobody_to_send_to(self) -> None:
        assert EIGHT.floor_seconds(Collective(name="", size=1e9, ranks=1)) == 0
        assert EIGHT.seconds(Collective(name="", size=1e9, ranks=1), 1e6) == 0


class TestCosts:
    def test_a_step_by_hand(self) -> None:
        setup = dataclasses.replace(work().setup, placement="replicated", ranks=8, recomputed_layers=16)
        costs = costs_of(setup, EIGHT, rows_per_step=192, forwards=1, backwards=1)
        tokens = 192 * 4096
        numbers = {"tokens": tokens, "pairs": 192 * 4096 * 4097 / 2}
        flops = step_flops(LLAMA_2_7B, None, targets=tokens, **numbers)
        again = step_flops(LLAMA_2_7B, None, targets=0, backwards=0, **numbers) / 2
        assert (costs.tokens, costs.micro_batches, costs.flops) == (tokens, 24, flops)
        assert costs.compute_seconds == pytest.approx((flops + again) / 8 / (known.EFFICIENCY * 989e12))
        assert costs.wire_bytes == 6 * 6_738_415_616 * 7 / 8
        assert costs.floor_seconds == pytest.approx((flops + again) / 8 / 989e12)
        assert costs.step_seconds == pytest.approx(
            costs.compute_seconds + known.EXPOSED * costs.network_seconds + costs.update_seconds
        )

    # A floor that only the network makes.
    slow = dataclasses.replace(EIGHT, nodes=2, between=1e9, peak_flops=1e30)

    def floor(self, setup: Setup) -> float:
        return costs_of(setup, self.slow, rows_per_step=192, forwards=1, backwards=1).floor_seconds

    def test_the_floor_of_hpz_has_backwards_weights_inside_nodes(self) -> None:
        zero3 = dataclasses.replace(work().setup, placement="zero3", ranks=16)
        hpz = dataclasses.replace(zero3, placement="zero3_hpz")
        # In 12 micro-batches 2 bytes of what is neither a norm nor still there from forward.
        weights = 12 * 2 * (6_738_415_616 - 65 * 4096 - 500_000_000)
        saved = weights / 2 / 8 / 1e9 - weights * 7 / 8 / 361e9
        assert self.floor(zero3) - self.floor(hpz) == pytest.approx(saved)

    def test_the_floor_of_rows_shared_inside_nodes(self) -> None:
        adapter = LoRAConfig(rank=16)
        setup = dataclasses.replace(work(adapter).setup, placement="replicated", ranks=16, sequence_parallel=8)
        # 512 tokens' queries, keys, values and outputs, there and back, 32 layers, 96 micro-batches.
        positions = 512 * 4 * 4096 * 2 * 2 * 32 * 96
        parameters = 2 * 4 * 39_976_960
        assert self.floor(setup) == pytest.approx(positions * 7 / 8 / 361e9 + parameters / 2 / 8 / 1e9)

    @pytest.mark.parametrize(
        ("optimizer", "states"),
        [("adamw", 2 * 6_738_415_616), ("lionw", 6_738_415_616), ("muon", 2 * 6_738_415_616 - 6_476_005_376)],
    )
    def test_a_checkpoint_has_masters_and_the_optimizers_states(self, optimizer: str, states: int) -> None:
        setup = dataclasses.replace(work().setup, ranks=8, optimizer=optimizer)
        costs = costs_of(setup, EIGHT, rows_per_step=192, forwards=1, backwards=1)
        assert costs.checkpoint_bytes == 4 * (6_738_415_616 + states)

    @pytest.mark.parametrize(("placement", "per_weight"), [("replicated", 12), ("zero3", 12), ("zero3_offload", 28)])
    def test_host_memory_of_a_node(self, placement: Any, per_weight: int) -> None:
        setup = dataclasses.replace(work().setup, placement=placement, ranks=32)
        four = dataclasses.replace(EIGHT, nodes=4)
        costs = costs_of(setup, four, rows_per_step=192, forwards=1, backwards=1)
        assert costs.host_bytes == per_weight * 6_738_415_616 / 4
        # 12 bytes per weight are the copy that checkpoints are written from.
        setup = dataclasses.replace(setup, background_saves=False)
        costs = costs_of(setup, four, rows_per_step=192, forwards=1, backwards=1)
        assert costs.host_bytes == (per_weight - 12) * 6_738_415_616 / 4

    def test_hidden_keys_passes(self) -> None:
        setup = dataclasses.replace(work().setup, placement="replicated", ranks=8)
        one = costs_of(setup, EIGHT, rows_per_step=192, forwards=1, backwards=1)
        two = costs_of(setup, EIGHT, rows_per_step=192, forwards=2, backwards=2)
        assert two.flops == 2 * one.flops

    @pytest.mark.parametrize(
        ("model", "seq_len", "recomputed", "published"),
        [
            # MPT-7B on 8 H100 (mosaicml/llm-foundry), nearly the shape of Llama-2-7B: 2,048 tokens, and 4,096 recomputed.
            (LLAMA_2_7B, 2048, 0, 10_643), (LLAMA_2_7B, 4096, 32, 8_611),
            # Llama-3.1-8B on 8 H200 with DeepSpeed's ZeRO-2 (stas00/ml-engineering): 461 TFLOP/s.
            (LLAMA_3_8B, 8192, 0, 8_700),
        ],
    )  # fmt: skip
    def test_published_speeds(self, model: Shape, seq_len: int, recomputed: int, published: float) -> None:
        setup = Setup(
            model=Trained(model), ranks=8, seq_len=seq_len, recomputed_layers=recomputed, micro_batch_rows=6, zero=ZERO
        )
        costs = costs_of(setup, EIGHT, rows_per_step=192, forwards=1, backwards=1)
        assert costs.tokens_per_second_per_gpu == pytest.approx(published, rel=0.2)


class TestChoice:
    def test_every_placement_and_micro_batch(self) -> None:
        found = options(work(), EIGHT)
        assert {costs.setup.placement for costs in found} == {"replicated", "zero3", "zero3_offload"}
        assert [c.setup.micro_batch_rows for c in found if c.setup.placement == "zero3"] == [1, 2, 3, 4, 6, 8, 12]
        two = options(work(), dataclasses.replace(EIGHT, nodes=2))
        assert {costs.setup.placement for costs in two} >= {"zero3_hpz"}

    def test_no_layer_is_computed_again_without_need(self) -> None:
        for costs in options(work(), EIGHT):
            layers = costs.setup.recomputed_layers
            if layers and fits(costs, EIGHT):
                fewer = dataclasses.replace(costs.setup, recomputed_layers=layers - 1)
                assert estimate(fewer).total > usable_bytes(EIGHT.memory_bytes)

    def test_an_adapters_base_is_replicated_when_it_fits(self) -> None:
        best = recommend(options(work(LoRAConfig(rank=16)), EIGHT), EIGHT)
        assert best is not None
        assert best.setup.placement == "replicated"

    def test_the_fastest_that_fits(self) -> None:
        found = options(work(shape=known_shape("llama-2-13b")), EIGHT)
        best = recommend(found, EIGHT)
        assert best is not None
        assert fits(best, EIGHT)
        assert best.setup.placement == "zero3"
        fitting = [costs.tokens_per_second for costs in found if fits(costs, EIGHT)]
        assert best.tokens_per_second >= 0.98 * max(fitting)

    def test_offload_is_the_last_resort(self) -> None:
        cluster = dataclasses.replace(EIGHT, memory_bytes=memory_of(80))
        best = recommend(options(work(shape=known_shape("llama-2-70b")), cluster), cluster)
        assert best is not None
        assert best.setup.placement == "zero3_offload"

    def test_host_memory_is_checked_when_it_is_known(self) -> None:
        big = work(shape=known_shape("llama-2-70b"))
        needed = 28 * 68_976_648_192 / (1 - known.HOST_MARGIN)
        for host, placement in ((1.001 * needed, "zero3_offload"), (0.999 * needed, None)):
            cluster = dataclasses.replace(EIGHT, host_memory_bytes=host)
            best = recommend(options(big, cluster), cluster)
            assert (None if best is None else best.setup.placement) == placement

    def test_a_checkpoints_copy_needs_host_memory_without_offload(self) -> None:
        small = dataclasses.replace(EIGHT, host_memory_bytes=12 * 6_738_415_616)
        assert recommend(options(work(), small), small) is None
        blocking = dataclasses.replace(work(), setup=dataclasses.replace(work().setup, background_saves=False))
        assert recommend(options(blocking, small), small) is not None

    def test_nothing_fits_and_what_would(self) -> None:
        small = dataclasses.replace(EIGHT, memory_bytes=memory_of(24))
        big = work(shape=known_shape("llama-2-70b"), rows=1024)
        found = options(big, small)
        assert recommend(found, small) is None
        assert [c.setup.micro_batch_rows for c in best_per_placement(found, small)] == [1, 1, 1]
        larger = enough_nodes(big, small, lambda ranks: 1024 % ranks == 0)
        assert larger is not None
        assert larger.nodes > 1
        assert recommend(options(big, larger), larger) is not None
        before = dataclasses.replace(larger, nodes=larger.nodes // 2)
        assert recommend(options(big, before), before) is None


class TestArguments:
    def cluster(self, *arguments: str) -> Cluster:
        parser = argparse.ArgumentParser()
        add_arguments(parser)
        return cluster_of(parser.parse_args(["recipe.toml", *arguments]))

    def test_one_node_of_eight_h100(self) -> None:
        assert self.cluster() == EIGHT

    def test_all_of_them(self) -> None:
        found = self.cluster("--nodes", "4", "--gpus", "4", "--gpu", "Mine", "--gpu-memory", "64", "--flops", "500",
                             "--bandwidth", "100", "--intra-bandwidth", "200", "--host-memory", "512")  # fmt: skip
        assert found == Cluster(nodes=4, gpus_per_node=4, gpu="Mine", memory_bytes=64 * GiB, peak_flops=500e12,
                                between=12.5e9, inside=200e9, host_memory_bytes=512 * GiB)  # fmt: skip

    @pytest.mark.parametrize(("ranks", "nodes", "gpus"), [("3", 1, 3), ("8", 1, 8), ("32", 4, 8)])
    def test_ranks_alone(self, ranks: str, nodes: int, gpus: int) -> None:
        found = self.cluster("--ranks", ranks)
        assert (found.nodes, found.gpus_per_node) == (nodes, gpus)

    def test_everything_wrong_at_once(self) -> None:
        with pytest.raises(ConfigError) as caught:
            self.cluster("--nodes", "0", "--gpus", "-1", "--gpu-memory", "0", "--flops", "0", "--bandwidth", "-1", "--mtbf", "0",
                         "--checkpoint-every", "0", "--restart-minutes", "-1", "--host-memory", "0",
                         "--storage-bandwidth", "0")  # fmt: skip
        assert caught.value.problems == [
            "--nodes 0: must be at least 1", "--gpus -1: must be at least 1", "--gpu-memory 0: must be greater than 0",
            "--host-memory 0: must be greater than 0", "--flops 0: must be greater than 0",
            "--bandwidth -1: must be greater than 0", "--storage-bandwidth 0: must be greater than 0",
            "--mtbf 0: must be greater than 0", "--checkpoint-every 0: must be at least 1",
            "--restart-minutes -1: must not be negative",
        ]  # fmt: skip

    @pytest.mark.parametrize("value", ["inf", "nan", "-inf"])
    def test_finite_numbers_only(self, value: str) -> None:
        options = ["--gpu-memory", "--host-memory", "--flops", "--bandwidth", "--intra-bandwidth", "--storage-bandwidth",
                   "--mtbf", "--restart-minutes"]  # fmt: skip
        with pytest.raises(ConfigError) as caught:
            self.cluster(*(f"{option}={value}" for option in options))
        assert caught.value.problems == [f"{option} {value}: must be a finite number" for option in options]

    @pytest.mark.parametrize("written", ["h100", "H100", "mi300x", "Mi300X", "l40s"])
    def test_a_gpu_in_any_case(self, written: str) -> None:
        assert self.cluster("--gpu", written) == self.cluster("--gpu", written.upper())

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (("--ranks", "12"), "--ranks 12: is no whole number of machines of 8 GPUs; say --gpus, too"),
            (("--ranks", "16", "--nodes", "2"), "use --nodes with --gpus, or --ranks alone"),
            (("--gpu", "Mine"), "MI300X; give --gpu-memory, --intra-bandwidth, --flops, too"),
        ],
    )
    def test_what_contradicts_or_is_missing(self, arguments: tuple[str, ...], message: str) -> None:
        with pytest.raises(ConfigError) as caught:
            self.cluster(*arguments)
        assert caught.value.problems[0].endswith(message)


class TestCommand:
    @pytest.fixture(autouse=True)
    def width(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("COLUMNS", "120")

    def run(self, recipe: Path, capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
        code = main(["plan", str(recipe), *arguments])
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    def test_a_7b_on_eight_gpus(self, recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
        code, out, err = self.run(
            recipe, capsys, "--shape", "llama-2-7b", "--train.global_batch_rows", "192", "--data.seq_len", "256"
        )
        assert (code, err) == (0, "")
        assert "recipe.toml: full finetuning, 6,738,415,616 parameters, 6,738,415,616 of them train." in out
        assert (
            "1 node(s) of 8 H100 with 80 GB, of which a run may use 72.4 GiB. 192 rows of 256 tokens per step." in out
        )
        assert "A step in seconds and per GPU" in out
        taken = r"^Take --train.placement replicated --train.micro_batch_rows \d+ --model.activation_checkpointing off$"
        assert re.search(taken, out, re.MULTILINE)
        assert "20 steps, 983,040 tokens:" in out
        assert "With adapter.kind lora (LoRA): replicated, " in out
        assert "zero3_offload is " in out
        # Twenty steps are over before anything fails.
        assert "A checkpoint holds the run up" not in out
        _, out, _ = self.run(
            recipe, capsys, "--shape", "llama-2-7b", "--train.global_batch_rows", "192", "--train.steps", "200000"
        )
        assert "With one every 500 steps" in " ".join(out.split())
        assert "HiddenKey" not in out

    @pytest.mark.parametrize("columns", ["80", "100"])
    def test_no_column_is_cut(
        self, recipe: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, columns: str
    ) -> None:
        monkeypatch.setenv("COLUMNS", columns)
        _, out, _ = self.run(
            recipe, capsys, "--shape", "llama-2-70b", "--nodes", "2", "--train.global_batch_rows", "192"
        )
        assert "…" not in out
        assert max(map(len, out.splitlines())) <= int(columns)

    def test_the_recommendation_is_a_valid_recipe(self, recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
        more = ("--model.base", "none", "--train.global_batch_rows", "64")
        code, out, _ = self.run(recipe, capsys, "--json", *more)
        found = json.loads(out)
        assert (code, found["schema"]) == (0, 1)
        overrides = found["recommended"]["overrides"]
        code, again, _ = self.run(recipe, capsys, "--json", *more, *overrides)
        assert (code, json.loads(again)["recommended"]["overrides"]) == (0, overrides)

    def test_json_says_everything(self, recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
        _, out, _ = self.run(recipe, capsys, "--json", "--model.base", "none", "--ranks", "3")
        found = json.loads(out)
        number = 2048 * 192 + 4 * (4 * 192 * 192 + 3 * 192 * 512 + 2 * 192) + 192
        assert found["parameters"] == {"total": number, "trained": number}
        best = found["recommended"]
        parts = best["memory_bytes"]
        assert parts["total"] == pytest.approx(sum(v for k, v in parts.items() if k not in ("total", "host")))
        assert best["hours"] == pytest.approx(20 * best["step_seconds"] / 3600)
        assert best["gpu_hours"] == pytest.approx(3 * best["hours"])
        assert 0 < best["goodput"] <= 1
        assert {each["placement"] for each in found["options"]} == {"replicated", "zero3", "zero3_offload"}

    def test_nothing_fits(self, recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
        code, out, _ = self.run(
            recipe, capsys, "--shape", "llama-2-70b", "--gpu-memory", "40", "--train.global_batch_rows", "192"
        )
        assert code == 1
        assert "Nothing fits." in out
        assert "replicated lacks " in out
        assert "nodes, " in out
        assert "LoRA: --adapter.kind lora --train.placement zero3" in out
        assert "GPUs of " in out
        code, out, _ = self.run(
            recipe, capsys, "--shape", "llama-2-70b", "--gpu-memory", "40", "--train.global_batch_rows", "192", "--json"
        )
        assert (code, json.loads(out)["recommended"]) == (1, None)

    def test_offload_says_what_it_needs_of_the_host(self, recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
        more = ("--shape", "llama-2-70b", "--train.global_batch_rows", "192")
        # 28 bytes per weight, of which 16 are offloaded and 12 are a checkpoint's copy.
        code, out, _ = self.run(recipe, capsys, *more)
        assert code == 0
        assert "a checkpoint's copy: replicated 771, zero3 771, zero3_offload 1,799." in " ".join(out.split())
        assert "It needs 1,799 GiB of host memory per node.\nThat is more than 1 TiB: see what the nodes have" in out
        code, out, _ = self.run(recipe, capsys, *more, "--host-memory", "2048")
        assert code == 0
        assert "GiB of host memory per node (a run may use 1,843)" in out
        assert "more than 1 TiB" not in out
        code, out, _ = self.run(recipe, capsys, *more, "--host-memory", "1024")
        assert code == 1
        lacks = r"zero3_offload lacks 877\.\d GiB of host memory per node \(needs \d+\.\d per GPU, 1,798\.\d per node\)"
        assert re.search(lacks, out)
        assert "nodes of 1,999 GiB of host memory, with zero3_offload" in out
        assert re.search(r"GPUs of \d+ GB, with zero3$", out, re.MULTILINE)

    def test_host_memory_is_no_subject_where_there_is_enough(
        self, recipe: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        _, out, _ = self.run(recipe, capsys, "--shape", "llama-2-7b", "--train.global_batch_rows", "192")
        assert "a checkpoint's copy: replicated 75, zero3 75, zero3_offload 176." in " ".join(out.split())
        assert "It needs" not in out

    SEVEN_B = (
        "--shape",
        "llama-2-7b",
        "--train.global_batch_rows",
        "192",
        "--data.seq_len",
        "4096",
        "--storage-bandwidth",
        "2",
    )
    SIZE = 12 * 6_738_415_616

    def recommended(self, recipe: Path, capsys: pytest.CaptureFixture[str], *more: str) -> dict[str, Any]:
        _, out, _ = self.run(recipe, capsys, "--json", *self.SEVEN_B, *more)
        best: dict[str, Any] = json.loads(out)["recommended"]
        return best

    def test_the_help_says_that_what_was_written_is_read_back(self, capsys: pytest.CaptureFixture[str]) -> None:
        parser = argparse.ArgumentParser()
        add_arguments(parser)
        parser.print_help()
        assert "of a machine writing a checkpoint, and reading it back" in " ".join(capsys.readouterr().out.split())

    @pytest.mark.parametrize(("read_back", "passes"), [("true", 2), ("false", 1)])
    def test_a_checkpoint_is_written_behind_the_steps(
        self, recipe: Path, capsys: pytest.CaptureFixture[str], read_back: str, passes: int
    ) -> None:
        best = self.recommended(recipe, capsys, "--checkpoint.read_back", read_back)
        copied = self.SIZE / 8 / known.COPY_RATE
        assert copied < best["compute_seconds"]
        write = 0.5 + copied + passes * (self.SIZE / 2e9 + self.SIZE / 8 / known.HASH_RATE)
        assert best["checkpoint_bytes"] == self.SIZE
        assert best["checkpoint_stall_seconds"] == pytest.approx(known.STALL_SECONDS)
        assert best["checkpoint_write_seconds"] == pytest.approx(write)
        failures = Failures(between=5000 * 3600, stall=known.STALL_SECONDS, write=write, restart=300)
        assert best["goodput"] == pytest.approx(failures.goodput(500 * best["step_seconds"]))

    def test_a_copy_that_takes_longer_than_a_steps_passes(
        self, recipe: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        best = self.recommended(recipe, capsys, "--data.seq_len", "8", "--train.global_batch_rows", "8")
        copied, hidden = self.SIZE / 8 / known.COPY_RATE, best["compute_seconds"]
        assert best["placement"] != "zero3_offload"
        assert best["checkpoint_stall_seconds"] == pytest.approx(known.STALL_SECONDS + copied - hidden)
        both = known.STALL_SECONDS + copied + 0.5 + 2 * (self.SIZE / 2e9 + self.SIZE / 8 / known.HASH_RATE)
        assert best["checkpoint_stall_seconds"] + best["checkpoint_write_seconds"] == pytest.approx(both)

    def test_what_is_offloaded_is_copied_before_training_goes_on(
        self, recipe: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        best = self.recommended(recipe, capsys, "--gpu-memory", "16")
        assert best["placement"] == "zero3_offload"
        stall = known.STALL_SECONDS + self.SIZE / 8 / known.HOST_COPY_RATE
        assert best["checkpoint_stall_seconds"] == pytest.approx(stall)

    def test_a_run_stands_still_while_a_checkpoint_is_written_without_the_background(
        self, recipe: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        best = self.recommended(recipe, capsys, "--checkpoint.background", "false")
        written = 2 * (self.SIZE / 2e9 + self.SIZE / 8 / known.HASH_RATE)
        stall = known.STALL_SECONDS + 0.5 + self.SIZE / 8 / known.HOST_COPY_RATE + written
        assert best["checkpoint_stall_seconds"] == pytest.approx(stall)
        assert best["checkpoint_write_seconds"] == 0
        failures = Failures(between=5000 * 3600, stall=stall, write=0, restart=300)
        assert best["goodput"] == pytest.approx(failures.goodput(500 * best["step_seconds"]))

    LONG = (*SEVEN_B, "--train.steps", "200000")

    def test_what_is_said_of_checkpoints(self, recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
        _, out, _ = self.run(recipe, capsys, *self.LONG)
        said = r"A checkpoint holds the run up for 50 ms and is complete \d+ (s|min) later, while training goes on\. With one every 500 "
        said += r"steps \(\d\.\d h\) and a failure every 5,000 h, 99\.\d\d% of the time counts: [\d,]+ h, [\d,]+ GPU-hours\. Best: "
        assert re.search(said + r"every \d+ steps \(\d+ min\), 99\.\d\d%\.", " ".join(out.split()))
        assert "training waits for it" not in out
        _, out, _ = self.run(recipe, capsys, *self.LONG, "--checkpoint.background", "false")
        assert re.search(r"A checkpoint holds the run up for 2 min\. With one every 500 steps", " ".join(out.split()))
        assert "a checkpoint's copy" not in out
        assert "GiB of host memory per node, what is offloaded: replicated 0, zero3 0, zero3_offload 100." in " ".join(
            out.split()
        )

    def test_checkpoints_that_are_due_too_often(self, recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
        more = ("--storage-bandwidth", "0.1", "--checkpoint-every", "10")
        _, out, _ = self.run(recipe, capsys, *self.LONG, *more)
        said = "The next checkpoint is due before the last one is complete, and training waits for it: "
        assert re.search(said + r"\d+ min every time\.", " ".join(out.split()))

    def test_a_cluster_on_which_hardly_anything_counts(self, recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
        code, out, _ = self.run(recipe, capsys, *self.LONG, "--mtbf", "0.0001")
        assert code == 0
        assert "a failure every 360 ms, 0.00% of the time counts. Best: every " in " ".join(out.split())

    def test_without_the_copy_it_would_fit(self, recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
        advice = "no copy of what is saved (--checkpoint.background false); training then waits for checkpoints"
        code, out, _ = self.run(recipe, capsys, *self.SEVEN_B, "--host-memory", "70")
        assert code == 1
        assert advice in out
        more = ("--host-memory", "70", "--checkpoint.background", "false")
        assert self.run(recipe, capsys, *self.SEVEN_B, *more)[0] == 0
        # On smaller GPUs only offload would do, which needs more than that even so.
        code, out, _ = self.run(recipe, capsys, *self.SEVEN_B, "--host-memory", "70", "--gpu-memory", "16")
        assert code == 1
        assert advice not in out

    def test_an_adapter_instead_of_muon_has_another_optimizer(
        self, recipe: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        more = ("--train.global_batch_rows", "192", "--optim.kind", "muon")
        _, out, _ = self.run(recipe, capsys, "--shape", "llama-2-7b", *more)
        assert "With adapter.kind lora (LoRA) and optim.kind adamw: replicated, " in out
        code, out, _ = self.run(recipe, capsys, "--shape", "llama-2-70b", "--gpu-memory", "40", *more)
        assert code == 1
        assert "LoRA: --adapter.kind lora --optim.kind adamw --train.placement zero3" in out

    def test_the_micro_batch_of_the_recipe_is_not_in_the_way(
        self, recipe: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        recipe.write_text(recipe.read_text().replace("[train]", "[train]\nmicro_batch_rows = 5"))
        assert self.run(recipe, capsys, "--model.base", "none", "--ranks", "2")[0] == 0
        code, _, err = self.run(recipe, capsys, "--model.base", "none", "--ranks", "2", "--train.micro_batch_rows", "5")
        assert code == 2
        assert "must divide the 6 rows" in err

    def test_problems_of_options_recipe_and_json_together(
        self, recipe: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
    ) -> None:
        ds_config = tmp_path / "ds.json"
        ds_config.write_text("{")
        code, out, err = self.run(
            recipe, capsys, "--nodes", "0", "--optim.lr", "-1", "--ds_config", str(ds_config), "--model.base", "none"
        )
        assert (code, out) == (2, "")
        assert "--nodes 0: must be at least 1" in err
        assert "optim.lr = -1.0 (command line): must be greater than 0" in err
        assert str(ds_config) in err

    def test_a_length_in_epochs(self, recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
        recipe.write_text(recipe.read_text().replace("steps = 20\n", "epochs = 2.0\n"))
        code, _, err = self.run(recipe, capsys, "--model.base", "none", "--ranks", "2")
        assert code == 2
        assert "train.epochs: how many steps that is depends on the data; give --train.steps or --train.tokens" in err

    def test_what_a_published_model_cannot_do(self, recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
        more = ("--gpus", "16", "--train.sequence_parallel", "16", "--train.global_batch_rows", "16")
        code, out, err = self.run(recipe, capsys, "--shape", "llama-2-70b", *more, "--data.seq_len", "8192")
        assert (code, out) == (2, "")
        assert "train.sequence_parallel = 16: must divide the 8 key/value heads of llama-2-70b" in err
        assert "data.seq_len = 8192: is longer than the 4096 positions that llama-2-70b is made for" in err
        code, _, err = self.run(recipe, capsys, "--shape", "llama-2-7b", *more, "--data.seq_len", "4096")
        assert (code, err) == (0, "")
        long = ("--train.global_batch_rows", "16", "--data.seq_len", "131072", "--gpus", "16")
        shared = ("--train.sequence_parallel", "8")
        assert "8192 positions" in self.run(recipe, capsys, "--shape", "llama-3-8b", *long, *shared)[2]
        assert self.run(recipe, capsys, "--shape", "llama-3.1-8b", *long, *shared)[::2] == (0, "")

    def test_advice_on_rows_that_are_too_long_can_be_followed(
        self, recipe: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        more = ("--shape", "llama-3.1-8b", "--gpus", "16", "--train.global_batch_rows", "16", "--data.seq_len", "131072",
                "--gpu-memory", "24")  # fmt: skip
        code, out, _ = self.run(recipe, capsys, *more)
        advised = re.search(r"more ranks per row \(--train.sequence_parallel (\d+)\)", out)
        shorter = re.search(r"shorter rows \(--data.seq_len (\d+)\)", out)
        assert code == 1
        assert advised is not None
        assert shorter is not None
        assert 8 % int(advised[1]) == 0
        assert self.run(recipe, capsys, *more, "--train.sequence_parallel", advised[1])[0] == 0
        assert self.run(recipe, capsys, *more, "--data.seq_len", shorter[1])[0] == 0
        assert self.run(recipe, capsys, *more, "--data.seq_len", str(2 * int(shorter[1])))[0] == 1

    def test_no_more_ranks_per_row_than_key_value_heads_are_advised(
        self, recipe: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        more = ("--shape", "llama-3.1-8b", "--gpus", "16", "--train.global_batch_rows", "16", "--data.seq_len", "131072",
                "--gpu-memory")  # fmt: skip
        code, out, _ = self.run(recipe, capsys, *more, "12", "--train.sequence_parallel", "8")
        assert code == 1
        assert "--train.sequence_parallel" not in out
        # Nor where the run could not be cut at all.
        code, out, _ = self.run(recipe, capsys, *more, "24", "--hidden_key.enabled", "true")
        assert code == 1
        assert "--train.sequence_parallel" not in out

    def test_an_adapter_on_parts_of_rows_drops_nothing(self, recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
        more = ("--shape", "llama-2-7b", "--train.global_batch_rows", "16", "--train.sequence_parallel", "2",
                "--adapter.dropout", "0.1")  # fmt: skip
        code, out, _ = self.run(recipe, capsys, *more)
        assert code == 0
        assert "With adapter.kind lora (LoRA) and adapter.dropout 0: " in out

    def test_variables_of_paths_need_not_be_set(
        self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for name in ("SCRATCH", "DATA"):
            monkeypatch.delenv(name, raising=False)
        recipe = Path(__file__).resolve().parents[3] / "recipes" / "cpt_code_llama7b.toml"
        code, out, err = self.run(recipe, capsys, "--shape", "llama-2-7b")
        assert (code, err) == (0, "")
        assert "of the time counts" in out
        code, _, err = self.run(recipe, capsys)
        assert code == 2
        assert "model.base = '$DATA/models/Llama-2-7b-hf' has no config.json here; give --shape llama-2-7b, or" in err

    def test_a_small_run_of_seconds(
        self, recipe: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("COLUMNS", "80")
        code, out, _ = self.run(recipe, capsys, "--model.base", "none", "--ranks", "2")
        assert code == 0
        assert "of the time counts" not in out
        assert "Best: every" not in out
        assert "host memory" not in out
        assert "MiB per GPU, by rows" in out
        assert "A step in milliseconds and per GPU" in out
        assert re.search(r"[\d.]+ [kM]B sent per GPU", " ".join(out.split()))
        assert re.search(r"tokens/s, \d+ ms, less than 0\.1 GPU-hours", " ".join(out.split()))
        assert "…" not in out

    def test_a_model_that_is_elsewhere(self, recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
        code, _, err = self.run(recipe, capsys, "--ranks", "2", "--model.base", "meta-llama/Llama-2-13b-hf")
        assert code == 2
        assert "give --shape llama-2-13b, or download the model" in err

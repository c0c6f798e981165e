"""Exports from checkpoints against those that a run writes itself at its end, byte for byte."""

from __future__ import annotations

import errno
import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from data_pipeline import load_tokenizer
from monteclora import Adapter, attach_adapter
from tests.ranks import ROOT, base_environment
from tests.unit.training.checkpoint.stored import store
from tests.unit.training.test_export import OneRank
from training.checkpoint.__main__ import main
from training.checkpoint.manifest import read_manifest
from training.config import Config, to_dict
from training.export import export, export_merged
from training.model.build import DTYPES, folder_fingerprint, random_model
from training.model.loading import load_base, replicated
from training.recipe import load_config

pytestmark = [
    # transformers 5.23 marks a property deprecated that PEFT 0.21 reads.
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`:UserWarning"),
]

LORA = ("--adapter.kind", "lora", "--adapter.rank_pattern", '{"*.q_proj" = 3}')
MONTECLORA = ("--adapter.kind", "monteclora")
IN_FULL = ("--adapter.modules_to_save", "lm_head,*norm")
MERGED = ("--checkpoint.export_merged", "true")
BF16 = ("--train.precision", "bf16")
REPLICATED = ("--train.placement", "replicated")
DRAWN = (
    "--model.base", "none", "--model.architecture.hidden_size", "16", "--model.architecture.num_heads", "2",
    "--model.architecture.num_kv_heads", "1", "--model.architecture.intermediate_size", "24",
)  # fmt: skip
CASES: dict[str, tuple[str, ...]] = {
    "full": (),
    "full bf16": BF16,
    "full without base": (*DRAWN, "--model.architecture.tie_embeddings", "false"),
    "full without base, tied, bf16": (*DRAWN, *BF16),
    "lora": LORA,
    "lora bf16": (*LORA, *BF16, *IN_FULL),
    "lora bf16 replicated": (*LORA, *BF16, *IN_FULL, *REPLICATED),
    "monteclora bf16": (*MONTECLORA, *BF16),
    "lora merged": (*LORA, *MERGED),
    "monteclora merged bf16": (*MONTECLORA, *MERGED, *BF16, *IN_FULL),
    "lora merged bf16 replicated": (*LORA, *MERGED, *BF16, *REPLICATED),
    "lora tied": (*LORA, "--adapter.modules_to_save", "lm_head", "tied"),
    "lora merged tied": (*LORA, *MERGED, "--adapter.modules_to_save", "lm_head", "tied"),
    "full tied": ("tied",),
}


@dataclass
class Run:
    """A run that has trained: its configuration, the live model, and a checkpoint."""

    config: Config
    model: Any
    adapter: Adapter | None
    checkpoint: Path

    def own_export(self) -> Path:
        """What it writes at its end."""
        tokenizer = load_tokenizer(self.config.data.tokenizer)
        write: Any = export_merged if self.config.checkpoint.export_merged else export
        path: Path = write(OneRank(self.model, self.adapter), tokenizer, self.config)
        return path


def make_run(
    recipe: Path,
    folder: Path,
    overrides: Sequence[str] = (),
    *,
    world_size: int = 1,
    states: tuple[str, ...] = ("exp_avg", "exp_avg_sq"),
) -> Run:
    """A run whose fp32 masters are anything, and whose live parameters are those in its precision."""
    overrides = list(overrides)
    if "tied" in overrides:
        overrides.remove("tied")
        shape = LlamaConfig(
            hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
            vocab_size=512, max_position_embeddings=256, tie_word_embeddings=True,
        )  # fmt: skip
        LlamaForCausalLM(shape).save_pretrained(folder / "tied")
        overrides += ["--model.base", str(folder / "tied")]
    config = load_config(recipe, [*overrides, "--run.dir", str(folder / "run")])
    dtype = DTYPES[config.train.precision]
    if config.model.base is None:
        model: Any = random_model(config.model.architecture, dtype=dtype, seed=1)
    else:
        place = replicated(dtype, torch.device("cpu"))
        model = load_base(config.model, dtype=dtype, place=place, device=torch.device("cpu"), attention="sdpa")
    chosen = config.adapter.build()
    is_sharded = config.train.placement != "replicated"
    adapter = attach_adapter(model, chosen, dtype=dtype if is_sharded else None) if chosen else None
    generator = torch.Generator().manual_seed(2)
    masters = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            masters[name] = parameter.detach().float() + 0.1 * torch.randn(parameter.shape, generator=generator)
            parameter.data = masters[name].to(parameter.dtype)
    checkpoint = store(
        config.run.dir / "checkpoints", 7, masters, world_size=world_size, states=states,
        config=to_dict(config), placement=config.train.placement,
        fingerprints={
            "base": folder_fingerprint(config.model.base),
            "tokenizer": load_tokenizer(config.data.tokenizer).fingerprint,
        },
    )  # fmt: skip
    return Run(config=config, model=model, adapter=adapter, checkpoint=checkpoint)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def logits(model: nn.Module) -> Tensor:
    with torch.no_grad():
        result: Tensor = model.eval()(torch.tensor([[1, 5, 9, 2, 30, 7]])).logits.float()
    return result


@pytest.mark.parametrize(
    ("case", "world_size"),
    [*((case, 2) for case in CASES), *((case, size) for case in ("full", "monteclora merged bf16") for size in (1, 4))],
)
def test_the_files_are_those_of_the_runs_own_export(
    tiny_recipe: Path, tmp_path: Path, case: str, world_size: int
) -> None:
    run = make_run(tiny_recipe, tmp_path, CASES[case], world_size=world_size)
    assert main(["export", str(run.config.run.dir)]) == 0
    wanted = contents(run.own_export())
    found = contents(run.config.run.dir / "export-7")
    # The run's own merged export has the adapter beside it.
    wanted = {name: content for name, content in wanted.items() if not name.startswith("adapter/")}
    assert found.keys() == wanted.keys()
    assert [name for name, content in found.items() if content != wanted[name]] == []


@pytest.mark.parametrize("case", ["full", "lora", "lora merged", "lora merged tied", "full without base, tied, bf16"])
def test_transformers_and_peft_compute_what_the_live_model_does(tiny_recipe: Path, tmp_path: Path, case: str) -> None:
    run = make_run(tiny_recipe, tmp_path, CASES[case], world_size=2)
    wanted = logits(run.model)
    out = tmp_path / "out"
    out.mkdir()
    assert main(["export", str(run.checkpoint), "--out", str(out), "--max-shard-size", "20KB"]) == 0
    if case == "lora":
        base = AutoModelForCausalLM.from_pretrained(run.config.model.base)
        torch.testing.assert_close(logits(PeftModel.from_pretrained(base, str(out))), wanted, rtol=1e-5, atol=1e-5)
        return
    assert len(list(out.glob("model-0*.safetensors"))) > 1
    loaded, report = AutoModelForCausalLM.from_pretrained(out, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    if run.adapter is None:
        assert torch.equal(logits(loaded), wanted)
    else:
        torch.testing.assert_close(logits(loaded), wanted, rtol=1e-5, atol=1e-5)


def test_files_of_a_size_are_those_of_transformers(tiny_recipe: Path, tmp_path: Path) -> None:
    run = make_run(tiny_recipe, tmp_path, world_size=2)
    run.model.save_pretrained(tmp_path / "theirs", max_shard_size="50KB")
    assert main(["export", str(run.checkpoint), "--out", str(tmp_path / "ours"), "--max-shard-size", "50KB"]) == 0
    theirs, ours = contents(tmp_path / "theirs"), contents(tmp_path / "ours")
    assert len(theirs) > 5
    assert {name for name in theirs if ours[name] != theirs[name]} == {"model.safetensors.index.json"}
    index = "model.safetensors.index.json"
    assert json.loads(ours[index]) == json.loads(theirs[index])
    assert ours.keys() - theirs.keys() == {"tokenizer.model"}


def masters_of(run: Run) -> dict[str, Tensor]:
    """The fp32 values in a checkpoint of one rank."""
    (path,) = run.checkpoint.glob("*.safetensors")
    stored = load_file(path)
    shapes = json.loads((run.checkpoint / "MANIFEST.json").read_text())["parameters"]
    return {name: stored[name].view(shape) for name, shape in shapes.items()}


class TestOtherTypes:
    def test_a_model_is_rounded_once(self, tiny_recipe: Path, tmp_path: Path) -> None:
        run = make_run(tiny_recipe, tmp_path, BF16)
        for name, dtype in {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}.items():
            assert main(["export", str(run.checkpoint), "--dtype", name, "--out", str(tmp_path / name)]) == 0
            found = load_file(tmp_path / name / "model.safetensors")
            masters = masters_of(run)
            assert found.keys() == masters.keys()
            assert all(torch.equal(value, masters[key].to(dtype)) for key, value in found.items())
            assert json.loads((tmp_path / name / "config.json").read_text())["dtype"] == str(dtype)[6:]

    def test_an_adapter_is_added_in_fp32(self, tiny_recipe: Path, tmp_path: Path) -> None:
        run = make_run(tiny_recipe, tmp_path, (*LORA, *BF16))
        out, name = tmp_path / "out", "model.layers.1.mlp.up_proj"
        assert main(["export", str(run.checkpoint), "--format", "merged", "--dtype", "fp16", "--out", str(out)]) == 0
        masters = masters_of(run)
        # As the run has it: the base is fp32 on the disk.
        base = run.model.get_parameter(f"{name}.weight").double()
        wanted = base + 2 * masters[f"{name}.lora_B"].double() @ masters[f"{name}.lora_A"].double()
        found = load_file(out / "model.safetensors")[f"{name}.weight"]
        assert found.dtype == torch.float16
        assert ((found.double() - wanted).abs() <= 2**-11 * wanted.abs() + 1e-7).all()
        again = tmp_path / "again"
        assert main(["export", str(run.checkpoint), "--format", "model", "--dtype", "fp16", "--out", str(again)]) == 0
        assert (again / "model.safetensors").read_bytes() == (out / "model.safetensors").read_bytes()

    def test_an_adapter(self, tiny_recipe: Path, tmp_path: Path) -> None:
        run = make_run(tiny_recipe, tmp_path, (*MONTECLORA, *BF16))
        assert main(["export", str(run.checkpoint), "--dtype", "fp32", "--out", str(tmp_path / "out")]) == 0
        found = load_file(tmp_path / "out" / "adapter_model.safetensors")
        name = "model.layers.0.self_attn.v_proj.lora_B"
        assert torch.equal(found[f"base_model.model.{name}.weight"], masters_of(run)[name])

    def test_values_that_a_type_does_not_have(
        self, tiny_recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        run = make_run(tiny_recipe, tmp_path)
        masters = masters_of(run)
        masters["model.norm.weight"][3] = 7e4
        again = json.loads((run.checkpoint / "MANIFEST.json").read_text())
        kept = {key: again[key] for key in ("config", "fingerprints")}
        store(run.checkpoint.parent, 8, masters, **kept)
        command = ["export", str(run.config.run.dir), "--out", str(tmp_path / "out"), "--dtype"]
        assert main([*command, "fp16"]) == 2
        assert capsys.readouterr().err.splitlines()[-1] == (
            "error: model.norm.weight has values that are infinite or no numbers in F16; try --dtype fp32"
        )
        assert not (tmp_path / "out").exists()
        assert not list(tmp_path.glob(".out*")), "nothing is left of it"
        assert main([*command, "bf16"]) == 0


def copy_of_base(run: Run, folder: Path) -> Path:
    return Path(shutil.copytree(str(run.config.model.base), folder))


class TestFiles:
    def test_base_and_tokenizer_may_have_moved(self, tiny_recipe: Path, tmp_path: Path) -> None:
        inputs = Path(shutil.copytree(tiny_recipe.parent, tmp_path / "inputs"))
        run = make_run(inputs / tiny_recipe.name, tmp_path, LORA)
        wanted = contents(run.own_export())
        moved = inputs.rename(tmp_path / "moved")
        where = ["--base", str(moved / "base"), "--tokenizer", str(moved / "tokenizer.model")]
        assert main(["export", str(run.checkpoint), "--out", str(tmp_path / "out"), *where]) == 0
        found = contents(tmp_path / "out")
        assert {name for name in wanted if found[name] != wanted[name]} == {"adapter_config.json"}
        settings = json.loads(found["adapter_config.json"])
        assert settings["base_model_name_or_path"] == str(moved / "base")

    def test_from_the_folder_one_is_in(
        self, tiny_recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        run = make_run(tiny_recipe, tmp_path, DRAWN)
        monkeypatch.chdir(run.checkpoint)
        assert main(["export", "."]) == 0
        (tmp_path / "new").mkdir()
        monkeypatch.chdir(tmp_path / "new")
        assert main(["export", "../run", "--out", "."]) == 0
        assert contents(tmp_path / "new") == contents(run.config.run.dir / "export-7")

    @pytest.mark.parametrize("is_there", [True, False])
    def test_a_link_leads_to_the_folder_that_is_written(
        self, tiny_recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], is_there: bool
    ) -> None:
        run = make_run(tiny_recipe, tmp_path, DRAWN)
        link, target = tmp_path / "link", tmp_path / "storage" / "exports"
        if is_there:
            target.mkdir(parents=True)
        link.symlink_to(target)
        assert main(["export", str(run.checkpoint), "--out", str(link)]) == 0
        assert capsys.readouterr().out == f"exported step 7 (full) to {target}\n"
        assert link.is_symlink()
        assert (link / "config.json").exists()
        assert main(["export", str(run.checkpoint), "--out", str(link)]) == 2
        assert capsys.readouterr().err == (
            f"error: --out {link}: is there already; name a new or empty folder, or remove it\n"
        )

    def test_the_newest_that_is_good_is_taken(
        self, tiny_recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        run = make_run(tiny_recipe, tmp_path, DRAWN)
        of_run = {key: read_manifest(run.checkpoint).manifest[key] for key in ("config", "fingerprints")}
        newer = store(run.checkpoint.parent, 9, {"w": torch.zeros(3)}, **of_run)
        flip_last_bit(next(newer.glob("*.safetensors")))
        (shutil.copytree(newer, newer.with_name("11")) / "MANIFEST.json").unlink()
        assert main(["export", str(run.config.run.dir)]) == 0
        told = capsys.readouterr()
        assert told.out == f"exported step 7 (full) to {run.config.run.dir}/export-7\n"
        assert [line for line in told.err.splitlines() if line.startswith("damaged")] == [
            f"damaged: {newer.with_name('11')}/MANIFEST.json: missing, so the checkpoint was never completed",
            f"damaged: {newer}/rank-00000-of-00001.safetensors: content differs from what was written (SHA-256)",
        ]
        # One that is named is taken or refused.
        assert main(["export", str(newer), "--out", str(tmp_path / "out")]) == 2
        assert capsys.readouterr().err.splitlines()[-1] == (
            f"error: {newer}: there is no undamaged checkpoint, so nothing is exported"
        )

    def test_code_that_came_with_the_base(
        self, tiny_recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
        monkeypatch.setattr(sys, "path", list(sys.path))
        base = Path(shutil.copytree(tiny_recipe.parent / "base", tmp_path / "base"))
        described = json.loads((base / "config.json").read_text()) | {
            "model_type": "special", "auto_map": {"AutoConfig": "special.Config", "AutoModelForCausalLM": "special.Model"},
        }  # fmt: skip
        (base / "config.json").write_text(json.dumps(described))
        (base / "special.py").write_text(
            "from transformers import LlamaConfig, LlamaForCausalLM\n"
            "class Config(LlamaConfig):\n    model_type = 'special'\n"
            "class Model(LlamaForCausalLM):\n    config_class = Config\n"
        )
        run = make_run(tiny_recipe, tmp_path, ("--model.base", str(base), "--model.allow_remote_code", "true"))
        assert main(["export", str(run.checkpoint)]) == 0
        found = contents(run.config.run.dir / "export-7")
        assert found == contents(run.own_export())
        assert "special.py" in found

    def test_what_a_killed_export_left_is_replaced(self, tiny_recipe: Path, tmp_path: Path) -> None:
        run = make_run(tiny_recipe, tmp_path, DRAWN)
        leftover = run.config.run.dir / ".export-7.unfinished"
        leftover.mkdir()
        (leftover / "model-00001-of-00002.safetensors").touch()
        assert main(["export", str(run.config.run.dir)]) == 0
        assert not leftover.exists()
        assert not (run.config.run.dir / "export-7" / "model-00001-of-00002.safetensors").exists()


def flip_last_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


class TestRefusals:
    @pytest.fixture
    def run(self, tiny_recipe: Path, tmp_path: Path) -> Run:
        return make_run(tiny_recipe, tmp_path, LORA, world_size=2)

    def refusal(self, capsys: pytest.CaptureFixture[str], run: Run, *options: str, path: Path | None = None) -> str:
        """What is said at the end; nothing is written."""
        before = sorted(run.config.run.dir.rglob("*"))
        assert main(["export", str(path or run.config.run.dir), *options]) == 2
        assert sorted(run.config.run.dir.rglob("*")) == before
        return capsys.readouterr().err.rpartition("error: ")[2].removesuffix("\n")

    def test_no_such_checkpoint(self, run: Run, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
        assert self.refusal(capsys, run, path=tmp_path / "nothing") == (
            f"{tmp_path}/nothing: no such folder; name a run, or a checkpoint"
        )

    def test_a_format_that_the_run_has_not(
        self, run: Run, capsys: pytest.CaptureFixture[str], tiny_recipe: Path, tmp_path: Path
    ) -> None:
        assert self.refusal(capsys, run, "--format", "full") == (
            "--format full: the run trained an adapter (lora); use merged for a model with it in, or adapter"
        )
        full = make_run(tiny_recipe, tmp_path / "full", DRAWN)
        for wanted in ("adapter", "merged"):
            assert self.refusal(capsys, full, "--format", wanted) == (
                f"--format {wanted}: the run trained no adapter (adapter.kind is none); use full"
            )
        assert main(["export", str(full.checkpoint), "--format", "model", "--out", str(tmp_path / "model")]) == 0
        assert self.refusal(capsys, full, "--base", str(tmp_path)) == (
            "--base: the run had none, it drew its weights (model.base is not set); leave it out"
        )

    def test_a_folder_that_is_in_use(self, run: Run, capsys: pytest.CaptureFixture[str]) -> None:
        for out in (run.checkpoint, run.checkpoint / "MANIFEST.json"):
            assert self.refusal(capsys, run, "--out", str(out)) == (
                f"--out {out}: is there already; name a new or empty folder, or remove it"
            )

    def test_the_base(self, run: Run, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
        missing = tmp_path / "missing"
        assert self.refusal(capsys, run, "--base", str(missing)) == (
            f"the base {missing} is not there; say with --base where it is now"
        )
        other = copy_of_base(run, tmp_path / "other")
        flip_last_bit(other / "model.safetensors")
        assert self.refusal(capsys, run, "--base", str(other)) == (
            f"{other}: holds other weights than the run was trained on; say with --base where those are"
        )
        (other / "model.safetensors").unlink()
        assert self.refusal(capsys, run, "--base", str(other)) == (
            f"the base {other}: the folder has no *.safetensors, so no weights to load; say with --base where another copy is"
        )
        described = json.loads((other / "config.json").read_text())
        copied = copy_of_base(run, tmp_path / "copied")
        (copied / "config.json").write_text(json.dumps({**described, "num_hidden_layers": 3}))
        told = self.refusal(capsys, run, "--base", str(copied)).splitlines()
        assert told[0] == f"the base {copied}: its files are not the model that its config.json describes:"
        assert told[1] == "    model.layers.2.input_layernorm.weight is missing"

    def test_a_model_of_other_parameters(self, run: Run, capsys: pytest.CaptureFixture[str]) -> None:
        manifest = json.loads((run.checkpoint / "MANIFEST.json").read_text())
        manifest["config"]["adapter"]["rank"] = 5
        kept = {key: manifest[key] for key in ("config", "fingerprints")}
        store(run.checkpoint.parent, 8, {"a": torch.ones(3)}, **kept)
        assert "/8: holds other trainable parameters than this run, for example a: (3,) there, None here" in (
            self.refusal(capsys, run)
        )

    def test_the_tokenizer(self, run: Run, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
        missing, other = tmp_path / "missing.model", tmp_path / "other.model"
        assert self.refusal(capsys, run, "--tokenizer", str(missing)) == (
            f"the tokenizer {missing} is not there; say with --tokenizer where it is now"
        )
        # A field that nobody reads.
        other.write_bytes(run.config.data.tokenizer.read_bytes() + b"\xc2\x0c\x00")
        assert self.refusal(capsys, run, "--tokenizer", str(other)) == (
            f"{other}: is another tokenizer than the run's; say with --tokenizer where that one is"
        )

    def test_a_recipe_that_is_none(self, run: Run, capsys: pytest.CaptureFixture[str]) -> None:
        store(run.checkpoint.parent, 8, {"a": torch.ones(3)}, config={"model": 3})
        assert self.refusal(capsys, run).startswith(
            f"{run.checkpoint.parent}/8: the recipe in its manifest can't be read ("
        )

    def test_storage_that_refuses(
        self, run: Run, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def full(*arguments: Any, **more: Any) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr("training.checkpoint.export.write_file", full)
        out = tmp_path / "new" / "out"
        assert self.refusal(capsys, run, "--format", "merged", "--out", str(out)) == f"{out}: No space left on device"
        assert not list(out.parent.iterdir())


@pytest.mark.parametrize("text", ["5", "GB", "0MB", "-1GB", "fiveGB", "5XB", "infGB"])
def test_a_size_that_is_none(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["export", "run", f"--max-shard-size={text}"])
    assert caught.value.code == 2
    assert f"{text!r} is no size; write a number and KB, MB, GB or TB, such as 5GB" in capsys.readouterr().err


MEMORY = """
import sys
from pathlib import Path
from training.checkpoint.__main__ import main

def peak():
    return next(int(line.split()[1]) << 10 for line in open("/proc/self/status") if line.startswith("VmHWM"))

small, *large = sys.argv[1:]
assert main(["export", small]) == 0  # what is imported on the way counts once
for path in large:
    Path("/proc/self/clear_refs").write_text("5")
    before = peak()
    assert main(["export", path, "--max-shard-size", "30MB"]) == 0
    print("took", peak() - before)
print("has", *(name for name in ("deepspeed", "peft") if name in sys.modules))
"""


def test_memory_does_not_depend_on_the_size_of_the_model(tiny_recipe: Path, tmp_path: Path) -> None:
    shape = LlamaConfig(
        hidden_size=256, intermediate_size=1024, num_hidden_layers=24, num_attention_heads=4, num_key_value_heads=4,
        vocab_size=512, max_position_embeddings=256, tie_word_embeddings=False,
    )  # fmt: skip
    LlamaForCausalLM(shape).to(torch.bfloat16).save_pretrained(tmp_path / "large")
    size = (tmp_path / "large" / "model.safetensors").stat().st_size
    large = (*BF16, "--model.base", str(tmp_path / "large"))
    runs = [
        make_run(tiny_recipe, tmp_path / "small", (*LORA, *MERGED)),
        make_run(tiny_recipe, tmp_path / "full", large, world_size=2, states=()),
        make_run(tiny_recipe, tmp_path / "merged", (*large, *LORA, *MERGED), world_size=2, states=()),
    ]
    paths = [str(run.config.run.dir) for run in runs]
    del runs
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, *paths], cwd=ROOT, env=base_environment(), capture_output=True, text=True,
        timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    taken = [int(line.split()[1]) for line in done.stdout.splitlines() if line.startswith("took")]
    # The size of the model in bf16, in which both are written.
    assert len(taken) == 2
    assert max(taken) < size / 2
    assert done.stdout.splitlines()[-1] == "has"

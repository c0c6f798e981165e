"""Folders of models: what is in them, and everything that is wrong with them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaForCausalLM

from evals.errors import EvalError
from evals.weights.folder import Folder, open_folder
from tests.permissions import locked


def test_a_folder_gives_every_tensor_in_fp32(trained_folder: Path, tiny_llama: LlamaForCausalLM) -> None:
    assert len(list(trained_folder.glob("*.safetensors"))) > 2
    folder = open_folder(trained_folder)
    wanted = {name.removeprefix("model."): p for name, p in tiny_llama.named_parameters()}
    assert folder.shapes == {name: tuple(p.shape) for name, p in wanted.items()}
    assert all(torch.equal(folder.read(name), p) for name, p in wanted.items())
    assert (folder.num_tied, folder.epsilon) == (0, 2.0**-23)
    update = folder.update("lm_head.weight")
    assert update is not None
    assert update.most == 0


def test_half_precision_is_known(base_folder: Path, tiny_llama: LlamaForCausalLM, tmp_path: Path) -> None:
    tiny_llama.to(torch.bfloat16).save_pretrained(tmp_path / "half")  # type: ignore[arg-type]
    folder = Folder(tmp_path / "half")
    assert folder.epsilon == 2.0**-7
    assert folder.read("lm_head.weight").dtype == torch.float32


def test_the_second_name_of_a_tied_weight_is_left_out(tmp_path: Path) -> None:
    tensors = {"model.embed_tokens.weight": torch.ones(4, 3), "lm_head.weight": torch.ones(4, 3)}
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text('{"tie_word_embeddings": true}')
    folder = Folder(tmp_path)
    assert (set(folder.shapes), folder.num_tied) == ({"embed_tokens.weight"}, 1)


def test_a_run_stands_for_its_export(base_folder: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "run.json").write_text("{}")
    with pytest.raises(EvalError, match=r"exported nothing yet; `python -m training.checkpoint rank .*run` reads its"):
        open_folder(run)
    base_folder.rename(run / "export")
    assert open_folder(run).label == str(run / "export")


def test_the_state_changes_with_the_files(base_folder: Path) -> None:
    before = Folder(base_folder).state
    assert Folder(base_folder).state == before
    file = base_folder / "model.safetensors"
    save_file({name: value + 1 for name, value in load_file(file).items()}, file)
    assert Folder(base_folder).state != before


class TestRefusals:
    def test_no_folder_and_no_weights(self, tmp_path: Path) -> None:
        with pytest.raises(EvalError, match="no such folder; name a model, an adapter or a run"):
            open_folder(tmp_path / "none")
        (tmp_path / "file").touch()
        with pytest.raises(EvalError, match="is a file; name"):
            open_folder(tmp_path / "file")
        with pytest.raises(EvalError, match="no safetensors there"):
            open_folder(tmp_path)
        save_file({}, tmp_path / "model.safetensors")
        with pytest.raises(EvalError, match="hold no tensors"):
            open_folder(tmp_path)

    def test_every_missing_and_damaged_file_is_told(self, trained_folder: Path) -> None:
        first, second, *_ = sorted(trained_folder.glob("*.safetensors"))
        first.unlink()
        second.write_bytes(second.read_bytes()[:100])
        with pytest.raises(EvalError) as caught:
            open_folder(trained_folder)
        assert f"{first}: is missing, and the folder's index names it" in str(caught.value)
        assert f"{second}: can't be read (" in str(caught.value)

    def test_broken_json(self, base_folder: Path) -> None:
        for content in ("{", "[]"):
            (base_folder / "config.json").write_text(content)
            with pytest.raises(EvalError, match=r"config.json: .*; copy it again"):
                open_folder(base_folder)

    def test_quantised_weights(self, tmp_path: Path) -> None:
        save_file(
            {"a.weight": torch.ones(2, 2, dtype=torch.int8), "b.weight": torch.ones(2, 2)}, tmp_path / "x.safetensors"
        )
        with pytest.raises(
            EvalError, match=r"a.weight is I8, which is no floating-point type .*before it was quantised"
        ):
            open_folder(tmp_path)

    def test_two_models_in_one(self, tmp_path: Path) -> None:
        save_file({"model.a.weight": torch.ones(2), "a.weight": torch.ones(2)}, tmp_path / "model.safetensors")
        with pytest.raises(EvalError, match="more than one model"):
            open_folder(tmp_path)

    def test_a_file_that_goes_while_it_is_read(self, base_folder: Path) -> None:
        folder = Folder(base_folder)
        (base_folder / "model.safetensors").write_bytes(b"")
        with pytest.raises(EvalError, match=r"lm_head.weight can't be read \(.*\); copy the file again"):
            folder.read("lm_head.weight")
        assert json.loads((base_folder / "config.json").read_text())


def test_a_config_that_is_nested_too_deep(base_folder: Path) -> None:
    (base_folder / "config.json").write_text("[" * 100_000)
    with pytest.raises(EvalError, match=r"config.json: can't be read as JSON .*; copy it again"):
        Folder(base_folder)


@pytest.mark.parametrize("name", ["../model.safetensors", "/etc/passwd", "a\0.safetensors"])
def test_an_index_that_leads_elsewhere(base_folder: Path, name: str) -> None:
    (base_folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": name}}))
    with pytest.raises(EvalError, match=r"index.json: names .*, which is no file of the folder; copy it again"):
        Folder(base_folder)


def test_an_index_that_names_nothing(base_folder: Path) -> None:
    (base_folder / "model.safetensors.index.json").write_text('{"weight_map": {}}')
    assert Folder(base_folder).shapes == Folder(base_folder).shapes


def test_an_index_with_a_name_that_no_file_can_have(base_folder: Path) -> None:
    (base_folder / "model.safetensors.index.json").write_text('{"weight_map": {"a": "\\ud800"}}')
    with pytest.raises(EvalError, match=r"\ufffd: is missing, and the folder's index names it"):
        Folder(base_folder)


def test_a_file_that_may_not_be_read(base_folder: Path) -> None:
    weights, config = base_folder / "model.safetensors", base_folder / "config.json"
    with locked(weights), pytest.raises(EvalError) as caught:
        open_folder(base_folder)
    assert str(caught.value) == f"{weights}: can't be read (Permission denied)"
    with locked(config), pytest.raises(EvalError, match=r"config.json: can't be read as JSON .*Permission denied"):
        open_folder(base_folder)
    weights.unlink()
    weights.symlink_to(base_folder / "gone")
    with pytest.raises(EvalError, match=r"model.safetensors: is missing, and a link names it$"):
        open_folder(base_folder)

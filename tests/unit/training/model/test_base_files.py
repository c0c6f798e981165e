from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM

from tests.unit.training.minimal import write_base, write_weights
from training.config import base_shape
from training.costs.shape import Shape, from_hugging_face
from training.model.base_files import (
    DamagedFile,
    in_order,
    listing,
    pickled_files,
    problems,
    read_header,
    read_tensors,
    weight_files,
)

SIZES: dict[str, Any] = {
    "model_type": "llama", "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 40, "tie_word_embeddings": False,
}  # fmt: skip


def shape_of(folder: Path) -> Shape:
    found = base_shape(str(folder))
    assert found is not None
    return from_hugging_face(found)


def base_of(folder: Path, change: dict[str, tuple[int, ...] | None], dtype: str = "BF16", size: int = 2) -> Path:
    """A LLaMA of SIZES with some tensors of another shape, more of them, or (None) fewer."""
    write_base(folder, **SIZES)
    shapes = {**shape_of(folder).tensors(), **change}
    write_weights(folder / "model.safetensors", {n: s for n, s in shapes.items() if s is not None}, dtype, size)
    return folder


class TestHeaders:
    @settings(max_examples=20)
    @given(
        shapes=st.lists(st.lists(st.integers(0, 5), max_size=3), max_size=4),
        dtype=st.sampled_from([torch.float64, torch.float32, torch.bfloat16, torch.float16]), has_metadata=st.booleans(),
    )  # fmt: skip
    def test_what_safetensors_writes(
        self, tmp_path_factory: pytest.TempPathFactory, shapes: list[list[int]], dtype: torch.dtype, has_metadata: bool
    ) -> None:
        path = tmp_path_factory.mktemp("x") / "some.safetensors"
        tensors = {f"t{k}": torch.randn(shape).to(dtype) for k, shape in enumerate(shapes)}
        save_file(tensors, path, {"format": "pt"} if has_metadata else None)
        found = read_header(path)
        assert {name: stored.shape for name, stored in found.items()} == {n: tuple(t.shape) for n, t in tensors.items()}
        content = path.read_bytes()
        for name, tensor in tensors.items():
            raw = tensor.flatten().view(torch.uint8).numpy().tobytes() if tensor.numel() else b""
            assert content[found[name].offset :].startswith(raw)
            assert found[name].file == path

    def damaged(self, path: Path, content: bytes) -> str:
        path.write_bytes(content)
        with pytest.raises(DamagedFile) as caught:
            read_header(path)
        return str(caught.value)

    def test_a_file_cut_off_anywhere_is_damaged(self, tmp_path: Path) -> None:
        path = tmp_path / "x.safetensors"
        save_file({"a": torch.ones(3), "b": torch.ones(2)}, path)
        content = path.read_bytes()
        data = len(content) - 20
        for size in range(len(content)):
            message = self.damaged(path, content[:size])
            if size < data:
                expected = f"is damaged or no safetensors file: its {size} bytes hold no whole header"
            else:
                expected = f"is cut off: it has {size} bytes, and its tensors end at byte {len(content)}"
            assert message == expected
        assert self.damaged(path, content + b"\0\0") == "is damaged: it has 2 bytes more than its tensors"

    @pytest.mark.parametrize(
        ("header", "reason"),
        [
            ("{", "is damaged: its header can't be read (Expecting property name"),
            ("[1]", "is damaged: its header can't be read ("),
            ('{"a": 3}', "is damaged: its header can't be read ("),
            ('{"a": {"dtype": "F32", "shape": [1]}}', "is damaged: its header can't be read ('data_offsets')"),
            (
                '{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}',
                "is damaged: its header can't be read (4 bytes for a tensor of shape [2] in F32)",
            ),
            (
                '{"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}',
                "is damaged: its header can't be read (a tensor with a negative size)",
            ),
            ("\xff", "is damaged: its header can't be read ("),
        ],
    )
    def test_a_header_that_is_none(self, tmp_path: Path, header: str, reason: str) -> None:
        text = header.encode("latin-1")
        message = self.damaged(tmp_path / "x.safetensors", len(text).to_bytes(8, "little") + text + b"\0" * 4)
        assert message.startswith(reason)

    def test_a_length_beyond_all_files(self, tmp_path: Path) -> None:
        assert (
            self.damaged(tmp_path / "x", b"\xff" * 20)
            == "is damaged or no safetensors file: its 20 bytes hold no whole header"
        )


class TestFiles:
    def test_an_index_says_which(self, tmp_path: Path) -> None:
        write_weights(tmp_path / "model-1.safetensors", {"a": (2,)})
        write_weights(tmp_path / "consolidated.safetensors", {"b": (2,)})
        index = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors", "c": "model-1.safetensors"}}
        (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
        assert weight_files(tmp_path) == [tmp_path / "model-1.safetensors", tmp_path / "model-2.safetensors"]
        tensors, wrong = read_tensors(tmp_path)
        assert list(tensors) == ["a"]
        assert wrong == ["model-2.safetensors is missing, and model.safetensors.index.json names it"]

    def test_an_index_that_names_what_is_no_file(self, tmp_path: Path) -> None:
        (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": {"a": "a\\u0000b"}}')
        assert read_tensors(tmp_path) == (
            {},
            ["model.safetensors.index.json names 'a\\x00b', which is no file: embedded null byte"],
        )

    def test_one_file_or_all_without_an_index(self, tmp_path: Path) -> None:
        assert weight_files(tmp_path) == []
        for name in ("b", "a"):
            write_weights(tmp_path / f"{name}.safetensors", {name: (1,)})
        assert [path.name for path in weight_files(tmp_path)] == ["a.safetensors", "b.safetensors"]
        write_weights(tmp_path / "model.safetensors", {})
        assert [path.name for path in weight_files(tmp_path)] == ["model.safetensors"]
        (tmp_path / "model.safetensors.index.json").write_text("no index")
        assert [path.name for path in weight_files(tmp_path)] == ["model.safetensors"]

    def test_a_tensor_that_is_there_twice(self, tmp_path: Path) -> None:
        for name in ("a", "b"):
            write_weights(tmp_path / f"{name}.safetensors", {"x": (1,)})
        assert read_tensors(tmp_path)[1] == ["x is in a.safetensors and in b.safetensors"]

    def test_pickles(self, tmp_path: Path) -> None:
        for name in ("pytorch_model-2.bin", "pytorch_model-1.bin", "optimizer.bin", "pytorch_model.bin.index.json"):
            (tmp_path / name).touch()
        assert [path.name for path in pickled_files(tmp_path)] == ["pytorch_model-1.bin", "pytorch_model-2.bin"]

    def test_a_file_that_may_not_be_read(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        write_weights(tmp_path / "model.safetensors", {})

        def refuse(self: Path, *args: Any, **kwargs: Any) -> None:
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr(Path, "open", refuse)
        assert read_tensors(tmp_path)[1] == ["model.safetensors can't be read: Permission denied"]


class TestFit:
    @pytest.mark.parametrize(
        "values",
        [
            {}, {"tie_word_embeddings": True}, {"attention_bias": True}, {"mlp_bias": True, "head_dim": 6},
            {"num_key_value_heads": 4}, {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True},
        ],
        ids=str,
    )  # fmt: skip
    def test_what_transformers_saves_fits_and_has_these_tensors(self, tmp_path: Path, values: dict[str, Any]) -> None:
        settings = {**SIZES, **values}
        del settings["model_type"]
        model = LlamaForCausalLM(LlamaConfig(**settings))
        model.save_pretrained(tmp_path, max_shard_size="5KB")
        assert problems(tmp_path, shape_of(tmp_path)) == []
        assert shape_of(tmp_path).tensors() == {name: tuple(p.shape) for name, p in model.named_parameters()}

    def test_everything_that_is_wrong_is_listed(self, tmp_path: Path) -> None:
        base = base_of(
            tmp_path,
            {
                "model.layers.1.mlp.up_proj.weight": (16, 24), "model.norm.weight": None, "lm_head.weight": (41, 16),
                "model.layers.0.self_attn.q_proj.bias": (16,), "model.layers.10.mlp.up_proj.weight": (1,),
                "model.layers.2.x": (),
            },
        )  # fmt: skip
        assert problems(base, shape_of(base)) == [
            "lm_head.weight is 41 x 16, and must be 40 x 16",
            "model.layers.0.self_attn.q_proj.bias is unexpected",
            "model.layers.1.mlp.up_proj.weight is 16 x 24, and must be 24 x 16",
            "model.layers.2.x is unexpected",
            "model.layers.10.mlp.up_proj.weight is unexpected",
            "model.norm.weight is missing",
        ]

    def test_a_number_where_a_vector_belongs(self, tmp_path: Path) -> None:
        base = base_of(tmp_path, {"model.norm.weight": ()})
        assert problems(base, shape_of(base)) == ["model.norm.weight is a single number, and must be 16"]

    def test_rotary_frequencies_and_a_tied_head_may_be_there(self, tmp_path: Path) -> None:
        base = base_of(tmp_path, {"model.layers.0.self_attn.rotary_emb.inv_freq": (2,)})
        assert problems(base, shape_of(base)) == []
        tied = json.loads((base / "config.json").read_text()) | {"tie_word_embeddings": True}
        (base / "config.json").write_text(json.dumps(tied))
        assert problems(base, shape_of(base)) == []

    def test_either_name_of_a_tied_weight_may_be_stored(self, tmp_path: Path) -> None:
        base = base_of(tmp_path, {"model.embed_tokens.weight": None, "lm_head.weight": (40, 17)})
        tied = dataclasses.replace(shape_of(base), is_tied=True)
        assert problems(base, tied) == ["lm_head.weight is 40 x 17, and must be 40 x 16"]
        write_weights(base / "model.safetensors", shape_of(base).tensors() | {"lm_head.weight": (40, 17)})
        assert problems(base, tied) == ["lm_head.weight is 40 x 17, and must be 40 x 16"]
        shapes = shape_of(base).tensors()
        del shapes["model.embed_tokens.weight"]
        write_weights(base / "model.safetensors", shapes)
        assert problems(base, tied) == []
        assert problems(base, shape_of(base)) == ["model.embed_tokens.weight is missing"]
        del shapes["lm_head.weight"]
        write_weights(base / "model.safetensors", shapes)
        assert problems(base, tied) == ["model.embed_tokens.weight is missing"]

    def test_types_that_are_no_floating_point_numbers(self, tmp_path: Path) -> None:
        base = base_of(tmp_path, {}, "I8", 1)
        found = problems(base, shape_of(base))
        assert len(found) == len(shape_of(base).tensors())
        assert found[0] == "lm_head.weight is stored as I8; only F64, F32, BF16, F16 can be trained"

    def test_what_a_damaged_file_would_hold_is_not_missing_too(self, tmp_path: Path) -> None:
        base = base_of(tmp_path, {})
        file = base / "model.safetensors"
        with file.open("rb+") as opened:
            opened.truncate(file.stat().st_size - 1)
        (found,) = problems(base, shape_of(base))
        assert found.startswith("model.safetensors is cut off: it has ")

    def test_a_base_without_safetensors_is_another_matter(self, tmp_path: Path) -> None:
        base = base_of(tmp_path, {})
        (base / "model.safetensors").unlink()
        assert problems(base, shape_of(base)) == []
        write_weights(base / "model.safetensors", {})
        assert len(problems(base, shape_of(base))) == len(shape_of(base).tensors())


def test_layers_are_listed_by_number() -> None:
    assert in_order(["m.10.a is x", "m.9.b", "m.9.a", "k"]) == ["k", "m.9.a", "m.9.b", "m.10.a is x"]


def test_a_long_list_is_cut() -> None:
    assert listing(["a", "b"]) == "\n    a\n    b"
    lines = listing([str(k) for k in range(1331)]).splitlines()
    assert lines[1:3] == ["    0", "    1"]
    assert lines[-2:] == ["    19", "    ... and 1,311 more"]

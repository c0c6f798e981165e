"""Models and adapters on disk: config.json, headers of safetensors, PEFT's and our description of an adapter."""

from __future__ import annotations

import contextlib
import functools
import io
import json
import tempfile
from pathlib import Path

import torch
from rich.console import Console

from evals.errors import EvalError
from evals.model_folder import find_model
from evals.weights.command import measure, show
from evals.weights.folder import open_folder
from evals.weights.rank import Settings
from evals.weights.unfinished import UnfinishedRows
from launch.plan.shapes import PlanError, shape_of
from monteclora.config import MonteCLoRAConfig
from monteclora.errors import AdapterError
from monteclora.peft_config import to_peft
from monteclora.stored_adapter import StoredAdapter, read_adapter, write_adapter
from tests.fuzz.folders import read
from tests.fuzz.target import Target
from tests.fuzz.targets.configurations import ROOT
from tests.unit.evals.weights.conftest import InMemory
from tests.unit.training.minimal import write_base
from training.recipe import ConfigError, load_config

LAYERS = ["model.layers.0.self_attn.q_proj", "model.layers.0.self_attn.v_proj"]
KEY = ("step", "before", "after", "share", "only_change", "wanted", "states")
"""Of a result of `evals rank`, what it depends on."""
SHAPE = {
    "model_type": "llama", "hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
    "num_key_value_heads": 2, "vocab_size": 32, "tie_word_embeddings": True,
}  # fmt: skip


@functools.cache
def _model() -> dict[str, bytes]:
    """A base whose weights are in one file, and an adapter of it, in ours and in PEFT's form."""
    with tempfile.TemporaryDirectory() as folder:
        base = write_base(Path(folder) / "base", **SHAPE)
        header_bytes = int.from_bytes((base / "model.safetensors").read_bytes()[:8], "little")
        header = json.loads((base / "model.safetensors").read_bytes()[8 : 8 + header_bytes])
        config = MonteCLoRAConfig(rank=2, targets=("q_proj", "v_proj"))
        low_rank = {f"{layer}.lora_{f}": torch.ones((2, 8) if f == "A" else (8, 2)) for layer in LAYERS for f in "AB"}
        variational = {"model.layers.0.monteclora.log_std": torch.zeros(4)}
        peft = to_peft(config, LAYERS, base_model_name="base")
        write_adapter(
            Path(folder) / "adapter",
            StoredAdapter(
                config=config,
                low_rank=low_rank,
                in_full={},
                variational=variational,
                base_fingerprint="x",
                is_ours=True,
            ),
            peft,
        )
        index = {"weight_map": dict.fromkeys(sorted(header), "model.safetensors")}
        (base / "model.safetensors.index.json").write_text(json.dumps(index))
        return {**read(Path(folder)), "header.json": json.dumps(header).encode()}


def _put_header(folder: Path) -> None:
    """A header that was altered comes into the file of weights, whose length is as before."""
    altered, path = folder / "header.json", folder / "base/model.safetensors"
    if altered.is_file() and path.is_file() and altered.read_bytes() != _model()["header.json"]:
        content, header = path.read_bytes(), altered.read_bytes()
        data = content[8 + int.from_bytes(content[:8], "little") % (len(content) + 1) :]
        path.write_bytes(len(header).to_bytes(8, "little") + header + data)


def _read_base(folder: Path) -> None:
    """As a start of training and `launch plan` look at it."""
    _put_header(folder)
    path = folder / "base"
    config = load_config(
        ROOT / "recipes/demo.toml", ["--model.base", str(path), "--data.seq_len=128"], world_size=2, needs_files=False
    )
    shape = shape_of(config)
    assert sum(shape.parameters().values()) > 0
    assert config.model.base == str(path)


def _read_folder(folder: Path) -> None:
    """As `evals rank` opens it; every tensor is read."""
    _put_header(folder)
    with contextlib.suppress(EvalError):
        find_model(folder / "adapter")
    find_model(folder / "adapter", folder / "base").identity()
    for path in (folder / "base", folder / "adapter"):
        weights = open_folder(path, otherwise=open_folder(folder / "base"))  # type: ignore[arg-type]
        for name, shape in weights.shapes.items():
            assert tuple(weights.read(name).shape) == shape


@functools.cache
def _sides() -> tuple[InMemory, InMemory]:
    """Two states of a model of three matrices."""
    draws = torch.Generator().manual_seed(0)
    names = ("layers.0.q_proj.weight", "layers.1.q_proj.weight", "lm_head.weight")
    tensors = {name: torch.randn(6, 5, generator=draws) for name in names}
    return InMemory(tensors, "A"), InMemory({name: value + 1 for name, value in tensors.items()}, "B")


def _ranks() -> dict[str, bytes]:
    """A result, and rows of one that is not finished."""
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(io.StringIO()):
        document = measure(*_sides(), Settings(), out=Path(folder) / "rank.json", step=3)
        with UnfinishedRows(Path(folder) / "more.json", {key: document[key] for key in KEY}) as unfinished:
            for row in document["rows"][:2]:
                unfinished.add(row)
        return read(Path(folder))


def _read_ranks(folder: Path) -> None:
    """Whatever was there, a comparison is what it is without, and can be shown."""
    with contextlib.redirect_stderr(io.StringIO()):
        for name in ("rank", "more"):
            document = measure(*_sides(), Settings(), out=folder / f"{name}.json", step=3)
            with (folder / "shown").open("w", encoding="utf-8") as file:
                show(document, Console(file=file, width=120))
            assert [row["name"] for row in document["rows"]] == [*_sides()[0].tensors]


def _read_adapter(folder: Path) -> None:
    """As training begins with it."""
    stored = read_adapter(folder / "adapter", LAYERS, ["model", "model.layers", *LAYERS])
    assert set(stored.layers) <= {name.rpartition(".")[0] for name in stored.low_rank}


TARGETS = [
    Target(
        name="base",
        make=_model,
        read=_read_base,
        errors=(ConfigError, PlanError),
        says=("model.base", "data.seq_len", "adapter"),
    ),
    Target(name="weights", make=_model, read=_read_folder, errors=(EvalError,), share=0.5),
    Target(name="earlier rank", make=_ranks, read=_read_ranks, errors=(EvalError,), share=0.5),
    Target(name="adapter", make=_model, read=_read_adapter, errors=(AdapterError,), share=0.5),
]

"""What is installed on every node, without importing it, and this repository's own source."""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import platform
from collections.abc import Mapping
from pathlib import Path

from launch.preflight.verdict import Judgement, fail, odd_ones, others, warn

PACKAGES = ("torch", "deepspeed", "transformers", "safetensors", "numpy", "tokenizers", "sentencepiece", "gigatoken", "datasets",
            "pyarrow", "lm_eval", "triton", "liger-kernel", "mpi4py")  # fmt: skip
ESSENTIAL = ("python", "torch", "CUDA", "NCCL", "deepspeed", "transformers", "safetensors", "numpy", "this repository")
"""What computes, talks between ranks or writes their files: another version of it on a node is a failure."""

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ("launch", "training", "monteclora", "data_pipeline", "evals")


def look() -> dict[str, str]:
    """Versions by name, and the hash of this repository's packages; "none" of what isn't installed."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "none"
    return found | {"this repository": source_hash()}


@functools.cache
def source_hash(root: Path = ROOT) -> str:
    """Of the names and contents of all Python files of the packages in `root`."""
    digest = hashlib.sha256()
    for package in SOURCES:
        for path in sorted((root / package).rglob("*.py")):
            content = path.read_bytes()
            digest.update(f"{path.relative_to(root)} {len(content)}\n".encode() + content)
    return digest.hexdigest()[:12]


def judge(versions: Mapping[str, Mapping[str, str]]) -> Judgement:
    """Whether all nodes have the same; most of them decide which is right, and the first node where none is in the majority."""
    findings = []
    for name in dict.fromkeys(name for node in versions.values() for name in node):
        of_node = {node: have.get(name, "none") for node, have in versions.items()}
        usual, odd = odd_ones(of_node)
        level = fail if name in ESSENTIAL else warn
        findings += [level(f"{_said(name, of_node[node])}, {others(of_node, odd)} {_has(usual)}", node) for node in odd]
    if not versions:
        return Judgement(check="versions", line="no node reported")
    shown = next(iter(versions.values()))
    words = [
        f"{name} {shown[name]}"
        for name in ("python", "torch", "CUDA", "NCCL", "deepspeed", "transformers")
        if shown.get(name, "none") != "none"
    ]
    return Judgement(check="versions", line=", ".join(words), findings=findings)


def _said(name: str, version: str) -> str:
    return f"has no {name}" if version == "none" else f"{name} {version}"


def _has(version: str) -> str:
    return "none" if version == "none" else version

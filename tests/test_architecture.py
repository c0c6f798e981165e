"""Who may import whom, and what must stay light: the architecture as a test."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("launch", "training", "monteclora", "data_pipeline", "evals")
MAY_IMPORT = {
    "launch": {"training", "monteclora", "evals"},
    "training": {"monteclora", "data_pipeline", "evals"},
    "monteclora": set(),
    "data_pipeline": set(),
    "evals": set(),
}
# launch plans with the torch-free part of training and of the adapters, and finds runs as collect does.
LAUNCH_MAY_IMPORT = {"training.closed_pipe", "training.config", "training.recipe", "training.record.run_record", "training.world", "training.files",
                     "training.ds_json", "training.costs.shape", "training.costs.memory", "training.costs.communication", "training.costs.flops",
                     "training.costs.fitting", "training.length", "training.inputs", "training.ranks.fabric", "training.duration", "training.origin", "monteclora.config", "evals.collect.walk", "evals.collect.sweeps", "evals.errors", "evals.json_text", "evals.results"}  # fmt: skip
MAY_IMPORT_DEEPSPEED = {"training/placements/zero3.py", "training/model/loading.py", "training/model/build.py"}
LIGHT = ("launch.plan.command", "launch.preflight.command", "training.inputs", "launch.submit.command", "launch.sweep.command", "launch.plan.table", "training.costs.memory", "training.costs.communication", "training.costs.flops",
         "training.costs.fitting", "launch.demo", "launch.__main__", "launch.status.command", "training.config", "training.recipe", "training.record.run_record",
         "training.command_line", "training.origin", "training.checkpoint.retention", "training.checkpoint.manifest", "training.checkpoint.writer_process", "training.checkpoint.__main__", "training.checkpoint.commands", "training.checkpoint.recorded",
         "monteclora.config", "monteclora.hidden_key.config", "data_pipeline.config", "evals.config", "evals.collect.table")  # fmt: skip


def sources() -> list[Path]:
    return [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]


def imports(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found.add(node.module or "")
    return found


@pytest.mark.parametrize("path", sources(), ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_follow_the_arrows(path: Path) -> None:
    package, name = path.relative_to(ROOT).parts[0], str(path.relative_to(ROOT))
    for module in imports(path):
        first = module.split(".")[0]
        if first in PACKAGES and first != package:
            assert first in MAY_IMPORT[package], f"{name} imports {module}"
            if package == "launch":
                assert module in LAUNCH_MAY_IMPORT, f"{name} imports {module}"
        if first == "deepspeed":
            assert name in MAY_IMPORT_DEEPSPEED, f"{name} imports deepspeed"
        if package == "launch":
            assert first != "torch", f"{name} imports torch"


def test_light_modules_import_no_torch() -> None:
    code = f"import sys\nfor m in {LIGHT!r}:\n    __import__(m)\n    assert 'torch' not in sys.modules, m"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_no_module_shadows_a_library() -> None:
    libraries = set(sys.stdlib_module_names) | {"torch", "numpy", "deepspeed", "transformers", "datasets", "tokenizers",
                                                "peft", "tyro", "rich", "safetensors", "sentencepiece", "accelerate"}  # fmt: skip
    shadows = [path for path in sources() if path.stem in libraries and path.stem != "__main__"]
    assert shadows == []


def test_every_package_says_what_it_is() -> None:
    for path in sources():
        assert ast.get_docstring(ast.parse(path.read_text())), f"{path} has no docstring"

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.unit.training.minimal import minimal_config
from training.main import method

ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.parametrize(
    ("loaded", "is_torn_down"), [([], True), (["training.engine"], False), (["training.engine", "mpi4py.MPI"], True)]
)
def test_the_exit_code_does_not_depend_on_the_end_of_native_libraries(loaded: list[str], is_torn_down: bool) -> None:
    program = (
        "import atexit, sys, types\n"
        "from training.main import leave\n"
        f"sys.modules.update({{name: types.ModuleType(name) for name in {loaded!r}}})\n"
        "atexit.register(print, 'torn down')\n"
        "print('said')\n"
        "leave(85)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 85, done.stderr
    assert done.stdout.split("\n")[:-1] == ["said", *(["torn down"] if is_torn_down else [])]


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ((), "adapter none"), (("--adapter.kind", "lora"), "adapter lora"),
        (("--adapter.kind", "lora", "--hidden_key.enabled", "true"), "adapter lora, HiddenKey kl"),
        (("--hidden_key.enabled", "true", "--hidden_key.compensation", "js"), "adapter none, HiddenKey js"),
        (
            ("--hidden_key.enabled", "true", "--hidden_key.compensation", "none"),
            "adapter none, HiddenKey without compensation",
        ),
    ],
)  # fmt: skip
def test_the_first_line_says_how_it_trains(tmp_path: Path, overrides: tuple[str, ...], words: str) -> None:
    assert method(minimal_config(tmp_path, *overrides)) == words

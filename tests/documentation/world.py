"""A place where the documents' commands can be typed: a checkout with short recipes, small data under the recipes' names, a shell."""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import random
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

from tests.documentation.small import RECIPES, SCRIPTS, SOURCES, smaller
from tests.inputs import documents, make_inputs, write_jsonl
from tests.ranks import ROOT, base_environment, free_port
from tests.suite_data import gsm8k, make_suite_data

IFT = """\
[run]
dir = "runs/ift"
seed = 17

[model]
base = "$DATA/models/Llama-2-7b-hf"

[data]
tokenizer = "$DATA/models/Llama-2-7b-hf/tokenizer.model"
seq_len = 256
on_bad_record = "skip"

[data.sources.gsm8k]
path = "data/gsm8k_train.jsonl.gz"
kind = "prompt"
prompt_field = "question"
response_field = "answer"
template = "Question: {question}\\nAnswer:"
weight = 0.7

[data.sources.code]
path = "data/code_alpaca_2k.jsonl.gz"
kind = "alpaca"
weight = 0.3

[train]
steps = 10
global_batch_rows = 32
"""
"""The guide on data shows its sources."""


class Done(NamedTuple):
    """What became of a command."""

    code: int
    output: str
    """Both streams."""


class World:
    """A home with a checkout, `$DATA` and `$SCRATCH`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.checkout = folder / "home" / "palimpsest"
        self.data, self.scratch = folder / "data", folder / "scratch"

    def make(self) -> None:
        """Write everything that the commands of the documents find there."""
        self.scratch.mkdir(parents=True)
        self._checkout()
        self._data()

    def _checkout(self) -> None:
        listed = subprocess.run(
            ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], cwd=ROOT, capture_output=True,
            text=True, check=True,
        ).stdout  # fmt: skip
        for name in filter(None, listed.split("\0")):
            if (ROOT / name).is_file():
                (self.checkout / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / name, self.checkout / name)
        shutil.copytree(self.checkout / "recipes", self.folder / "whole" / "recipes")
        for path in (self.checkout / "recipes").glob("*.toml"):
            path.write_text(smaller(path.read_text(), RECIPES))
        for path in (self.checkout / "slurm").glob("*.sh"):
            path.write_text(smaller(path.read_text(), SCRIPTS))
        for name, table in SOURCES.items():
            path = self.checkout / name
            path.write_text(smaller(path.read_text(), table))
        # It communicates beside the computation, which CPUs can't.
        shutil.copy(ROOT / "ds_configs/zero3_cpu.json", self.checkout / "ds_configs/zero3.json")
        self._environment()

    def _environment(self) -> None:
        """The environment of the tests as `.venv`, which make takes for complete and must not install anew."""
        real = Path(sys.executable).parent
        programs = self.checkout / ".venv" / "bin"
        programs.mkdir(parents=True)
        (programs.parent / ".complete").touch()
        for entry in real.iterdir():
            if not entry.name.startswith("python"):
                (programs / entry.name).symlink_to(entry)
        # By a link it would be another environment, for which DeepSpeed's extension is compiled anew.
        for name in ("python", "python3"):
            (programs / name).write_text(f'#!/bin/sh\nexec {real / "python"} "$@"\n')
            (programs / name).chmod(0o755)

    def _data(self) -> None:
        import torch
        from transformers import LlamaConfig, LlamaForCausalLM

        tiny = self.data / "tiny"
        tiny.mkdir(parents=True)
        make_inputs(tiny)
        model = self.data / "models" / "Llama-2-7b-hf"
        shape = LlamaConfig(
            hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=4,
            vocab_size=512, max_position_embeddings=2048, tie_word_embeddings=False,
        )  # fmt: skip
        torch.manual_seed(3)
        LlamaForCausalLM(shape).save_pretrained(model)
        shutil.copy(tiny / "tokenizer.model", model)
        texts = documents()
        draw = random.Random(17)
        pairs = [gsm8k(draw, number) for number in range(200)]
        self._lines(
            self.data / "starcoder-python/train/a.jsonl",
            [{"content": text, "id": str(k)} for k, text in enumerate(texts)],
        )
        self._lines(self.data / "gsm8k/train.jsonl", pairs)
        self._lines(
            self.data / "metamathqa/train/a.jsonl",
            [{"query": pair["question"], "response": pair["answer"]} for pair in pairs],
        )
        held_out = [gsm8k(draw, number) for number in range(200, 206)]
        (self.data / "gsm8k/test.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in held_out))
        self._lines(
            self.data / "heldout/math.jsonl",
            [{"query": pair["question"], "response": pair["answer"]} for pair in held_out],
        )
        for name in ("code", "prose"):
            write_jsonl(self.data / "heldout" / f"{name}.jsonl", texts[:6])
        make_suite_data(self.data / "evals", examples=2)
        self._looked_at(texts, pairs)

    def _looked_at(self, texts: list[str], pairs: list[dict[str, str]]) -> None:
        """The data of the guide that shows how to look at data."""
        (self.checkout / "data").mkdir()
        chats = [{"instruction": f"Write {k}.", "input": "", "output": text[:100]} for k, text in enumerate(texts)]
        for at in (3, 7):
            chats[at]["output"] = ""
        for name, records in (("gsm8k_train", pairs), ("code_alpaca_2k", chats)):
            with gzip.open(self.checkout / "data" / f"{name}.jsonl.gz", "wt") as file:
                file.writelines(json.dumps(record) + "\n" for record in records)
        (self.checkout / "ift.toml").write_text(IFT)
        (self.checkout / "hosts").write_text("localhost slots=2\n")
        damaged = self.checkout / "damaged"
        damaged.mkdir()
        write_jsonl(damaged / "a.jsonl", texts)

    @staticmethod
    def _lines(path: Path, records: list[dict[str, str]]) -> None:
        path.parent.mkdir(parents=True)
        path.write_text("".join(json.dumps(record) + "\n" for record in records))

    def damage(self) -> None:
        """Flip a bit of what was indexed, and add what can't be used."""
        path = self.checkout / "damaged" / "a.jsonl"
        content = bytearray(path.read_bytes())
        content[content.index(b"def ") + 1] ^= 1
        path.write_bytes(content)
        unusable = b'{"text": "good"}\n{"content": "x"}\n{"text": "go\xc3("}\n'
        path.with_name("b.jsonl").write_bytes(unusable)

    def environment(self, more: dict[str, str]) -> dict[str, str]:
        """Of a reader's shell, who has not activated anything yet."""
        env = base_environment() | more
        for name in ("PYTHON", "ROOT", "RECIPE", "MAKEFLAGS", "MAKELEVEL"):
            env.pop(name, None)
        cache = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
        return env | {
            "HOME": str(self.folder / "home"), "USER": "me", "WORLD": str(self.folder), "SCRATCH": str(self.scratch),
            "DATA": str(self.data), "PYTHONPATH": str(self.checkout), "XDG_CACHE_HOME": cache, "COLUMNS": "200",
        }  # fmt: skip


class Shell:
    """A shell that keeps its folder and exported variables from one command to the next, each with a time limit."""

    def __init__(self, world: World, environment: dict[str, str], name: str) -> None:
        self.world = world
        self._environment = world.environment(environment)
        self._state = world.folder / f"{name.replace('/', '-')}.state"
        self._state.write_text(f"cd {world.checkout}\n")

    def run(self, text: str, *, seconds: float = 300, **variables: str) -> Done:
        """Type a command, wait for its end; after the time limit the code is -1."""
        given = "".join(f"export {name}={shlex.quote(value)}\n" for name, value in variables.items())
        port = f"export PORT={free_port()}\n"
        keep = f'{{ export -p; printf "cd %q\\n" "$PWD"; }} > {self._state}'
        script = f". {self._state}\n{port}{given}{text}\ncode=$?\n{keep}\nexit $code\n"
        output = self._state.with_suffix(".out")
        with output.open("w") as file:
            # Written to a file: what it leaves behind in the background would hold a pipe open.
            process = subprocess.Popen(
                ["bash", "-c", script], env=self._environment, cwd=self.world.checkout, stdin=subprocess.DEVNULL, stdout=file,
                stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip
            try:
                code = process.wait(seconds)
            except subprocess.TimeoutExpired:
                code = -1
            finally:
                # First asked: what has started others in sessions of their own ends these.
                for number in (signal.SIGTERM, signal.SIGKILL):
                    with contextlib.suppress(ProcessLookupError, subprocess.TimeoutExpired):
                        os.killpg(process.pid, number)
                        process.wait(20)
        return Done(code, output.read_text(errors="replace"))

from __future__ import annotations

import shlex
import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from launch.submit.settings import WIDTH, absolute, shell_line


class TestAbsolute:
    @pytest.fixture(autouse=True)
    def here(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("THERE", "/there")
        monkeypatch.delenv("NOWHERE", raising=False)

    @pytest.mark.parametrize(
        ("given", "expected"),
        [
            (["--run.dir", "runs/a"], ["--run.dir", "{here}/runs/a"]),
            (["--run.dir=runs/a"], ["--run.dir", "{here}/runs/a"]),
            (["--run.dir", "/runs/a"], ["--run.dir", "/runs/a"]),
            (["--run.dir", "$THERE/a"], ["--run.dir", "/there/a"]),
            (["--run.dir", "$NOWHERE/a"], ["--run.dir", "$NOWHERE/a"]),
            (["--data.sources.my-text.path", "x.jsonl"], ["--data.sources.my-text.path", "{here}/x.jsonl"]),
            (["--data.sources.a.path", "s3://bucket/x"], ["--data.sources.a.path", "s3://bucket/x"]),
            (["--model.base", "meta-llama/Llama-2-7b-hf"], ["--model.base", "meta-llama/Llama-2-7b-hf"]),
            (["--model.base", "./base"], ["--model.base", "{here}/base"]),
            (["--model.base", "none"], ["--model.base", "none"]),
            (["--model.compile", "--run.seed", "-5"], ["--model.compile", "--run.seed", "-5"]),
            (["--run.dirr", "x"], ["--run.dirr", "x"]),
            (["x", "--run.dir"], ["x", "--run.dir"]),
            (["--adapter.rank", "a", "b"], ["--adapter.rank", "a", "b"]),
            ([], []),
        ],
    )  # fmt: skip
    def test_paths_only(self, tmp_path: Path, given: list[str], expected: list[str]) -> None:
        assert absolute(given) == [word.format(here=tmp_path) for word in expected]


word = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=30)


class TestShellLine:
    @settings(max_examples=60)
    @given(
        st.lists(
            st.one_of(word, st.sampled_from(["--run.dir", "--optim.lr", "it's", '"', "$HOME", "a b", "!", "\\"])),
            max_size=12,
        )
    )
    def test_the_shell_reads_the_words(self, words: list[str]) -> None:
        code = f'show() {{ printf "%s\\0" "$@"; }}\n{shell_line(["show", *words])}\n'
        done = subprocess.run(["bash"], input=code.encode(), capture_output=True, check=True)
        # printf without arguments prints its format once.
        assert done.stdout.split(b"\0")[:-1] == ([part.encode() for part in words] or [b""])

    def test_a_long_one_is_folded(self) -> None:
        words = ["train", "/a" * 40, "/b" * 20, "--optim.lr", "1e-4", "--run.dir", "/c d"]
        lines = shell_line(words).splitlines()
        assert lines == [f"train {words[1]} {words[2]} \\", "    --optim.lr 1e-4 \\", "    --run.dir '/c d'"]
        assert len(shlex.join(words)) > WIDTH
        assert shell_line(words[:2]) == shlex.join(words[:2])

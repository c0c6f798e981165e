"""The table of docs/engine.md is what the command prints."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from launch.__main__ import main

ROOT = Path(__file__).resolve().parents[3]
START = "| model | method | GPUs |"


def test_the_guide_shows_what_is_printed(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SCRATCH", "DATA"):
        monkeypatch.delenv(name, raising=False)
    assert main(["plan", str(ROOT / "recipes" / "cpt_code_llama7b.toml"), "--table"]) == 0
    printed = capsys.readouterr().out.strip().splitlines()
    assert len(printed) == 2 + 3 * 2 * 4
    guide = (ROOT / "docs" / "engine.md").read_text()
    assert START in guide
    shown = re.findall(r"^\|.*\|$", guide[guide.index(START) :].split("\n\n")[0], re.MULTILINE)
    assert shown == printed

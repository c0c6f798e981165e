"""Make the pictures of the guides from runs: of a terminal, and of the pages that runs end in. Needs chromium.

    make demo docs
    .venv-docs/bin/python tools/pictures.py runs/demo

docs/demo.png is the demo's own picture, learning_forgetting.png of its report; the table in the README is that report's.
docs/training.png is the terminal while a run of recipes/demo.toml trains, docs/status.png what `launch status` shows,
docs/collect.png the page of `evals collect`.
"""

from __future__ import annotations

import argparse
import fcntl
import html
import os
import select
import shutil
import struct
import subprocess
import sys
import tempfile
import termios
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyte

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PYTHON = str(ROOT / ".venv" / "bin" / "python")
CHROMIUM = ("chromium", "chromium-browser", "google-chrome")
COLUMNS, ROWS = 110, 40
COLORS = {
    "black": "#3b4252", "red": "#e06c75", "green": "#98c379", "brown": "#e5c07b", "blue": "#61afef", "magenta": "#c678dd",
    "cyan": "#56b6c2", "white": "#dcdfe4", "brightblack": "#828a9a", "default": "#dcdfe4",
}  # fmt: skip
BACKGROUND = "#21252b"
STYLE = "margin:0;padding:14px 18px;font:15px/20px 'DejaVu Sans Mono',monospace"
FRAME = 90
"""Least pixels of a window's height that chromium keeps from the page; they have the color of its background."""


def terminal(command: Sequence[str], *, until: str = "", seconds: float = 600) -> list[list[Any]]:
    """Run a command on a terminal of COLUMNS x ROWS; return the lines that it shows at its end, or once `until` is shown.

    Raises:
        TimeoutError: when neither has happened after so many seconds.
    """
    screen = pyte.Screen(COLUMNS, ROWS)
    stream = pyte.ByteStream(screen)
    ours, its = os.openpty()
    fcntl.ioctl(its, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
    environment = os.environ | {"TERM": "xterm-256color", "COLUMNS": str(COLUMNS)}
    child = subprocess.Popen(
        command, cwd=ROOT, stdin=its, stdout=its, stderr=its, env=environment, start_new_session=True
    )
    os.close(its)
    end = time.monotonic() + seconds
    try:
        while time.monotonic() < end:
            if not select.select([ours], [], [], 0.2)[0]:
                continue
            try:
                told = os.read(ours, 65536)
            except OSError:
                # The terminal is closed when the last process that has it is gone.
                told = b""
            stream.feed(told)
            if not told or (until and until in "\n".join(screen.display)):
                break
        else:
            raise TimeoutError(f"{' '.join(command)}: not shown after {seconds:.0f} s: {until or 'its end'}")
    finally:
        child.terminate()
        # Nobody reads any more: what it still says is refused, and does not hold it up.
        os.close(ours)
        child.wait()
    shown = [[screen.buffer[row][column] for column in range(COLUMNS)] for row in range(ROWS)]
    while shown and not "".join(char.data for char in shown[-1]).strip():
        shown.pop()
    return shown


def color(name: str) -> str:
    """A color of a terminal as one of a page."""
    plain = COLORS.get(name) or COLORS.get(name.removeprefix("bright"))
    return plain or f"#{name}"


def page_of(lines: list[list[Any]], command: str) -> str:
    """A terminal's lines below the command that was typed, as a page."""
    rows = [f'<span style="color:{COLORS["brightblack"]}">$</span> {html.escape(command)}']
    for line in lines:
        spans = []
        for char in line:
            style = f"color:{color(char.fg)}" + (";font-weight:bold" if char.bold else "")
            spans.append(f'<span style="{style}">{html.escape(char.data)}</span>')
        rows.append("".join(spans))
    text = "\n".join(rows)
    body = f'<body style="margin:0;color:{COLORS["default"]};background:{BACKGROUND}">'
    return f'<meta charset="utf-8">{body}<pre style="{STYLE}">{text}</pre>'


def picture(page: Path, out: Path, *, width: int, height: int) -> None:
    """What chromium shows of a page."""
    program = next((found for name in CHROMIUM if (found := shutil.which(name))), None)
    if program is None:
        raise SystemExit(f"no browser is here to make pictures with: install one of {', '.join(CHROMIUM)}")
    with tempfile.TemporaryDirectory() as profile:
        options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", f"--user-data-dir={profile}"]
        options += [f"--screenshot={out}", f"--window-size={width},{height}", "--virtual-time-budget=5000"]
        # Else the picture may be taken before all of the page is drawn.
        options.append("--run-all-compositor-stages-before-draw")
        subprocess.run([program, *options, page.as_uri()], check=True, capture_output=True, timeout=300)
    print(f"{out.relative_to(ROOT)}: {out.stat().st_size / 1000:.0f} kB")


def terminal_picture(lines: list[list[Any]], command: str, out: Path) -> None:
    """A picture of a terminal with these lines."""
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder) / "terminal.html"
        page.write_text(page_of(lines, command), encoding="utf-8")
        picture(page, out, width=COLUMNS * 9 + 46, height=(len(lines) + 1) * 20 + 28 + FRAME)


def main() -> int:
    """Make them all from a demo that is done."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("demo", type=Path, help="folder of a demo that is done, such as runs/demo")
    demo = parser.parse_args().demo.resolve()
    report = demo / "report" / "learning_forgetting.png"
    if not report.is_file():
        print(f"{demo}: no demo that is done is there; run `make demo` first", file=sys.stderr)
        return 2
    shutil.copyfile(report, DOCS / "demo.png")

    with tempfile.TemporaryDirectory() as folder:
        run = [PYTHON, "training/main.py", "--recipe", "recipes/demo.toml", "--adapter.kind", "lora"]
        run += ["--ds_config", "ds_configs/zero3_cpu.json", "--adapter.rank", "4", "--run.dir", f"{folder}/lora-rank4"]
        run += ["--model.base", str(demo / "base/export"), "--data.tokenizer", str(demo / "corpus/tokenizer.model")]
        run += ["--data.sources.code.path", str(demo / "corpus/code/train.jsonl"), "--eval.at_start", "false"]
        for task, domain in (("prose", "prose"), ("prose_choice", "prose"), ("code", "code"), ("code_choice", "code")):
            run += [f"--eval.tasks.{task}.path", str(demo / "corpus" / domain / "heldout.jsonl")]
        lines = terminal(run, until=" 20/160 ", seconds=1800)
    # The run's own folder is a temporary one.
    shown = [line for line in lines if folder not in "".join(char.data for char in line)]
    terminal_picture(
        shown,
        "python training/main.py --recipe recipes/demo.toml --adapter.kind lora --adapter.rank 4 …",
        DOCS / "training.png",
    )

    lines = terminal([PYTHON, "-m", "launch", "status", str(demo)], seconds=120)
    terminal_picture(lines, "python -m launch status runs/demo", DOCS / "status.png")

    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(
            [PYTHON, "-m", "evals", "collect", str(demo), "--out", folder], cwd=ROOT, check=True, timeout=300
        )
        page = Path(folder) / "index.html"
        # Paths as they are in the guides, not those of this machine.
        page.write_text(page.read_text(encoding="utf-8").replace(f"{demo.parents[1]}/", ""), encoding="utf-8")
        picture(page, DOCS / "collect.png", width=1200, height=1240)
    return 0


if __name__ == "__main__":
    sys.exit(main())

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.documentation.extraction import in_markdown
from tests.documentation.test_commands import Reader
from tests.documentation.world import Shell, World


@pytest.fixture
def world(tmp_path: Path) -> World:
    made = World(tmp_path)
    made.checkout.mkdir(parents=True)
    return made


def problems(world: World, text: str, done: set[str] | None = None) -> list[str]:
    """What is noted of a document."""
    reader = Reader(world, set() if done is None else done, "a.md", None)
    for command in in_markdown(text, "a.md"):
        reader.type(command)
    return reader.problems


GOOD = """
```bash
export SEED=17
mkdir -p runs/mine
cd runs/mine
cat > seed.txt <<'END'   # a here-document
17
END
test "$(cat seed.txt)" = $SEED && test "$PWD" = $HOME/palimpsest/runs/mine
```

```console
$ echo "3 runs in $PWD" | tail -n 1
41 runs in runs/mine
```
"""


def test_a_document_that_is_right(world: World) -> None:
    done: set[str] = set()
    assert problems(world, GOOD, done) == []
    assert "mkdir -p runs/mine" in done
    assert (world.checkout / "runs/mine/seed.txt").read_text() == "17\n"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("```bash\nls -d nothing-here\n```", "ended with 2, not 0"),
        ("```bash\npython -m launch nothing\n```", "ended with 2, not 0"),
        ("```bash\nls <step>\n```", "nothing is known for what has to be filled in (small.py, COMMANDS)"),
        ("```bash\nls … --a b\n```", "nothing is known for what has to be filled in (small.py, COMMANDS)"),
        ("```bash\necho 'Traceback (most recent call last)'\n```", "ended with a traceback"),
        ("```console\n$ echo 3 steps\n3 tokens\n```", "the document shows what is not printed any more:\n    3 tokens"),
    ],
)
def test_what_is_noted(world: World, text: str, problem: str) -> None:
    done: set[str] = set()
    (noted,) = problems(world, text, done)
    assert noted.startswith("a.md:2: ")
    assert problem in noted
    assert done == set()


def test_a_command_that_worked_is_not_typed_again(world: World) -> None:
    text = "```bash\nmkdir once\nmkdir once   # or you would see\n```"
    assert problems(world, text) == []


def test_a_command_without_end(world: World) -> None:
    shell = Shell(world, {}, "a.md")
    began = time.monotonic()
    assert shell.run("sleep 600 & sleep 500", seconds=0.5).code == -1
    assert time.monotonic() - began < 60

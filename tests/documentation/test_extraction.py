from __future__ import annotations

from pathlib import Path

import pytest

from tests.documentation.extraction import Command, UnclearBlock, commands_of, in_head, in_markdown

DOCUMENT = r"""# A guide

Typing `make nothing` in a sentence is a mention.

```bash
. .venv/bin/activate                    # first
# only a comment: make nothing
export SCRATCH=/scratch/$USER DATA=/data

python -m launch plan a.toml \
    --nodes 4      # the number of nodes
sed -n '1,3p' a.toml | head -n 1 > b.toml && make help
cat > hosts <<END
node0 slots=8
make nothing
END
for seed in 17 18; do
    python -m training.main --recipe a.toml --run.seed $seed
done
python -m evals run RUN --checkpoint <step>
echo 'one
# two'
```

- In a list:

  ```console
  $ python -m evals collect \
        runs/demo
  3 runs
  $ # a comment
  $ touch runs/demo/PREEMPT
  $ make help

  make nothing
  ```

```
PREFLIGHT=only sbatch slurm/cpt_llama7b.sh
deepspeed training/main.py … --adapter.kind lora
```

```
lora: done in 3 s, make nothing
srun: error: n1: task 0: Exited with exit code 85
```

```
#!/bin/bash
python -m launch nothing a.toml
```

```text
python -m launch nothing a.toml
```

~~~~python
import os  # make nothing
~~~~

```toml
make = "nothing"
```
"""


def texts(text: str) -> list[str]:
    return [command.words for command in in_markdown(text, "guide.md")]


def test_a_document_with_all_kinds() -> None:
    found = list(in_markdown(DOCUMENT, "guide.md"))
    assert [command.words for command in found] == [
        ". .venv/bin/activate",
        "export SCRATCH=/scratch/$USER DATA=/data",
        "python -m launch plan a.toml --nodes 4",
        "sed -n '1,3p' a.toml | head -n 1 > b.toml && make help",
        "cat > hosts <<END node0 slots=8 make nothing END",
        "for seed in 17 18; do python -m training.main --recipe a.toml --run.seed $seed done",
        "python -m evals run RUN --checkpoint <step>",
        "echo 'one",
        "python -m evals collect runs/demo",
        "touch runs/demo/PREEMPT",
        "make help",
        "PREFLIGHT=only sbatch slurm/cpt_llama7b.sh",
        "deepspeed training/main.py … --adapter.kind lora",
    ]
    by_words = {command.words: command for command in found}
    assert by_words["make help"].output == ("", "make nothing")
    assert by_words["python -m evals collect runs/demo"].output == ("3 runs",)
    assert by_words["touch runs/demo/PREEMPT"].output is None
    assert by_words[". .venv/bin/activate"].output is None
    assert found[4].text == "cat > hosts <<END\nnode0 slots=8\nmake nothing\nEND"
    assert found[7].text == "echo 'one\n# two'"
    lines = DOCUMENT.splitlines()
    for command in found:
        assert lines[command.line - 1].strip().removeprefix("$ ") == command.text.splitlines()[0]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("```\nIt says:\npython -m launch plan a.toml\n```\n", "guide.md:2: 'python -m launch plan a.toml' looks like a command, and the block does not begin with one; mark it as bash or text"),
        ("```text\ndone\n$ make demo\n```\n", "guide.md:2: '$ make demo' is a command in a block of text; mark it as console"),
        ("```console\ndone\n$ make demo\n```\n", "guide.md:2: a console block begins with its first command, after '$ '"),
        ("```fish\nmake demo\n```\n", "guide.md:2: a block in 'fish'; mark it as bash, console or text"),
        ("\n```bash\nmake demo\n", "guide.md:2: a block that has no end"),
        ("```bash\nmake demo\nfor i in 1 2; do\n```\n", "guide.md:3: 'for i in 1 2; do' begins what a shell can't read"),
        ("```console\n$ echo 'a\nb\n```\n", "guide.md:2: \"echo 'a\" is nothing that a shell can read"),
    ],
)  # fmt: skip
def test_what_cannot_be_told_is_said(text: str, problem: str) -> None:
    with pytest.raises(UnclearBlock) as error:
        texts(text)
    assert str(error.value) == problem


HEAD = """\
#!/bin/bash
# Scores a run: sbatch slurm/eval.sh RUN STEP [--suite NAME ...]
# After `make demo` (or `python -m launch demo --until base`), also with `--adapter.kind lora`:
#   python -m launch sweep recipes/a.toml --local                # here, one after another
# To stop it: touch a file PREEMPT in its folder.

# ---- Edit for your cluster
# CONTAINER="apptainer exec" PYTHON=python
source "$ROOT/slurm/job.sh"
# python -m launch nothing
"""


def test_the_head_of_a_script(tmp_path: Path) -> None:
    expected = [
        ("sbatch slurm/eval.sh RUN STEP", 2),
        ("make demo", 3),
        ("python -m launch demo --until base", 3),
        ("python -m launch sweep recipes/a.toml --local", 4),
    ]
    assert [(command.words, command.line) for command in in_head(HEAD, "eval.sh")] == expected
    path = tmp_path / "eval.sh"
    path.write_text(HEAD)
    assert [(command.words, command.line) for command in commands_of(path, "eval.sh")] == expected
    path = tmp_path / "guide.md"
    path.write_text(DOCUMENT)
    assert len(commands_of(path, "guide.md")) == 13


def test_a_command_has_its_place() -> None:
    command = Command("docs/a.md", 7, "make \\\n  demo  # now")
    assert str(command) == "docs/a.md:7: make demo"

"""How the documents' commands are tried on a small machine: what is made smaller, and the few that are not run as they stand.

Models, data and lengths are cut in the files that the commands name. Of the commands themselves only what names another
machine is changed: numbers of nodes and GPUs, host names, ports.
"""

from __future__ import annotations

import re
from typing import NamedTuple

RECIPES = (
    (r"^seq_len = \d+", "seq_len = 512"),
    (r"^tokens = [\d_]+", "tokens = 8192"),
    (r"^hidden_size = \d+", "hidden_size = 96"),
    (r"^intermediate_size = \d+", "intermediate_size = 128"),
    (r"^num_layers = \d+", "num_layers = 2"),
    (r"^rank = \d+", "rank = 4"),
    (r"^alpha = \d+", "alpha = 8"),
    (r'^"adapter.rank" = \d+', '"adapter.rank" = 4'),
    (r"^epochs = \d+", "steps = 4"),
    (r"^steps = \d+", "steps = 4"),
    (r"^global_batch_rows = \d+", "global_batch_rows = 4"),
    (r"^micro_batch_rows = \d+", "micro_batch_rows = 2"),
    (r"^log_every_steps = \d+", "log_every_steps = 1"),
    (r"^warmup = .*", 'warmup = "1 steps"'),
    (r"^warmup_steps = \d+", "warmup_steps = 1"),
    (r"^every_steps = \d+", "every_steps = 2"),
    (r"^every = .*", 'every = "4096 tokens"'),
    (r"^keep_at = \[[^\]]*\]", 'keep_at = ["4096 tokens"]'),
    (r"/checkpoints/\d+", "/checkpoints/2"),
    (r'"forgetting(@\d+)?"', '"forgetting@2"'),
    (r'^kind = "(bits_per_byte|continuation_choice|response_bits_per_byte)"(?![^[]*^max_examples)', r'\g<0>\nmax_examples = 2'),
    # A sweep has two cells: of three methods one is skipped.
    (r'^"train.steps" = \d+', '"train.steps" = 2'),
    (r'^"train.tokens" = [\d_]+', '"train.tokens" = 4096'),
    (r'^"optim.warmup_steps" = \d+', '"optim.warmup_steps" = 1'),
    (r'^"optim.warmup" = .*', '"optim.warmup" = "1 steps"'),
    (r'^"checkpoint.every_steps" = \d+', '"checkpoint.every_steps" = 2'),
    (r'^"eval.every" = .*', '"eval.every" = "4096 tokens"'),
    (r'^"checkpoint.keep_at" = .*', '"checkpoint.keep_at" = []'),
    (r'^"optim.lr" = \[.*, (\S+)\]', r'"optim.lr" = [\1]'),
    (r'^"run.seed" = \[.*, (\d+)\]', r'"run.seed" = [\1]'),
)  # fmt: skip
"""In the recipes: four steps of four rows."""

SCRIPTS = (
    (r"^#SBATCH --nodes=\d+", "#SBATCH --nodes=2"),
    (r"^#SBATCH --ntasks-per-node=\d+", "#SBATCH --ntasks-per-node=1"),
    (r"^#SBATCH --gpus-per-node=\d+.*\n", ""),
    (r"^#SBATCH --cpus-per-task=\d+", "#SBATCH --cpus-per-task=1"),
    (r"^MAX_FILES=.*", "MAX_FILES=80"),
)
"""In Slurm's scripts: two nodes without GPUs."""

SOURCES = {
    "data_pipeline/commands/demo.py": ((r"max_files: int \| None = None", "max_files: int | None = 80"),),
    "evals/harness/suites.py": ((r"\bsamples=50\b", "samples=2"),),
}
"""In the program: the demo's corpus is of eighty files, unless told otherwise, and of a programming task there are two samples."""

COMMANDS = (
    (r"/scratch/\$USER", "$WORLD/scratch"),
    (r"\bDATA=/data\b", "DATA=$WORLD/data"),
    # Nothing is started by it: the recipes as they are, and the shape of the real model.
    (r"(?<=launch plan )recipes/(?!.*--shape)(\S+)", r"$WORLD/whole/recipes/\1 --shape llama-2-7b"),
    (r"(?<=launch plan )recipes/", "$WORLD/whole/recipes/"),
    # One on each node: here two at once.
    (r"(?s)\A(torchrun --nnodes 2 .*)\Z", r"node() {\n\1\n}\nnode & first=$!; node && wait $first"),
    (r"--nproc_per_node 8\b", "--nproc_per_node 1"),
    (r"\bnode0:29500\b", "localhost:$PORT"),
    (r"^(deepspeed|torchrun) (?!--nnodes)", r"\1 --master_port $PORT "),
    (r"(?<=--hostfile hosts) (?=training)", " --no_ssh --node_rank 0 --master_addr localhost "),  # where there is no ssh
    (r"^mpirun (--hostfile hosts -n) 16\b", r"mpirun --allow-run-as-root \1 2"),
    (r"(?<=srun )(--nodes)=4 --ntasks-per-node=8 --gpus-per-node=8 --cpus-per-task=8", r"\1=2 --ntasks-per-node=1"),
    (r"(?<=launch submit )(.*) --gpu H100\b", r"\1"),
    (r"(?<=launch submit )(.*)--nodes 4\b", r"\1--nodes 2 --gpus 0 --cpus-per-task 1"),
    (r"(?<=launch sweep )(.*)--nodes [1N]\b(?: --gpus 0)?", r"\1--nodes 1 --gpus 0 --cpus-per-task 1"),
    (r"--partition gpu\b", "--partition debug"),
    (r"--array=[\d-]+%", "--array=0-1%"),
    (r"--train\.steps (20|40)\b", "--train.steps 4"),
    (r"^make fuzz\b", "make fuzz INPUTS=100"),
    (r"(?<=eval_llama7b\.sh )(\S+) 5000\b", r"\1 4"),
    (r"\bafterok:JOB\b", "afterok:$JOB"),
    (r"\bRUN STEP\b", "$SCRATCH/palimpsest/cpt-code-llama7b-none-seed17 4 --suite forgetting@2"),
    (r"\bRUN last\b", "$SCRATCH/palimpsest/cpt-code-llama7b-none-seed17 last --suite forgetting@2"),
    (r"\bSWEEP\.toml\b", "recipes/sweep_demo.toml"),
)  # fmt: skip
"""In commands: places, ports and sizes of another machine, and what a reader has to fill in."""

CODES = (
    (r"--optim\.lrr", 2),  # shown as refused
    (r"data_pipeline verify damaged$", 1),  # damage was found
)
"""Commands that end with another exit code than 0, as their document says."""

CONTENT = (
    (r"data_pipeline stats", r"│|^ +bad record:|^ +(gsm8k|code) +(gsm8k|code)"),
    (r"data_pipeline peek", r"^(?!ift\.toml: row)"),
    (r"verify-resume", r"^ \d+ +(killed|done)"),
    (r"launch sweep .*--list", r"^ +\d+ |\d+ cells: "),  # another document may have run them
    (r"launch status", r"^(tiny|local|demo-lora) |^\d+ runs:"),
)
"""Lines of shown outputs that are data."""


FRESH = (
    (r"^(?!.*preflight)(deepspeed|mpirun|torchrun).*recipes/cpt_code_llama7b\.toml", "palimpsest/cpt-code-*"),
    (r"sbatch .*slurm/cpt_llama7b\.sh|launch submit .*cpt_code_llama7b", "palimpsest/cpt-code-*"),
)
"""Trainings of the same run in several ways: what is removed before, in $SCRATCH, so that each of them trains."""


class Excepted(NamedTuple):
    """A command that is not run as it stands."""

    pattern: str
    reason: str
    covered_by: str | None
    """The test that runs what it does, as a path; None where `instead` is all."""
    instead: str | None = None
    """What is run in its place."""


EXCEPTIONS = (
    Excepted(r"^make wheelhouse ", "it fetches gigabytes", "tests/unit/tools/test_wheelhouse.py", "make -n wheelhouse"),
    Excepted(r"^make install-offline$", "it changes the environment", "tests/unit/tools/test_wheelhouse.py", "make -n install-offline"),
    Excepted(r"^pip install -e \.$", "it changes the environment", "tests/unit/tools/test_wheelhouse.py"),
    Excepted(r"^make test$", "these are the tests", None, "make -n test"),
    Excepted(r"^make check$", "it takes minutes", None, "make -n check"),
    Excepted(r"^make docs$", "it installs mkdocs", "tests/test_readme.py", "make -n docs"),
    Excepted(r"^make study$", "it takes hours", None, "make -n study"),
    Excepted(r"launch study\b", "it takes hours", None, "python -m launch study --help"),
    Excepted(r"evals claims runs/study_tiny ", "its runs take hours", "tests/documentation/test_study.py", "python -m evals claims --help"),
    Excepted(r"pytest tests/unit$", "these are the tests", None, "test -d tests/unit"),
    Excepted(r'pytest -m "not dist"$', "these are the tests", None, 'python -m pytest tests/test_architecture.py -m "not dist" --collect-only -q'),
    Excepted(r"^python -m launch submit$", "a mention without a recipe", "tests/slurm/test_submit.py"),
)  # fmt: skip


def smaller(text: str, table: tuple[tuple[str, str], ...]) -> str:
    """A text with the replacements of a table made, in its order."""
    for pattern, instead in table:
        text = re.sub(pattern, instead, text, flags=re.MULTILINE)
    return text

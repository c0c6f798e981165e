"""README, guides and CONTRIBUTING name files, commands, options, settings and headings that exist."""

from __future__ import annotations

import functools
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

from training.recipe import find_leaf, load_config

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
GUIDES = sorted(str(path.relative_to(ROOT)) for path in DOCS.rglob("*.md"))
DOCUMENTS = {
    name: (ROOT / name).read_text() for name in ["README.md", "CONTRIBUTING.md", "benchmarks/README.md", *GUIDES]
}
MODULES = ("launch", "data_pipeline", "evals", "training.checkpoint")
SECTIONS = "run|model|adapter|hidden_key|data|train|optim|checkpoint|eval|monitor"
LANGUAGES = {"bash", "console", "text", "python", "toml"}

documents = pytest.mark.parametrize("text", DOCUMENTS.values(), ids=DOCUMENTS)
guides = pytest.mark.parametrize("name", ["README.md", *GUIDES])


class Command(NamedTuple):
    """What a document says can be typed."""

    module: str
    subcommand: str
    options: tuple[str, ...]
    """Without values; settings of a recipe left out."""


def blocks(text: str) -> str:
    """What stands in fences, with lines that go on below in one."""
    found = re.findall(r"^```(?!python|toml)\w*\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    return re.sub(r" *\\\n *", " ", "\n".join(found))


def commands(text: str) -> list[Command]:
    """Commands of the packages, in fences and elsewhere."""
    inline = re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE))
    found = []
    for line in [*blocks(text).splitlines(), *inline]:
        line = re.sub(r"(^|\s)#.*", "", line)
        match = re.search(rf"-m ({'|'.join(map(re.escape, MODULES))}) ([a-z]\S*)(.*)", line)
        if match:
            words = shlex.split(match[3])
            options = tuple(word.partition("=")[0] for word in words if re.match(r"--[a-z][^.\s]*(=|$)", word))
            found.append(Command(match[1], match[2], options))
    return found


@functools.cache
def help_of(*words: str) -> str:
    """What a module answers to --help."""
    done = subprocess.run(
        [sys.executable, "-m", *words, "--help"], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_what_counts_as_a_command() -> None:
    text = """As `python -m evals collect ROOT` says:
```
$ python -m launch submit a.toml --nodes 4 \\
    --setup 'module load --force x' --optim.lr 1 --sbatch=--mail-type=END    # --not-this
torchrun --nnodes 2 -m launch preflight a.toml
lora: python is mentioned, --with an option
```
"""
    assert commands(text) == [
        Command("launch", "submit", ("--nodes", "--setup", "--sbatch")),
        Command("launch", "preflight", ()),
        Command("evals", "collect", ()),
    ]


def toml_blocks(text: str) -> list[str]:
    """Parts of recipes and sweeps."""
    return re.findall(r"^```toml\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def leaves(table: dict[str, Any], path: str = "") -> Iterator[str]:
    """Dotted names of all values of a TOML table, down to what is a setting."""
    for name, value in table.items():
        if isinstance(value, dict) and find_leaf(f"{path}{name}") is None:
            yield from leaves(value, f"{path}{name}.")
        else:
            yield f"{path}{name}"


def anchors(text: str) -> set[str]:
    """What a link can name of a document, both on a Git host and on the site."""
    prose = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    titles = [re.sub(r"[`*]", "", title).lower().strip() for title in re.findall(r"^#+ (.*)", prose, re.MULTILINE)]
    host = {re.sub(r"[^\w -]", "", title).replace(" ", "-") for title in titles}
    return host & {re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", title)) for title in titles}


@documents
def test_files_exist(text: str) -> None:
    named = re.findall(
        r"(?<![\w/.])(?:recipes|ds_configs|slurm|training|launch|docs|tools|tests)/[\w./]+\.(?:toml|json|sh|py|png|md)\b",
        text,
    )
    assert [name for name in sorted(set(named)) if not (ROOT / name).is_file()] == []


@documents
def test_settings_exist(text: str) -> None:
    named = set(re.findall(rf"(?:--|`)((?:{SECTIONS})\.[\w.]*\w)[`\s=]", text))
    refused = set(re.findall(r"--([\w.]+) \(command line\): unknown", text))
    named = {name for name in named if not name.endswith((".json", ".py"))}
    assert {name for name in named if find_leaf(name) is None} <= refused


@documents
def test_commands_exist(text: str) -> None:
    for command in commands(text):
        assert command.subcommand in help_of(command.module)
        known = set(re.findall(r"--[\w-]+", help_of(command.module, command.subcommand)))
        assert set(command.options) <= known, command


def test_there_is_something_to_check() -> None:
    text = "\n".join(DOCUMENTS.values())
    assert len({command for each in DOCUMENTS.values() for command in commands(each)}) >= 25
    assert len(set(re.findall(rf"`((?:{SECTIONS})\.\w+)`", text))) >= 100
    assert len(set(re.findall(r"(?:recipes|slurm|training|launch)/[\w./]+\.(?:toml|sh|py)\b", text))) >= 20
    assert len(re.findall(r"\]\([\w./-]+\.md(?:#[\w-]+)?\)", text)) >= 60


@pytest.mark.parametrize("name", DOCUMENTS)
def test_links_lead_somewhere(name: str) -> None:
    prose = re.sub(r"^```.*?^```", "", DOCUMENTS[name], flags=re.DOTALL | re.MULTILINE)
    for path, anchor in re.findall(r"\]\((?!\w+:)([^)#\s]*)(?:#([^)\s]+))?\)", prose):
        target = (ROOT / name).parent / path if path else ROOT / name
        assert target.exists(), path
        assert not anchor or anchor in anchors(target.read_text()), f"{path}#{anchor}"


@guides
def test_blocks_say_what_they_are(name: str) -> None:
    opening = re.findall(r"^```(\S*)\n.*?^```$", DOCUMENTS[name], re.DOTALL | re.MULTILINE)
    assert set(opening) <= LANGUAGES


@documents
def test_parts_of_recipes_have_settings_that_exist(text: str) -> None:
    for block in toml_blocks(text):
        table = tomllib.loads(block)
        if "recipe" in table:
            groups = [table["settings"], table["grid"], *table["methods"].values()]
            names = [name for group in groups for name in group] + [
                k for row in table["skip"] for k in row if k != "method"
            ]
        else:
            names = list(leaves(table))
        assert names
        assert [name for name in names if find_leaf(name) is None] == []


def test_the_recipe_of_the_guide_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATA", "/data")
    (block,) = toml_blocks(DOCUMENTS["docs/recipes.md"])
    (tmp_path / "mine.toml").write_text(block)
    config = load_config(tmp_path / "mine.toml", needs_files=False)
    assert config.run.dir.name == "lora-lr0.0002"
    assert config.train.tokens == 10**9


def test_the_guide_shows_what_a_wrong_recipe_is_told() -> None:
    (shown,) = re.findall(r"^```console\n\$ (.*?)\n\n(.*?)^```", DOCUMENTS["docs/recipes.md"], re.DOTALL | re.MULTILINE)
    words = shlex.split(shown[0].replace("\\\n", " "))
    done = subprocess.run(
        [sys.executable, *words[1:]], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 2
    told = done.stdout + done.stderr
    # Without a demo its files are missing, too.
    for line in shown[1].strip().splitlines()[1:]:
        assert line.split("(recipes/")[0] in told


def test_the_navigation_names_every_page() -> None:
    text = (ROOT / "mkdocs.yml").read_text()
    named = [target for target in re.findall(r"[\w/-]+\.md", str(yaml.safe_load(text)["nav"]))]
    assert len(named) == len(set(named))
    assert {f"docs/{name}" for name in named if not name.startswith("repository/")} == set(GUIDES)


def test_every_picture_is_small_shown_and_made_by_a_script() -> None:
    text = "\n".join(DOCUMENTS.values())
    scripts = "\n".join(
        path.read_text() for folder in ("tools", "benchmarks", "evals/claims") for path in (ROOT / folder).rglob("*.py")
    )
    pictures = sorted(DOCS.glob("*.png"))
    assert len(pictures) >= 4
    for path in pictures:
        assert path.stat().st_size < 200_000, path
        assert f"({path.name})" in text, path
        assert path.name in scripts, path


def test_the_cluster_guide_names_the_variables_of_the_jobs() -> None:
    named = set(re.findall(r"`([A-Z_]{4,})=(?:yes|no|only|[0-9])", DOCUMENTS["docs/cluster.md"])) | {
        "MAX_REQUEUES",
        "RETRIES",
    }
    scripts = "\n".join(path.read_text() for path in sorted((ROOT / "slurm").glob("*.sh")))
    assert [name for name in sorted(named) if not re.search(rf"\b{name}\b", scripts)] == []


def test_make_targets_exist() -> None:
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    text = "\n".join(DOCUMENTS.values())
    named = set(re.findall(r"^make ([\w-]+)", text, re.MULTILINE)) | set(re.findall(r"`make ([\w-]+)`", text))
    assert len(named) >= 5
    assert named <= targets


def test_the_code_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    shape = LlamaConfig(
        hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=64,
    )  # fmt: skip
    model = LlamaForCausalLM(shape)
    ids = torch.randint(0, 64, (2, 16))
    (code,) = re.findall(r"```python\n(.*?)```", DOCUMENTS["docs/adapters.md"], re.DOTALL)
    names = {"model": model, "batches": [{"input_ids": ids, "labels": ids}] * 2}
    exec(code, names)
    assert (tmp_path / "adapter" / "adapter_model.safetensors").is_file()
    certain: Any = names["certain"]
    assert certain.log_mean.shape == (2, 16, 64)
    assert (certain.mutual_information >= 0).all()

"""The command line, from arguments to exit codes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from evals.__main__ import main
from evals.encoder import load_encoder
from evals.errors import EvalError
from evals.score_folder import describe, parse_task

DEMO_TOKENIZER = Path(__file__).parents[4] / "shared" / "data" / "llama_tokenizer.model"
TEXTS = [f"number {i} of some words that are long enough {i * i}" for i in range(6)]


@pytest.fixture
def model_dir(tmp_path: Path) -> Path:
    """A tiny Llama with a tokenizer.json of one token per character."""
    folder = tmp_path / "model"
    torch.manual_seed(0)
    size = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    LlamaForCausalLM(LlamaConfig(vocab_size=130, max_position_embeddings=64, bos_token_id=1, **size)).save_pretrained(
        folder
    )
    vocabulary = {"<unk>": 0, "<s>": 1} | {chr(code): code - 30 for code in range(32, 127)}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, merges=[], unk_token="<unk>"))
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def test_run_scores_a_folder(
    model_dir: Path, jsonl: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, out = jsonl(TEXTS), tmp_path / "out.json"
    task = f"words=bits_per_byte:old:{path}"
    assert main(["run", str(model_dir), "--task", task, "--seq-len", "32", "--device", "cpu", "--out", str(out)]) == 0
    result = json.loads(out.read_text())
    words = result["tasks"]["words"]
    assert (result["schema"], result["step"], words["n"]) == (1, 0, 6)
    assert words["score"] == pytest.approx(7, abs=0.3)  # an untrained model over 130 tokens: about log2(130) bits
    assert capsys.readouterr().out.startswith(f"words: bits_per_byte {words['score']:.4f} +- ")


def test_run_prints_calibration_where_choices_are_made(
    model_dir: Path, jsonl: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    task = f"words=continuation_choice:new:{jsonl([text * 3 for text in TEXTS])}"
    out = tmp_path / "out.json"
    assert main(["run", str(model_dir), "--task", task, "--seq-len", "64", "--device", "cpu", "--out", str(out)]) == 2
    assert "do not fit into rows of 64 tokens" in capsys.readouterr().err
    config = json.loads((model_dir / "config.json").read_text()) | {"max_position_embeddings": 96}
    (model_dir / "config.json").write_text(json.dumps(config))
    assert main(["run", str(model_dir), "--task", task, "--seq-len", "96", "--device", "cpu", "--out", str(out)]) == 0
    words = json.loads(out.read_text())["tasks"]["words"]
    assert capsys.readouterr().out.rstrip().endswith(f", nll {words['nll']:.4f}, ece {words['ece']:.4f}")


def test_a_result_is_described_whatever_it_has() -> None:
    bits = {"metric": "bits_per_byte", "score": 1.5, "stderr": 0.25, "chance": None, "n": 3}
    assert describe("a", bits) == "a: bits_per_byte 1.5000 +- 0.2500 (n 3)"
    choice = {"metric": "accuracy", "score": 0.5, "stderr": None, "chance": 0.25, "n": 1}
    assert describe("b", choice) == "b: accuracy 0.5000 (n 1, chance 0.2500)"
    diverged = choice | {"nll": None, "ece": None}
    assert describe("b", diverged) == "b: accuracy 0.5000 (n 1, chance 0.2500), nll undefined, ece undefined"


def refused(arguments: list[Any], capsys: pytest.CaptureFixture[str]) -> str:
    assert main([str(a) for a in arguments]) == 2
    error = capsys.readouterr().err
    assert "error: " in error
    return error


def test_run_lists_every_problem_at_once(model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    error = refused(
        ["run", model_dir, "--task", f"a=riddle:old:{tmp_path}/no", "--batch-rows", 0, "--seq-len", 65], capsys
    )
    assert "tasks.a.kind: 'riddle' is not a kind of task" in error
    assert "tasks.a.path: no file at" in error
    assert "batch_rows: 0 rows" in error
    assert "seq_len: 65 is outside 1..64" in error


@pytest.mark.parametrize("task", ["words", "words=bits_per_byte", "words=bits_per_byte:old", "=a:b:c", "a=:old:x"])
def test_run_explains_the_form_of_a_task(model_dir: Path, task: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert "is not NAME=KIND:DOMAIN:PATH, e.g. code=" in refused(["run", model_dir, "--task", task], capsys)


def test_a_path_may_hold_a_colon() -> None:
    assert parse_task("a=bits_per_byte:old:/x:y")[1].path == Path("/x:y")


def test_run_explains_missing_models_and_tokenizers(
    model_dir: Path, jsonl: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    task = f"words=bits_per_byte:old:{jsonl(TEXTS)}"
    assert "no readable config.json" in refused(["run", tmp_path / "none", "--task", task], capsys)
    run = ["run", model_dir, "--task", task, "--seq-len", 32, "--device", "cpu"]
    assert "no tokenizer there; give a tokenizer.model or a tokenizer.json" in refused(
        [*run, "--tokenizer", tmp_path / "none"], capsys
    )
    (model_dir / "model.safetensors").unlink()
    assert "cannot be loaded as a causal language model on cpu" in refused(run, capsys)


def test_run_needs_a_beginning_of_text(
    model_dir: Path, jsonl: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    for name, old, new in (
        ("tokenizer.json", '"<s>"', '"<t>"'),
        ("config.json", '"bos_token_id": 1', '"bos_token_id": null'),
    ):
        text = (model_dir / name).read_text()
        assert old in text
        (model_dir / name).write_text(text.replace(old, new))
    run = ["run", model_dir, "--task", f"w=bits_per_byte:old:{jsonl(TEXTS)}", "--seq-len", 32, "--device", "cpu"]
    assert "neither the tokenizer nor config.json names a beginning-of-text token" in refused(run, capsys)


def test_report_prints_the_table_and_the_page(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(study)]) == 0
    out = capsys.readouterr().out
    assert "MonteCLoRA" in out
    assert "Compared with full finetuning, LoRA and MonteCLoRA learned less and forgot less." in out
    assert out.rstrip().endswith(f"report: {study}/report/index.html")
    # The report's own folder is not a run: reporting again changes nothing.
    assert main(["collect", str(study)]) == 0


def test_report_says_which_runs_are_left_out(
    study: Path, make_run: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    make_run(study, "no_end", "lora").joinpath("evals", "100.json").unlink()
    assert main(["report", str(study)]) == 0
    assert "left out: no_end: " in capsys.readouterr().out


def test_report_and_collect_explain_a_missing_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "no such folder" in refused(["report", tmp_path / "none"], capsys)
    assert "no such folder" in refused(["collect", tmp_path / "none"], capsys)
    assert "nothing to report among 0 runs" in refused(["report", tmp_path], capsys)


def test_collect_writes_files(study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["collect", str(study), "--json", str(tmp_path / "a.json"), "--csv", str(tmp_path / "a.csv")]) == 0
    assert "monteclora" in capsys.readouterr().out
    assert len(json.loads((tmp_path / "a.json").read_text())["runs"]) == 4
    assert (tmp_path / "a.csv").read_text().startswith("run,method,status")


@pytest.mark.parametrize("arguments", [[], ["dance"], ["run"], ["report"], ["collect"]])
def test_wrong_commands_exit_with_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(arguments)
    assert exit_.value.code == 2
    assert "usage: python -m evals" in capsys.readouterr().err


def test_tokenizer_json_is_read_without_special_tokens(model_dir: Path) -> None:
    encode, bos_id = load_encoder(model_dir)
    assert bos_id == 1
    assert list(encode("ab")) == [ord("a") - 30, ord("b") - 30]


def test_a_broken_tokenizer_is_explained(tmp_path: Path) -> None:
    for name in ("tokenizer.json", "tokenizer.model"):
        (tmp_path / name).write_text("{}")
        with pytest.raises(EvalError, match=f"{name}: cannot be opened as a tokenizer"):
            load_encoder(tmp_path / name)


@pytest.mark.skipif(not DEMO_TOKENIZER.is_file(), reason="the shared data folder is not beside the repository")
def test_sentencepiece_is_preferred_and_gives_its_own_ids(model_dir: Path) -> None:
    import sentencepiece

    (model_dir / "tokenizer.model").write_bytes(DEMO_TOKENIZER.read_bytes())
    encode, bos_id = load_encoder(model_dir)
    reference = sentencepiece.SentencePieceProcessor(model_file=str(DEMO_TOKENIZER))
    text = "def f(x):\n    return  x"
    assert (list(encode(text)), bos_id) == (reference.encode(text), 1)

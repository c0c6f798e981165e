"""The command line, from arguments to exit codes."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from evals import score_folder as scoring
from evals.__main__ import main
from evals.encoder import load_encoder
from evals.errors import EvalError
from evals.harness.specs import parse_specs
from evals.model_folder import find_model
from evals.results import load_run
from evals.score_request import Request, parse_task
from tests.permissions import locked

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
    shown = capsys.readouterr().out.splitlines()[-1].split()
    assert shown[:3] == ["words", "bits_per_byte", f"{words['score']:.4f}"]


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
    assert capsys.readouterr().out.split()[-2:] == [f"{words['nll']:.4f}", f"{words['ece']:.4f}"]


def refused(arguments: list[Any], capsys: pytest.CaptureFixture[str]) -> str:
    assert main([str(a) for a in arguments]) == 2
    error = capsys.readouterr().err
    assert "error: " in error
    return error


def test_run_lists_every_problem_at_once(model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    error = refused(
        ["run", model_dir, "--task", f"a=riddle:old:{tmp_path}/no", "--batch-tokens", 0, "--seq-len", 65], capsys
    )
    assert "tasks.a.kind: 'riddle' is not a kind of task" in error
    assert "tasks.a.path: no file at" in error
    assert "batch_tokens: 0 tokens" in error
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


@pytest.mark.parametrize("out", ["/proc/x.json", "/", ".", "file/x.json", "n" * 300])
def test_where_the_result_goes_is_looked_at_before_the_work(
    model_dir: Path,
    study: Path,
    out: str,
    jsonl: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def work(*_: object, **__: object) -> None:
        pytest.fail("the work has begun")

    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    for function in (
        "score_folder._loaded",
        "report.write.build_report",
        "collect.command.collect",
        "weights.rank.rank_of_change",
    ):
        monkeypatch.setattr(f"evals.{function}", work)
    run = ["run", model_dir, "--task", f"w=bits_per_byte:old:{jsonl(TEXTS)}", "--seq-len", 32, "--device", "cpu"]
    before = sorted(tmp_path.rglob("*"))
    rank = ["rank", model_dir, model_dir]
    for command, option in (
        (run, "--out"),
        (rank, "--out"),
        (["collect", study], "--json"),
        (["collect", study], "--csv"),
    ):
        assert f"error: {Path(out)}: cannot be written (" in refused([*command, option, out], capsys)
    for command in (["report", study], ["collect", study]):
        if out not in ("/", "."):
            assert f"error: {Path(out)}/index.html: cannot be written (" in refused([*command, "--out", out], capsys)
    assert "name another file with --plot" in refused([*rank, "--plot", "/proc/x.svg"], capsys)
    assert sorted(tmp_path.rglob("*")) == before


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


def test_run_scores_responses_as_the_run_learned_them(model_dir: Path, trained: Path, tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    path.write_text(json.dumps({"prompt": "a roof", "response": " of red"}) + "\n")
    (model_dir / "tokenizer_config.json").write_text('{"eos_token": "~"}')
    run = ["run", model_dir, "--task", f"answers=response_bits_per_byte:new:{path}", "--seq-len", 32, "--device", "cpu"]

    def tokens_scored(*more: object, out: Path) -> int:
        assert main([str(argument) for argument in [*run, *more]]) == 0
        (example,) = json.loads(out.read_text())["tasks"]["answers"]["examples"]
        return int(example["tokens"])

    out = tmp_path / "out.json"
    with_end = tokens_scored("--out", out, out=out)
    assert with_end == len(" of red") + 1
    record = json.loads((trained / "run.json").read_text())
    for step, eos, fewer in ((0, True, 0), (100, False, 1)):
        record["config"]["data"] = {"eos": eos}
        (trained / "run.json").write_text(json.dumps(record))
        name = trained / "evals" / f"{step}.answers.json"
        assert with_end - tokens_scored("--run", trained, "--step", step, out=name) == fewer


@pytest.fixture
def winogrande(tmp_path: Path) -> Path:
    """A folder with two WinoGrande questions."""
    question = {"sentence": "Sarah beat Maria so _ won.", "option1": "Sarah", "option2": "Maria", "answer": "1"}
    lines = [json.dumps(question | {"answer": answer}) for answer in ("1", "2")]
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "winogrande_validation.jsonl").write_text("\n".join(lines))
    return tmp_path / "data"


@pytest.fixture
def trained(model_dir: Path, make_run: Callable[..., Path], tmp_path: Path) -> Path:
    """A run that was trained with the model's tokenizer."""
    fingerprint = hashlib.sha256((model_dir / "tokenizer.json").read_bytes()).hexdigest()
    return make_run(tmp_path, "trained", tokenizer_fingerprint=fingerprint)


def test_run_scores_suites_beside_held_out_text(
    model_dir: Path, winogrande: Path, jsonl: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.json"
    arguments = ["run", model_dir, "--suite", "new=winogrande@1", "--data", winogrande, "--device", "cpu", "--out", out]
    arguments += ["--task", f"words=bits_per_byte:old:{jsonl(TEXTS)}"]
    assert main([str(argument) for argument in arguments]) == 0
    tasks = json.loads(out.read_text())["tasks"]
    assert list(tasks) == ["words", "winogrande@1"]
    assert (tasks["winogrande@1"]["kind"], tasks["winogrande@1"]["domain"]) == ("harness", "new")
    shown = capsys.readouterr().out
    assert "winogrande@1" in shown
    assert "words" in shown
    # The answers stay, and a second start goes on from them.
    assert main([str(argument) for argument in arguments]) == 0
    assert f"going on from 2 answers in {tmp_path}/out.kept.jsonl" in capsys.readouterr().out
    assert main([str(argument) for argument in [*arguments, "--seq-len", 32]]) == 0
    assert f"they are now in {tmp_path}/out.kept.other-1.jsonl" in capsys.readouterr().out


def test_a_runs_result_is_scored_once(
    model_dir: Path,
    winogrande: Path,
    trained: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    arguments = ["run", model_dir, "--suite", "winogrande", "--data", winogrande, "--device", "cpu"]
    arguments = [str(argument) for argument in [*arguments, "--run", trained, "--step", 100]]
    assert main(arguments) == 0
    result = json.loads((trained / "evals" / "100.winogrande.json").read_text())
    assert (result["step"], list(result["tasks"])) == (100, ["winogrande"])
    assert (result["model"], result["identity"]) == (str(model_dir), find_model(model_dir).identity())
    assert (trained / "evals" / "kept" / "100.winogrande.jsonl").is_file()
    monkeypatch.setattr(scoring, "load_model", lambda *_: pytest.fail("it is already scored"))
    capsys.readouterr()
    assert main(arguments) == 0
    shown = capsys.readouterr().out
    assert f"already scored at step 100 of {trained}: winogrande" in shown
    assert "0.5000" in shown
    # Both readers of results see it, beside what training wrote.
    assert {"winogrande", "code"} <= load_run(trained).result(100)["tasks"].keys()


def test_scores_of_other_weights_are_not_mixed(
    model_dir: Path, winogrande: Path, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--suite", "winogrande", "--data", winogrande, "--device", "cpu", "--run", trained, "--step", 100]
    assert main(["run", str(model_dir), *map(str, arguments)]) == 0
    path = trained / "evals" / "100.winogrande.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | {"tasks": {"before": content["tasks"]["winogrande"]}}))
    other = tmp_path / "other"
    shutil.copytree(model_dir, other)
    torch.manual_seed(1)
    LlamaForCausalLM(LlamaConfig.from_pretrained(other)).save_pretrained(other)
    error = refused(["run", other, *arguments], capsys)
    assert (
        f"{path}: holds scores of {model_dir}, whose weights are not those of {other}; give the model of that" in error
    )
    assert main(["run", str(model_dir), *map(str, arguments)]) == 0
    assert list(json.loads(path.read_text())["tasks"]) == ["before", "winogrande"]


def test_scores_of_the_same_weights_add_up_in_a_file_of_ones_own(
    model_dir: Path, winogrande: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "scores.json"
    for suite in ("winogrande@2", "winogrande@3"):
        arguments = ["--suite", suite, "--data", winogrande, "--device", "cpu", "--out", out]
        assert main(["run", str(model_dir), *map(str, arguments)]) == 0
    assert list(json.loads(out.read_text())["tasks"]) == ["winogrande@2", "winogrande@3"]
    out.write_text(json.dumps(json.loads(out.read_text()) | {"identity": "of others"}))
    assert f"{out}: holds scores of {model_dir}" in refused(["run", model_dir, *arguments], capsys)


def test_a_step_that_the_run_has_not_had(
    model_dir: Path, winogrande: Path, trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--suite", "winogrande", "--data", winogrande, "--device", "cpu", "--run", trained, "--step"]
    last = json.loads((trained / "run.json").read_text())["step"]
    for step in (last + 1, -1):
        error = refused(["run", model_dir, *arguments, step], capsys)
        assert f"has had {last} steps so far, so none of its checkpoints is of step {step}; give the step" in error


def test_a_device_that_is_not_there(model_dir: Path, winogrande: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    arguments = ["--suite", "winogrande", "--data", winogrande, "--device", "cuda"]
    assert "cannot be loaded as a causal language model on cuda" in refused(["run", model_dir, *arguments], capsys)
    arguments[-1] = "cpu"
    error = refused(["run", model_dir, *arguments, "--max-new-tokens", 0], capsys)
    assert "max_new_tokens: 0 is too small; pass --max-new-tokens 1 or more" in error


def test_help_says_where_it_runs(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["run", "--help"])
    assert "on one device or, started with torchrun, on one device of each process" in " ".join(
        capsys.readouterr().out.split()
    )


@pytest.mark.parametrize(("rank", "is_told"), [("0", True), ("1", False)])
def test_of_several_processes_the_first_tells(
    rank: str, is_told: bool, model_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RANK", rank)
    assert main(["run", str(model_dir), "--step", "3"]) == 2
    assert ("--run and --step belong together" in capsys.readouterr().err) == is_told
    # What only one knows, it tells itself.
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert main(["run", str(model_dir), "--suite", "piqa"]) == 2
    assert "WORLD_SIZE" in capsys.readouterr().err


def test_another_tokenizer_than_the_runs_is_refused(
    model_dir: Path, winogrande: Path, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "tokenizer.json").write_text((model_dir / "tokenizer.json").read_text() + "\n")
    arguments = ["run", model_dir, "--suite", "winogrande", "--data", winogrande, "--run", trained, "--step", 7]
    error = refused([*arguments, "--tokenizer", other], capsys)
    assert f"{trained}: was trained with the tokenizer" in error
    assert f"{other}/tokenizer.json is another" in error
    assert "give the run's with --tokenizer" in error
    # Of two files in a folder, the run's is taken.
    (model_dir / "tokenizer.model").write_text("not the run's")
    assert main([str(argument) for argument in [*arguments, "--device", "cpu"]]) == 0


def test_ctrl_c_says_what_is_kept(
    model_dir: Path,
    winogrande: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(scoring, "load_model", interrupt)
    arguments = ["run", str(model_dir), "--suite", "winogrande", "--data", str(winogrande)]
    for more, message in (
        (
            ["--out", str(tmp_path / "a.json")],
            f"what was answered is in {tmp_path}/a.kept.jsonl; start the same command",
        ),
        ([], "nothing is kept without --out or --run"),
    ):
        with pytest.raises(SystemExit) as exit_:
            main([*arguments, *more])
        assert exit_.value.code == 130
        assert f"interrupted; {message}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "nothing to score; name a --suite, e.g. forgetting, or a --task"),
        (["--suite", "winogrande", "--step", 3], "--run and --step belong together"),
        (["--suite", "winogrande", "--run", "nowhere", "--step", 3], "nowhere: no run.json there"),
        (["--suite", "winogrande", "--samples", 3], "are for tasks that sample"),
        (["--suite", "winogrande", "--data", "nowhere"], "nowhere: no such folder"),
    ],
)
def test_run_explains_what_cannot_be(
    arguments: list[Any], message: str, model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert message in refused(["run", model_dir, "--data", tmp_path, *arguments], capsys)


def test_a_long_request_has_a_short_name(tmp_path: Path) -> None:
    names = [f"task_{number}" for number in range(40)]
    request = Request(model=tmp_path, suites=parse_specs(["forgetting@200", *names]), run=tmp_path, step=3)
    assert len(request.name) < 90
    assert request.name.startswith("forgetting-200-task_0-task_1")
    assert Request(model=tmp_path, suites=parse_specs(["forgetting@200"])).name == "forgetting-200"


def test_a_name_says_each_limit_once(tmp_path: Path) -> None:
    def name(*texts: str) -> str:
        return Request(model=tmp_path, suites=parse_specs(texts)).name

    assert name("arc_challenge:5@5") == "arc_challenge-5-5"
    assert name("arc_challenge@5") == "arc_challenge-5"
    assert name("forgetting@5", "piqa@9") == "forgetting-5-piqa-9" != name("forgetting@9", "piqa@5")
    assert name("forgetting", "learning-code") == "forgetting-learning-code"


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


@pytest.mark.parametrize("command", ["run", "rank", "report"])
def test_paths_that_cannot_be_looked_at(command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    private, long = tmp_path / "private", tmp_path / ("n" * 300)
    private.mkdir()
    more = {"run": ["--suite", "forgetting"], "rank": [private], "report": ["--out", tmp_path / "out"]}[command]
    with locked(private):
        for path in (private, private / "x"):
            assert f"error: {path}" in (error := refused([command, path, *more], capsys))
            assert error.endswith(": Permission denied\n")
    assert refused([command, long, *more], capsys).endswith(": File name too long\n")

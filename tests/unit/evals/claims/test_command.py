"""The command: its files, what stays of notes, and its messages."""

from __future__ import annotations

import itertools
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from evals.__main__ import main
from evals.claims.command import run_claims
from evals.claims.document import WRITTEN_BY
from evals.claims.estimates import UNDECIDED
from evals.claims.figures import draw
from evals.claims.result import evaluate
from evals.claims.study import read_study
from evals.errors import EvalError
from tests.unit.evals.claims.synthetic import STUDY, Method, make_study

SMALL = {
    "full": Method(learned=0.6, forgotten=0.4, k=50),
    "lora_r4": Method(kind="lora", rank=4, learned=0.4, forgotten=0.1),
}
GOLDEN = Path(__file__).with_name("golden.md")


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A study of two methods at one rate, named relatively."""
    monkeypatch.chdir(tmp_path)
    make_study(tmp_path / "runs", SMALL, rates=(3e-4,), seeds=(1, 2), budgets=(16, 32), documents=20)
    return Path("runs")


def test_the_document_of_a_small_study(small: Path) -> None:
    run_claims([small], Path("docs/study.md"))
    assert Path("docs/study.md").read_text() == GOLDEN.read_text()


def test_cells_count_what_was_scored(small: Path) -> None:
    run = Path("runs/code-full-lr0.0003-seed2")
    (run / "evals" / "32.json").unlink()
    lines = (run / "metrics.jsonl").read_text().splitlines()
    (run / "metrics.jsonl").write_text("".join(f"{line}\n" for line in lines[:16]))
    content = json.loads((run / "run.json").read_text()) | {"status": "running", "step": 16}
    (run / "run.json").write_text(json.dumps(content))
    run_claims([small], Path("study.md"))
    (row,) = [
        line for line in Path("study.md").read_text().splitlines() if line.startswith("| full finetuning | 0.0003 |")
    ]
    # Of the two runs one came to the end; the other's loss on the way is not mixed in.
    assert row.startswith("| full finetuning | 0.0003 | 1 | 0 | 32 k | ")
    assert row.endswith(" | 2.419 |")


def test_the_table_says_what_chance_and_the_correction_make_of_it(small: Path) -> None:
    run_claims([small], Path("study.md"))
    text = Path("study.md").read_text()
    said = re.search(
        r"Of the (\d+) comparisons that can have a verdict, (\S+) would have one by chance if no method differed from another. "
        r"(\d+) have one, (\d+) of them also when all comparisons are corrected for \(Holm\)\.",
        text,
    )
    assert said is not None
    content = json.loads(Path("study/claims.json").read_text())
    findings = [finding for claim in content["claims"] for finding in claim["findings"]]
    decided = [f for f in findings if f["measured"]["verdict"] != UNDECIDED]
    kept = [f for f in findings if f["verdict_holm"] != UNDECIDED]
    assert said.groups() == (str(len(findings)), f"{0.05 * len(findings):.2g}", str(len(decided)), str(len(kept)))
    lost = [f for f in decided if f not in kept]
    assert 0 < len(lost) < len(findings)
    assert text.count("<br>corrected: **undecided**") == len(lost)


def test_of_a_rank_that_cannot_be_the_outcome_was_certain(tmp_path: Path) -> None:
    methods = {"full": Method(k=100), "lora_r64": Method(kind="lora", rank=64)}
    make_study(tmp_path / "runs", methods, rates=(3e-4,), budgets=(16, 32), documents=20)
    run_claims([tmp_path / "runs"], tmp_path / "study.md")
    assert (
        "corrected for (Holm); of 1 of these the outcome was certain beforehand." in (tmp_path / "study.md").read_text()
    )


def test_files_that_were_not_committed_are_said(small: Path) -> None:
    path = small / "code-full-lr0.0003-seed1" / "run.json"
    content = json.loads(path.read_text())
    content["git"]["changed_files"] = 2
    path.write_text(json.dumps(content))
    run_claims([small], Path("study.md"))
    assert (
        "of which 4 count below, 1 of them with uncommitted files; 0 of these diverged" in Path("study.md").read_text()
    )


def test_a_document_that_is_no_text(small: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("study.md").write_bytes(b"\xff\xfe")
    assert main(["claims", str(small), "--out", "study.md"]) == 2
    assert "--out study.md: cannot be read as text in UTF-8; name another file" in capsys.readouterr().err


def test_figures_do_not_go_among_runs(small: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(small, "more/of/runs")
    before = sorted(Path().rglob("*"))
    for out in ("runs.md", "more.md", "more/of.md", "runs/code-full-lr0.0003-seed1.md"):
        assert main(["claims", str(small), "--out", out]) == 2
        assert (
            f"--out {out}: its figures would go among the runs in {out[:-3]}; name another file"
            in capsys.readouterr().err
        )
    assert sorted(Path().rglob("*")) == before


@pytest.mark.parametrize("damage", [{"rank": [[1]]}, {"rank": [["x", 2]] * 3}, {"full_rank": None}, {"share": "x"}])
def test_damaged_ranks_are_left_out(small: Path, damage: dict[str, object]) -> None:
    path = small / "code-full-lr0.0003-seed1" / "weights" / "rank-32.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | damage))
    found = [
        each for each in run_claims([small], Path("study.md")).findings if each.what.startswith("rank of the change")
    ]
    assert {finding.tokens for finding in found} == {16_000}, "the last step of which both runs have a rank"


def test_written_twice_all_files_are_the_same(small: Path, tmp_path: Path) -> None:
    contents = []
    for _ in range(2):
        run_claims([small], Path("docs/study.md"))
        contents.append(
            {path.name: path.read_bytes() for path in sorted((tmp_path / "docs").rglob("*.*")) if path.is_file()}
        )
    assert contents[0] == contents[1]
    assert set(contents[0]) == {
        "study.md",
        "claims.json",
        "learned_forgotten.svg",
        "learns_less.svg",
        "forgets_less.svg",
        "ranks.svg",
    }
    assert json.loads(contents[0]["claims.json"])["schema"] == 1
    # Nothing of the machine is in it, its folders least of all.
    assert not any(str(tmp_path).encode() in content for content in contents[0].values())


def test_every_figure_that_is_shown_is_there(small: Path) -> None:
    run_claims([small], Path("docs/study.md"))
    text = Path("docs/study.md").read_text()
    shown = {line.rpartition("(")[2].rstrip(")") for line in text.splitlines() if line.startswith("![")}
    assert shown == {f"study/{path.name}" for path in Path("docs/study").glob("*.svg")}


def test_folders_are_shown_as_seen_from_here(small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "docs" / "deep" / "study.md"
    run_claims([tmp_path / "runs"], out)
    assert "python -m evals claims runs --out docs/deep/study.md " in out.read_text()
    assert str(tmp_path) not in out.read_text()
    # Folders elsewhere are of this machine, and are not named.
    monkeypatch.chdir(tmp_path / "docs")
    run_claims([tmp_path / "runs"], out)
    assert "python -m evals claims runs --out deep/study.md " in out.read_text()
    assert str(tmp_path) not in out.read_text()


def noted(text: str, section: str, note: str) -> str:
    """A document with a note in a section."""
    found, marker, end = re.split(rf"(<!-- notes: {section}[^\n]*-->\n)", text)
    return f"{found}{marker}{note}\n{end}"


def test_notes_stay_and_are_marked_as_notes(small: Path) -> None:
    out = Path("study.md")
    run_claims([small], out)
    out.write_text(noted(noted(out.read_text(), "overview", "Written by hand.\n\nTwice."), "claim 4", "About ranks."))
    run_claims([small], out)
    text = out.read_text()
    for section, note in (("overview", "Written by hand.\n\nTwice."), ("claim 4", "About ranks.")):
        pattern = rf"\n\n\*\*Note\*\* \(written by hand\):\n\n<!-- notes: {section}, for [0-9a-f]{{6}} -->\n{note}\n<!-- end of notes -->\n"
        assert re.search(pattern, text)
    assert text.count("**Note**") == 2
    assert "verdicts were others" not in text
    run_claims([small], out)
    assert out.read_text() == text


def test_notes_on_other_verdicts_are_said_to_be_old(small: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = Path("study.md")
    run_claims([small], out)
    out.write_text(noted(noted(out.read_text(), "claim 1", "It holds."), "claim 2", "This, too."))
    shutil.rmtree("runs")
    make_study(Path("runs"), SMALL | {"full": Method(learned=0.3, forgotten=0.4, k=50)}, rates=(3e-4,), seeds=(1, 2),
               budgets=(16, 32), documents=20)  # fmt: skip
    capsys.readouterr()
    for _ in range(2):
        run_claims([small], out)
        text, warnings = out.read_text(), capsys.readouterr().err.splitlines()
        assert (
            text.count("The note below was written when the verdicts were others.\n\n**Note** (written by hand):") == 1
        )
        before, _, after = text.partition("It holds.")
        assert "verdicts were others" in before
        assert "verdicts were others" not in after
        assert warnings == [
            'warning: study.md: the note in "claim 1" was written when the verdicts were others; once it is true again, take '
            '", for …" out of its marker'
        ]
    # A marker without a digest, as in documents of earlier commits, is of the present verdicts.
    out.write_text(re.sub(", for [0-9a-f]+ -->", " -->", text))
    run_claims([small], out)
    assert "verdicts were others" not in out.read_text()
    assert "It holds." in out.read_text()
    assert capsys.readouterr().err == ""


def test_notes_that_could_be_lost_are_refused(small: Path) -> None:
    out = Path("study.md")
    whole = GOLDEN.read_text()
    out.write_text(whole.replace("<!-- end of notes -->", "", 1))
    with pytest.raises(EvalError, match=r"study.md: a marker <!-- notes: … --> is without its <!-- end of notes -->"):
        run_claims([small], out)
    out.write_text(noted(whole, "claim 4", "mine").replace("<!-- notes: claim 4,", "<!-- notes: claim 40,"))
    with pytest.raises(EvalError, match=r"notes in sections that the document does not have \(claim 40\); move them"):
        run_claims([small], out)
    assert "mine" in out.read_text()


def test_a_file_of_somebody_else_is_not_overwritten(small: Path) -> None:
    Path("mine.md").write_text("# Mine\n")
    with pytest.raises(
        EvalError, match=r"mine.md: was not written by this command, so it is not overwritten; name another"
    ):
        run_claims([small], Path("mine.md"))
    assert Path("mine.md").read_text() == "# Mine\n"


def test_the_command_line(small: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["claims", "runs", "--out", "docs/study.md"]) == 0
    out = capsys.readouterr().out
    assert "1. LoRA learns less than full finetuning\n   code, learned, against full finetuning: holds\n" in out
    assert "   code: not measured: no runs with LoRA + HiddenKey\n" in out
    assert out.endswith("written: docs/study.md, docs/study/claims.json and its figures\n")
    assert Path("docs/study.md").read_text().startswith(WRITTEN_BY)


def test_messages(small: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["claims", "runs", "--out", "study.html"]) == 2
    assert "--out study.html: the document is Markdown; name a file that ends in .md" in capsys.readouterr().err
    assert main(["claims", "nowhere", "--out", "study.md"]) == 2
    assert "no such folder" in capsys.readouterr().err
    Path("file").write_text("")
    assert main(["claims", "runs", "--out", "file/study.md"]) == 2
    assert "cannot be written (" in capsys.readouterr().err


def test_legends_name_every_method_and_labels_stay_in_the_figure(tmp_path: Path) -> None:
    noisy = {"noisy": replace(STUDY["monteclora"], noise_scale=5e-3)}
    # One panel with labels that are long, then two.
    make_study(tmp_path / "one", STUDY | noisy, seeds=(1, 2), budgets=(4, 8, 16, 32))
    legends_fit({each.name: each.figure for each in draw(evaluate(read_study([tmp_path / "one"])))})
    make_study(tmp_path / "two", STUDY, seeds=(1, 2), budgets=(4, 8, 16, 32))
    make_study(tmp_path / "two", STUDY, source="pairs", source_kind="prompt", seeds=(1, 2), budgets=(4, 8, 16, 32))
    study = read_study([tmp_path / "two"])
    drawn = {each.name: each.figure for each in draw(evaluate(study))}
    assert set(drawn) == {
        "learned_forgotten",
        "learns_less",
        "forgets_less",
        "regularises",
        "hidden_key",
        "learning_rates",
        "ranks",
    }
    (legend,) = drawn["learned_forgotten"].legends
    assert {text.get_text() for text in legend.get_texts()} == {arm.label for arm in study.panels[0].arms}
    legends_fit(drawn)


def legends_fit(drawn: dict[str, Any]) -> None:
    for figure in drawn.values():
        figure.draw_without_rendering()
        for axes in figure.axes:
            labels = [label.get_window_extent() for label in axes.get_xticklabels()]
            assert not any(a.overlaps(b) for a, b in itertools.pairwise(labels))
            for text in (axes.xaxis.label, axes.yaxis.label, axes._left_title):
                box = text.get_window_extent()
                assert figure.bbox.x0 <= box.x0 <= box.x1 <= figure.bbox.x1
                assert figure.bbox.y0 <= box.y0 <= box.y1 <= figure.bbox.y1
        (legend,) = figure.legends
        box = legend.get_window_extent()
        assert figure.bbox.x0 <= box.x0 <= box.x1 <= figure.bbox.x1

"""`python -m evals rank`, from arguments to files, and going on after it was stopped."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from evals.__main__ import main
from evals.errors import EvalError
from evals.weights import command, rank
from evals.weights.command import measure, parse_modules, result_path, usable_device
from evals.weights.rank import Settings

Captured = pytest.CaptureFixture[str]


def test_a_comparison_is_printed_and_written(
    base_folder: Path, trained_folder: Path, tmp_path: Path, capsys: Captured
) -> None:
    out, plot = tmp_path / "out" / "rank.json", tmp_path / "out" / "map.svg"
    arguments = ["rank", str(base_folder), str(trained_folder), "--device", "cpu"]
    assert main([*arguments, "--out", str(out), "--plot", str(plot)]) == 0
    told, document = capsys.readouterr(), json.loads(out.read_text())
    lines = told.out.splitlines()
    assert lines[0].strip() == "rank of the change: k for 90 % of its squared spectrum"
    cells = next(line.split() for line in lines if line.split()[:1] == ["1"])
    assert [int(cell) for cell in cells[1::2]] == document["rank"][1]
    shares = [100 * k / full for k, full in zip(document["rank"][1], document["full_rank"][1], strict=True)]
    assert cells[2::2] == [f"{share:.0f}%" for share in shares]
    (q_proj,) = [line for line in lines if line.startswith("  q_proj: ")]
    ks = sorted(row[0] for row in document["rank"])
    assert q_proj.endswith(f"change {ks[0]} / {ks[1]} / {ks[1]} of 32")
    assert any(line.startswith(f"lm_head.weight: k {document['rows'][-1]['rank']['change']} of 32 (") for line in lines)
    assert "1 of 16 matrices did not change at all; their rank is 0." in lines
    assert lines[-2:] == [f"written: {out}", f"written: {plot}"]
    assert "100 % done" in told.err
    assert plot.read_text().startswith("<?xml")


def test_into_a_run(base_folder: Path, trained_folder: Path, tmp_path: Path, capsys: Captured) -> None:
    arguments = ["rank", str(base_folder), str(trained_folder), "--run", str(tmp_path / "run"), "--step", "40"]
    assert main([*arguments, "--modules", "q_proj, down_*", "--share", "0.5", "--only-change"]) == 0
    document = json.loads((tmp_path / "run" / "weights" / "rank-40.json").read_text())
    assert (document["step"], document["share"], document["modules"]) == (40, 0.5, ["q_proj", "down_proj"])
    assert "W before" not in capsys.readouterr().out
    # Nothing is left beside it.
    assert [path.name for path in (tmp_path / "run" / "weights").iterdir()] == ["rank-40.json"]


def test_without_a_file_it_is_only_printed(
    base_folder: Path, trained_folder: Path, tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = set(tmp_path.rglob("*"))
    monkeypatch.chdir(tmp_path)
    assert main(["rank", str(base_folder), str(trained_folder), "--modules", "lm_head"]) == 0
    assert set(tmp_path.rglob("*")) == before
    assert capsys.readouterr().out.startswith("lm_head.weight: k ")


def test_an_interruption_says_how_to_go_on(
    base_folder: Path, trained_folder: Path, tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(rank, "compare", interrupted)
    for more, told in (
        ([], "interrupted; nothing is kept without --out or --run"),
        (["--out", str(tmp_path / "x.json")], "interrupted; start the same command to go on from there"),
    ):
        with pytest.raises(SystemExit) as caught:
            main(["rank", str(base_folder), str(trained_folder), *more])
        assert caught.value.code == 130
        assert capsys.readouterr().err.splitlines()[-1] == told


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["--share", "1.5"], "share 1.5: must be between 0 and 1"),
        (["--modules", "gate"], "--modules gate: fits no matrix; there are q_proj, k_proj"),
        (["--run", "x"], "--run and --step belong together"),
        (["--step", "3"], "--run and --step belong together"),
        (
            ["--run", "x", "--step", "3", "--out", "y"],
            "--out and --run both say where the result goes; give one of them",
        ),
        (["--plot", "x.gif"], "--plot x.gif: ends in none of .svg, .png, .pdf; name the file so"),
        (["--device", "abacus"], "--device abacus: can't be used here ("),
        (["--base", "nowhere"], "nowhere: no safetensors there"),
    ],
)
def test_wrong_requests_exit_with_2(
    base_folder: Path, trained_folder: Path, capsys: Captured, arguments: list[str], error: str
) -> None:
    assert main(["rank", str(base_folder), str(trained_folder), *arguments]) == 2
    assert f"error: {error}" in capsys.readouterr().err


class TestGoingOn:
    @pytest.fixture
    def sides(self, in_memory: Callable[..., Any]) -> tuple[Any, Any]:
        torch.manual_seed(0)
        tensors = {f"layers.{i}.{name}.weight": torch.randn(6, 5) for i in range(3) for name in ("q_proj", "up_proj")}
        changed = {name: value + torch.randn(6, 5) for name, value in tensors.items()}
        return in_memory(tensors, "A"), in_memory(changed, "B")

    def test_a_second_start_goes_on_where_the_first_was_stopped(
        self, sides: tuple[Any, Any], tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        out, num_compared = result_path(tmp_path, 3), 0
        compare = rank.compare

        def stopped(*args: Any, **more: Any) -> dict[str, Any]:
            nonlocal num_compared
            if num_compared == 4:
                raise KeyboardInterrupt
            num_compared += 1
            return compare(*args, **more)

        monkeypatch.setattr(rank, "compare", stopped)
        with pytest.raises(KeyboardInterrupt):
            measure(*sides, Settings(), out=out, step=3)
        assert not out.exists()
        monkeypatch.setattr(rank, "compare", compare)
        sides[0].read_names.clear()
        found = measure(*sides, Settings(), out=out, step=3)
        assert len(sides[0].read_names) == 2
        assert f"{out}: going on after 4 matrices of an earlier start" in capsys.readouterr().err
        wanted = measure(*sides, Settings(), step=3)
        for row in (*found["rows"], *wanted["rows"]):
            row.pop("seconds")
        assert found == wanted
        assert list(out.parent.iterdir()) == [out]

    def test_a_result_that_is_there_is_not_measured_again(self, sides: tuple[Any, Any], tmp_path: Path) -> None:
        out = tmp_path / "rank.json"
        found = measure(*sides, Settings(), out=out)
        sides[1].read_names.clear()
        assert measure(*sides, Settings(), out=out) == found
        assert sides[1].read_names == []
        for settings in (Settings(share=0.8), Settings(only_change=True), Settings(modules=("q_*",))):
            again = measure(*sides, settings, out=out)
            assert again["share"] == settings.share
            assert sides[1].read_names
            sides[1].read_names.clear()
        sides[1].state = "trained on"
        measure(*sides, Settings(modules=("q_*",)), out=out)
        assert sides[1].read_names
        out.write_text("[]")
        assert measure(*sides, Settings(), out=out)["rank"] == found["rank"]

    def test_damaged_rows_are_measured_anew(self, sides: tuple[Any, Any], tmp_path: Path) -> None:
        out = tmp_path / "rank.json"
        whole = measure(*sides, Settings(), out=out)
        text = out.read_text()
        damages: list[Callable[[dict[str, Any]], Any]] = [
            lambda found: found["rows"][2].pop("rank"),
            lambda found: found["rows"][2].update(layer="x"),
            lambda found: found["rows"][2]["rank"].update(change=10**400),
            lambda found: found["rows"].__setitem__(2, "x"),
            lambda found: found["rows"][2].update(name=["x"]),
            lambda found: found.update(rank=3),
            lambda found: found.pop("rows"),
        ]
        for number, damage in enumerate(damages):
            out.write_text(text)
            sides[0].read_names.clear()
            damage(found := json.loads(text))
            out.write_text(json.dumps(found))
            again = measure(*sides, Settings(), out=out)
            assert len(sides[0].read_names) == (0 if number == 5 else 6 if number == 6 else 1)
            assert again["rank"] == whole["rank"]
            assert json.loads(out.read_text()) == again

    def test_damaged_rows_of_an_earlier_start_are_measured_anew(self, sides: tuple[Any, Any], tmp_path: Path) -> None:
        out = tmp_path / "rank.json"
        whole = measure(*sides, Settings(), out=out)
        key = {name: whole[name] for name in ("step", "before", "after", "share", "only_change", "wanted", "states")}
        lines = [key, *whole["rows"], {"name": ["x"]}, {"name": whole["rows"][0]["name"]}, 3]
        out.with_name(".rank.json.rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        out.unlink()
        sides[0].read_names.clear()
        assert measure(*sides, Settings(), out=out)["rank"] == whole["rank"]
        assert len(sides[0].read_names) == 1

    def test_rows_of_an_earlier_start_that_are_no_file(self, sides: tuple[Any, Any], tmp_path: Path) -> None:
        (tmp_path / ".rank.json.rows.jsonl").mkdir()
        with pytest.raises(
            EvalError, match=r"\.rank\.json\.rows\.jsonl: cannot be written \(Is a directory\); remove it"
        ):
            measure(*sides, Settings(), out=tmp_path / "rank.json")

    def test_numbers_that_json_has_no_word_for_are_measured_anew(self, sides: tuple[Any, Any], tmp_path: Path) -> None:
        out = tmp_path / "rank.json"
        whole = measure(*sides, Settings(), out=out)
        key = {name: whole[name] for name in ("step", "before", "after", "share", "only_change", "wanted", "states")}
        lines = [key, whole["rows"][0] | {"relative_change": float("nan")}]
        out.with_name(".rank.json.rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        out.unlink()
        assert measure(*sides, Settings(), out=out)["relative_change"] == whole["relative_change"]

    def test_w_before_of_another_result_is_taken_over(self, sides: tuple[Any, Any], tmp_path: Path) -> None:
        earlier = measure(*sides, Settings())
        for row in earlier["rows"]:
            row["rank"]["before"] = 77

        def before(share: float) -> set[int]:
            found = measure(*sides, Settings(share=share), earlier=earlier)
            return {row["rank"]["before"] for row in found["rows"]}

        assert before(0.9) == {77}
        assert 77 not in before(0.8)
        sides[0].state = "another"
        assert 77 not in before(0.9)


def test_small_things() -> None:
    assert parse_modules("") == ()
    assert parse_modules("q_proj, *.mlp.* ,") == ("q_proj", "*.mlp.*")
    assert usable_device("auto") == ("cuda" if torch.cuda.is_available() else "cpu")
    assert usable_device("cpu") == "cpu"
    with pytest.raises(EvalError, match="leave it out to use what there is"):
        usable_device("cuda:99")
    assert command.result_path(Path("run"), 5) == Path("run/weights/rank-5.json")

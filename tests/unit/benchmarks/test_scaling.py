"""The page on scaling: its tables are those of its results, the predictions are still made, and what measures growth measures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import scaling, scaling_growth, scaling_pictures, scaling_predictions
from benchmarks.scaling import GROWTH, PAGE, PREDICTIONS, merged, renewed
from benchmarks.scaling_growth import Growth, in_a_process, lengthen, looked, slope_of, usage, write_documents
from benchmarks.scaling_predictions import Published, comparison, limits, plan_json, predict
from benchmarks.scaling_tables import sections, short, slope, table
from launch.plan.shapes import known_shape
from launch.plan.units import decimal, duration


@pytest.fixture(scope="module")
def predicted() -> dict[str, Any]:
    return json.loads(PREDICTIONS.read_text())


@pytest.fixture(scope="module")
def growth() -> list[dict[str, Any]]:
    return json.loads(GROWTH.read_text())["growth"]


def test_the_page_has_the_tables_of_its_results(predicted: dict[str, Any], growth: list[dict[str, Any]]) -> None:
    page = PAGE.read_text()
    assert renewed(page, sections(predicted, growth)) == page, "python benchmarks/scaling.py writes it anew"


@pytest.mark.parametrize(
    ("model", "kind", "nodes"),
    [("llama-2-7b", "none", 1), ("llama-2-13b", "lora", 128), ("llama-2-70b", "none", 8), ("llama-3-8b", "monteclora", 32)],
)  # fmt: skip
def test_the_plan_still_says_so(predicted: dict[str, Any], model: str, kind: str, nodes: int) -> None:
    (kept,) = (
        each for each in predicted["predictions"]
        if (each["model"], each["kind"], each["gpus"]) == (model, kind, 8 * nodes)
    )  # fmt: skip
    assert json.loads(json.dumps(predict(model, kind, nodes))) == kept


def test_published_trainings_are_still_predicted_so(predicted: dict[str, Any]) -> None:
    compared = comparison()
    assert json.loads(json.dumps(compared)) == predicted["comparison"]
    assert scaling_predictions.error_groups(compared) == predicted["groups"]
    assert scaling_predictions.weak_scaling() == predicted["weak_scaling"]


def test_what_the_page_says_of_the_errors() -> None:
    # All but those of which the conditions are known in part.
    independent = [
        each for each in comparison() if not each["made_from"] and each["source"] in ("llm-foundry", "ml-engineering")
    ]
    hopper = [each for each in independent if each["gpu"] != "A100"]
    plain = [each["error"] for each in hopper if each["recomputed"] == 0]
    assert -0.08 <= min(plain) <= max(plain) <= 0.08
    again = [
        each["error"]
        for each in hopper
        if each["recomputed"] == 1 and each["source"] == "llm-foundry" and each["model"] != "MPT-7B"
    ]
    assert (round(min(again), 2), round(max(again), 2)) == (-0.26, -0.12)
    older = [each["error"] for each in comparison() if each["gpu"] == "A100" and each["method"] == "full"]
    assert (round(min(older), 2), round(max(older), 2)) == (-0.39, -0.20)


def test_a_published_training_is_planned_as_it_was_done() -> None:
    shape = known_shape("llama-2-7b")
    one = Published(
        source="s", model="7B", shape=shape, gpus=16, gpu="H100", seq_len=2048, rows=4, tokens_per_second=1.0, recomputed=0.5,
        micro_batches=3,
    )  # fmt: skip
    costs = one.predict()
    assert (costs.setup.ranks, costs.setup.ranks_per_node, costs.setup.recomputed_layers) == (16, 8, 16)
    assert (costs.micro_batches, costs.tokens) == (3, 16 * 4 * 3 * 2048)
    assert one.error == pytest.approx(costs.tokens_per_second / 16 - 1)


def test_what_limits() -> None:
    chosen = {"network_seconds": 1.0, "compute_seconds": 2.0}
    found = {"recommended": chosen, "fits_computing_once": True, "rows": 192, "gpus": 64}
    assert limits(found) == ["computing"]
    assert limits(found | {"recommended": chosen | {"network_seconds": 3.0}}) == ["network"]
    assert limits(found | {"fits_computing_once": False, "gpus": 192}) == ["memory", "batch"]
    assert limits(found | {"recommended": None}) == ["memory"]


def test_a_refused_plan_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(RuntimeError, match="launch plan refused --nodes 0"):
        plan_json("--nodes", "0")
    assert "--nodes 0: must be at least 1" in capsys.readouterr().err


def test_slopes() -> None:
    assert slope_of((10, 100, 1000), (3, 30, 300)) == pytest.approx(1)
    assert slope_of((1, 2, 4), (5, 20, 80)) == pytest.approx(2)
    assert slope_of((1, 10, 100), (7, 7, 7)) == pytest.approx(0)
    assert slope_of((1, 2, 4), (0, 1, 2)) is None
    found = Growth(area="a", size="s", figure="f", sizes=(1, 10, 100), values=(9, 10, 100), expected=1.0)
    assert found.last == pytest.approx(1)
    assert found.slope == pytest.approx(0.5229, abs=1e-4)


def test_a_page_is_renewed_between_its_markers() -> None:
    page = "before\n<!-- begin: one -->\nold\n<!-- end: one -->\nafter\n"
    new = renewed(page, {"one": ["a", "b"]})
    assert new == "before\n<!-- begin: one -->\n\na\nb\n\n<!-- end: one -->\nafter\n"
    assert renewed(new, {"one": ["a", "b"]}) == new
    with pytest.raises(ValueError, match="the page has places for one, and there is one, two"):
        renewed(page, {"one": [], "two": []})


def test_areas_that_are_measured_again_take_the_place_of_their_old_figures() -> None:
    old = [{"area": "runs", "n": 1}, {"area": "tokens", "n": 2}, {"area": "gone", "n": 3}]
    new = [{"area": "runs", "n": 4}, {"area": "ranks", "n": 5}]
    assert [each["n"] for each in merged(old, new)] == [2, 5, 4]


def test_a_page_is_not_written_of_half_the_areas(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, growth: list[dict[str, Any]]
) -> None:
    some = [each for each in growth if each["area"] not in ("ranks", "sweeps")]
    (tmp_path / "growth.json").write_text(json.dumps({"growth": some}))
    monkeypatch.setattr(scaling, "GROWTH", tmp_path / "growth.json")
    monkeypatch.setattr(scaling, "PAGE", tmp_path / "none.md")
    monkeypatch.setattr("sys.argv", ["scaling.py"])
    scaling.main()
    assert capsys.readouterr().out == (
        "the page is not written: ranks, sweeps not measured yet (--measure ranks sweeps)\n"
    )


def test_what_is_beyond_the_measured_sizes_is_on_a_straight_line(
    predicted: dict[str, Any], growth: list[dict[str, Any]]
) -> None:
    """With numpy's line through the last two points."""

    def at(size: str, figure: str, number: float) -> float:
        (each,) = (each for each in growth if (each["size"], each["figure"]) == (size, figure))
        return float(np.polyval(np.polyfit(each["sizes"][1:], each["values"][1:], 1), number))

    rows = {line.split(" | ")[0][2:]: line for line in sections(predicted, growth)["breaks"]}
    runs = "run directories"
    memory = at(runs, "collect, peak memory, MiB", 1e4) / 1024
    assert (
        f": {duration(at(runs, 'collect, processor seconds', 1e4))} and {memory:.2f} GiB for 10,000"
        in rows["many runs"]
    )
    assert f"about {at('ranks', 'sockets of rank 0', 1024) + 1024:,.0f} at 1,024" in rows["open files of rank 0"]
    manifest = at("ranks", "bytes of a checkpoint's manifest", 1024)
    assert f": {decimal(manifest)} at 1,024 ranks" in rows["a checkpoint's manifest"]
    index = at("documents", "index, bytes on disk", 1e9)
    assert f": {decimal(index)} on disk" in rows["an index of 10⁹ documents"]


def test_the_minutes_of_a_checkpoint_are_those_of_its_parts(
    predicted: dict[str, Any], growth: list[dict[str, Any]]
) -> None:
    (line,) = (line for line in sections(predicted, growth)["breaks"] if line.startswith("| a 70B checkpoint |"))
    size = 552e9
    # Written and read back at 1 GB/s, and an eighth of it hashed in every rank both times.
    write, hashed = size / 1e9, size / 8 / 0.67e9
    assert (
        f"after {duration(2 * (write + hashed))} from one node: written in {duration(write)}, read back in as many"
        in line
    )
    assert f"hashed both times, {duration(hashed)} each" in line


def test_tables() -> None:
    assert table(("a", "b"), [("x", "1")], 1) == ["| a | b |", "|---|--:|", "| x | 1 |"]
    assert [short(value) for value in (0.12345, 3.0, 45.67, 1234.5)] == ["0.123", "3", "45.7", "1,234"]
    assert [slope(value) for value in (None, -0.001, 0.994, -1.0)] == ["–", "0.00", "0.99", "-1.00"]


def test_pictures_are_drawn(predicted: dict[str, Any], growth: list[dict[str, Any]], tmp_path: Path) -> None:
    scaling_pictures.draw_hours(predicted["predictions"], tmp_path / "hours.png")
    scaling_pictures.draw_growth(growth, tmp_path / "growth.png")
    for name in ("hours", "growth"):
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert f"](scaling_{name}.png)" in PAGE.read_text()
        assert PAGE.with_name(f"scaling_{name}.png").exists()


def test_documents_are_indexed_and_read_in_processes_of_their_own(tmp_path: Path) -> None:
    from benchmarks.data_corpus import tokenizer_files

    data = tmp_path / "data"
    write_documents(data, 100)
    texts = [json.loads(line)["text"] for file in data.iterdir() for line in file.read_text().splitlines()]
    assert len(set(texts)) == 100
    tokenizer, _ = tokenizer_files(tmp_path)
    indexed, opened, batch = (
        in_a_process(task, str(data), str(tokenizer)) for task in ("index", "open", "first_batch")
    )
    assert indexed["index_bytes"] == opened["index_bytes"] > 0
    assert batch["state_bytes"] > 8
    assert all(each["cpu_seconds"] > 0 and each["memory"] >= 0 for each in (indexed, opened, batch))


def test_commands_are_looked_at(tmp_path: Path) -> None:
    ballast = bytearray(200 * 2**20)
    used = usage("launch", "--help")
    assert 0 < used.cpu_seconds < 60
    # Its own memory, and not that of this process.
    assert 5 < used.peak_mib < 150
    assert len(ballast)
    with pytest.raises(RuntimeError, match=f"launch status {tmp_path}/none ended with 2"):
        usage("launch", "status", f"{tmp_path}/none")
    figures = list(looked("a", "s", (1, 2, 4), {"name": [used] * 3}, {"processor": 1.0, "memory": 0.0}))
    assert [each.figure for each in figures] == ["name, processor seconds", "name, peak memory, MiB"]
    assert figures[1].values == (used.peak_mib,) * 3


def test_a_log_is_lengthened(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    file.write_text('{"step": 4, "loss": 1.0}\n{"step": 8, "loss": 2.0}\n')
    lengthen(file, 5)
    entries = [json.loads(line) for line in file.read_text().splitlines()]
    assert [(each["step"], each["loss"]) for each in entries] == [(1, 1.0), (2, 2.0), (3, 1.0), (4, 2.0), (5, 1.0)]


@pytest.mark.dist
def test_steps_on_ranks_are_measured(tmp_path: Path) -> None:
    cases = [{"seq_len": 32, "rows": 1, "times": 2, "placement": "replicated", "is_weighed": True}]
    first, second = scaling_growth.on_ranks(2, cases, tmp_path)
    for (found,) in (first, second):
        assert found["wire"] == pytest.approx(found["predicted_wire"], rel=1e-3)
        assert found["peak"] > found["held"] > 0
        # Four numbers of eight bytes, there and back, half of them to the other.
        assert (found["boundary_bytes"], found["boundary_calls"]) == (32, 1)
        assert found["cpu_seconds"] > 0
        assert found["sockets"] > 0

"""The page's pure functions (numbers, model, axes) in Node, against Python's and NumPy's."""

from __future__ import annotations

import csv
import io
import json
import random
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from evals import formatting as fmt
from evals.collect import page, published
from tests.unit.evals.collect.page_document import make_document

NODE = shutil.which("node")
SOURCES = [
    Path(page.__file__).with_name(name)
    for name in ("app_numbers.js", "app_model.js", "app_axes.js", "app_spread.js", "app_pareto.js")
]
pytestmark = pytest.mark.skipif(NODE is None, reason="node is not installed")


def javascript(body: str, given: Any = None) -> Any:
    """What a function body in JavaScript returns, with a value as `given`."""
    functions = "\n".join(path.read_text() for path in SOURCES)
    program = f"""{functions}
        const given = JSON.parse(require('fs').readFileSync(0, 'utf8'));
        process.stdout.write(JSON.stringify((() => {{ {body} }})()));"""
    assert NODE
    done = subprocess.run([NODE, "-e", program], input=json.dumps(given), capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    return make_document(60, loss_points=5)


def test_numbers_are_written_as_in_the_report() -> None:
    counts = [0, 7, 999, 1000, 1234, 2_600_000, 314_572_800, 6_738_415_616, 2e12]
    assert javascript("return given.map(count)", counts) == [fmt.count(c) for c in counts]
    values = [0.0, 0.0312, -0.0312, 0.5, -0.0004, 1.25]
    for kind, unit in (("points", "accuracy"), ("bits", "bits per byte")):
        assert javascript(f"return given.map((v) => number(v, '{kind}'))", values) == [
            fmt.signed(v, unit) for v in values
        ]
    assert javascript("return given.map((v) => number(v, 'share'))", values) == [
        fmt.score({"score": v, "metric": "accuracy"}).replace("-", fmt.MINUS) for v in values
    ]
    assert javascript("return given.map((v) => number(v, 'plain'))", values[:2]) == ["0.000", "0.031"]
    assert javascript("return [count(null), rate(null), number(null, 'share')]") == [fmt.UNKNOWN] * 3
    assert javascript("return given.map(rate)", [1e-4, 3.0000000000000004e-05, 0.00015, 2.0]) == [
        "1e-4",
        "3e-5",
        "1.5e-4",
        "2e0",
    ]


def test_ticks_are_round_and_inside() -> None:
    noise = random.Random(0)
    pairs = [sorted(noise.uniform(-1, 1) * 10 ** noise.randint(-3, 6) for _ in range(2)) for _ in range(200)]
    for (low, high), made in zip(pairs, javascript("return given.map(([a, b]) => ticks(a, b, 6))", pairs), strict=True):
        step, values = made["step"], made["values"]
        assert 3 <= len(values) <= 8
        assert low - step * 1e-6 <= values[0]
        assert values[-1] <= high + step * 1e-6
        assert np.allclose(np.diff(values), step)
        assert round(step / 10 ** np.floor(np.log10(step) + 1e-9), 6) in (1, 2, 2.5, 5)
    texts = javascript(
        "return [tickText(-2.5, 2.5, 'points'), tickText(20, 5, 'points'), tickText(0.25, 0.05, 'plain'), tickText(0, 2, 'bits')]"
    )
    assert texts == [f"{fmt.MINUS}2.5", "+20", "0.25", "0"]


@pytest.mark.parametrize(("x_better", "y_better"), [(1, 1), (-1, 1), (1, -1)])
def test_front_is_what_nothing_dominates(x_better: int, y_better: int) -> None:
    noise = random.Random(1)
    items = [{"x": noise.randint(0, 20), "y": noise.randint(0, 20), "i": i} for i in range(150)]

    def beats(a: dict[str, int], b: dict[str, int]) -> bool:
        dx, dy = x_better * (a["x"] - b["x"]), y_better * (a["y"] - b["y"])
        return dx >= 0 and dy >= 0 and dx + dy > 0

    wanted = {b["i"] for b in items if not any(beats(a, b) for a in items)}
    found = javascript(f"return frontOf(given, {x_better}, {y_better}).map((item) => item.i)", items)
    assert set(found) == wanted
    assert len(found) == len(wanted)
    assert javascript("return frontOf([], 1, 1)") == []


def test_quantiles_and_spread_are_numpys() -> None:
    values = np.random.default_rng(2).normal(size=11).tolist()
    for better in (1, -1):
        found = javascript(f"return spreadOf(given, {better})", values)
        low, high = min(values), max(values)
        assert [found["best"], found["worst"]] == ([high, low] if better > 0 else [low, high])
        assert [found[k] for k in ("lower", "median", "upper")] == pytest.approx(np.percentile(values, [25, 50, 75]))
        assert found["spread"] == pytest.approx(high - low)
    assert javascript("return spreadOf([], 1)") is None


def test_mean_line_only_uses_runs_that_came_that_far() -> None:
    lines = [[[0, 0.0], [10, 1.0]], [[0, 2.0], [5, 3.0]], [[0, 4.0]]]
    found = {point["x"]: point for point in javascript("return meanLine(given)", lines)}
    assert {x: point["n"] for x, point in found.items()} == {0: 3, 5: 2, 10: 1}
    assert found[0]["mean"] == pytest.approx(2.0)
    assert found[5]["mean"] == pytest.approx((0.5 + 3.0) / 2)
    assert [found[5]["low"], found[5]["high"]] == pytest.approx(np.percentile([0.5, 3.0], [10, 90]))
    xs = sorted(np.random.default_rng(3).uniform(0, 1, 300).tolist())
    many = javascript("return meanLine(given)", [[[x, x * x] for x in xs]])
    assert len(many) == 60
    assert [p["mean"] for p in many] == pytest.approx(np.interp([p["x"] for p in many], xs, np.square(xs)))


def test_filters(document: dict[str, Any]) -> None:
    runs = document["runs"]
    body = """
      const runs = prepare(given[0]);
      const chosen = Object.fromEntries(Object.entries(given[1]).map(([key, values]) => [key, new Set(values)]));
      return matching(runs, chosen, given[2], given[3]).map((run) => run.id);
    """
    ids = javascript(body, [runs, {"method": ["LoRA", "HiddenKey"], "rank": ["16"], "lr": []}, "", None])
    assert ids == [r["id"] for r in runs if r["method"] in ("LoRA", "HiddenKey") and r["rank"] == 16]
    assert javascript(body, [runs, {"rank": ["16"]}, "", "rank"]) == [r["id"] for r in runs]
    assert javascript(body, [runs, {}, "  LORA-r64  seed2 ", None]) == [
        r["id"] for r in runs if "lora-r64" in r["id"] and "seed2" in r["id"]
    ]
    assert javascript(body, [runs, {"task": ["suite learning-code"]}, "", None]) == [r["id"] for r in runs]
    counts = javascript("return [...countValues(prepare(given), 'status')]", runs)
    assert dict(counts) == {s: sum(r["status"] == s for r in runs) for s in {r["status"] for r in runs}}


def test_two_runs_of_a_name_are_told_apart() -> None:
    runs = make_document(3)["runs"]
    for run, name in zip(runs, ("x", "x", "y"), strict=True):
        run["name"] = name
    assert javascript("return prepare(given).map((run) => run.name)", runs) == [runs[0]["id"], runs[1]["id"], "y"]


def test_address_round_trips(document: dict[str, Any]) -> None:
    body = """
      const known = { method: new Set(['LoRA', 'a&b=c']), rank: new Set(['16']) };
      return given.map((hash) => formatHash(parseHash(hash, known)));
    """
    addresses = ["method=LoRA&method=a%26b%3Dc&rank=16&q=x+y&x=kept&sort=-learned&hide=Code", "", "run=a%2Fb"]
    assert javascript(body, [f"#{a}" for a in addresses]) == addresses
    assert javascript(body, ["#method=gone&nonsense=1&rank=16"]) == ["rank=16"]


def test_sorting_puts_the_unknown_last() -> None:
    body = """
      const column = { value: (run) => run.v };
      const sort = (runs, down) => sortRuns(runs, column, down).map((run) => run.v);
      return [sort(given[0], false), sort(given[0], true), sort(given[1], false)];
    """
    up, down, words = javascript(body, [[{"v": v} for v in (2, None, -1, 10)], [{"v": v} for v in ("r16", "r4", "R8")]])
    assert (up, down, words) == ([-1, 2, 10, None], [10, 2, -1, None], ["r4", "R8", "r16"])


def test_csv_has_every_run_with_unrounded_numbers(document: dict[str, Any]) -> None:
    runs = [run | {"base": 'a "quoted", base\nof two lines'} for run in document["runs"][:7]]
    text = javascript("const runs = prepare(given); return csvOf(runs, columnsOf(runs))", runs)
    rows = list(csv.DictReader(io.StringIO(text, newline="")))
    assert [row["id"] for row in rows] == [run["id"] for run in runs]
    for row, run in zip(rows, runs, strict=True):
        point = run["points"][-1]
        assert float(row["learned"]) == point["learned"]["value"]
        assert float(row["forgotten_high"]) == point["forgotten"]["high"]
        assert float(row["task/humaneval"]) == point["tasks"]["humaneval"]["score"]
        assert row["base"] == run["base"]
        assert row["rank"] == ("" if run["rank"] is None else str(run["rank"]))


def test_published_curves_only_stand_behind_the_same_scores() -> None:
    kept = {"key": "kept", "kind": "share"}
    axes = [
        (kept, {"key": "task/humaneval@50", "task": "humaneval", "kind": "share"}, 8),
        (kept, {"key": "task/gsm8k", "task": "gsm8k", "kind": "share"}, 12),
        (kept, {"key": "task/code", "task": "code", "kind": "plain"}, 0),
        (kept, {"key": "learned/accuracy", "kind": "points"}, 0),
        ({"key": "forgotten/accuracy", "kind": "points"}, {"key": "task/gsm8k", "task": "gsm8k", "kind": "share"}, 0),
        (None, None, 0),
    ]
    found = javascript(
        "return given[1].map(([x, y]) => comparable(given[0], x, y).length)", [published.as_data(), axes]
    )
    assert found == [n for *_, n in axes]


def test_runs_of_different_bases_are_never_in_one_box() -> None:
    runs = [
        {"method": m, "rank": 16, "base": "b", "base_fingerprint": f}
        for m, f in (("LoRA", "x"), ("LoRA", "y"), ("full", "x"))
    ]
    # Browsers have it; Node since version 21.
    body = """
      Map.groupBy ??= (items, key) => items.reduce((m, each) => m.set(key(each), [...(m.get(key(each)) ?? []), each]), new Map());
      const methods = new Map([["full", { index: 0 }], ["LoRA", { index: 1 }]]);
      return [boxesOf(given, false, methods).map(([name, own]) => [name, own.length]), basesIn(given),
              boxesOf(given.slice(1, 2), true, methods)[0][0], basesIn(given.slice(1, 2))];
    """
    boxes, named, alone, nothing = javascript(body, runs)
    assert boxes == [["full, base 1", 1], ["LoRA, base 1", 1], ["LoRA, base 2", 1]]
    assert (named, alone, nothing) == ("Bases, 1: b (x); 2: b (y).", "LoRA r16", "")


def test_the_end_of_a_run_is_over_the_most_complete_tasks(document: dict[str, Any]) -> None:
    run = dict(document["runs"][0])
    run["final"] = run["final"] | {"forgetting_average": 0.123, "over": {"forgotten": ["prose"]}}
    body = "const [run] = prepare(given); return [run.final.forgetting_average, Object.keys(run.final.tasks), overTasks(run.final, 'forgotten')]"
    assert javascript(body, [run]) == [0.123, list(run["points"][-1]["tasks"]), "prose"]
    assert javascript("return prepare(given)[0].final", [run | {"final": None}]) is None


def test_points_over_other_tasks_are_of_another_kind(document: dict[str, Any]) -> None:
    point = document["runs"][0]["points"][-1]
    other = point | {"over": point["over"] | {"forgotten": ["hellaswag@500"]}}
    body = """
      const { x, y } = axesOf([{ points: given }]);
      const [across, up] = [x.find(({ key }) => key === "forgotten/accuracy"), y[0]];
      const items = given.map((point) => ({ point, run: {}, xs: across.read(point), ys: up.read(point) }));
      return [kindsOf(items, across, up).size, kindsOf(items.slice(0, 1), across, up).size,
              pointLines({ ...items[1], run: { method: "LoRA", status: "done" } }, across, up)];
    """
    several, one, lines = javascript(body, [point, other])
    assert (several, one) == (2, 1)
    assert lines[-2:] == ["learned over humaneval", "forgotten over hellaswag@500"]


def test_the_forgetting_average_has_the_interval_of_its_own_tasks(document: dict[str, Any]) -> None:
    point = json.loads(json.dumps(document["runs"][0]["points"][-1]))
    wanted = javascript("return keptEstimate(given)", point)
    assert wanted["low"] < point["forgetting_average"] < wanted["high"]
    point["tasks"]["hellaswag@9"] = point["tasks"]["hellaswag"] | {"score": 0.0, "stderr": 0.5}
    assert javascript("return keptEstimate(given)", point) == wanted


def test_parts_of_a_suite_and_the_whole_are_means_of_their_own(document: dict[str, Any]) -> None:
    task = document["runs"][0]["points"][-1]["tasks"]["humaneval"] | {"suite": "maths"}
    tasks = {name: task | {"score": score} for name, score in (("a", 0.2), ("b", 0.4), ("a@5", 0.6), ("b@5", 0.8))}
    body = "return axesOf([{ points: [given] }]).y.filter(({ key }) => key.startsWith('suite')).map(({ key, read }) => [key, read(given).value])"
    found = javascript(body, {"tasks": tasks})
    assert sorted(found) == [["suite/maths", pytest.approx(0.3)], ["suite/maths@5", pytest.approx(0.7)]]


def test_cells_of_sweeps(document: dict[str, Any]) -> None:
    runs = json.loads(json.dumps(document["runs"][:3]))
    values = {"method": "lora", "optim.lr": 1e-4, "optim.warmup": "5 %", "adapter.targets": ["q_proj"]}
    for run, method in zip(runs, ("lora", "lora", "full"), strict=True):
        run |= {"method": method, "cell": {"sweep": "rank-study", "name": "c", "values": values}}
    # The first cell has not begun, and does not say which adapter it will have.
    runs[0] |= {"adapter": None, "points": [], "final": None, "status": "not started", "step": None, "steps": None}
    runs[1] |= {"adapter": "lora"}
    runs[2] |= {"adapter": "none", "cell": None}
    found = javascript(
        """const runs = prepare(given); const columns = columnsOf(runs);
        return {methods: methodsOf(runs), sweeps: runs.map((run) => run.values.sweep[0]), describe: describe(runs[1]),
          found: matching(runs, {}, "rank-study warmup").length,
          cells: columns.filter(({key}) => key.startsWith("cell/")).map(({key, show, value}) => [key, show(runs[1]), value(runs[2])]),
          sorted: sortRuns(runs, columns.find(({key}) => key === "cell/adapter.targets"), false).length}""",
        runs,
    )
    assert [(method["name"], method["color"]) for method in found["methods"]] == [
        ("full", "--none"),
        ("lora", "--lora"),
    ]
    assert found["sweeps"] == ["rank-study", "rank-study", fmt.UNKNOWN]
    assert found["found"] == 2
    assert found["describe"].endswith("optim.warmup 5 %, adapter.targets q_proj")
    assert found["cells"] == [["cell/optim.warmup", "5 %", None], ["cell/adapter.targets", '["q_proj"]', None]]
    assert found["sorted"] == 3


def test_the_base_of_a_study_does_not_take_the_colour_of_full_finetuning(document: dict[str, Any]) -> None:
    runs = json.loads(json.dumps(document["runs"][:2]))
    runs[0] |= {"method": "scratch", "adapter": "none", "is_from_scratch": True}
    runs[1] |= {"method": "full finetuning", "adapter": "none", "is_from_scratch": False}
    found = javascript("return methodsOf(given).map(({name, color}) => [name, color])", runs)
    assert found == [["full finetuning", "--none"], ["scratch", "--other-0"]]


def test_runs_from_scratch_have_a_named_base(document: dict[str, Any]) -> None:
    runs = json.loads(json.dumps(document["runs"][:2]))
    runs[0] |= {"is_from_scratch": True, "base": None, "base_fingerprint": None}
    found = javascript("const runs = prepare(given); return [runs.map((r) => r.values.base[0]), basesIn(runs)]", runs)
    assert found[0] == ["random weights", "models/Llama-2-7b-hf"]
    assert found[1].startswith("Bases, 1: random weights (random weights")

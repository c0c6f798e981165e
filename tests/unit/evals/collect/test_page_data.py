"""What of the document is in the page."""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks.synthetic_runs import make_runs
from evals.collect.document import collect
from evals.collect.page_data import page_data
from tests.unit.evals.collect.page_document import estimate, make_document


def test_what_the_page_does_not_show_is_not_in_it(tmp_path: Path) -> None:
    make_runs(tmp_path, 8, examples=10, points=3)
    document = collect([tmp_path], processes=1)
    found = page_data(document)
    assert len(json.dumps(found)) < 0.55 * len(json.dumps(document))
    for run, whole in zip(found["runs"], document["runs"], strict=True):
        assert [point["step"] for point in run["points"]] == [point["step"] for point in whole["points"]]
        point, other = run["points"][-1], whole["points"][-1]
        assert point["learned"] == {key: other["learned"][key] for key in ("value", "low", "high", "unit")}
        assert point["over"]["learned"] == ["humaneval"]
        assert not {"calibration", "learned_accuracy"} & point.keys()
        assert not {"kind", "harness", "posterior", "n", "change", "not_finite"} & point["tasks"]["humaneval"].keys()
        assert point["tasks"]["humaneval"]["score"] == other["tasks"]["humaneval"]["score"]
        assert run["final"]["forgotten"]["value"] == whole["final"]["forgotten"]["value"]


def test_accuracies_beside_bits_per_byte_stay() -> None:
    document = make_document(1)
    point = document["runs"][0]["points"][-1]
    point |= {"learned": estimate(0.1, 0.01, "bits per byte"), "learned_accuracy": estimate(0.2, 0.01)}
    assert page_data(document)["runs"][0]["points"][-1]["learned_accuracy"]["value"] == 0.2

"""A whole run of training/main.py, of which metrics.jsonl is read: how long its steps took, and how long they waited for data."""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

# Run by path, a script sees its own folder alone.
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from training.main import main as train


def main() -> int:
    """Train, then measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--recipe", required=True, help="TOML, whose run.dir is run/ beside it")
    parser.add_argument("--ds_config", required=True, help="DeepSpeed JSON")
    parser.add_argument("--after", type=int, required=True, help="steps up to this one are not counted")
    asked = parser.parse_args()
    code = train(["--ds_config", asked.ds_config, "--recipe", asked.recipe])
    if code == 0 and os.environ["RANK"] == "0":
        metrics = (Path(asked.recipe).parent / "run" / "metrics.jsonl").read_text()
        lines = [line for line in map(json.loads, metrics.splitlines()) if line["step"] > asked.after]
        result = {
            name: [line[name] for line in lines] for name in ("step_seconds", "data_seconds", "tokens_per_second")
        }
        print(json.dumps(result), flush=True)
    return code


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    # Without the threads of process groups.
    os._exit(code)

"""This pipeline: resume by load_state_dict; an item is a packed row.

The walk reads tokens from the token cache and has workers, to come far in bearable time; the resumes tokenize, as a run
without the cache does. The rows and the states are the same, and a difference would be found by the comparison.
"""

from __future__ import annotations

import hashlib
import json
import sys
import time
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import resume

# Run by path, a script sees its own folder alone; processes it spawns need both.
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from data_pipeline.config import DataConfig, SourceConfig
from data_pipeline.stream.workers import open_stream

WALK_WORKERS = 2


def opened(asked: Any, *, workers: int, token_cache: bool = False) -> Any:
    """The stream."""
    config = DataConfig(
        sources={"text": SourceConfig(path=asked.data)},
        tokenizer=Path(asked.tokenizer),
        tokenizer_engine=asked.engine,
        seq_len=asked.seq_len,
        workers=workers,
        token_cache=token_cache,
    )
    return open_stream(config, num_lanes=asked.batch, lanes=range(asked.batch), seed=0)


def hash_of(row: Any) -> int:
    """64 bits of what a row trains on."""
    arrays = (row.input_ids, row.labels, row.position_ids)
    content = b"".join(array.astype(np.int32).tobytes() for array in arrays)
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little")


def saved(file: Path, stream: Any) -> None:
    """Keep the state of the stream as JSON."""
    file.write_text(json.dumps(stream.state_dict()))


def walk(asked: Any) -> dict[str, Any]:
    """From the first row to `window` rows after the last position, without an interruption."""
    stream = opened(asked, workers=WALK_WORKERS, token_cache=True)
    total = max(asked.positions) + asked.window
    hashes = np.empty(total, np.uint64)
    ends = {position + asked.window for position in asked.positions}
    if 0 in asked.positions:
        saved(asked.kept / "state-0.json", stream)
    for done, row in enumerate(islice(stream, total), start=1):
        hashes[done - 1] = hash_of(row)
        if done in asked.positions:
            saved(asked.kept / f"state-{done}.json", stream)
        if done in ends:
            saved(asked.kept / f"end-{done}.json", stream)
    resume.keep_order(asked.kept, hashes)
    stream.close()
    return {"items": total}


def timed(asked: Any, state: dict[str, Any]) -> dict[str, Any]:
    """Seconds to the first batch."""
    start = time.perf_counter()
    stream = opened(asked, workers=asked.workers)
    seconds_to_open = time.perf_counter() - start
    stream.load_state_dict(state)
    batch = list(islice(stream, asked.batch))
    [np.stack([getattr(row, name) for row in batch]) for name in ("input_ids", "labels", "position_ids")]
    seconds = time.perf_counter() - start
    stream.close()
    return {"seconds": seconds, "seconds_to_open": seconds_to_open}


def exact(asked: Any, state: dict[str, Any]) -> dict[str, Any]:
    """`window` rows, resumed twice; and the state after them."""
    got: list[int] = []
    for count in (resume.AFTER_FIRST, asked.window - resume.AFTER_FIRST):
        stream = opened(asked, workers=asked.workers)
        stream.load_state_dict(state)
        got += [hash_of(row) for row in islice(stream, count)]
        state = json.loads(json.dumps(stream.state_dict()))
        stream.close()
    position = asked.positions[0]
    end = json.loads((asked.kept / f"end-{position + asked.window}.json").read_text())
    return resume.compared(asked.kept, position, got, asked.window) | {"same_state": state == end}


def main() -> None:
    """Do what is asked, and print what came of it."""
    asked = resume.arguments(str(__doc__))
    if asked.action == "walk":
        print(json.dumps(walk(asked)))
        return
    state = json.loads((asked.kept / f"state-{asked.positions[0]}.json").read_text())
    print(json.dumps(timed(asked, state) if asked.action == "time" else exact(asked, state)))


if __name__ == "__main__":
    main()

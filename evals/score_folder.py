"""Score a model folder, on one device or on one of every process: `python -m evals run`."""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evals.agreement import gathered, made_by_all
from evals.config import EvalConfig
from evals.encoder import FILES, load_codec, tokenizer_file, tokenizer_fingerprint
from evals.errors import EvalError
from evals.harness.kept import Kept
from evals.model_folder import ModelFolder, find_model, load_model
from evals.ranks import Place, joined, place_in
from evals.results import load_run
from evals.score_request import Request
from evals.score_result import check_files, known_scores, write_scores

if TYPE_CHECKING:
    from collections.abc import Callable

    from evals.code.policy import Policy
    from evals.encoder import Codec
    from evals.harness.tasks import LoadedTask

HELD_OUT_LENGTH = 1024
"""Longest model input for tasks on held-out text, unless it is set: their scores depend on it."""


def score_folder(request: Request) -> dict[str, dict[str, Any]]:
    """Load a model, score it, and write the result where the request says.

    Tasks that the run's step already has are not scored again.

    Returns:
        The entries of what was asked for, by task.

    Raises:
        EvalError: a task, its data, the model folder, the tokenizer, the device or the run cannot be used.
        KeyboardInterrupt: it was interrupted; answers up to then are kept, and the same request goes on from them.
    """
    place = place_in(os.environ)
    with joined(place):
        return _score(request, place)


def _score(request: Request, place: Place) -> dict[str, dict[str, Any]]:
    asked = request
    found, tokenizer = made_by_all(lambda: _found(request), place.size)
    # The first rank alone reads: another might see a file that was written a moment later.
    identity, known = gathered(
        made_by_all(lambda: (found.identity(), known_scores(asked)) if place.rank == 0 else ("", {}), place.size),
        place.size,
    )[0]
    request = dataclasses.replace(
        request,
        tasks={name: task for name, task in request.tasks.items() if name not in known},
        suites=[spec for spec in request.suites if spec.name not in known],
    )
    loaded, policy = made_by_all(lambda: _checked(request, found, place), place.size)
    names = [*asked.tasks, *(spec.name for spec in asked.suites), *(task.spec.name for task in loaded)]
    scored = {name: known[name] for name in names if name in known}
    loaded = [task for task in loaded if task.spec.name not in known]
    if scored:
        _say(place, f"already scored at step {request.step} of {request.run}: {', '.join(scored)}")
    if not request.tasks and not loaded:
        return scored
    made_by_all(lambda: check_files(asked, identity), place.size)

    import torch

    from evals.harness.run import evaluate_tasks

    device = request.device
    if device == "auto":
        device = f"cuda:{place.local_rank % torch.cuda.device_count()}" if torch.cuda.is_available() else "cpu"
    begun = time.perf_counter()
    model, codec = made_by_all(lambda: _loaded(found, tokenizer, device, request.dtype), place.size)
    result = _held_out(request, model, codec, device, _held_out_length(request, found), place) if request.tasks else {}
    if loaded:
        from evals.scoring.scorer import Scorer

        assert codec.bos_id is not None
        scorer = Scorer(
            model=model,
            device=device,
            pad_id=codec.bos_id,
            max_length=_harness_length(request, found),
            batch_tokens=_batch_tokens(request, device),
            rank=place.rank,
            world_size=place.size,
        )
        depends_on = {
            "model": identity,
            "dtype": request.dtype,
            "max_length": scorer.max_length,
            "tokenizer": tokenizer_fingerprint(tokenizer),
        }
        kept = Kept(asked.kept, depends_on, rank=place.rank, world_size=place.size)
        if kept.moved_to is not None:
            _say(
                place,
                f"answers of another model or other settings were in {asked.kept}; they are now in {kept.moved_to}",
            )
        if kept.num_found:
            _say(place, f"going on from {kept.num_found} answers in {asked.kept}")
        with _progress() as show:
            scorer = dataclasses.replace(scorer, progress=lambda done, total: show("  forwards", done, total))
            result |= evaluate_tasks(scorer, codec, loaded, policy=policy, kept=kept, seed=request.seed, progress=show)
        if kept.problem:
            _say(place, f"WARNING: {kept.problem}")
    if place.rank == 0:
        write_scores(asked, result, identity=identity, seconds=time.perf_counter() - begun)
    return scored | result


def _found(request: Request) -> tuple[ModelFolder, Path]:
    """The model's folder and the tokenizer's file."""
    found = find_model(request.model, request.base)
    return found, _tokenizer(request, found)


def _loaded(found: ModelFolder, tokenizer: Path, device: str, dtype: str) -> tuple[Any, Codec]:
    """The model on its device, and its tokenizer."""
    import torch

    codec = load_codec(tokenizer)
    model = load_model(found, device, getattr(torch, dtype))
    return model, _with_beginning(codec, model, found)


def _tokenizer(request: Request, found: ModelFolder) -> Path:
    """The tokenizer's file: the one asked for, else the model's or, where it has none, the run's; of a run, only its own."""
    run = None if request.run is None else load_run(request.run)
    expected = None if run is None else run.get("tokenizer_fingerprint")
    named = None if run is None else run.get("config", "data", "tokenizer")
    folders = [found.folder, found.model, *([Path(named)] if named else [])]
    path = request.tokenizer or next((each for each in folders if _files(each)), found.model)
    file = tokenizer_file(path)
    if expected is None:
        return file
    # A folder may hold two.
    for candidate in _files(path):
        if tokenizer_fingerprint(candidate) == expected:
            return candidate
    raise EvalError(
        f"{request.run}: was trained with the tokenizer {named} (SHA-256 {expected[:12]}), but {file} is another (SHA-256 "
        f"{tokenizer_fingerprint(file)[:12]}); give the run's with --tokenizer"
    )


def _files(path: Path) -> list[Path]:
    """The tokenizers at a path, in the order in which they are preferred."""
    return [each for each in ([path / name for name in FILES] if path.is_dir() else [path]) if each.is_file()]


def _checked(request: Request, found: ModelFolder, place: Place) -> tuple[list[LoadedTask], Policy]:
    """Everything that would be refused, before the model is loaded; the harness's tasks, loaded."""
    config = EvalConfig(tasks=dict(request.tasks), batch_tokens=_batch_tokens(request, request.device))
    limit, seq_len = found.max_positions, request.seq_len
    problems = [*config.problems(), *config.seq_len_problems(_held_out_length(request, found))]
    if seq_len is not None and (seq_len < 1 or (limit is not None and seq_len > limit)):
        problems.append(
            ("seq_len", f"{seq_len} is outside 1..{limit}, the positions of this model; pass --seq-len {limit}")
        )
    if request.max_new_tokens is not None and request.max_new_tokens < 1:
        problems.append(("max_new_tokens", f"{request.max_new_tokens} is too small; pass --max-new-tokens 1 or more"))
    listed = [f"{field}: {message}" for field, message in problems]
    loaded: list[LoadedTask] = []
    from evals.code.policy import Policy

    policy = Policy(allow_unisolated=request.allow_unisolated)
    if request.suites:
        from evals.harness.run import check_suites

        try:
            loaded = check_suites(
                request.suites,
                data_dir=request.data_dir,
                policy=policy,
                max_length=_harness_length(request, found),
                max_new_tokens=request.max_new_tokens,
                say=partial(_say, place),
            )
        except EvalError as error:
            listed.append(str(error))
    if listed:
        raise EvalError("the evaluation cannot start:" + "".join(f"\n  {problem}" for problem in listed))
    return loaded, policy


def _batch_tokens(request: Request, device: str) -> int:
    if request.batch_tokens is not None:
        return request.batch_tokens
    return 1024 if device == "cpu" else 8192


def _harness_length(request: Request, found: ModelFolder) -> int:
    return request.seq_len or found.max_positions or HELD_OUT_LENGTH


def _held_out_length(request: Request, found: ModelFolder) -> int:
    return request.seq_len or min(HELD_OUT_LENGTH, found.max_positions or HELD_OUT_LENGTH)


def _say(place: Place, text: str) -> None:
    if place.rank == 0:
        print(text)


def _held_out(
    request: Request, model: Any, codec: Codec, device: str, seq_len: int, place: Place
) -> dict[str, dict[str, Any]]:
    from evals.held_out.evaluate import evaluate

    assert codec.bos_id is not None
    result = evaluate(
        model,
        encode=codec.encode,
        bos_id=codec.bos_id,
        tasks=request.tasks,
        seq_len=seq_len,
        batch_tokens=_batch_tokens(request, device),
        device=device,
        eos_id=codec.eos_id if _ends_texts(request) else None,
        rank=place.rank,
        world_size=place.size,
    )
    assert result is not None, "nothing could have stopped it"
    return result


def _ends_texts(request: Request) -> bool:
    """Whether the end-of-text token ends what was trained on: unless the run says that it did not."""
    return request.run is None or load_run(request.run).get("config", "data", "eos") is not False


def _with_beginning(codec: Codec, model: Any, found: ModelFolder) -> Codec:
    bos_id = codec.bos_id if codec.bos_id is not None else model.config.bos_token_id
    if bos_id is None:
        raise EvalError(
            f"{found.folder}: neither the tokenizer nor config.json names a beginning-of-text token; set bos_token_id"
        )
    return dataclasses.replace(codec, bos_id=bos_id)


@contextmanager
def _progress() -> Iterator[Callable[[str, int, int], None]]:
    """A function (what, done, of how many) that draws bars on a terminal, and nothing elsewhere."""
    from rich.console import Console
    from rich.progress import MofNCompleteColumn, Progress, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (*Progress.get_default_columns()[:2], MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as bars:
        known: dict[str, Any] = {}

        def show(what: str, done: int, total: int) -> None:
            if what not in known:
                known[what] = bars.add_task(what, total=total)
            bars.update(known[what], completed=done, total=total)

        yield show

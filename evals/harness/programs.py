"""Tasks whose answers are programs: the model's completions, each judged in the sandbox."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import asdict
from queue import SimpleQueue
from typing import Any

from evals.agreement import gathered, made_by_all
from evals.code.judge import judge
from evals.code.policy import Policy
from evals.code.program import Program, Verdict
from evals.code.result import summarize
from evals.harness.entries import fingerprint, protocol
from evals.harness.language_model import ScorerLM
from evals.harness.tasks import LoadedTask
from evals.scoring.scorer import Scorer
from evals.scoring.stopping import Stopped

EXCHANGE_SECONDS = 2.0
"""Time between two exchanges of verdicts among ranks."""

MOST_WORKERS = 8
"""Programs that run at one time on each rank."""


def evaluate_programs(loaded: LoadedTask, lm: ScorerLM, policy: Policy) -> dict[str, Any]:
    """The entry of a task whose answers are programs; its instances are built but not answered.

    Raises:
        EvalError: programs cannot be isolated here.
        Stopped: the scorer was asked to stop.
    """
    instances = loaded.task.instances
    written = lm.write(instances, [instance.repeats for instance in instances], is_after_newline=True)
    texts = [[_code(text.text, loaded.is_fenced) for text in of_problem] for of_problem in written]
    ids = [str(instance.doc.get("task_id", instance.doc_id)) for instance in instances]
    programs = [
        Program(
            id=problem,
            sample=sample,
            source=instance.doc["prompt"] + text,
            test=instance.doc["test"],
            entry_point=instance.doc["entry_point"],
        )
        for problem, instance, of_problem in zip(ids, instances, texts, strict=True)
        for sample, text in enumerate(of_problem)
    ]
    verdicts = iter(_judged(programs, lm, policy))
    by_problem = [[next(verdicts) for _ in of_problem] for of_problem in texts]
    ks = [2**power for power in range(9)]
    return {
        "kind": "harness",
        "domain": loaded.spec.domain,
        "suite": loaded.spec.suite,
        "metric": "accuracy",
        "higher_is_better": True,
        "chance": 0.0,
        "fingerprint": fingerprint(loaded),
        "harness": protocol(loaded, "pass@1", "none"),
        "metrics": {},
        "mean_tokens": sum(text.tokens for of_problem in written for text in of_problem) / max(1, len(programs)),
        **summarize(ids, texts, by_problem, ks),
    }


def _code(text: str, is_fenced: bool) -> str:
    return text.split("```")[0] if is_fenced else text


def workers_of(ranks: Sequence[tuple[str, Sequence[int]]]) -> list[int]:
    """How many programs each rank runs at one time: its cores, shared with the ranks that have the same ones.

    Args:
        ranks: the host's name and the numbers of the usable cores, of each rank.
    """
    return [max(1, min(MOST_WORKERS, len(cores) // ranks.count((host, cores)))) for host, cores in ranks]


def _judged(programs: Sequence[Program], lm: ScorerLM, policy: Policy) -> list[Verdict]:
    """Verdicts on all programs, on all ranks; what was judged before is not judged again.

    Each rank judges its share in a thread. Every few seconds all exchange what they have found, keep it, and ask whether
    to stop: programs that never end must not keep a run from being stopped, nor look like a run that hangs.
    """
    scorer = lm.scorer
    keys = [f"verdict {program.key(policy)}" for program in programs]
    missing = {key: program for key, program in zip(keys, programs, strict=True) if key not in lm.kept}
    if missing:
        _raise_if_asked(scorer)
        share = dict(list(missing.items())[scorer.rank :: scorer.world_size])
        ranks = gathered((socket.gethostname(), sorted(os.sched_getaffinity(0))), scorer.world_size)
        with _Judging(share, policy, workers_of(ranks)[scorer.rank]) as judging:
            while not _is_kept(judging, lm):
                _raise_if_asked(scorer)
    return [Verdict(**lm.kept[key]) for key in keys]


def _is_kept(judging: _Judging, lm: ScorerLM) -> bool:
    """Wait a little, keep the verdicts that there are on all ranks by then, and say whether these were the last."""
    size = lm.scorer.world_size
    news = gathered(made_by_all(judging.news, size), size)
    lm.kept.add({key: verdict for found, _ in news for key, verdict in found.items()})
    return all(is_last for _, is_last in news)


def _raise_if_asked(scorer: Scorer) -> None:
    if scorer.should_stop is not None and scorer.should_stop():
        raise Stopped


class _Judging:
    """Programs that are being judged in a thread. On leaving it judges no more."""

    def __init__(self, programs: Mapping[str, Program], policy: Policy, workers: int) -> None:
        self._key_of = {program: key for key, program in programs.items()}
        self._found: SimpleQueue[tuple[str, Verdict]] = SimpleQueue()
        self._is_left = False
        self._thread = ThreadPoolExecutor(1)
        self._all = self._thread.submit(self._judge, policy, workers)

    def news(self) -> tuple[dict[str, Any], bool]:
        """Verdicts of the last few seconds by key, and whether there will be no more.

        Raises:
            EvalError: programs cannot be isolated here.
        """
        is_last = bool(wait([self._all], timeout=EXCHANGE_SECONDS).done)
        if is_last:
            self._all.result()
        found = dict(self._found.get() for _ in range(self._found.qsize()))
        return {key: asdict(verdict) for key, verdict in found.items()}, is_last

    def __enter__(self) -> _Judging:
        return self

    def __exit__(self, *_: object) -> None:
        self._is_left = True
        self._thread.shutdown()

    def _judge(self, policy: Policy, workers: int) -> None:
        if self._key_of:
            judge(list(self._key_of), policy=policy, workers=workers, finished=self._keep)

    def _keep(self, program: Program, verdict: Verdict) -> None:
        if self._is_left:
            raise Stopped  # ends the programs that run
        self._found.put((self._key_of[program], verdict))

"""The GPUs of every node, as nvidia-smi knows them.

Every rank asks, because a scheduler may show each rank its own GPU only; a node has what its ranks see together.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Mapping, Sequence
from typing import Any

from launch.preflight.verdict import Finding, Judgement, fail, odd_ones, others, warn

FIELDS = ("uuid", "name", "driver_version", "memory.total", "memory.used",
          "ecc.errors.uncorrected.volatile.total", "retired_pages.pending")  # fmt: skip
REMAPPED = ("gpu_uuid", "remapped_rows.pending", "remapped_rows.failure")
SECONDS = 20.0
"""Longest wait for nvidia-smi, which hangs where a driver does."""

NO_DEVICES = "No devices were found"
"""What nvidia-smi says, with an exit code of failure, where it is installed and shown no GPU."""

IN_USE = 0.05
"""Part of a GPU's memory above which somebody else is using it."""


def look(seconds: float = SECONDS) -> dict[str, Any]:
    """The GPUs that this process is shown, and what is wrong with asking for them.

    Returns:
        gpus: FIELDS of each, with memory in MiB and None for what the GPU doesn't say; remapped: "pending" or "failure" of the
        GPUs that have rows to remap; problem: None, or why nothing is known; is_absent: there is no nvidia-smi. Nothing is asked
        with DS_ACCELERATOR=cpu.
    """
    if os.environ.get("DS_ACCELERATOR") == "cpu":
        return {"gpus": [], "problem": None, "is_absent": False}
    try:
        rows = _ask("--query-gpu", FIELDS, seconds)
    except FileNotFoundError:
        return {"gpus": [], "problem": None, "is_absent": True}
    except subprocess.TimeoutExpired:
        return {"gpus": [], "problem": f"nvidia-smi has not answered within {seconds:g} s", "is_absent": False}
    except (OSError, ValueError) as error:
        # Of a node's GPUs a job is shown its own, which may be none.
        is_fault = str(error) != NO_DEVICES or os.environ.get("SLURM_GPUS_ON_NODE", "0") != "0"
        return {"gpus": [], "problem": f"nvidia-smi fails: {error}" if is_fault else None, "is_absent": False}
    try:
        # Not known to older drivers and GPUs.
        remapped = {
            uuid: (pending, failure) for uuid, pending, failure in _ask("--query-remapped-rows", REMAPPED, seconds)
        }
    except (OSError, ValueError, subprocess.TimeoutExpired):
        remapped = {}
    return {"gpus": [_gpu(row, remapped) for row in rows], "problem": None, "is_absent": False}


def _ask(query: str, fields: Sequence[str], seconds: float) -> list[list[str]]:
    """Rows of nvidia-smi's answer.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it fails, or answers something else.
        subprocess.TimeoutExpired: it hangs.
    """
    command = ["nvidia-smi", f"{query}={','.join(fields)}", "--format=csv,noheader,nounits"]
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        output, errors = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        # One that hangs in the driver does not even end then, and is not to be waited for.
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(1)
        for pipe in (process.stdout, process.stderr):
            if pipe is not None:
                pipe.close()
        raise
    text = output.decode(errors="replace").strip()
    if process.returncode:
        said = (text or errors.decode(errors="replace").strip()).splitlines()
        raise ValueError(said[0] if said else f"exit code {process.returncode}")
    rows = [[value.strip() for value in line.split(",")] for line in text.splitlines()]
    if wrong := [row for row in rows if len(row) != len(fields)]:
        raise ValueError(f"unexpected answer {', '.join(wrong[0])!r}")
    return rows


def _gpu(row: Sequence[str], remapped: Mapping[str, tuple[str, str]]) -> dict[str, Any]:
    values = dict(zip(FIELDS, row, strict=True))
    pending, failure = remapped.get(values["uuid"], ("", ""))
    return {
        "uuid": values["uuid"], "name": values["name"], "driver": values["driver_version"],
        "memory": _number(values["memory.total"]), "used": _number(values["memory.used"]),
        "uncorrected": _number(values["ecc.errors.uncorrected.volatile.total"]),
        "is_pending": _is_set(values["retired_pages.pending"]) or _is_set(pending), "is_remap_failed": _is_set(failure),
    }  # fmt: skip


def _number(text: str) -> float | None:
    """A number, or None for [N/A], [Not Supported] and the like."""
    try:
        return float(text)
    except ValueError:
        return None


def _is_set(text: str) -> bool:
    return text.lower() in ("yes", "1")


def judge(said: Mapping[str, Sequence[Mapping[str, Any]]]) -> Judgement:
    """Whether every node has a healthy GPU for each of its ranks, and the same as the others.

    Args:
        said: what `look` said on every rank, by node.
    """
    answers = [answer for ranks in said.values() for answer in ranks]
    if not any(answer["gpus"] or answer["problem"] for answer in answers):
        return Judgement(check="gpus", line="none are shown: ranks compute on CPUs")
    findings: list[Finding] = []
    kinds: dict[str, tuple[str, ...]] = {}
    for node, ranks in said.items():
        gpus = {gpu["uuid"]: gpu for answer in ranks for gpu in answer["gpus"]}
        if problem := next((answer["problem"] for answer in ranks if answer["problem"]), None):
            findings.append(fail(problem, node))
            continue
        if len(gpus) < len(ranks):
            why = "has no nvidia-smi" if all(answer["is_absent"] for answer in ranks) else f"has {len(gpus)} GPU(s)"
            findings.append(fail(f"{why}, and {len(ranks)} rank(s) run there", node))
        findings += _ailments(node, list(gpus.values()))
        if gpus:
            kinds[node] = _kind(list(gpus.values()))
    if not kinds:
        return Judgement(check="gpus", line="none can be asked", findings=findings)
    for index, what in enumerate(("GPUs are", "driver is", "GPU memory is")):
        usual, odd = odd_ones({node: kind[index] for node, kind in kinds.items()})
        findings += [warn(f"its {what} {kinds[node][index]}, of {others(kinds, odd)} {usual}", node) for node in odd]
    usual_kind, _ = odd_ones(kinds)
    count, _ = odd_ones(
        {node: len({gpu["uuid"] for answer in ranks for gpu in answer["gpus"]}) for node, ranks in said.items()}
    )
    line = f"{count} x {usual_kind[0]} of {usual_kind[2]} per node, driver {usual_kind[1]}"
    return Judgement(check="gpus", line=line, findings=findings)


def _kind(gpus: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    """Names, drivers and sizes of a node's GPUs, each once."""
    sizes = dict.fromkeys(
        "unknown size" if gpu["memory"] is None else f"{gpu['memory'] / 1024:.0f} GiB" for gpu in gpus
    )
    return tuple(", ".join(each) for each in (
        dict.fromkeys(gpu["name"] for gpu in gpus), dict.fromkeys(gpu["driver"] for gpu in gpus), sizes,
    ))  # fmt: skip


def _ailments(node: str, gpus: Sequence[Mapping[str, Any]]) -> list[Finding]:
    findings = []
    for gpu in gpus:
        name = gpu["uuid"]
        if gpu["uncorrected"]:
            findings.append(
                fail(f"{name} has {gpu['uncorrected']:.0f} uncorrected memory error(s); have it reset", node)
            )
        if gpu["is_remap_failed"]:
            findings.append(fail(f"{name} could not remap a damaged row of its memory; have it replaced", node))
        elif gpu["is_pending"]:
            findings.append(warn(f"{name} has damaged memory that is taken out at its next reset; have it reset", node))
        if gpu["memory"] and gpu["used"] is not None and gpu["used"] > IN_USE * gpu["memory"]:
            part = f"{gpu['used'] / 1024:.1f} of {gpu['memory'] / 1024:.0f} GiB"
            findings.append(warn(f"{name}: {part} are in use by other processes (nvidia-smi shows them)", node))
    return findings

"""Run the CPU benchmarks one after the other, each as a process of its own, and write RESULTS.md from all results.

A script's JSON goes to results/. One that was measured at this very commit, with nothing changed in the tree, is not measured again, so that
an interrupted run goes on where it stopped. A script that takes more than twice its time (suite.py) is stopped, and the next one's turn comes.
Where a script fails, its last result stays, and its rows say why there is no new one. What scripts leave running or in temporary files is
ended and removed.

    python -m benchmarks [NAME ...] [--again] [--table]

Exit code: 0 if every script that ran has a new result, else 1; 130 after Ctrl-C or SIGTERM.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Collection
from datetime import UTC, datetime
from pathlib import Path

import psutil

from benchmarks import peers
from benchmarks.claims import RESULTS, ROOT, TABLE, commit, keep
from benchmarks.data_corpus import REAL_DATA
from benchmarks.results_table import Result, results_page
from benchmarks.suite import LEFT_OUT, NOT_RUN, PROMISES, SCRIPTS, Script

LIMIT = 2.0
"""Of a script's minutes."""
SECONDS_TO_END = 60.0
"""For a script that was interrupted, to end its processes and remove its files."""
MARK = "PALIMPSEST_BENCH"
"""In the environment of a script and of all that it starts."""


def main(arguments: list[str] | None = None) -> int:
    """Measure, and write the table after every script."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="scripts to run; all of the CPU set unless given")
    parser.add_argument("--again", action="store_true", help="also those that were measured at this commit")
    parser.add_argument("--table", action="store_true", help="run nothing: write RESULTS.md from the results there are")
    asked = parser.parse_args(arguments)
    by_name = {script.name: script for script in SCRIPTS}
    for name in asked.names:
        if name in NOT_RUN:
            parser.error(f"{name}: {NOT_RUN[name]}")
        if name not in by_name:
            parser.error(f"{name}: there is no such benchmark; there are {', '.join(by_name)}")
    if asked.table:
        write_table(RESULTS, TABLE)
        return 0
    chosen = [script for script in SCRIPTS if script.name in asked.names or not asked.names]
    return run_all(chosen, RESULTS, TABLE, is_again=asked.again)


def run_all(chosen: list[Script], folder: Path, table: Path, *, is_again: bool) -> int:
    """Run scripts and write the table after each; the exit code."""
    folder.mkdir(exist_ok=True)
    begun, failed = time.monotonic(), []
    missing: dict[str, str] = {}
    others = [script.name for script in chosen if script.takes_real_data and not REAL_DATA.is_dir()]
    if others:
        what = "other texts or another tokenizer, and so other ratios"
        print(f"{REAL_DATA} is not there: {what}, for {', '.join(others)}", file=sys.stderr, flush=True)
    for number, script in enumerate(chosen, 1):
        where = f"[{number}/{len(chosen)}] {script.name}"
        file = folder / f"{script.name}.json"
        if not is_again and is_done(file, script, commit()):
            print(f"{where}: measured at this commit; --again repeats it", flush=True)
            continue
        make_environments(script.peers, missing)
        why = next((missing[name] for name in script.peers if name in missing), None)
        if why is None:
            print(f"{where}: about {script.minutes:g} minutes", flush=True)
            why = run(script, file)
        if why is not None:
            print(f"{where}: {why}", file=sys.stderr, flush=True)
            failed.append(script.name)
            keep_failure(file, script, why)
        write_table(folder, table)
    write_table(folder, table)
    print(f"{(time.monotonic() - begun) / 60:.0f} minutes; {os.path.relpath(table)} is written")
    if failed:
        print(f"no new result: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


def make_environments(names: Collection[str], missing: dict[str, str]) -> None:
    """Install the peers that are not there yet, each tried once; `missing` takes those that can't be, with the reason's last line."""
    for name in names:
        if name in missing:
            continue
        try:
            peers.installed(peers.PEERS[name], peers.DEFAULT_ENVIRONMENTS)
        except peers.PeerError as error:
            print(error, file=sys.stderr, flush=True)
            missing[name] = f"no {peers.PEERS[name].label}: {_last_line(str(error))}"


def keep_failure(file: Path, script: Script, why: str) -> None:
    """Write down why there is no new result, beside the one there is."""
    now = datetime.now(UTC).isoformat(timespec="seconds")
    old = read_result(file) or {"script": script.name}
    keep(file, dict(old) | {"failure": {"why": why, "date": now}})


def is_done(file: Path, script: Script, now: tuple[str | None, bool | None]) -> bool:
    """Whether there is a result of this command at this commit, from an unchanged tree, which it still is."""
    result = read_result(file)
    if result is None or "failure" in result or now != (result["commit"], True):
        return False
    return bool(result["is_tree_clean"]) and result["command"] == script.command()


def run(script: Script, file: Path, command: Callable[[Script], list[str]] = Script.command) -> str | None:
    """Run a script to its end or its limit; why there is no result, None if there is one."""
    mark, seconds = secrets.token_hex(8), 60 * LIMIT * script.minutes
    with tempfile.TemporaryDirectory(prefix="palimpsest-bench-", dir=_disk(), ignore_cleanup_errors=True) as scratch:
        result = Path(scratch) / "result.json"
        python, *more = command(script)
        line = [sys.executable if python == "python" else python, *more, "--json", str(result)]
        own = {MARK: mark, "TMPDIR": scratch}
        with (Path(scratch) / "stderr").open("w+", encoding="utf-8", errors="replace") as errors:
            process = subprocess.Popen(line, cwd=ROOT, env=os.environ | own, stderr=errors, start_new_session=True)
            try:
                code = process.wait(seconds)
            except subprocess.TimeoutExpired:
                return f"took longer than {seconds / 60:g} minutes"
            finally:
                _end(process, mark)
                errors.seek(0)
                written = errors.read()
                print(written, end="", file=sys.stderr, flush=True)
        if code:
            return f"exit code {code}" + (f": {_last_line(written)}" if written.strip() else "")
        if not result.exists():
            return "wrote no result"
        keep(file, json.loads(result.read_text(encoding="utf-8")))
    return None


def _last_line(text: str) -> str:
    return text.strip().splitlines()[-1].strip()


def _disk() -> str | None:
    """For temporary files: a folder on a disk rather than in memory, which checkpoints are measured on."""
    return os.environ.get("TMPDIR") or ("/var/tmp" if os.access("/var/tmp", os.W_OK) else None)


def _end(process: subprocess.Popen[bytes], mark: str) -> None:
    """End a script, with time to clean up, and then whatever it has started, in other sessions, too."""
    if process.poll() is None:
        process.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(SECONDS_TO_END)
    killed = []
    for other in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if other.environ().get(MARK) == mark:
                other.kill()
                killed.append(other)
    psutil.wait_procs(killed, timeout=SECONDS_TO_END)
    process.wait()


def read_result(file: Path) -> Result | None:
    """What a file holds; None where there is none."""
    if not file.exists():
        return None
    result: Result = json.loads(file.read_text(encoding="utf-8"))
    return result


def write_table(folder: Path, table: Path) -> None:
    """Write the page, whole or not at all."""
    temporary = table.with_name(f"{table.name}.tmp")
    temporary.write_text(page(folder), encoding="utf-8")
    os.replace(temporary, table)


def page(folder: Path) -> str:
    """RESULTS.md from the results in a folder."""
    commands = {script.name: f'make bench ONLY="{script.name}"' for script in SCRIPTS}
    commands["gpu_step"] = "python benchmarks/gpu_step.py --json benchmarks/results/gpu_step.json"
    found = {name: read_result(folder / f"{name}.json") for name in commands}
    results = {name: result for name, result in found.items() if result is not None}
    return results_page(results, list(commands), commands, PROMISES, LEFT_OUT)


if __name__ == "__main__":
    # Also in the background of a shell, where SIGINT is ignored, by scripts too.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)

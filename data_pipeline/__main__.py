"""The command line: python -m data_pipeline index|verify|stats|peek|tokenize|verify-resume|demo"""

from __future__ import annotations

import difflib
import inspect
import os
import signal
import sys
from collections.abc import Callable, Sequence
from types import FrameType

import tyro

from data_pipeline.commands.arguments import UsageError
from data_pipeline.commands.demo import demo
from data_pipeline.commands.encode_ahead import encode_ahead
from data_pipeline.commands.index import index
from data_pipeline.commands.peek import peek
from data_pipeline.commands.resume_check import verify_resume
from data_pipeline.commands.stats import stats
from data_pipeline.commands.verify import verify
from data_pipeline.errors import PipelineError

COMMANDS: dict[str, Callable[..., int]] = {
    "index": index,
    "verify": verify,
    "stats": stats,
    "peek": peek,
    "tokenize": encode_ahead,
    "verify-resume": verify_resume,
    "demo": demo,
}
GO_ON = ("index", "tokenize")
"""Commands that keep what they have finished."""
HELP = """\
usage: python -m data_pipeline COMMAND RECIPE | FILE ...

Look at training data and check them before GPU hours are spent.

{commands}

All but demo take a recipe, and then read the data as the recipe's run will, or files, folders and URLs.
COMMAND --help shows the options of a command, and examples.

exit codes: 0 done, 1 damage found, 2 the request cannot be met,
130 or 143 stopped by Ctrl-C or SIGTERM, 141 the reader of the output left"""


class _TerminatedError(BaseException):
    """SIGTERM came; like KeyboardInterrupt, nothing but the end of the command may catch it."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code, as HELP says them."""
    name, *rest = (sys.argv[1:] if arguments is None else arguments) or [""]
    try:
        if name in ("-h", "--help"):
            print(_help())
            return 0
        if name not in COMMANDS:
            close = difflib.get_close_matches(name, COMMANDS, 1)
            what = (
                f"{name!r} is no command" + (f"; did you mean {close[0]}?" if close else "")
                if name
                else "name a command"
            )
            raise UsageError(f"{what}\n\n{_help()}")
        code = int(
            tyro.cli(
                COMMANDS[name],
                args=rest,
                prog=f"python -m data_pipeline {name}",
                config=(tyro.conf.OmitArgPrefixes, tyro.conf.FlagCreatePairsOff),
            )
        )
        sys.stdout.flush()
        return code
    except PipelineError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except (KeyboardInterrupt, _TerminatedError) as stop:
        goes_on = "; what was finished is kept, and the same command goes on from there" if name in GO_ON else ""
        print(f"stopped{goes_on}", file=sys.stderr)
        return 128 + (signal.SIGINT if isinstance(stop, KeyboardInterrupt) else signal.SIGTERM)
    except BrokenPipeError:
        # Whoever read the output (head, less) has seen enough; the interpreter must not write to it when it ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE


def _help() -> str:
    summaries = {name: (inspect.getdoc(command) or "").splitlines()[0] for name, command in COMMANDS.items()}
    return HELP.format(commands="\n".join(f"  {name:14}{summary}" for name, summary in summaries.items()))


def _terminate(number: int, frame: FrameType | None) -> None:
    raise _TerminatedError


if __name__ == "__main__":
    # As for Ctrl-C, worker processes end and files are closed before this process does.
    signal.signal(signal.SIGTERM, _terminate)
    sys.exit(main())

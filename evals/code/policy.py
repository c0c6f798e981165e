"""What a program under judgement may use: time, memory, processes, files, output.

Limits are the kernel's for processes and the keeper's watch; what isolates a program is Linux user namespaces alone (see
`evals.code.sandbox`).
"""

from __future__ import annotations

from dataclasses import dataclass, fields

from evals.errors import EvalError

MIB = 2**20


@dataclass(frozen=True, kw_only=True)
class Policy:
    """The limits on one program, tests included. A program that reaches one of them fails.

    Attributes:
        wall_seconds: time from the program's start to its last test.
        cpu_seconds: processor time of each process, rounded up to whole seconds.
        memory_bytes: address space of each process, and resident memory of all of them together.
        processes: processes and threads that exist at one time.
        file_bytes: largest file; the scratch directory holds four times as much.
        open_files: file descriptors of each process.
        output_bytes: what is written to standard output and standard error together.
        allow_unisolated: run programs even where user namespaces are not allowed, so that nothing isolates them from the
            user's files, processes and network.
    """

    wall_seconds: float = 10.0
    cpu_seconds: float = 10.0
    memory_bytes: int = 4096 * MIB
    processes: int = 64
    file_bytes: int = 16 * MIB
    open_files: int = 64
    output_bytes: int = MIB
    allow_unisolated: bool = False

    def __post_init__(self) -> None:
        """Refuse limits that are not positive, all at once."""
        wrong = [
            f"{field.name} is {getattr(self, field.name)}"
            for field in fields(self)
            if field.name != "allow_unisolated" and not 0 < getattr(self, field.name) < float("inf")
        ]
        if wrong:
            raise EvalError(f"limits on programs must be positive and finite, but {', '.join(wrong)}")

from __future__ import annotations

import errno
import re
import socket
import struct
from pathlib import Path

import pytest

from evals.code import call_filter
from evals.code import system_calls as linux

ALLOW, KILL, FAIL = 0x7FFF0000, 0x80000000, 0x00050000
ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
HEADERS = {
    "x86_64": Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h"),
    "aarch64": Path("/usr/include/asm-generic/unistd.h"),
}


def answer(machine: str, number: int, argument: int = 0, architecture: int | None = None) -> int:
    """What the kernel's interpreter of classic BPF makes of a system call (the instructions used here)."""
    program = [
        struct.unpack("<HBBI", line) for line in struct.iter_unpack("8s", call_filter.build(machine)) for line in line
    ]
    data = struct.pack("<IIQQ", number, ARCHITECTURES[machine] if architecture is None else architecture, 0, argument)
    accumulator = place = 0
    while True:
        code, if_true, if_false, value = program[place]
        place += 1
        if code == 0x20:
            accumulator = struct.unpack_from("<I", data, value)[0]
        elif code == 0x06:
            return value
        else:
            is_true = {0x15: accumulator == value, 0x35: accumulator >= value, 0x45: bool(accumulator & value)}[code]
            place += if_true if is_true else if_false


@pytest.mark.parametrize(("machine", "column"), [("x86_64", 0), ("aarch64", 1)])
def test_only_what_is_listed_fails(machine: str, column: int) -> None:
    listed = {numbers[column] for numbers in call_filter._FORBIDDEN.values()}
    clone, connection = ((56, 41), (220, 198))[column]
    for number in range(500):
        if number in listed:
            assert answer(machine, number) == FAIL | errno.EPERM
        elif number == 435:
            assert answer(machine, number) == FAIL | errno.ENOSYS
        elif number == connection:
            for family in (socket.AF_UNIX, socket.AF_INET, socket.AF_INET6):
                assert answer(machine, number, family) == ALLOW
            for family in (0, 3, 16, 17, 40, 2**31):
                assert answer(machine, number, family) == FAIL | errno.EAFNOSUPPORT
        else:
            assert answer(machine, number) == ALLOW, number
    for flag in (linux.CLONE_NEWUSER, linux.CLONE_NEWPID, linux.CLONE_NEWNET, linux.CLONE_NEWNS):
        assert answer(machine, clone, flag | 17) == FAIL | errno.EPERM
    assert answer(machine, clone, 0x3D0F00) == ALLOW  # a thread
    assert answer(machine, 0, architecture=0x40000003) == KILL
    assert answer(machine, 0x40000000 + 39) == KILL


def test_there_is_none_for_other_machines() -> None:
    assert call_filter.build("riscv64") == b""


@pytest.mark.parametrize(("machine", "column"), [("x86_64", 0), ("aarch64", 1)])
def test_the_numbers_are_the_kernels(machine: str, column: int) -> None:
    if not HEADERS[machine].exists():
        pytest.skip(f"{HEADERS[machine]} is not there")
    numbers = dict(re.findall(r"#define __NR(?:3264)?_(\w+)\s+(\d+)", HEADERS[machine].read_text()))
    ours = {**call_filter._FORBIDDEN, "clone": call_filter._CLONE, "socket": call_filter._SOCKET}
    for name, values in ours.items():
        if name in numbers:
            assert int(numbers[name]) == values[column], name

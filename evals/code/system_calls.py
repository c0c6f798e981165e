"""The Linux system calls that Python 3.11 does not offer: namespaces, mounts, process attributes.

Each raises OSError with the step's name, so that a refusal can say which step is not allowed here.
"""

from __future__ import annotations

import ctypes
import os
import platform
import signal

CLONE_NEWNS = 0x00020000
CLONE_NEWCGROUP = 0x02000000
CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000

MS_RDONLY = 1
MS_NOSUID = 2
MS_NODEV = 4
MS_NOEXEC = 8
MS_REMOUNT = 32
MS_BIND = 4096
MS_REC = 16384
MS_PRIVATE = 1 << 18

PR_SET_PDEATHSIG = 1
PR_SET_DUMPABLE = 4
PR_SET_SECCOMP = 22
PR_CAPBSET_DROP = 24
PR_SET_NO_NEW_PRIVS = 38

_MNT_DETACH = 2
_CAPABILITY_VERSION_3 = 0x20080522
_NUMBERS = {"x86_64": {"clone": 56, "pivot_root": 155}, "aarch64": {"clone": 220, "pivot_root": 41}}

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


def _checked(result: int, step: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{step}: {os.strerror(number)}")
    return result


def _number(name: str) -> int:
    machine = platform.machine()
    if machine not in _NUMBERS:
        raise OSError(f"{name}: isolation is written for {' and '.join(_NUMBERS)}, this machine is {machine}")
    return _NUMBERS[machine][name]


def unshare(flags: int, what: str) -> None:
    """Leave the namespaces in `flags` for new, empty ones."""
    _checked(_libc.unshare(flags), f"making {what}")


def fork_into(flags: int) -> int:
    """`os.fork` with the child in new namespaces, the first process of a new pid namespace if that is among them.

    For a process of one thread. Functions registered with `os.register_at_fork` are not called.
    """
    zeros = [ctypes.c_long(0)] * 4
    number = _number("clone")
    return _checked(_libc.syscall(ctypes.c_long(number), ctypes.c_long(flags | signal.SIGCHLD), *zeros), "forking")


def mount(source: str, target: str, kind: str = "", flags: int = 0, options: str = "") -> None:
    """Mount `source` at `target`, or change the mount there."""
    arguments = (source.encode(), target.encode(), kind.encode(), ctypes.c_ulong(flags), options.encode())
    _checked(_libc.mount(*arguments), f"mounting {target}")


def pivot_root(new: str, old: str) -> None:
    """Make `new` the root directory of this mount namespace; the root from before appears at `old`."""
    arguments = (ctypes.c_char_p(new.encode()), ctypes.c_char_p(old.encode()))
    _checked(_libc.syscall(ctypes.c_long(_number("pivot_root")), *arguments), "changing the root directory")


def detach(target: str) -> None:
    """Unmount `target` and all below it."""
    _checked(_libc.umount2(target.encode(), _MNT_DETACH), f"unmounting {target}")


def set_hostname(name: str) -> None:
    """Name the host, in this namespace."""
    _checked(_libc.sethostname(name.encode(), ctypes.c_size_t(len(name))), "setting the host name")


def prctl(option: int, argument: int, step: str, pointer: ctypes.c_void_p | None = None) -> None:
    """Set an attribute of this process."""
    _checked(_libc.prctl(option, ctypes.c_ulong(argument), pointer, ctypes.c_ulong(0), ctypes.c_ulong(0)), step)


def drop_capabilities() -> None:
    """Give up all capabilities, now and for whatever is executed later."""
    capability = 0
    while _libc.prctl(PR_CAPBSET_DROP, ctypes.c_ulong(capability), None, None, None) == 0:
        capability += 1
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    none = (ctypes.c_uint32 * 6)()
    _checked(_libc.capset(header, none), "dropping capabilities")

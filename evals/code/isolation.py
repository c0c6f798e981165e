"""Namespaces and the file system that a program sees: nothing of the user's, nothing to write but a scratch directory.

Two levels, so that judging thousands of programs stays cheap: `enter` isolates a helper process once, `NAMESPACES` are
made anew for each program. Needs user namespaces; it works for root and for ordinary users.
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
import sysconfig
from pathlib import Path

from evals.code import system_calls as linux

NOBODY = 65534
"""The user that programs run as. Root starts them as this user indeed, others as themselves under this number."""

SCRATCH = "/scratch"
"""The only directory that a program can write to."""

NAMESPACES = linux.CLONE_NEWPID | linux.CLONE_NEWNS | linux.CLONE_NEWIPC
"""What each program has for itself: its processes die with it, its files and shared memory go with it."""

_DEVICES = ("null", "zero", "full", "random", "urandom")
_LOCKED_FLAGS = {"nosuid": linux.MS_NOSUID, "nodev": linux.MS_NODEV, "noexec": linux.MS_NOEXEC}


def enter() -> None:
    """Isolate this process from network, files, and other processes' shared memory. It keeps power over its own jail.

    Raises:
        OSError: a step is not allowed; the message names it.
    """
    _new_user_namespace()
    linux.set_hostname("sandbox")
    _new_root()


def _new_user_namespace() -> None:
    """All namespaces but those of `NAMESPACES`, owned by a user namespace in which this process may do everything.

    The program's user is number 65534. For root this is the user 65534 outside, too, so that a program owns none of
    root's files and limits on processes bind it. A user who is not root can only be mapped to themselves.
    """
    flags = linux.CLONE_NEWUSER | linux.CLONE_NEWNS | linux.CLONE_NEWNET | linux.CLONE_NEWIPC
    flags |= linux.CLONE_NEWUTS | linux.CLONE_NEWCGROUP
    uid, gid, pid = os.geteuid(), os.getegid(), os.getpid()
    if uid != 0:
        linux.unshare(flags, "a user namespace")
        _write("/proc/self/setgroups", "deny")
        _write("/proc/self/uid_map", f"{NOBODY} {uid} 1")
        _write("/proc/self/gid_map", f"{NOBODY} {gid} 1")
    else:
        # Only a process that stayed outside may map a second user.
        ready, go = os.pipe()
        mapper = os.fork()
        if mapper == 0:
            os.close(go)
            status = 1
            try:
                if os.read(ready, 1):
                    _write(f"/proc/{pid}/uid_map", f"0 0 1\n{NOBODY} {NOBODY} 1")
                    _write(f"/proc/{pid}/gid_map", f"0 0 1\n{NOBODY} {NOBODY} 1")
                    status = 0
            finally:
                os._exit(status)
        os.close(ready)
        try:
            linux.unshare(flags, "a user namespace")
            os.write(go, b"1")
        finally:
            os.close(go)
            status = os.waitpid(mapper, 0)[1]
        if status != 0:
            raise OSError(f"mapping root and user {NOBODY} into the user namespace is not allowed")
    # It is read-only in some containers; the filter of system calls forbids new namespaces as well.
    with contextlib.suppress(OSError):
        _write("/proc/sys/user/max_user_namespaces", "0")


def _write(path: str, text: str) -> None:
    try:
        with open(path, "w") as file:
            file.write(text)
    except OSError as error:
        raise OSError(error.errno, f"writing {path}: {error.strerror}") from None


def _new_root() -> None:
    """An empty root directory, read-only, with Python's own files and a few devices."""
    paths, hidden = python_paths()
    paths += [f"/dev/{name}" for name in _DEVICES]
    sources = {path: f"/old{os.path.realpath(path)}" for path in paths}
    linux.mount("none", "/", flags=linux.MS_REC | linux.MS_PRIVATE)
    linux.mount("tmpfs", "/tmp", "tmpfs", linux.MS_NOSUID, "size=1m,mode=0755")
    os.chdir("/tmp")
    os.mkdir("old")
    linux.pivot_root(".", "old")
    os.chdir("/")
    for path, source in sources.items():
        _show(source, path)
    os.mkdir("/empty")
    for path in hidden:
        if os.path.isdir(path):
            linux.mount("/empty", path, flags=linux.MS_BIND)
    os.mkdir(SCRATCH)
    mounts = _mounts("/old/proc/self/mountinfo")
    linux.detach("/old")
    os.rmdir("/old")
    for path, flags in mounts:
        linux.mount("none", path, flags=linux.MS_REMOUNT | linux.MS_BIND | linux.MS_RDONLY | flags)


def python_paths() -> tuple[list[str], list[str]]:
    """What Python needs to import its standard library, and the directories of installed packages to hide in it."""
    standard = {sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib")}
    libraries = {os.path.join(sys.base_exec_prefix, "lib"), "/lib", "/lib64", "/usr/lib", "/usr/lib64"}
    found = sorted(path for path in standard | libraries | {"/etc/ld.so.cache"} if os.path.exists(path))
    outermost = [path for path in found if not any(str(parent) in found for parent in Path(path).parents)]
    packages = {os.path.join(path, name) for path in standard for name in ("site-packages", "dist-packages")}
    return outermost, sorted(packages | {"/usr/lib/python3/dist-packages"})


def _show(source: str, path: str) -> None:
    """Bind a file or directory to a path that is made for it."""
    if os.path.isdir(source):
        os.makedirs(path, exist_ok=True)
    else:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o644))
    linux.mount(source, path, flags=linux.MS_BIND | linux.MS_REC)


def _mounts(mountinfo: str) -> list[tuple[str, int]]:
    """Mount points of the new root, and the flags that they must keep, from proc(5)'s mountinfo."""
    mounts = []
    with open(mountinfo) as file:
        for line in file:
            fields = line.split()
            path = re.sub(r"\\(\d{3})", lambda code: chr(int(code[1], 8)), fields[4])
            flags = sum(flag for name, flag in _LOCKED_FLAGS.items() if name in fields[5].split(","))
            if path != "/old" and not path.startswith("/old/"):
                mounts.append((path, flags))
    return mounts


def mount_scratch(size: int) -> None:
    """An empty scratch directory of `size` bytes, for one program, as the current directory."""
    options = f"size={size},nr_inodes=4096,mode=0700,uid={NOBODY},gid={NOBODY}"
    linux.mount("tmpfs", SCRATCH, "tmpfs", linux.MS_NOSUID | linux.MS_NODEV | linux.MS_NOEXEC, options)
    os.chdir(SCRATCH)

from __future__ import annotations

import os
import sys
from pathlib import Path

from evals.code import isolation
from evals.code import system_calls as linux


def test_the_standard_library_is_shown_and_nothing_is_listed_twice() -> None:
    shown, hidden = isolation.python_paths()
    library = Path(os.__file__).parent
    assert any(library.is_relative_to(path) for path in shown)
    assert str(library / "site-packages") in hidden
    assert not any(Path(one).is_relative_to(other) for one in shown for other in shown if one != other)
    assert not {"/", "/usr", "/etc", "/home", "/root", sys.prefix} & set(shown) - {sys.base_prefix}


def test_mounts_keep_their_locked_flags(tmp_path: Path) -> None:
    file = tmp_path / "mountinfo"
    file.write_text(
        "21 20 0:5 / / rw,nosuid,relatime - tmpfs tmpfs rw\n"
        "22 21 8:1 /usr/lib /usr/lib ro,nodev,noexec - ext4 /dev/vda rw\n"
        "23 21 8:1 /a /with\\040space rw - ext4 /dev/vda rw\n"
        "24 21 8:1 / /old rw,nosuid - ext4 /dev/vda rw\n"
        "25 24 0:4 / /old/proc rw - proc proc rw\n"
        "26 21 0:4 / /older rw - proc proc rw\n"
    )
    assert isolation._mounts(str(file)) == [
        ("/", linux.MS_NOSUID),
        ("/usr/lib", linux.MS_NODEV | linux.MS_NOEXEC),
        ("/with space", 0),
        ("/older", 0),
    ]

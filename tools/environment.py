"""Make the environment in the folder given, with the Python that runs this, unless it is there already.

One that came with a copied checkout, or whose Python is gone or another by now, is emptied first: of two Pythons it would be a
mixture.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import venv
from pathlib import Path

QUESTION = "import pip, sys; print(sys.base_prefix, sys.version)"


def is_usable(folder: Path) -> bool:
    """Whether the environment was made in this place, by this very Python, and works."""
    try:
        activate = (folder / "bin" / "activate").read_text(encoding="utf-8")
        answer = subprocess.run(
            [folder / "bin" / "python", "-I", "-c", QUESTION], capture_output=True, text=True, check=False
        )
    except OSError:
        return False
    # Its programs name the place in their first lines.
    is_made_here = re.search(rf"VIRTUAL_ENV=[\"']?{re.escape(str(folder))}[\"']?$", activate, re.MULTILINE) is not None
    return is_made_here and answer.stdout.strip() == f"{sys.base_prefix} {sys.version}"


def main() -> int:
    """Make it; return the exit code: 2 where that can't be done."""
    folder = Path(sys.argv[1]).absolute()
    if is_usable(folder):
        return 0
    try:
        if folder.is_dir() and os.listdir(folder):
            print(f"{folder}: is no working environment of {sys.executable} in this place; making it anew", flush=True)
        venv.create(folder, clear=True, symlinks=True, with_pip=True)
    except (OSError, ValueError, subprocess.CalledProcessError) as error:
        print(f"{folder}: can't be made: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())

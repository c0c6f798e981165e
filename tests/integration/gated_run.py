"""Training that goes no further than it is allowed to: `python -m tests.integration.gated_run FOLDER arguments of training/main.py`.

FOLDER/allowed has the number of steps that may be made; the first rank writes how many were made to FOLDER/made. So a test can
do something to storage at a step of its choice, and look at what follows.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

from training import main
from training.engine import Engine


def gate(folder: Path) -> None:
    """Have steps wait until they are allowed."""
    own = Engine.step

    def step(self: Engine, batch: Any, number: int, **more: Any) -> Any:
        while int((folder / "allowed").read_text() or 0) <= number:
            time.sleep(0.01)
        result = own(self, batch, number, **more)
        if self.world.rank == 0:
            (folder / "made").write_text(str(number + 1))
        return result

    Engine.step = step  # type: ignore[method-assign]


if __name__ == "__main__":
    gate(Path(sys.argv[1]))
    main.leave(main.main(sys.argv[2:]))

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator

import pytest

from tests.slurm.cluster import Cluster, missing


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Two real nodes for all tests; what kills one starts it again. Skipped where this machine can't have them."""
    if problem := missing():
        pytest.skip(problem)
    with contextlib.ExitStack() as stack:
        try:
            running = stack.enter_context(Cluster(tmp_path_factory.mktemp("slurm")))
        except (OSError, RuntimeError, subprocess.CalledProcessError) as error:
            pytest.skip(f"Slurm can't be started on this machine: {error}")
        yield running

from __future__ import annotations

import signal
from pathlib import Path

import pytest
from hypothesis import settings

from tests.inputs import make_inputs

# A shell's background job ignores SIGINT, and what the tests start would inherit that: Ctrl-C could not be tried on it.
signal.signal(signal.SIGINT, signal.default_int_handler)
# A time limit per example would fail on a busy machine.
settings.register_profile("patient", deadline=None)
settings.load_profile("patient")


@pytest.fixture(scope="session")
def tiny_recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe with everything it names, small enough to train in seconds."""
    return make_inputs(tmp_path_factory.mktemp("tiny"))

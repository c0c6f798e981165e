from __future__ import annotations

from pathlib import Path

import pytest

from tests.inputs import make_inputs


@pytest.fixture(scope="session")
def tiny_recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe with everything it names, small enough to train in seconds."""
    return make_inputs(tmp_path_factory.mktemp("tiny"))

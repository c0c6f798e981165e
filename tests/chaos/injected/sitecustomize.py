"""Read by every Python that is started with this folder on PYTHONPATH: the writer of checkpoints may have to kill itself."""

import sys

from tests.chaos.system_calls import WRITER, kill_where_asked

if WRITER in sys.orig_argv:
    kill_where_asked(WRITER)

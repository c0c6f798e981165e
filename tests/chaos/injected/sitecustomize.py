"""Read by every Python that is started with this folder on PYTHONPATH: one that CHAOS_KILL names kills itself."""

from tests.chaos.system_calls import kill_where_asked

kill_where_asked()

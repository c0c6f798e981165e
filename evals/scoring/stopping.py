"""What an evaluation raises when it is asked to stop."""

from __future__ import annotations


class Stopped(Exception):
    """`should_stop` said yes. It says so on all ranks at the same forward, so all ranks raise this together."""

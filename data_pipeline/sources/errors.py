"""What can be wrong with a source."""

from __future__ import annotations

from data_pipeline.errors import PipelineError


class DataError(PipelineError):
    """A source cannot be read as asked; the message says which file, where in it, what is wrong and what to do."""


class DamagedRecordError(DataError):
    """One record cannot be decoded; the message goes on from where it is ("… is not valid JSON"), which Source.where tells.

    `on_bad_record = "skip"` passes over it.
    """

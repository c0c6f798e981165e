"""The variables of slurm/job.sh: what they may be."""

from __future__ import annotations

from collections.abc import Mapping

from training.duration import parse_duration

NUMBERS = ("MAX_REQUEUES", "RETRIES")
CHOICES = {
    "PREFLIGHT": ("yes", "no", "only"),
    "EXCLUDE_FAILING": ("yes", "no"),
    "STOP_SIGNAL": ("USR1", "TERM", "INT"),
}


def setting_problems(values: Mapping[str, str]) -> list[str]:
    """Every variable that is there and can't be what it says, one line each."""
    found = []
    for name in NUMBERS:
        if name in values and not (values[name].isascii() and values[name].isdecimal()):
            found.append(f"{name}={values[name]}: must be a whole number of 0 or more")
    for name, choices in CHOICES.items():
        if name in values and values[name] not in choices:
            found.append(f"{name}={values[name]}: must be {', '.join(choices[:-1])} or {choices[-1]}")
    if "PREFLIGHT_LIMIT" in values and not (
        values["PREFLIGHT_LIMIT"].isdecimal() and int(values["PREFLIGHT_LIMIT"]) > 0
    ):
        found.append(f"PREFLIGHT_LIMIT={values['PREFLIGHT_LIMIT']}: must be a number of seconds")
    if "STOP_BEFORE" in values:
        try:
            parse_duration(values["STOP_BEFORE"])
        except ValueError as error:
            found.append(f"STOP_BEFORE={values['STOP_BEFORE']}: {error}")
    return found

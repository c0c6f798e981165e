"""The ranks of a run among themselves: how they join, agree and raise together, and end together when one can't go on."""

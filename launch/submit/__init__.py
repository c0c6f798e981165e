"""Submitting a run to Slurm: what is asked for, the batch script, and everything that can be wrong before the queue."""

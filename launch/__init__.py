"""Turns a run and a machine into processes. Nothing in here imports torch."""

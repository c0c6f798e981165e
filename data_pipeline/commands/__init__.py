"""The commands of `python -m data_pipeline`, a file for each; every command returns the exit code."""

"""Many runs from one file: a grid of settings as numbered, named cells, trained here one after another or as a Slurm array."""

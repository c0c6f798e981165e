"""Checkpoints: reshardable, hashed, free of pickle.

    checkpoints/<step>/rank-00000-of-00002.safetensors     one per rank: fp32 slices of what trains (slices.py, image.py)
    checkpoints/<step>/MANIFEST.json                        sizes, hashes, layout, stream state, recipe (manifest.py)

The folder gets its name, with the manifest in it, when everything else is on the disk (storage.py); so a folder without a
valid manifest is no checkpoint. Between two steps a rank copies its slices into memory that it shares with a process of its
own, which writes them while training goes on (writer.py). Which old ones are deleted is in retention.py. The collective side,
over all ranks, is training/saving.py. `python -m training.checkpoint` is for people: ls and verify (commands.py), and export
to Hugging Face formats (export.py).
"""

"""Is the cluster fit for a run? What every node says of itself, what the nodes are to each other, and who is the odd one.

Every rank of a launcher takes part (command.py, examination.py). Of each check one file has both halves: what a rank looks at,
and `judge`, a pure function from what all nodes said to findings. Nothing here imports torch but through training.ranks.fabric.
"""

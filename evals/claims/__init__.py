"""What the papers on these methods claim, checked on the runs of a sweep: estimates, intervals, verdicts, a document.

`roles` says which method a run is, `study` holds what was measured, `selection` picks learning rates, `estimates` makes
intervals, `comparisons`, `spreads` and `rank_growth` measure the claims that `catalogue` lists.
"""

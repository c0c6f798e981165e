"""What a run writes about itself: run.json, metrics, scores and logs, also while storage takes nothing."""

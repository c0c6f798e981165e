"""lm-evaluation-harness: its tasks, prompts and metrics on our scorer, from local data where there is no internet."""

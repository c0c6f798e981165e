"""The page about a few methods side by side: what each learned and forgot, and what can be said of it."""

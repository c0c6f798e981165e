"""Records to token ids: tokenizers, the fast engine in front of them, and examples with their targets."""

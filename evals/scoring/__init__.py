"""Scoring: what a model says of rows of token ids, and what it writes; on one device, or on all ranks together."""

"""The model of a run: a base loaded or drawn, its attention and loss head, and everything that is attached to it."""

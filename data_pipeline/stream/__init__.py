"""From sources to the rows of a rank's lanes: the stream, its state, and the processes that run ahead of training."""

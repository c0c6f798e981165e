"""Tasks on held-out text of the user's own: bits per byte, and the true continuation among several."""

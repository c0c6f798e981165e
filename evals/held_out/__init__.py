"""Tasks on held-out text of the user's own: bits per byte, of texts and of responses, and the true continuation of several."""

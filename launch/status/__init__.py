"""`python -m launch status`: every run of a folder, how far it is, when it will be done, and why it stopped."""

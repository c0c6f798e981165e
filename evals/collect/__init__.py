"""Every run on shared storage in one table and one page, from its files alone."""

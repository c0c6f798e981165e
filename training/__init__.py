"""Training: one Config, one engine, one loop; the adapter is a setting."""

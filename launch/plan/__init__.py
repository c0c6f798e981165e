"""Will it fit, and how long will it take? Arithmetic on a recipe and a cluster; no torch, no GPU, nothing started."""

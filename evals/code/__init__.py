"""Programs that a model wrote: running them in isolation, judging them by their tests, and counting what passes."""

"""The demo's corpus and tokenizer, made from the Python that runs it."""

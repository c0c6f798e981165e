"""The base of every error that is meant for the user."""


class PipelineError(ValueError):
    """Data, a tokenizer or a setting is not as needed; the message says which, what is wrong and what to do."""

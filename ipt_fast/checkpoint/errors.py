"""What is wrong with a file of weights."""


class CheckpointError(RuntimeError):
    """A file that cannot be used; the message names it."""

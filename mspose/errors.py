"""The one exception that a person sees."""


class MsposeError(Exception):
    """Bad input, said in one line: what is wrong, where, and what to do. The command line prints it and exits 2."""

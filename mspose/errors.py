"""The exceptions that a person sees."""


class MsposeError(Exception):
    """Bad input, said in one line: what is wrong, where, and what to do. The command line prints it
    and exits 2.
    """


class Preempted(Exception):
    """A signal asked a run to stop; it is saved. The command line says so and exits 75: start me
    again.
    """

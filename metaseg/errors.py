"""The one exception whose message is addressed to the user."""


class MetasegError(Exception):
    """A problem the user can fix, as one sentence: what was expected, what was found, what to do.

    Entry points print it without a traceback and exit with status 1.
    """

"""The one exception that users are meant to read."""


class MetasegError(Exception):
    """A problem the user can mend, told in one sentence: what was expected, what was found, what to do.

    Entry points print the sentence and exit with status 1; no traceback is shown.
    """

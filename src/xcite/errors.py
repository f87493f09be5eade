"""The one exception users meet."""


class XciteError(Exception):
    """Something the user can mend.

    The message says in one line what is wrong, where, and what to do. The command line prints it
    and exits with code 2 (with a traceback under ``--debug``).
    """

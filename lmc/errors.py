"""The one exception that is meant for the person at the keyboard."""


class UserError(Exception):
    """Something handed in cannot be used; the text is one line: what was wrong, what was expected, how to mend it.

    The command line prints the text without a traceback and exits with a non-zero status. Anything else that
    escapes is a defect of lmc and keeps its traceback.
    """

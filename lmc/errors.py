"""The one exception that is meant for the person at the keyboard."""

import errno

_REFUSALS = {
    errno.ENOSPC: "the disk is full; free some space",
    errno.EDQUOT: "the quota is used up; free some space",
    errno.EROFS: "the file system is read-only",
    errno.EACCES: "no permission to write there",
    errno.EPERM: "no permission to write there",
    errno.ENOTDIR: "a part of the path is a file",
    errno.EEXIST: "a part of the path is a file",
    errno.ENOENT: "the folder cannot be made there",
}


class UserError(Exception):
    """Something handed in cannot be used; the text is one line: what was wrong, what was expected, how to mend it.

    The command line prints the text without a traceback and exits with a non-zero status. Anything else that
    escapes is a defect of lmc and keeps its traceback.
    """


def refusal(error: OSError) -> str | None:
    """Return in plain words why the file system refused to write, or None if it is not that."""
    return _REFUSALS.get(error.errno or 0)

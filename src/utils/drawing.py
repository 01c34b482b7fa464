"""Pictures for people: whatever goes wrong in one must not end a training."""

import errno
import logging
import warnings

log = logging.getLogger(__name__)

# Then nothing else can be written to the run's folder either: src/train.py says so.
NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
_said = set()


def drawn(page, draw, *arguments):
    """Call draw(*arguments). If it fails, the page is missing: one warning per page and reason says so.

    Args:
        page: its name, for the warning
        draw: a function that draws it; nothing that the processes do together
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a letter that the font lacks, or what torch says of its own add_graph
            draw(*arguments)
    except Exception as error:
        if isinstance(error, OSError) and error.errno in NO_SPACE:
            raise
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        if (page, reason) not in _said:
            _said.add((page, reason))
            log.warning(f"TensorBoard lacks the page {page}, and the training continues: {reason}")


def readable(name, length=None):
    """The name of a class as text that every program can show: what cannot be printed is escaped.

    Args:
        length: to which it is shortened
    """
    text = str(name).encode("utf-8", "backslashreplace").decode()
    text = "".join(letter if letter.isprintable() else letter.encode("unicode_escape").decode() for letter in text)
    return text if length is None or len(text) <= length else f"{text[: length - 1]}…"


def in_figure(name, length=20):
    """The same for matplotlib, which takes what is between two $ for a formula."""
    return readable(name, length).replace("$", r"\$")

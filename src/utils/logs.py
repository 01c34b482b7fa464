"""One stream for everything a run says: our own lines, Lightning's, submitit's, and Python's warnings."""

import logging
import sys
import warnings

from lightning.pytorch.utilities.rank_zero import rank_zero_only

from src.utils.progress import tqdm

FORMAT = "%(asctime)s %(levelname)-7s rank %(rank)d %(name)s: %(message)s"


class Console(logging.Handler):
    """Writes to stdout, in a job the out log. On a terminal the line goes above the progress bar, not into it."""

    def emit(self, record):
        record.rank = rank_zero_only.rank  # which process of the job this is
        try:
            tqdm.write(self.format(record), file=sys.stdout)
            sys.stdout.flush()  # a line that is held back does not help to find out why a job hangs
        except Exception:
            self.handleError(record)


def one_line(message, category, filename, lineno, line=None):
    """A warning as text; Python's own has the line of code below it, without time and rank."""
    return f"{category.__name__}: {message} ({filename}:{lineno})"


def setup_logging():
    """Send all messages from level INFO up to stdout. To call it again changes nothing."""
    console = Console()
    console.setFormatter(logging.Formatter(FORMAT))
    # force=True takes away the handlers that are there. Without it a second call adds a second handler, and every
    # line comes twice.
    logging.basicConfig(level=logging.INFO, handlers=[console], force=True)
    # These libraries bring handlers of their own, most of them for stderr. Their messages are to come to ours instead.
    for name in ("lightning", "lightning.pytorch", "lightning.fabric", "submitit"):
        library = logging.getLogger(name)
        library.handlers.clear()
        library.propagate = True
    logging.captureWarnings(True)  # a warning becomes a message of the logger py.warnings
    warnings.formatwarning = one_line

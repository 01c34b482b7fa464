"""Paths as users type them, and files that nobody else may have put there."""

import contextlib
import os
import stat
from pathlib import Path


def full_path(text: str | os.PathLike) -> Path:
    """The absolute path, with ~ replaced by the home folder. Raises what expanded() raises."""
    return expanded(text).absolute()


def expanded(text: str | os.PathLike) -> Path:
    """The path, with ~ replaced by the home folder.

    Raises:
        ValueError: one sentence: nothing can have this path
    """
    shown = short(os.fspath(text))
    if not os.fspath(text):
        raise ValueError("an empty text is no path: give the path of a file or a folder")
    try:
        path = Path(text).expanduser()
        with contextlib.suppress(PermissionError):
            path.exists()
    except RuntimeError:
        raise ValueError(f"{shown}: there is no such user, and no home folder: give the whole path") from None
    except OSError as error:
        raise ValueError(f"{shown}: {error.strerror}: give another path") from None
    if "\0" in os.fspath(path):
        raise ValueError(f"{shown} holds a NUL character: give another path")
    return path


def short(text: str) -> str:
    """A text for a message: at most 200 characters, without control characters."""
    text = "".join(letter if letter.isprintable() or "\udc80" <= letter <= "\udcff" else "?" for letter in text)
    return text if len(text) <= 200 else f"{text[:150]}...{text[-40:]}"


def open_regular(path: str | os.PathLike, flags: int = os.O_RDONLY, mode: int = 0o600) -> int:
    """Open a file, but never wait for the other end of a FIFO, or read a device. Returns a file descriptor.

    Raises:
        OSError: it cannot be opened, or is not a regular file
    """
    file = os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC, mode)
    if not stat.S_ISREG(os.fstat(file).st_mode):
        os.close(file)
        raise OSError(0, "not a regular file", os.fspath(path))
    return file


def open_own(path: str | os.PathLike, flags: int = os.O_RDONLY, mode: int = 0o600) -> int:
    """The same for a file of this user's, and never through a symbolic link: in a folder that other users may write to,
    the name could be a trap.

    Raises:
        OSError: it cannot be opened, is not a regular file, or is another user's
    """
    if os.path.islink(path):
        raise OSError(0, "a symbolic link, which could lead anywhere", os.fspath(path))
    file = open_regular(path, flags | os.O_NOFOLLOW, mode)
    if os.fstat(file).st_uid != os.getuid():
        os.close(file)
        raise OSError(0, "another user's file", os.fspath(path))
    return file

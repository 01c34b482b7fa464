"""Write an HDF5 file such that it is there when it is complete, and not before, whatever happens."""

import contextlib
import errno
import fcntl
import io
import os
from pathlib import Path

import h5py

from src.hdf5.files import open_own
from src.hdf5.index import PackError, index_path, is_index, open_file, sha256, write_index


def refuse_to_overwrite(path):
    try:
        os.lstat(path.parent)
        if not path.parent.is_dir():
            raise NotADirectoryError
        taken, index = os.path.lexists(path), index_path(path)
        # An index without its file was left by a writer that was killed.
        taken_index = os.path.lexists(index) and not is_index(index)
    except (FileNotFoundError, NotADirectoryError):
        raise PackError(f"there is no folder {path.parent}: make it, or give another path") from None
    except OSError as error:
        raise PackError(f"cannot write into {path.parent}: {error.strerror}") from None
    if taken:
        raise PackError(f"{path} is there already: delete it, or give another name")
    if taken_index:
        raise PackError(f"{index} would be the index, but is another file: give another name")


@contextlib.contextmanager
def one_sentence(folder):
    """with one_sentence(folder): what goes wrong while something is written there is a PackError."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise PackError(f"no room left in {folder}: free some space, or write to another place") from None
        raise PackError(f"cannot write into {folder}: {error.strerror or error}") from None


@contextlib.contextmanager
def publish(path):
    """with publish(path) as partial: write the file `partial`. Only if that ended well it gets its name, `path`."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        file = open(open_own(partial, os.O_WRONLY | os.O_CREAT, 0o666), "ab")  # noqa: SIM115 (as long as the lock is)
    except OSError as error:
        reason = f"{partial} is {error.strerror}: delete it" if error.errno == 0 else error.strerror
        raise PackError(f"cannot write into {path.parent}: {reason}") from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not partial.exists() or not os.path.samestat(os.fstat(file.fileno()), partial.stat()):
                raise BlockingIOError  # between our two lines another process finished with it
        except BlockingIOError:
            raise PackError(f"{path} is just being written by another process") from None
        except OSError:
            pass  # a file system without locks
        try:
            refuse_to_overwrite(path)  # another process may have finished it before we got the lock
            yield partial
            with one_sentence(path.parent):
                os.rename(partial, path)
        finally:
            partial.unlink(missing_ok=True)


class Disk(io.FileIO):
    """A file that never fails while HDF5 writes to it: HDF5 could not even close a file on a full disk.

    It keeps the first error, and ignores what is written after it.
    """

    error = None

    def write(self, data):
        rest = memoryview(data)
        while rest and self.error is None:
            try:
                rest = rest[super().write(rest) :]
            except OSError as error:
                self.error = error
        return len(data)

    def truncate(self, size=None):
        try:
            return super().truncate(size)
        except OSError as error:
            self.error = self.error or error


class NewFile(h5py.File):
    """An HDF5 file on a Disk."""

    def __init__(self, disk):
        self.disk = disk
        super().__init__(disk, "w", libver=("v110", "v110"))  # what HDF5 1.10, of 2016, can read

    def check(self):
        """Raises PackError if something could not be written."""
        if self.disk.error:
            with one_sentence(Path(os.fsdecode(self.disk.name)).parent):
                raise self.disk.error


@contextlib.contextmanager
def new_file(path):
    """with new_file(path) as file: write an HDF5 file. Raises PackError if not all of it was written."""
    with one_sentence(path.parent):
        disk = Disk(path, "w+")
    with disk:
        file = NewFile(disk)
        try:
            yield file
        finally:
            file.close()
        file.check()
        with one_sentence(path.parent):
            os.fsync(disk.fileno())  # a network file system may tell of a full disk or quota only now


def finish(partial, path, index):
    """Check that the complete file can be read, and write its index."""
    with open_file(partial) as file:
        for name, _ in index.groups:
            file[name]
    with one_sentence(path.parent):
        index.files[path.name] = sealed(partial)
        write_index(path, index)


def sealed(path):
    """The entry of a complete file in the index."""
    return {"bytes": path.stat().st_size, "sha256": sha256(path)}

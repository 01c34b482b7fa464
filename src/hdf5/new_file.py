"""Write an HDF5 file such that it is there when it is complete, and not before, whatever happens."""

import contextlib
import errno
import fcntl
import io
import os
from pathlib import Path

import h5py

from src.hdf5.index import PackError, index_path, is_index, open_file, sha256, write_index


def refuse_to_overwrite(path):
    if path.exists():
        raise PackError(f"{path} is there already: delete it, or give another name")
    index = index_path(path)
    if index.exists() and not is_index(index):  # an index without its file was left by a writer that was killed
        raise PackError(f"{index} would be the index, but is another file: give another name")
    if not path.parent.is_dir():
        raise PackError(f"there is no folder {path.parent}")


@contextlib.contextmanager
def publish(path):
    """with publish(path) as partial: write the file `partial`. Only if that ended well it gets its name, `path`."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        file = open(partial, "ab")  # noqa: SIM115 (open as long as the lock is needed)
    except OSError as error:
        raise PackError(f"cannot write into {path.parent}: {error.strerror}") from None
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
        error, folder = self.disk.error, Path(os.fsdecode(self.disk.name)).parent
        if error and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise PackError(f"no room left in {folder}: free some space, or write to another place")
        if error:
            raise PackError(f"cannot write into {folder}: {error.strerror}")


@contextlib.contextmanager
def new_file(path):
    """with new_file(path) as file: write an HDF5 file. Raises PackError if not all of it was written."""
    with Disk(path, "w+") as disk:
        file = NewFile(disk)
        try:
            yield file
        finally:
            file.close()
        file.check()
        os.fsync(disk.fileno())  # a network file system may tell of a full disk or quota only now


def finish(partial, path, index):
    """Check that the complete file can be read, and write its index."""
    with open_file(partial) as file:
        for name, _ in index.groups:
            file[name]
    index.files[path.name] = sealed(partial)
    write_index(path, index)


def sealed(path):
    """The entry of a complete file in the index."""
    return {"bytes": path.stat().st_size, "sha256": sha256(path)}

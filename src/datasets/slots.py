"""A file of slots, one for each item of a data set, that any number of processes fill and read at the same time.

The file begins with a header, a line of JSON: the fingerprint of the data set, the layout of an item, the number of
slots. Then there is a checksum for each slot (CRC-32, uint32), 0 as long as the slot is empty, then the slots, all of
one size. The file is sparse: an empty slot takes no room.

Only this user may read and write the file: it holds what is trained on. A file that another user could have changed is
refused.

A slot's checksum is written after the slot. So a slot that is only half there, because another process is writing it or
was killed, has the wrong checksum or none, and nobody takes it for an item.
"""

import errno
import fcntl
import json
import os
import zlib
from pathlib import Path

import numpy as np

from src.hdf5.files import full_path, open_own

PAGE = 4096


class CacheError(ValueError):
    """One sentence: why this cannot be cached, or cannot be read."""


def open_cache(path, flags):
    """Open a file that only this user can have written. Returns a file descriptor.

    Raises:
        OSError: it cannot be opened, or could be another user's
    """
    file = open_own(path, flags)
    try:
        check_private(file, path)
    except OSError:
        os.close(file)
        raise
    return file


def check_private(file, path):
    mode = os.fstat(file).st_mode & 0o777
    if mode & 0o077:
        raise OSError(0, f"open to other users, with the mode {mode:o}, not 600", str(path))


def checksum(row):
    return zlib.crc32(row) or 1  # 0 means empty


class Slots:
    """The file, opened by a process when it first needs it: the object may be pickled and forked.

    Args:
        path: of the file; made if it is not there
        header: a dictionary for JSON, with at least `slots` and `bytes` (of one slot)
    Raises:
        CacheError: there is another file, or no room
    """

    def __init__(self, path, header):
        try:
            self.path = full_path(path)
        except ValueError as error:
            raise CacheError(str(error)) from None
        self.header = header
        self.slots, self.bytes = header["slots"], header["bytes"]
        line = json.dumps(header, sort_keys=True).encode() + b"\n"
        self.start = -(-len(line) // PAGE) * PAGE  # of the checksums
        self.data = self.start + -(-4 * self.slots // PAGE) * PAGE  # of the first slot
        self.file = None
        try:
            if not os.path.lexists(self.path):
                self.make(line)
            self.compare(line)
        except OSError as error:
            raise CacheError(self.reason(error)) from None

    def make(self, line):
        """Make a file without items. If several processes do so at once, one of the files stays."""
        disk = os.statvfs(self.path.parent)
        needed, free = self.slots * self.bytes, disk.f_bavail * disk.f_frsize
        if free < needed:
            raise CacheError(
                f"the cache needs {needed / 1e6:.1f} MB, but {self.path.parent} has room for {free / 1e6:.1f} MB"
            )
        partial = Path(f"{self.path}.{os.getpid()}-{os.urandom(4).hex()}.partial")
        try:
            with open(partial, "xb", opener=open_cache) as file:
                file.write(line.ljust(self.data, b"\0"))  # the checksums really, not as a hole: they are looked at
                file.truncate(self.data + needed)
            os.link(partial, self.path)  # unlike a rename it replaces no file that is there by now
        except FileExistsError:
            pass
        finally:
            partial.unlink(missing_ok=True)

    def compare(self, line):
        """Whether the file that is there is a cache of the same data."""
        with open(self.path, "rb", opener=open_own) as file:
            self.check(line, file.read(self.start), os.fstat(file.fileno()).st_size)
            check_private(file.fileno(), self.path)

    def check(self, line, found, size):
        if found.rstrip(b"\0") != line:
            try:
                other = isinstance(json.loads(found.split(b"\n")[0]), dict)
            except ValueError:
                other = False
            kind = "the cache of another data set" if other else "no cache"
            raise CacheError(f"{self.path} is {kind}: delete it, or give another path")
        if size != self.data + self.slots * self.bytes:
            raise CacheError(f"{self.path} was cut off: delete it")

    def opened(self):
        """Open the file. After a fork it stays open: file and memory map have no place that processes would share."""
        if self.file is None:
            try:
                self.file = open(self.path, "r+b", opener=open_cache)  # noqa: SIM115 (for the life of the process)
                self.checksums = np.memmap(self.file, np.uint32, "r", self.start, (self.slots,))
                self.rows = np.memmap(self.file, np.uint8, "r", self.data, (self.slots, self.bytes))
            except OSError as error:
                raise CacheError(self.reason(error)) from None
        return self.file.fileno()

    def get(self, index, make):
        """Slot `index`, uint8 (bytes). If it is empty, make() says what is to be in there, and one process calls it."""
        fd = self.opened()
        row = self.read(index)
        if row is None:
            self.lock(fd, fcntl.LOCK_EX, index)
            try:
                row = self.read(index)  # another process may have made it while we waited
                if row is None:
                    row = make()
                    self.write(fd, row, self.data + index * self.bytes)
                    self.write(fd, np.uint32(checksum(row)), self.start + 4 * index)
            finally:
                self.lock(fd, fcntl.LOCK_UN, index)
        return row

    def read(self, index):
        """A copy of a slot, or None if it is empty or not what its checksum says."""
        expected = int(self.checksums[index])
        if not expected:
            return None
        row = np.array(self.rows[index])
        return row if checksum(row) == expected else None

    def write(self, fd, data, offset):
        # Not through the memory map: on a full disk that would end the process (SIGBUS), this is an error.
        try:
            data = memoryview(data.tobytes())
            while data:
                written = os.pwrite(fd, data, offset)
                data, offset = data[written:], offset + written
        except OSError as error:
            raise CacheError(self.reason(error)) from None

    def lock(self, fd, how, index):
        """A lock on one byte, which stands for the slot. The kernel opens it when its holder ends, however it ends."""
        try:
            fcntl.lockf(fd, how, 1, index)
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):
                raise
            # A file system without locks: two processes may make the same item, and write the same bytes.

    def reason(self, error):
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return f"no room left for the cache {self.path}: free some space in {self.path.parent}, or cache less"
        if error.errno == 0:
            return f"the cache {self.path} is {error.strerror}: delete it, or give another path or fingerprint"
        return f"the cache {self.path}: {error.strerror}"

    def __getstate__(self):
        """What is pickled: everything but the open file."""
        state = {key: value for key, value in self.__dict__.items() if key not in ("checksums", "rows")}
        return state | {"file": None}

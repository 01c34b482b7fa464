"""Copy a packed file to the local disk of this node, once, however many processes of the node ask for it.

path = stage("data.h5")                          into $SLURM_TMPDIR or $TMPDIR
path = stage("data.h5", "/local/scratch")        into this folder
"""

import errno
import fcntl
import hashlib
import os
import shutil
import stat
from pathlib import Path

from src.hdf5.files import open_own, open_regular
from src.hdf5.index import BLOCK, PackError, checked_path, files_of, index_path, read_index


def stage(path, folder=None):
    """Copy data.h5, its index and its shards to a local disk; all processes of a node may call it at once.

    One of them copies, the others wait for it. A copy that is there and complete serves the next job, too.

    Args:
        path: the packed file
        folder: on the local disk; default: $SLURM_TMPDIR, or $TMPDIR
    Returns:
        the path of the copy
    Raises:
        PackError: no folder is known, there is no room, or the copy is not what the index says
    """
    path = checked_path(path).absolute()
    index = read_index(path)
    folder = folder or os.environ.get("SLURM_TMPDIR") or os.environ.get("TMPDIR")
    if not folder:
        raise PackError("neither SLURM_TMPDIR nor TMPDIR says where the local disk is: name a folder there")
    # The name says whose copy of which data it is. Another user's could be anything.
    name = hashlib.sha256(f"{index.digest()} {path.name}".encode(errors="surrogateescape")).hexdigest()[:16]
    copy = checked_path(folder).absolute() / f"staged-{os.getuid()}-{name}"
    lock_path = f"{copy}.lock"
    try:
        copy.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = open_own(lock_path, os.O_RDWR | os.O_CREAT)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)  # the others wait here; a process that is killed lets go of it
            if not is_complete(copy / path.name, index):
                copy_files(path, copy, index)
        finally:
            os.close(lock)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise PackError(
                f"no room left in {copy.parent} while {path.name} was copied there: free some space there, name "
                "another folder, or do not stage"
            ) from None
        reason = f"{lock_path} is {error.strerror}" if error.errno == 0 else error.strerror or error
        raise PackError(f"cannot stage {path.name} in {copy.parent}: {reason}: name another folder") from None
    return copy / path.name


def is_complete(path, index):
    """Whether this is a complete copy, and ours: in a folder that only we may write to."""
    try:
        folder = os.lstat(path.parent)
        if not stat.S_ISDIR(folder.st_mode) or folder.st_uid != os.getuid() or folder.st_mode & 0o077:
            return False
    except FileNotFoundError:
        return False
    try:
        return read_index(path).digest() == index.digest()
    except PackError:
        return False


def copy_files(path, copy, index):
    """Copy all files into a folder of another name; rename it when they are complete and right."""
    partial = Path(f"{copy}.partial")
    for left in (partial, copy):  # by a process that was killed, or whose files were deleted one by one
        shutil.rmtree(left, ignore_errors=True)
        if os.path.lexists(left):
            raise PackError(f"{left} is not a copy of yours, and cannot be deleted: name another folder to stage in")
    needed = sum(file["bytes"] for file in index.files.values())
    free = shutil.disk_usage(copy.parent).free
    if free < needed:
        raise PackError(
            f"{path.name} has {needed / 1e6:.1f} MB, but {copy.parent} has room for {free / 1e6:.1f} MB: "
            "free some space there, name another folder, or do not stage"
        )
    try:
        partial.mkdir(mode=0o700)
        targets = files_of(partial / path.name, index)
        for name, source in files_of(path, index).items():
            targets[name].parent.mkdir(parents=True, exist_ok=True)
            if copy_file(source, targets[name]) != index.files[name]["sha256"]:
                raise PackError(f"{source} is damaged: its checksum is not that of {index_path(path).name}")
        shutil.copyfile(index_path(path), index_path(partial / path.name))
        os.rename(partial, copy)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def copy_file(source, target):
    """Copy a file; returns the SHA-256 of what was copied."""
    digest = hashlib.sha256()
    with open(source, "rb", opener=open_regular) as file, open(target, "xb") as out:
        while block := file.read(BLOCK):
            digest.update(block)
            out.write(block)
        out.flush()
        os.fsync(out.fileno())
    return digest.hexdigest()

"""Copy a packed file to the local disk of this node, once, however many processes of the node ask for it.

path = stage("data.h5")                          into $SLURM_TMPDIR or $TMPDIR
path = stage("data.h5", "/local/scratch")        into this folder
"""

import errno
import fcntl
import hashlib
import os
import shutil
from pathlib import Path

from src.hdf5.index import BLOCK, PackError, index_path, read_index


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
    path = Path(path).absolute()
    index = read_index(path)
    folder = folder or os.environ.get("SLURM_TMPDIR") or os.environ.get("TMPDIR")
    if not folder:
        raise PackError("neither SLURM_TMPDIR nor TMPDIR says where the local disk is: name a folder there")
    # The name says whose copy of which data it is. Another user's could be anything.
    copy = Path(folder).absolute() / f"staged-{os.getuid()}-{index.digest()[:16]}"
    try:
        copy.parent.mkdir(parents=True, exist_ok=True)
        with open(f"{copy}.lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # the others wait here; a process that is killed lets go of it
            if not is_complete(copy / path.name, index):
                copy_files(path, copy, index)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise PackError(f"no room left in {copy.parent} while {path.name} was copied there") from None
        raise PackError(f"cannot stage {path.name} in {copy.parent}: {error.strerror or error}") from None
    return copy / path.name


def is_complete(path, index):
    """Whether this is a complete copy, and ours."""
    if not path.exists() or path.parent.stat().st_uid != os.getuid():
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
    needed = sum(file["bytes"] for file in index.files.values())
    free = shutil.disk_usage(copy.parent).free
    if free < needed:
        raise PackError(
            f"{path.name} has {needed / 1e6:.1f} MB, but {copy.parent} has room for {free / 1e6:.1f} MB: "
            "free some space there, name another folder, or do not stage"
        )
    try:
        partial.mkdir(mode=0o700)
        for name, file in index.files.items():
            single = len(index.files) == 1  # it may have been renamed
            source, target = path if single else path.parent / name, partial / (path.name if single else name)
            target.parent.mkdir(exist_ok=True)
            if copy_file(source, target) != file["sha256"]:
                raise PackError(f"{source} is damaged: its checksum is not that of {index_path(path).name}")
        shutil.copyfile(index_path(path), index_path(partial / path.name))
        os.rename(partial, copy)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def copy_file(source, target):
    """Copy a file; returns the SHA-256 of what was copied."""
    digest = hashlib.sha256()
    with open(source, "rb") as file, open(target, "wb") as out:
        while block := file.read(BLOCK):
            digest.update(block)
            out.write(block)
        out.flush()
        os.fsync(out.fileno())
    return digest.hexdigest()

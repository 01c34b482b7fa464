"""The index of a packed file: data.json beside data.h5. It says what is in there, so that nobody has to search.

    format   1
    id       another for every file that is written
    stacked  false: each group is one item; true: each group holds many, one above the other, along the first axis
    about    what the writer wanted to note, such as the names of the classes
    groups   [name, number of items] for each group, in the order of the items
    files    for data.h5, and the shards it leads to if there are any: size in bytes, and SHA-256

data.h5 holds a checksum of the index (all of it but `files`), so the two cannot be mixed up.

A packed file may come from anybody. So the names in `files` are used only if they stay in the folder of data.h5.
"""

import hashlib
import json
import os
import stat
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath

import h5py

from src.hdf5.files import expanded, open_regular, short

FORMAT = 1
BLOCK = 1 << 22  # bytes that are read at once
ATTRIBUTE = "index_sha256"  # of the root group of data.h5


class PackError(ValueError):
    """One sentence: what is wrong with a packed file or a cache, and what to do."""


@dataclass
class Index:
    id: str
    stacked: bool
    about: dict
    groups: list  # of [name, number of items]
    files: dict  # name, relative to the folder of data.h5: {"bytes": ..., "sha256": ...}

    def digest(self):
        """A checksum of all that is known before the file is complete."""
        text = json.dumps([FORMAT, self.id, self.stacked, self.about, self.groups], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def is_valid(self):
        """Whether all parts have the types and values that a writer gives them."""
        return (
            isinstance(self.id, str)
            and isinstance(self.stacked, bool)
            and isinstance(self.about, dict)
            and all(isinstance(name, str) and type(count) is int and count >= 0 for name, count in self.groups)
            and sum("/" not in name for name in self.files) == 1  # data.h5; a shard is in a folder
            and all(
                type(file["bytes"]) is int and file["bytes"] >= 0 and isinstance(file["sha256"], str)
                for file in self.files.values()
            )
        )


def checked_path(path):
    """The path of a packed file. ~ is the home folder.

    Raises:
        PackError: nothing can have this path
    """
    try:
        return expanded(path)
    except ValueError as error:
        raise PackError(str(error)) from None


def index_path(path):
    return Path(path).with_suffix(".json")


def sha256(path):
    digest = hashlib.sha256()
    with open(path, "rb", opener=open_regular) as file:
        while block := file.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()


def write_durably(path, text):
    """Write a small file at once: a reader sees nothing, what was there before, or all of it."""
    partial = path.with_name(f".{path.name}.partial")
    partial.unlink(missing_ok=True)  # it could be a link
    with open(partial, "x", encoding="utf-8", errors="backslashreplace") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


def write_index(path, index):
    """Write the index of the packed file `path`."""
    write_durably(index_path(path), json.dumps({"format": FORMAT, **asdict(index)}, indent=1) + "\n")


def read_text(path):
    with open(path, encoding="utf-8", opener=open_regular) as file:
        return file.read()


def is_index(path):
    """Whether this is an index, be it of whatever file."""
    try:
        content = json.loads(read_text(path))
        return isinstance(content, dict) and content["format"] == FORMAT and "groups" in content
    except (OSError, ValueError, KeyError, RecursionError):
        return False


def open_file(path):
    """Open an HDF5 file for reading.

    Raises:
        PackError: there is none, or it is none
    """
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # HDF5 would wait for the other end of a FIFO
            raise PackError(f"{path} is not a regular file: give the path of an HDF5 file")
        # Locks are for files that change. Some network file systems have none, and HDF5 would refuse to read.
        return h5py.File(path, "r", locking=False)
    except FileNotFoundError:
        raise PackError(f"there is no file {path}") from None
    except OSError as error:
        raise PackError(f"{path} cannot be read as HDF5: {' '.join(str(error).split())[:200]}") from None


def read_index(path):
    """The index of a packed file, compared with the file.

    Raises:
        PackError: there is no index, it is none, or it is that of another file
    """
    path = checked_path(path)
    again = "pack the data again, or copy both files together"
    try:
        kind = os.stat(path).st_mode
    except (FileNotFoundError, NotADirectoryError):
        raise PackError(f"there is no packed file {path}") from None
    except OSError as error:
        raise PackError(f"{path} cannot be read: {error.strerror}") from None
    no_packed_file = f"{path} is not a packed file: give the path of an .h5 file that src/hdf5/pack.py has written"
    if not stat.S_ISREG(kind) or path.suffix == ".json":
        raise PackError(no_packed_file)
    where = index_path(path)
    try:
        content = json.loads(read_text(where))
        if content.pop("format") != FORMAT:
            raise PackError(f"{where} has another format than {FORMAT}: it was written by another version of this code")
        index = Index(**content)
        index.groups = [[name, count] for name, count in index.groups]
        valid = index.is_valid()
    except FileNotFoundError:
        is_hdf5 = h5py.is_hdf5(path)
        raise PackError(f"{path} has no index {where.name} beside it: {again}" if is_hdf5 else no_packed_file) from None
    except PackError:
        raise
    except OSError as error:
        raise PackError(f"{where} cannot be read: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        valid = False
    if not valid:
        raise PackError(f"{where} cannot be read as the index of {path.name}: {again}")
    for name, file in files_of(path, index).items():
        size = index.files[name]["bytes"]
        try:
            found = os.stat(file).st_size
        except (FileNotFoundError, NotADirectoryError):
            found = None
        except OSError as error:
            raise PackError(f"{file} cannot be read: {error.strerror}") from None
        if found != size:
            is_there = "is missing" if found is None else f"has {found} bytes"
            raise PackError(f"{file} {is_there}, but {where.name} says {size} bytes: {again}")
    with open_file(path) as file:
        if noted_digest(file) != index.digest():
            raise PackError(f"{where} is not the index of {path}: {again}")
    return index


def files_of(path, index):
    """Where the files of a packed file are: {name in the index: path}. data.h5 itself may have been renamed.

    Raises:
        PackError: a name leads out of the folder
    """
    return {name: inside(path.parent, name) if "/" in name else path for name in index.files}


def inside(folder, name):
    """The path of a file below a folder, by a name that somebody else has chosen.

    Raises:
        PackError: it leads out of the folder, or cannot be a name
    """
    parts = PurePosixPath(name)
    try:
        stays = not parts.is_absolute() and ".." not in parts.parts and "\0" not in name
        stays = stays and (folder / name).resolve().is_relative_to(folder.resolve())
    except (OSError, RuntimeError):  # a name that is too long, links in a circle
        stays = False
    if not stays:
        raise PackError(f"a packed file in {folder} names the file {short(name)}, which is not in that folder: refused")
    return folder / name


def noted_digest(file):
    """The checksum of the index that an open file holds."""
    try:
        noted = file.attrs.get(ATTRIBUTE)
        return noted if isinstance(noted, str) else None
    except (OSError, KeyError, RuntimeError, ValueError, TypeError):
        raise PackError(f"{file.filename} is damaged: HDF5 cannot read it") from None


def verify(path):
    """Read all of a packed file and compare its checksums.

    Raises:
        PackError: something is not as it was written
    """
    path = checked_path(path)
    index = read_index(path)
    for name, file in files_of(path, index).items():
        try:
            found = sha256(file)
        except OSError as error:
            raise PackError(f"{file} cannot be read: {error.strerror}") from None
        if found != index.files[name]["sha256"]:
            raise PackError(f"{file} is damaged: its checksum is not that of {index_path(path).name}")
    return index

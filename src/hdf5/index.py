"""The index of a packed file: data.json beside data.h5. It says what is in there, so that nobody has to search.

    format   1
    id       another for every file that is written
    stacked  false: each group is one item; true: each group holds many, one above the other, along the first axis
    about    what the writer wanted to note, such as the names of the classes
    groups   [name, number of items] for each group, in the order of the items
    files    for data.h5, and the shards it leads to if there are any: size in bytes, and SHA-256

data.h5 holds a checksum of the index (all of it but `files`), so the two cannot be mixed up.
"""

import hashlib
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

import h5py

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


def index_path(path):
    return Path(path).with_suffix(".json")


def sha256(path):
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()


def write_durably(path, text):
    """Write a small file at once: a reader sees nothing, what was there before, or all of it."""
    partial = path.with_name(f".{path.name}.partial")
    with open(partial, "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


def write_index(path, index):
    """Write the index of the packed file `path`."""
    write_durably(index_path(path), json.dumps({"format": FORMAT, **asdict(index)}, indent=1) + "\n")


def is_index(path):
    """Whether this is an index, be it of whatever file. Then a writer may replace it."""
    try:
        content = json.loads(Path(path).read_text())
        return isinstance(content, dict) and content["format"] == FORMAT and "groups" in content
    except (OSError, ValueError, KeyError):
        return False


def open_file(path):
    """Open an HDF5 file for reading.

    Raises:
        PackError: there is none, or it is none
    """
    try:
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
    path = Path(path)
    where = index_path(path)
    again = "pack the data again, or copy both files together"
    if not path.exists():
        raise PackError(f"there is no packed file {path}")
    try:
        content = json.loads(where.read_text())
        if content.pop("format") != FORMAT:
            raise PackError(f"{where} has another format than {FORMAT}: it was written by another version of this code")
        index = Index(**content)
        index.groups = [[str(name), int(count)] for name, count in index.groups]
        sizes = {name: int(file["bytes"]) for name, file in index.files.items()}
    except FileNotFoundError:
        raise PackError(f"{path} has no index {where.name} beside it: {again}") from None
    except PackError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise PackError(f"{where} cannot be read as the index of {path.name}: {again}") from None
    for name, size in sizes.items():
        file = path if len(sizes) == 1 else path.parent / name  # a single file may have been renamed
        found = file.stat().st_size if file.exists() else None
        if found != size:
            is_there = "is missing" if found is None else f"has {found} bytes"
            raise PackError(f"{file} {is_there}, but {where.name} says {size} bytes: {again}")
    with open_file(path) as file:
        if noted_digest(file) != index.digest():
            raise PackError(f"{where} is not the index of {path}: {again}")
    return index


def noted_digest(file):
    """The checksum of the index that an open file holds."""
    try:
        return file.attrs.get(ATTRIBUTE)
    except (OSError, KeyError, RuntimeError):
        raise PackError(f"{file.filename} is damaged: HDF5 cannot read it") from None


def verify(path):
    """Read all of a packed file and compare its checksums.

    Raises:
        PackError: something is not as it was written
    """
    path = Path(path)
    index = read_index(path)
    for name, file in index.files.items():
        there = path if len(index.files) == 1 else path.parent / name
        if sha256(there) != file["sha256"]:
            raise PackError(f"{there} is damaged: its checksum is not that of {index_path(path).name}")
    return index

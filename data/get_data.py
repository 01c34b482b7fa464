"""Get a data set, or check the ones that are there.

    python data/get_data.py mnist                  unpacks the four bundled archives, no network needed
    python data/get_data.py colour-mnist           makes it from MNIST, no network needed (needs numpy)
    python data/get_data.py cifar10                downloads 170 MB
    python data/get_data.py --check                says which data sets are there and intact, writes nothing

A data set that is there and intact is left alone, so every job may call this first. Any number of processes may call
it at once: a file gets its final name only when it is complete and its checksum is right. A file of yours that has the
name of one of these files, but other content, is never replaced.

Exit status: 0 when every data set asked for is ready, 1 when one is not, 2 for a mistake on the command line, 130 for
Ctrl-C. `--check` without names asks for MNIST only: another data set may be missing, but must not be broken.
"""

import argparse
import contextlib
import errno
import gzip
import hashlib
import os
import shlex
import signal
import stat
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent

# What training reads: SHA-256, which most processors compute at once, or the MD5 that torchvision checks.
FILES = {
    "mnist": {
        "MNIST/raw/train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
        "MNIST/raw/train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
        "MNIST/raw/t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
        "MNIST/raw/t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
    },
    "cifar10": {
        "cifar-10-batches-py/data_batch_1": "c99cafc152244af753f735de768cd75f",
        "cifar-10-batches-py/data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
        "cifar-10-batches-py/data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
        "cifar-10-batches-py/data_batch_4": "634d18415352ddfa80567beed471001a",
        "cifar-10-batches-py/data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
        "cifar-10-batches-py/test_batch": "40351d587109b95175f43aff81a1287e",
        "cifar-10-batches-py/batches.meta": "5ff9c542aee3614f3951f8cda6e48888",
    },
    "colour-mnist": {
        "colour-mnist/train_images.npy": "8d5163ab73d9b2816b4b0d5fd62e1c26390e67f77b93fafc749358491bcfdf91",
        "colour-mnist/train_labels.npy": "52061eb03e1efd94e45c896a3b23d71ebdd617b7f782a999877b3cb2bea07da7",
        "colour-mnist/test_images.npy": "3115882cc1ecca7e6516af8e98c4b5882ec07228e9166b3c45a205ca52d5cb78",
        "colour-mnist/test_labels.npy": "996074233ccae69ee65b8551233f608adc1bce84b6b440e3531478a847958149",
    },
}

# What that is unpacked from, and the hosts that have it, in the order they are tried.
ARCHIVES = {
    "mnist": {
        "MNIST/raw/train-images-idx3-ubyte.gz": "f68b3c2dcbeaaa9fbdd348bbdeb94873",
        "MNIST/raw/train-labels-idx1-ubyte.gz": "d53e105ee54ea40749a09fcbcd1e9432",
        "MNIST/raw/t10k-images-idx3-ubyte.gz": "9fb629c4189551a2d022fa330f9573f3",
        "MNIST/raw/t10k-labels-idx1-ubyte.gz": "ec29112dd5afa0611ce80d1b7f02629c",
    },
    "cifar10": {"cifar-10-python.tar.gz": "c58f30108f718f92721af3b95e74349a"},
}
SIZES = {  # bytes: what a host sends beyond them is not read
    "MNIST/raw/train-images-idx3-ubyte.gz": 9_912_422,
    "MNIST/raw/train-labels-idx1-ubyte.gz": 28_881,
    "MNIST/raw/t10k-images-idx3-ubyte.gz": 1_648_877,
    "MNIST/raw/t10k-labels-idx1-ubyte.gz": 4_542,
    "cifar-10-python.tar.gz": 170_498_071,
}
HOSTS = {
    "mnist": ("https://ossci-datasets.s3.amazonaws.com/mnist/",),
    "cifar10": ("https://www.cs.toronto.edu/~kriz/",),
}

BLOCK = 1 << 20  # bytes read at a time
TIMEOUT = 20  # seconds without an answer from a host
PATIENCE = 60  # seconds in which a host has to send at least
SLOWEST = 600_000  # bytes, or the rest
TRIES = 3  # connections that bring less than that, then the next host is asked
LEFTOVER_AGE = 3600  # seconds after which a temporary file belongs to a process that was killed


class DataError(Exception):
    """What the user is told when a data set cannot be had; no traceback."""


class NetworkError(Exception):
    """Why a host did not give a file."""


# ---------------------------------------------------------------------------------------------------- files


def new_hash(digest):
    """The hash that `digest`, a hexadecimal string, was made with: MD5 or SHA-256."""
    # MD5 finds damage, it does not guard a secret: said so, it also works on machines in FIPS mode.
    return hashlib.md5(usedforsecurity=False) if len(digest) == 32 else hashlib.sha256()


def blocks(file):
    """Yield a binary file in blocks of at most BLOCK bytes."""
    while block := file.read(BLOCK):
        yield block


def checksum(path, digest):
    """The checksum of a file, of the same kind as `digest`."""
    hashed = new_hash(digest)
    with open(path, "rb", opener=open_regular) as file:
        for block in blocks(file):
            hashed.update(block)
    return hashed.hexdigest()


def open_regular(path, flags=os.O_RDONLY):
    """For open(opener=...): do not wait for the other end of a FIFO, do not read a device."""
    file = os.open(path, flags | os.O_NONBLOCK, 0o666)
    if not stat.S_ISREG(os.fstat(file).st_mode):
        os.close(file)
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    return file


def state(path, digest):
    """'ok', 'missing' or 'broken'. A file that cannot be read is broken."""
    try:
        return "ok" if checksum(path, digest) == digest else "broken"
    except FileNotFoundError:
        return "broken" if path.is_symlink() else "missing"
    except OSError:
        return "broken"


def remove_leftovers(folder, pattern):
    """Delete the temporary files that processes left behind when they were killed."""
    for path in folder.glob(pattern):
        with contextlib.suppress(OSError):  # another process was faster, or it is none of ours
            if time.time() - path.stat().st_mtime > LEFTOVER_AGE:
                path.unlink()


def unique():
    """A suffix that no other process on any machine that shares the folder uses."""
    return f"{os.getpid()}-{os.urandom(4).hex()}"


def write(path, chunks, digest):
    """Write the chunks of bytes to `path`, which either stays as it was or is complete and right.

    What is there may be the beginning of the right file, which an interrupted copy has left. Raises DataError if it is
    another file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers(path.parent, f".tmp-*-{path.name}")
    temporary = path.with_name(f".tmp-{unique()}-{path.name}")  # the same folder, so that os.replace is atomic
    hashed = new_hash(digest)
    with contextlib.ExitStack() as stack:
        there = None
        if os.path.lexists(path):
            there = stack.enter_context(open(path, "rb", opener=open_regular))
        stack.callback(temporary.unlink, missing_ok=True)
        with open(temporary, "xb") as file:
            for chunk in chunks:
                if there and not chunk.startswith(there.read(len(chunk))):
                    raise other_file(path)
                file.write(chunk)
                hashed.update(chunk)
            file.flush()
            os.fsync(file.fileno())  # a network file system may tell of a full disk or quota only now
        if hashed.hexdigest() != digest:
            raise DataError(
                f"{path.name} came out with the checksum {hashed.hexdigest()} instead of {digest}, so it was not kept: "
                "this is a bug in data/, please report it with the versions of Python and numpy."
            )
        if there and there.read(1):
            raise other_file(path)
        os.replace(temporary, path)


def other_file(path):
    return DataError(
        f"{path} has this name, but is another file, or is damaged, so it was left as it is: move or delete it, or "
        "name another folder with --data_dir"
    )


def show_progress(text):
    """Replace the last line of a terminal; print nothing into a log file."""
    if sys.stderr.isatty():
        print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)


# ------------------------------------------------------------------------------------------------- download


@contextlib.contextmanager
def time_limit(seconds):
    """Raises TimeoutError after so many seconds, also between two bytes. For the main thread."""

    def stop(*_):
        raise TimeoutError(f"no answer in {seconds} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def open_url(request):
    """The answer to a request. A redirect may lead to https, else only to where it is no less safe."""
    import urllib.request

    class Redirect(urllib.request.HTTPRedirectHandler):
        def redirect_request(self, request, file, code, message, headers, url):
            scheme = url.split(":")[0]
            if scheme not in ("https", request.type):
                raise OSError(0, f"the host leads to an address that begins with {scheme[:10]}:, not with https:")
            return super().redirect_request(request, file, code, message, headers, url)

    with time_limit(PATIENCE):
        return urllib.request.build_opener(Redirect).open(request, timeout=TIMEOUT)


def download_blocks(url, part):
    """Yield (offset, block) of the file at `url`, from where the file `part` ends if the host can do that.

    Raises NetworkError for everything the host or the network does wrong, so that an OSError is always our disk's.
    """
    import http.client  # here because they take longer to import than an intact data set takes to check
    import urllib.error
    import urllib.request

    offset = size(part)
    end = None
    request = urllib.request.Request(url, headers={"Range": f"bytes={offset}-"} if offset else {})
    try:
        with open_url(request) as response:
            if response.status != 206:  # the host sends the whole file
                offset = 0
            if "Content-Length" in response.headers:
                end = offset + int(response.headers["Content-Length"])
            since, began = offset, time.monotonic()
            while block := response.read1(BLOCK):  # what has come, not waiting for more
                yield offset, block
                offset += len(block)
                show_progress(f"{url}: {offset / 1e6:.0f} of {(end or 0) / 1e6:.0f} MB")
                if time.monotonic() - began > PATIENCE:
                    if offset - since < SLOWEST:
                        raise NetworkError(f"sent only {offset - since} bytes in {PATIENCE} s")
                    since, began = offset, time.monotonic()
    except (OSError, http.client.HTTPException, ValueError) as error:
        if isinstance(error, urllib.error.HTTPError) and error.code == 416:
            return  # nothing comes after what is here already; its checksum tells whether it is right
        reason = getattr(error, "reason", error)
        raise NetworkError(getattr(reason, "strerror", None) or str(reason) or type(reason).__name__) from error
    finally:
        show_progress("")
    if end and offset < end:
        raise NetworkError(f"the connection broke after {offset} of {end} bytes")


def download_rest(url, part, limit):
    """Add to the file `part` what it lacks of the file at `url`, up to `limit` bytes and a block."""
    with open(part, "ab", opener=lambda path, flags: open_regular(path, flags | os.O_NOFOLLOW)) as file:
        for offset, block in download_blocks(url, part):
            if offset == 0:
                file.truncate(0)
            file.write(block)
            if offset + len(block) > limit:
                break


def size(path):
    return path.stat().st_size if path.exists() else 0


def download(urls, target, digest, limit):
    """Download `target` from the first of `urls` that has it; raise NetworkError, with all reasons, when none has.

    What a broken download has got so far is kept as `target`.part for the next call. A process takes that file over by
    renaming it, which only one can: no lock is needed, and none would work on every network file system.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    kept = target.with_name(f"{target.name}.part")
    part = target.with_name(f"{kept.name}-{unique()}")
    remove_leftovers(target.parent, f"{kept.name}-*")
    if kept.is_file() and not kept.is_symlink():
        with contextlib.suppress(FileNotFoundError):  # another process was faster
            os.rename(kept, part)
    problems = []
    try:
        for url in urls:
            restarted, tries = False, 0
            while True:
                before = size(part)
                try:
                    download_rest(url, part, limit)
                except NetworkError as error:
                    problem = str(error)
                    tries = 0 if size(part) >= before + SLOWEST else tries + 1
                    if size(part) > before and tries < TRIES:  # as long as it gets on, it goes on
                        time.sleep(tries)
                        continue
                    break
                if state(part, digest) == "ok":
                    os.replace(part, target)
                    return
                problem = f"sent a file with the MD5 {checksum(part, digest)} instead of {digest}"
                if size(part) > limit:
                    problem = f"sent more than the {limit} bytes of the file"
                part.unlink()
                if restarted or not before:
                    break
                restarted = True  # the half that was there before may be to blame: once more from the start
            problems.append(f"{url.split('/')[2]}: {problem}")
    finally:
        if size(part):
            os.replace(part, kept)
        part.unlink(missing_ok=True)
    raise NetworkError("; ".join(problems))


# ------------------------------------------------------------------------------------------------ data sets


def fetch_archives(name, data_dir, paths):
    """Return where the archives `paths` of the data set `name` lie; download those that are missing, verify all."""
    # The bundled archives serve every --data_dir.
    found = {path: next((f / path for f in (data_dir, HERE) if (f / path).exists()), data_dir / path) for path in paths}
    missing = [path for path in paths if not found[path].exists()]
    for path in missing:
        try:
            filename = path.split("/")[-1]
            download([host + filename for host in HOSTS[name]], found[path], ARCHIVES[name][path], SIZES[path])
        except NetworkError as error:
            urls = " ".join(HOSTS[name][0] + path.split("/")[-1] for path in missing)
            raise DataError(
                f"{name}: could not download it here ({error}). On a machine with a network, a login or data mover "
                f"node, fetch {urls}\n"
                f"Put what you fetched into the folder {found[path].parent} under the same name, then run "
                f"this again: python {shlex.join(sys.argv)}"
            ) from error
    for path in paths:
        if state(found[path], ARCHIVES[name][path]) != "ok":
            bundled = name == "mnist" and found[path].is_relative_to(HERE)
            restore = ", or restore it with `git checkout -- data/MNIST`" if bundled else ""
            raise DataError(
                f"{name}: {found[path]} is broken, its MD5 is {checksum(found[path], ARCHIVES[name][path])} instead of "
                f"{ARCHIVES[name][path]}: delete it and run this again to download it{restore}."
            )
    return [found[path] for path in paths]


def get_mnist(data_dir, paths):
    """Unpack the files `paths` as torchvision.datasets.MNIST(data_dir) reads them."""
    archives = fetch_archives("mnist", data_dir, [f"{path}.gz" for path in paths])
    for path, archive in zip(paths, archives, strict=True):
        with gzip.open(archive) as file:
            write(data_dir / path, blocks(file), FILES["mnist"][path])


def get_cifar10(data_dir, paths):
    """Unpack the files `paths` as torchvision.datasets.CIFAR10(data_dir) reads them."""
    import tarfile

    [archive] = fetch_archives("cifar10", data_dir, ["cifar-10-python.tar.gz"])
    with tarfile.open(archive) as tar:
        # Only the members we know by name are read, and never to a path that the archive chose.
        for member in tar:
            if member.name in paths and member.isfile():
                write(data_dir / member.name, blocks(tar.extractfile(member)), FILES["cifar10"][member.name])


def get_colour_mnist(data_dir, paths):
    """Make the files `paths` from MNIST, with `colour_mnist.py` beside this script."""
    get("mnist", data_dir)
    try:
        import colour_mnist
    except ModuleNotFoundError as error:
        raise DataError(f"colour-mnist: Python finds no {error.name}: pip install -r requirements.txt") from error

    for path in paths:
        chunks = colour_mnist.npy_blocks(data_dir / "MNIST" / "raw", Path(path).stem, show_progress)
        write(data_dir / path, chunks, FILES["colour-mnist"][path])
        show_progress("")


GET = {"mnist": get_mnist, "cifar10": get_cifar10, "colour-mnist": get_colour_mnist}


def get(name, data_dir):
    """Make the data set `name` ready in the folder `data_dir` if it is not, and print one line."""
    states = {path: state(data_dir / path, digest) for path, digest in FILES[name].items()}
    for wanted in ("broken", "missing"):  # in this order: before one is written, it is sure that none is another file
        paths = [path for path in states if states[path] == wanted]
        if paths:
            GET[name](data_dir, paths)
    print(f"{name}: {'already' if set(states.values()) == {'ok'} else 'ready'} in {data_dir}")


def check(name, data_dir):
    """'ok', 'missing' or 'broken: FILE' for the data set `name` in the folder `data_dir`; writes nothing."""
    states = {data_dir / path: state(data_dir / path, digest) for path, digest in FILES[name].items()}
    if set(states.values()) == {"ok"}:
        return "ok"  # whatever became of its archives: training does not read them
    states |= {data_dir / path: state(data_dir / path, digest) for path, digest in ARCHIVES.get(name, {}).items()}
    broken = [path for path in states if states[path] == "broken"]
    return f"broken: {broken[0]}" if broken else "missing"


def folder(text):
    """The folder that --data_dir names, absolute. Raises ValueError, one sentence, if there can be none."""
    shown = ascii(text) if len(text) <= 100 else f"{ascii(text[:100])}..."
    if not text or "\0" in text:
        raise ValueError(f"--data_dir {shown} is not the path of a folder")
    try:
        path = Path(text).expanduser().absolute()
        if path.exists() and not path.is_dir():
            raise ValueError(f"--data_dir {shown} is a file: give the path of a folder")
    except RuntimeError:
        raise ValueError(f"--data_dir {shown}: there is no such user: give the whole path") from None
    except OSError as error:
        raise ValueError(f"--data_dir {shown}: {error.strerror}: give another folder") from None
    return path


def main():
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="surrogateescape")  # a path need not be UTF-8
    parser = argparse.ArgumentParser(description="Get a data set, or check the ones that are there.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(FILES))
    parser.add_argument("--data_dir", default=str(HERE), help="folder of the data sets (default: %(default)s)")
    parser.add_argument("--check", action="store_true", help="only say what is there and intact, write nothing")
    args = parser.parse_args()
    try:
        data_dir = folder(args.data_dir)
    except ValueError as error:
        parser.error(str(error))
    for name in args.names:
        if name not in FILES:
            parser.error(f"there is no data set {name!r}: choose from {', '.join(FILES)}")
    if not args.names and not args.check:
        parser.error(f"name at least one data set: {', '.join(FILES)}")

    if args.check:
        found = {name: check(name, data_dir) for name in args.names or FILES}
        for name, result in found.items():
            print(f"{name}: {result}")
        optional = [] if args.names else ["cifar10", "colour-mnist"]
        bad = [n for n, result in found.items() if result != "ok" and not (n in optional and result == "missing")]
        return 1 if bad else 0

    for name in args.names:
        try:
            get(name, data_dir)
        except DataError as error:
            print(error, file=sys.stderr)
            return 1
        except KeyboardInterrupt:
            show_progress("")
            print(f"{name}: interrupted; nothing is half-written, run this again to finish.", file=sys.stderr)
            return 130
        except OSError as error:
            full = error.errno in (errno.ENOSPC, errno.EDQUOT)
            reason = error.strerror or str(error) or type(error).__name__
            print(
                f"{name}: {reason}: {error.filename or data_dir}: "
                f"{'free some space' if full else 'get access to it'} or name another folder with --data_dir.",
                file=sys.stderr,
            )
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""data/get_data.py and data/colour_mnist.py: what they write, what they say, and that nothing half-done is ever found.

python -m pytest tests/test_data.py      under a minute, needs no network
"""

import contextlib
import hashlib
import http.server
import io
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import threading
import time
from pathlib import Path

import numpy as np
import pytest

DATA = Path(__file__).resolve().parent.parent / "data"
sys.path.insert(0, str(DATA))

import colour_mnist  # noqa: E402
import get_data  # noqa: E402

RAW = "MNIST/raw"
TRAIN_IMAGES = f"{RAW}/train-images-idx3-ubyte"
LIMIT = 300  # seconds, for one command on a machine that has much else to do

# File permissions do not stop root, unless it gives up the capability to pass them by.
OBEY = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"] if os.geteuid() == 0 else []

# Nothing listens on port 9, so this is a machine without a network, wherever the tests run.
NO_NETWORK = {name: "http://127.0.0.1:9" for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY")}
NO_NETWORK |= {"no_proxy": "", "NO_PROXY": ""}


def command(folder, *args, patch=""):
    """The command line for the copy of get_data.py in `folder`; `patch` is Python that runs before its main()."""
    code = f"import sys; sys.path.insert(0, {str(folder)!r}); import get_data\n{patch}\nsys.exit(get_data.main())"
    return [sys.executable, *(["-c", code] if patch else [str(folder / "get_data.py")]), *args]


def run(folder, *args, patch="", env=NO_NETWORK, prefix=()):
    line = [*prefix, *command(folder, *args, patch=patch)]
    return subprocess.run(line, env=os.environ | env, capture_output=True, text=True, timeout=LIMIT)


def start(folder, *args, patch=""):
    return subprocess.Popen(
        command(folder, *args, patch=patch),
        env=os.environ | NO_NETWORK,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def fill(folder, archives=True):
    """A copy of data/ as git has it: the scripts and, if asked for, the four archives."""
    for name in ("get_data.py", "colour_mnist.py"):
        shutil.copy(DATA / name, folder)
    if archives:
        (folder / RAW).mkdir(parents=True)
        for path in get_data.ARCHIVES["mnist"]:
            shutil.copy(DATA / path, folder / path)
    return folder


def files(folder):
    found = [path for path in folder.rglob("*") if path.is_file() and path.parent.name != "__pycache__"]
    return sorted(str(path.relative_to(folder)) for path in found)


def states(folder, name):
    return {path: get_data.state(folder / path, digest) for path, digest in get_data.FILES[name].items()}


def leftovers(folder):
    return [path for path in files(folder) if ".tmp-" in path or ".part" in path]


def assert_one_sentence(result, *parts):
    assert result.returncode == 1, result
    assert len(result.stderr.splitlines()) == 1 and "Traceback" not in result.stderr, result.stderr
    for part in parts:
        assert part in result.stderr


@pytest.fixture
def folder(tmp_path):
    return fill(tmp_path)


@pytest.fixture(scope="session")
def made(tmp_path_factory):
    """A copy of data/ with colour-mnist, made once; tests leave it as they find it."""
    folder = fill(tmp_path_factory.mktemp("made"))
    result = run(folder, "colour-mnist")
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""  # no progress bar in a log file
    return folder


# ---------------------------------------------------------------------------------------------------- mnist


def test_unpacks_what_torchvision_reads(folder):
    result = run(folder, "mnist")
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout == f"mnist: ready in {folder}\n"
    assert set(states(folder, "mnist").values()) == {"ok"}
    assert leftovers(folder) == []
    torchvision = pytest.importorskip("torchvision")
    assert len(torchvision.datasets.MNIST(folder, train=True)) == 60_000
    assert len(torchvision.datasets.MNIST(folder, train=False)) == 10_000

    before = {path: (folder / path).stat().st_mtime_ns for path in files(folder)}
    result = run(folder, "mnist")
    assert (result.returncode, result.stdout) == (0, f"mnist: already in {folder}\n")
    assert {path: (folder / path).stat().st_mtime_ns for path in files(folder)} == before


def test_the_checksums_are_those_of_torchvision():
    datasets = pytest.importorskip("torchvision").datasets
    assert {f"{RAW}/{name}": md5 for name, md5 in datasets.MNIST.resources} == get_data.ARCHIVES["mnist"]
    # The original site has no https.
    assert [url for url in datasets.MNIST.mirrors if url.startswith("https:")] == list(get_data.HOSTS["mnist"])
    assert get_data.SIZES.keys() == get_data.ARCHIVES["mnist"].keys() | get_data.ARCHIVES["cifar10"].keys()
    assert all((DATA / path).stat().st_size == get_data.SIZES[path] for path in get_data.ARCHIVES["mnist"])
    cifar10 = datasets.CIFAR10
    batches = {name: md5 for name, md5 in cifar10.train_list + cifar10.test_list}
    batches[cifar10.meta["filename"]] = cifar10.meta["md5"]
    assert {f"{cifar10.base_folder}/{name}": md5 for name, md5 in batches.items()} == get_data.FILES["cifar10"]
    assert {cifar10.filename: cifar10.tgz_md5} == get_data.ARCHIVES["cifar10"]
    assert get_data.HOSTS["cifar10"] == (cifar10.url.removesuffix(cifar10.filename),)


def test_the_bundled_archives_serve_another_data_dir(folder, tmp_path_factory):
    other = tmp_path_factory.mktemp("scratch") / "new"
    assert run(folder, "mnist", "--data_dir", str(other)).returncode == 0
    assert files(other) == sorted(get_data.FILES["mnist"])
    assert set(states(other, "mnist").values()) == {"ok"}


def test_sixteen_processes_at_once(folder):
    processes = [start(folder, "mnist") for _ in range(16)]
    for process in processes:
        _, stderr = process.communicate(timeout=LIMIT)
        assert (process.returncode, stderr) == (0, "")
    assert set(states(folder, "mnist").values()) == {"ok"}
    assert leftovers(folder) == []


def test_a_damaged_unpacked_file_is_unpacked_again(folder):
    assert run(folder, "mnist").returncode == 0
    with open(folder / TRAIN_IMAGES, "r+b") as file:
        file.truncate(1000)
    result = run(folder, "--check", "mnist")
    assert (result.returncode, result.stdout) == (1, f"mnist: broken: {folder / TRAIN_IMAGES}\n")
    assert run(folder, "mnist").returncode == 0
    assert set(states(folder, "mnist").values()) == {"ok"}


@pytest.mark.parametrize("change", ["other", "one byte", "longer", "fifo", "folder", "dangling"])
def test_a_file_of_yours_is_never_replaced(folder, change):
    """Fashion-MNIST and KMNIST are distributed under the names of MNIST's files."""
    assert run(folder, "mnist").returncode == 0
    labels, images = folder / f"{RAW}/t10k-labels-idx1-ubyte", folder / TRAIN_IMAGES
    content = labels.read_bytes()
    images.unlink()
    labels.unlink()
    match change:
        case "other":
            labels.write_bytes(content[:8] + content[:7:-1])
        case "one byte":
            labels.write_bytes(content[:-1] + b"x")
        case "longer":
            labels.write_bytes(content + b"x")
        case "fifo":
            os.mkfifo(labels)
        case "folder":
            labels.mkdir()
        case "dangling":
            labels.symlink_to("nowhere")
    before = (os.lstat(labels), labels.read_bytes() if labels.is_file() else None)
    assert_one_sentence(run(folder, "mnist"), str(labels), "name another folder with --data_dir")
    assert (os.lstat(labels).st_mtime_ns, os.lstat(labels).st_ino) == (before[0].st_mtime_ns, before[0].st_ino)
    assert (labels.read_bytes() if labels.is_file() else None) == before[1]
    assert not images.exists() and leftovers(folder) == []  # nothing was mixed with it
    assert run(folder, "--check", "mnist").stdout == f"mnist: broken: {labels}\n"


def test_a_file_that_only_begins_with_a_dot_is_yours(folder):
    notes = folder / RAW / ".tmp-notes"
    notes.write_text("mine")
    os.utime(notes, (0, 0))
    assert run(folder, "mnist").returncode == 0
    assert notes.read_text() == "mine"


@pytest.mark.parametrize("damage", ["flipped", "truncated", "empty"])
def test_a_broken_archive_is_named_and_left_alone(folder, damage):
    archive = folder / f"{RAW}/t10k-images-idx3-ubyte.gz"
    content = bytearray(archive.read_bytes())
    content[1000] ^= damage == "flipped"
    content = {"flipped": content, "truncated": content[:100_000], "empty": b""}[damage]
    archive.write_bytes(content)
    before = files(folder)
    md5 = hashlib.md5(content).hexdigest()
    result = run(folder, "mnist")
    assert_one_sentence(result, str(archive), md5, "9fb629c4189551a2d022fa330f9573f3", "git checkout -- data/MNIST")
    assert archive.read_bytes() == content
    assert files(folder) == before
    result = run(folder, "--check", "mnist")
    assert (result.returncode, result.stdout) == (1, f"mnist: broken: {archive}\n")


def test_killed_while_unpacking(folder):
    process = start(folder, "mnist")
    while not leftovers(folder):
        assert process.poll() is None, process.communicate()
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    found = states(folder, "mnist")
    assert "broken" not in found.values() and "missing" in found.values()
    [left] = leftovers(folder)

    os.utime(folder / left, (0, 0))  # as if it had happened long ago
    assert run(folder, "mnist").returncode == 0
    assert set(states(folder, "mnist").values()) == {"ok"}
    assert leftovers(folder) == []


def test_starts_without_the_slow_imports(folder):
    slow = ["numpy", "torch", "torchvision", "urllib.request", "tarfile", "colour_mnist"]
    patch = f"import atexit; atexit.register(lambda: print([name for name in {slow} if name in sys.modules]))"
    run(folder, "mnist")
    assert run(folder, "mnist", patch=patch).stdout.splitlines()[-1] == "[]"


# -------------------------------------------------------------------------------------- where it cannot write


def set_writable(folder, writable):
    for path in [folder, *folder.rglob("*")]:
        path.chmod((0o755 if writable else 0o555) if path.is_dir() else 0o444)


def test_a_read_only_folder(folder):
    assert run(folder, "mnist").returncode == 0
    set_writable(folder, False)
    result = run(folder, "mnist", prefix=OBEY)
    assert (result.returncode, result.stdout) == (0, f"mnist: already in {folder}\n"), result
    assert run(folder, "mnist", "--check", prefix=OBEY).stdout == "mnist: ok\n"

    set_writable(folder, True)
    (folder / TRAIN_IMAGES).unlink()
    set_writable(folder, False)
    assert_one_sentence(run(folder, "mnist", prefix=OBEY), "Permission denied", "--data_dir")
    assert TRAIN_IMAGES not in files(folder) and leftovers(folder) == []
    set_writable(folder, True)


def test_an_unreadable_file_is_broken(folder):
    assert run(folder, "mnist").returncode == 0
    (folder / TRAIN_IMAGES).chmod(0)
    result = run(folder, "mnist", "--check", prefix=OBEY)
    assert (result.returncode, result.stdout) == (1, f"mnist: broken: {folder / TRAIN_IMAGES}\n")


def test_a_full_disk(folder, tmp_path_factory):
    small = tmp_path_factory.mktemp("small")
    sudo = [] if os.geteuid() == 0 else ["sudo", "-n"]
    try:
        mount = [*sudo, "mount", "-t", "tmpfs", "-o", "size=4m,mode=777", "tmpfs", str(small)]
        subprocess.run(mount, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        if os.environ.get("CI") == "true":
            raise
        pytest.skip(f"no right to mount a small file system: {error}")
    try:
        result = run(folder, "mnist", "--data_dir", str(small))
        assert_one_sentence(result, "No space left on device", "--data_dir")
        assert files(small) == []
    finally:
        subprocess.run([*sudo, "umount", str(small)], check=True)


# ------------------------------------------------------------------------------------------------- downloads


@pytest.mark.parametrize("name, urls", [("mnist", 4), ("cifar10", 1)])
def test_without_a_network_two_lines_say_what_to_fetch(tmp_path, name, urls):
    fill(tmp_path, archives=False)
    result = run(tmp_path, name)
    assert result.returncode == 1
    what, where = result.stderr.splitlines()
    assert what.count(get_data.HOSTS[name][0]) == urls
    path = next(iter(get_data.ARCHIVES[name]))
    assert get_data.HOSTS[name][0] + path.split("/")[-1] in what
    assert str((tmp_path / path).parent) in where
    assert files(tmp_path) == ["colour_mnist.py", "get_data.py"]


class Server(http.server.ThreadingHTTPServer):
    """Serves `content` on 127.0.0.1 under any path; breaks the connection half-way `breaks` times."""

    def __init__(self, content, ranges=True, breaks=0):
        super().__init__(("127.0.0.1", 0), Handler)
        self.content, self.ranges, self.breaks, self.asked = content, ranges, breaks, []
        self.url = f"http://127.0.0.1:{self.server_port}/"

    def __enter__(self):
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *_):
        self.shutdown()
        self.server_close()


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        server = self.server
        wanted = self.headers["Range"]
        server.asked.append(wanted)
        first = int(wanted.removeprefix("bytes=").removesuffix("-")) if wanted and server.ranges else 0
        if first >= len(server.content):
            self.send_error(416)
            return
        body = server.content[first:]
        self.send_response(206 if first else 200)
        self.send_header("Content-Length", len(body))
        self.end_headers()
        if server.breaks:
            server.breaks -= 1
            body = body[: len(body) // 2]
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def cifar10():
    """A small archive in the shape of CIFAR-10's, with a member that wants to leave its folder: (files, tar.gz)."""
    # Random, so that it does not compress: each half of the archive is more than one read of the socket.
    names = [*get_data.FILES["cifar10"], "cifar-10-batches-py/readme.html", "../outside"]
    random = np.random.RandomState(0)
    content = {name: random.bytes(400_000) for name in names}
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        for name, data in content.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return {name: content[name] for name in get_data.FILES["cifar10"]}, packed.getvalue()


def patched(cifar10, *urls):
    """Python that makes get_data.py take the small archive for CIFAR-10's and get it from `urls`."""
    content, packed = cifar10
    md5 = {name: hashlib.md5(data).hexdigest() for name, data in content.items()}
    archive = {"cifar-10-python.tar.gz": hashlib.md5(packed).hexdigest()}
    return f"get_data.FILES['cifar10'] = {md5}; get_data.ARCHIVES['cifar10'] = {archive}\n" + (
        f"get_data.HOSTS['cifar10'] = {urls}"
    )


def assert_has_cifar10(folder, cifar10):
    content, packed = cifar10
    assert files(folder) == sorted([*content, "cifar-10-python.tar.gz", "colour_mnist.py", "get_data.py"])
    assert {name: (folder / name).read_bytes() for name in content} == content
    assert (folder / "cifar-10-python.tar.gz").read_bytes() == packed
    assert not (folder.parent / "outside").exists()


LOCAL = {"no_proxy": "127.0.0.1", "NO_PROXY": "127.0.0.1"}


@pytest.mark.parametrize("ranges", [True, False])
def test_a_broken_connection_is_taken_up_again(tmp_path, cifar10, ranges):
    fill(tmp_path, archives=False)
    with Server(cifar10[1], ranges=ranges, breaks=1) as server:
        result = run(tmp_path, "cifar10", patch=patched(cifar10, server.url), env=LOCAL)
        assert (result.returncode, result.stderr) == (0, "")
        assert server.asked == [None, f"bytes={len(cifar10[1]) // 2}-"]
        assert_has_cifar10(tmp_path, cifar10)
        again = run(tmp_path, "cifar10", patch=patched(cifar10, server.url), env=LOCAL)
        assert again.stdout == f"cifar10: already in {tmp_path}\n"
        assert len(server.asked) == 2


def test_the_next_call_goes_on_where_the_last_one_broke(tmp_path, cifar10):
    fill(tmp_path, archives=False)
    part = tmp_path / "cifar-10-python.tar.gz.part"
    part.write_bytes(cifar10[1][:1000])
    with Server(cifar10[1]) as server:
        assert run(tmp_path, "cifar10", patch=patched(cifar10, server.url), env=LOCAL).returncode == 0
        assert server.asked == ["bytes=1000-"]
    assert_has_cifar10(tmp_path, cifar10)


@pytest.mark.parametrize("kept", [b"x" * 1000, b"x" * 10_000_000], ids=["short", "longer than the file"])
def test_a_wrong_part_is_thrown_away(tmp_path, cifar10, kept):
    fill(tmp_path, archives=False)
    (tmp_path / "cifar-10-python.tar.gz.part").write_bytes(kept)
    with Server(cifar10[1]) as server:
        result = run(tmp_path, "cifar10", patch=patched(cifar10, server.url), env=LOCAL)
        assert (result.returncode, result.stderr) == (0, "")
        assert server.asked == [f"bytes={len(kept)}-", None]
    assert_has_cifar10(tmp_path, cifar10)


def test_the_part_is_kept_when_the_host_goes_away(tmp_path, cifar10):
    fill(tmp_path, archives=False)
    content = cifar10[1]
    # Sends half of it, then of what is left ..., until there is nothing more to halve.
    with Server(content, ranges=False, breaks=100) as server:
        result = run(tmp_path, "cifar10", patch=patched(cifar10, server.url), env=LOCAL)
    assert result.returncode == 1 and len(result.stderr.splitlines()) == 2
    assert "the connection broke" in result.stderr
    assert files(tmp_path) == ["cifar-10-python.tar.gz.part", "colour_mnist.py", "get_data.py"]
    assert (tmp_path / "cifar-10-python.tar.gz.part").read_bytes() == content[: len(content) // 2]


def test_a_wrong_file_is_refused_and_the_next_host_asked(tmp_path, cifar10):
    fill(tmp_path, archives=False)
    with Server(b"<html>please log in</html>") as wrong, Server(cifar10[1]) as right:
        result = run(tmp_path, "cifar10", patch=patched(cifar10, wrong.url), env=LOCAL)
        assert result.returncode == 1 and len(result.stderr.splitlines()) == 2
        assert hashlib.md5(wrong.content).hexdigest() in result.stderr
        assert files(tmp_path) == ["colour_mnist.py", "get_data.py"]
        assert run(tmp_path, "cifar10", patch=patched(cifar10, wrong.url, right.url), env=LOCAL).returncode == 0
    assert_has_cifar10(tmp_path, cifar10)


def test_eight_downloads_at_once(tmp_path, cifar10):
    fill(tmp_path, archives=False)
    with Server(cifar10[1], breaks=4) as server:
        patch = f"import os; os.environ |= {LOCAL}\n" + patched(cifar10, server.url)
        processes = [start(tmp_path, "cifar10", patch=patch) for _ in range(8)]
        for process in processes:
            _, stderr = process.communicate(timeout=LIMIT)
            assert (process.returncode, stderr) == (0, "")
    assert_has_cifar10(tmp_path, cifar10)


class Odd(http.server.BaseHTTPRequestHandler):
    """A host that never stops, is slow, or leads elsewhere, as the path says."""

    def do_GET(self):
        kind = self.path.split("/")[1]
        if kind == "redirect":
            self.send_response(302)
            self.send_header("Location", f"{self.path.split('/')[2]}://127.0.0.1:{self.server.server_port}/file")
            self.end_headers()
            return
        with contextlib.suppress(OSError):  # whoever asks has had enough
            if kind != "header":
                self.send_response(200)
                self.end_headers()
            for _ in range(10_000):
                self.wfile.write(b"x" * (1_000_000 if kind == "endless" else 1))
                if kind != "endless":
                    time.sleep(0.05)

    def log_message(self, *_):
        pass


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("endless", "sent more than the 2000000 bytes"),
        ("slow", "sent only .* bytes in 0.5 s"),
        ("header", "no answer in 0.5 s"),
        ("redirect/ftp", "begins with ftp:, not with https:"),
        ("redirect/file", "'file://.*' is not allowed"),
    ],
)
def test_a_host_that_is_no_good_is_given_up(tmp_path, monkeypatch, kind, words):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(get_data, "PATIENCE", 0.5)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Odd)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    began = time.monotonic()
    try:
        with pytest.raises(get_data.NetworkError, match=words):
            get_data.download([f"http://127.0.0.1:{server.server_port}/{kind}/"], tmp_path / "x", "0" * 32, 2_000_000)
    finally:
        server.shutdown()
        server.server_close()
    assert time.monotonic() - began < 30
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) < 1000


def test_all_hosts_are_asked_by_https():
    assert all(host.startswith("https://") for hosts in get_data.HOSTS.values() for host in hosts)


def test_an_unfinished_download_that_is_a_link_is_left_alone(tmp_path, cifar10):
    fill(tmp_path, archives=False)
    other = tmp_path.parent / "other"
    other.write_bytes(b"mine")
    (tmp_path / "cifar-10-python.tar.gz.part").symlink_to(other)
    with Server(cifar10[1]) as server:
        assert run(tmp_path, "cifar10", patch=patched(cifar10, server.url), env=LOCAL).returncode == 0
    assert other.read_bytes() == b"mine"


def test_an_archive_brought_by_hand_needs_no_network(tmp_path, cifar10):
    fill(tmp_path, archives=False)
    (tmp_path / "cifar-10-python.tar.gz").write_bytes(cifar10[1])
    assert run(tmp_path, "cifar10", patch=patched(cifar10, "http://127.0.0.1:9/")).returncode == 0
    assert_has_cifar10(tmp_path, cifar10)


# ---------------------------------------------------------------------------------------------- colour-mnist


def test_colour_mnist_is_what_it_says(made):
    assert set(states(made, "colour-mnist").values()) == {"ok"}
    assert leftovers(made) == []
    for split, n in (("train", 50_000), ("test", 10_000)):
        images = np.load(made / f"colour-mnist/{split}_images.npy", mmap_mode="r", allow_pickle=False)
        labels = np.load(made / f"colour-mnist/{split}_labels.npy", mmap_mode="r", allow_pickle=False)
        assert (images.shape, images.dtype) == ((n, 32, 32, 3), np.uint8)
        assert (labels.shape, labels.dtype) == ((n,), np.int64)
        share = np.bincount(labels, minlength=10) / n
        assert len(share) == 10 and share.min() > 0.085 and share.max() < 0.115
        assert len(np.unique(images[:1000].reshape(1000, -1), axis=0)) == 1000


@pytest.mark.parametrize("split, prefix", [("train", "train"), ("test", "t10k")])
def test_no_digit_is_in_both_splits(made, tmp_path, split, prefix):
    for kind in ("images-idx3", "labels-idx1"):  # it cannot read what is not there
        shutil.copy(made / f"{RAW}/{prefix}-{kind}-ubyte", tmp_path)
    blocks = colour_mnist.npy_blocks(tmp_path, f"{split}_images", lambda line: None)
    start = next(blocks) + next(blocks)
    with open(made / f"colour-mnist/{split}_images.npy", "rb") as file:
        assert file.read(len(start)) == start
    labels = colour_mnist.read_idx(made / f"{RAW}/{prefix}-labels-idx1-ubyte", 8, -1)
    ours = np.load(made / f"colour-mnist/{split}_labels.npy")
    assert (labels[: len(ours)] == ours).all()  # the n-th image shows the n-th digit, so none is used twice


def test_colour_mnist_is_made_once(made):
    before = {path: (made / path).stat().st_mtime_ns for path in files(made)}
    result = run(made, "colour-mnist")
    assert (result.returncode, result.stdout) == (0, f"colour-mnist: already in {made}\n")
    assert {path: (made / path).stat().st_mtime_ns for path in files(made)} == before


def test_check_finds_one_wrong_byte(made):
    path = made / "colour-mnist/test_images.npy"
    assert run(made, "--check", "colour-mnist").stdout == "colour-mnist: ok\n"
    with open(path, "r+b") as file:
        file.seek(5000)
        byte = file.read(1)[0]
        file.seek(5000)
        file.write(bytes([byte ^ 1]))
        file.flush()
        try:
            result = run(made, "--check")
        finally:
            file.seek(5000)
            file.write(bytes([byte]))
    assert (result.returncode, result.stdout) == (1, f"mnist: ok\ncifar10: missing\ncolour-mnist: broken: {path}\n")
    result = run(made, "--check")
    assert (result.returncode, result.stdout) == (0, "mnist: ok\ncifar10: missing\ncolour-mnist: ok\n")


def test_interrupted_and_killed_while_making_colour_mnist(folder):
    assert run(folder, "mnist").returncode == 0
    # A shell that runs the tests in the background makes them, and their children, deaf to Ctrl-C.
    patch = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
    for number, code in ((signal.SIGINT, 130), (signal.SIGKILL, -signal.SIGKILL)):
        process = start(folder, "colour-mnist", patch=patch)
        while not leftovers(folder):
            assert process.poll() is None, process.communicate()
            time.sleep(0.01)
        process.send_signal(number)
        _, stderr = process.communicate()
        assert process.returncode == code
        assert set(states(folder, "colour-mnist").values()) == {"missing"}
        if number == signal.SIGINT:
            assert stderr == "colour-mnist: interrupted; nothing is half-written, run this again to finish.\n"
            assert leftovers(folder) == []
    assert run(folder, "colour-mnist").returncode == 0
    assert set(states(folder, "colour-mnist").values()) == {"ok"}


def test_the_picture(made, tmp_path):
    image = pytest.importorskip("PIL.Image")
    path = tmp_path / "new/picture.png"
    code = subprocess.run([sys.executable, str(made / "colour_mnist.py"), "--picture", str(path)]).returncode
    assert code == 0 and path.stat().st_size < 200_000
    committed = image.open(DATA.parent / ".img/colour-mnist.png")
    assert (np.asarray(image.open(path)) == np.asarray(committed)).all()


# -------------------------------------------------------------------------------------------- command line


def test_check_writes_nothing(folder):
    before = files(folder)
    result = run(folder, "--check")
    assert (result.returncode, result.stdout) == (1, "mnist: missing\ncifar10: missing\ncolour-mnist: missing\n")
    assert files(folder) == before
    assert run(folder, "--check", "--data_dir", str(folder / "nowhere")).returncode == 1
    assert not (folder / "nowhere").exists()


@pytest.mark.parametrize("args", [["cifar"], ["mnist", "colour_mnist"], []])
def test_an_unknown_name_lists_what_is_allowed(folder, args):
    result = run(folder, *args)
    assert result.returncode == 2
    assert "mnist, cifar10, colour-mnist" in result.stderr.splitlines()[-1]
    assert result.stdout == ""


@pytest.mark.parametrize(
    ("data_dir", "words"),
    [
        ("~nouser/x", "no such user"),
        ("x" * 300, "File name too long"),
        ("", "not the path of a folder"),
        (__file__, "is a file"),
    ],
)
def test_a_data_dir_that_cannot_be(folder, data_dir, words):
    for more in ([], ["--check"]):
        result = run(folder, "mnist", f"--data_dir={data_dir}", *more)
        assert result.returncode == 2 and result.stdout == ""
        assert words in result.stderr.splitlines()[-1] and "Traceback" not in result.stderr
    with pytest.raises(ValueError, match="not the path of a folder"):
        get_data.folder("a\0b")


def test_a_data_dir_that_is_not_utf_8(folder, tmp_path_factory):
    odd = os.fsdecode(bytes(tmp_path_factory.mktemp("odd")) + b"/M\xfcller")
    line = command(folder, "mnist", f"--data_dir={odd}")
    done = subprocess.run(line, env=os.environ | NO_NETWORK | {"PYTHONUTF8": "1"}, capture_output=True)
    assert (done.returncode, done.stderr) == (0, b"") and done.stdout == b"mnist: ready in " + os.fsencode(odd) + b"\n"

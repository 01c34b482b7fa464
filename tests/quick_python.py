"""A `python` that has imported torch and Lightning already, for the commands that the tests type.

Most tests need a Python of their own, which would spend five seconds on imports. So `start()` makes a folder with a
program `python` in it, for the front of PATH. It asks a server, which has done the imports, for a fork of itself; the
fork becomes `python SCRIPT`, with the caller's files, folder and environment. All else (`python -X ...`, `python -m
...`, another PYTHONPATH) goes to the real Python, as does what runs on the practice cluster or in the background. And a
training of each lesson is typed for the real Python: see `real` in lesson.py.
"""

import atexit
import builtins
import functools
import gc
import importlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import traceback
import types
from pathlib import Path

IMPORTS = """
    torch torch.distributed torch.utils.data torch.utils.tensorboard torchvision torchmetrics.classification
    lightning.pytorch lightning.pytorch.loggers lightning.pytorch.profilers matplotlib.figure PIL.Image tqdm submitit
""".split()  # noqa: SIM905
# What Python reads when it starts. Kept now, because some tests change it.
SETTINGS = {name: value for name, value in os.environ.items() if name.startswith("PYTHON")}

CLIENT = """#!{python} -IS
import json, os, socket, sys

words = [word for word in sys.argv[1:] if word != "-u"]
script = words[0] if words else ""
known = script in ("-", "-c") or (script.endswith(".py") and os.path.exists(script))
settings = {{name: value for name, value in os.environ.items() if name.startswith("PYTHON")}}
if not known or settings != {settings!r}:
    os.execv({python!r}, [{python!r}, *sys.argv[1:]])
unbuffered = "-u" in sys.argv[1:2] or "PYTHONUNBUFFERED" in os.environ
request = json.dumps([words, unbuffered, os.getcwd(), dict(os.environ)]).encode()
with socket.socket(socket.AF_UNIX) as server:
    server.connect({address!r})
    socket.send_fds(server, [b"%16d" % len(request)], [0, 1, 2])
    server.sendall(request)
    code = int(server.recv(16))
if code < 0:
    os.kill(os.getpid(), -code)
sys.exit(code)
"""


def environment() -> dict[str, str]:
    """This process's environment with that `python` in it."""
    if sys.platform != "linux":
        return dict(os.environ)  # elsewhere a fork may not use what its parent has imported
    others = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    return others | SETTINGS | {"PATH": f"{start()}:{os.environ['PATH']}"}


@functools.cache
def start() -> str:
    """Start the server, which ends with this process. Returns the folder with `python` in it."""
    folder = tempfile.TemporaryDirectory(prefix="quick-python-")
    address, python = f"{folder.name}/socket", Path(folder.name, "bin/python")
    python.parent.mkdir()
    python.write_text(CLIENT.format(python=sys.executable, settings=SETTINGS, address=address))
    python.chmod(0o755)
    server = subprocess.Popen(
        [sys.executable, __file__, address],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")},
    )
    assert server.stdout.read(5) == b"ready"

    def stop():
        server.stdin.close()
        server.wait()
        folder.cleanup()

    atexit.register(stop)
    return str(python.parent)


def serve(address: str) -> list[str]:
    """Fork for each request until standard input ends; returns in each fork, with the words behind `python`."""
    for name in IMPORTS:
        importlib.import_module(name)
    gc.freeze()  # no fork need look whether any of this is garbage
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(address)
    listener.listen(100)
    os.write(1, b"ready")
    while True:
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for those that report
        if sys.stdin in select.select([listener, sys.stdin], [], [])[0]:
            os._exit(0)
        connection, _ = listener.accept()
        if os.fork():
            connection.close()
            continue
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        length, files, _, _ = socket.recv_fds(connection, 16, 3)
        with connection.makefile("rb") as stream:
            words, unbuffered, folder, environment = json.loads(stream.read(int(length)))
        child = os.fork()
        if child:
            connection.sendall(b"%16d" % os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
            os._exit(0)
        connection.close()
        listener.close()
        for number, file in enumerate(files):
            os.dup2(file, number)
            os.close(file)
        os.chdir(folder)
        os.environ.clear()
        os.environ.update(environment)
        # New ones: those of the server may have been files, in which one can seek.
        sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115 (they stay open)
        sys.stderr = open(2, "w", closefd=False, errors="backslashreplace")  # noqa: SIM115
        sys.stdout.reconfigure(line_buffering=os.isatty(1), write_through=unbuffered)
        sys.stderr.reconfigure(line_buffering=True)
        return words


def become(words: list[str]) -> None:
    """Do what `python WORDS` does."""
    script, sys.argv, sys.path[0] = words[0], words, ""
    if script == "-":
        source, name = sys.stdin.read(), "<stdin>"
    elif script == "-c":
        source, name, sys.argv = words[1], "<string>", ["-c", *words[2:]]
    else:
        name = str(Path(script).resolve())  # as Python has it: what is spawned looks for it from another folder
        source, sys.path[0] = Path(script).read_bytes(), str(Path(script).resolve().parent)
    main = types.ModuleType("__main__")
    main.__dict__.update(__builtins__=builtins, **({"__file__": name} if name.startswith("/") else {}))
    sys.modules["__main__"] = main
    exec(compile(source, name, "exec"), main.__dict__)


def leave(words: list[str]) -> None:
    """End as Python does, but do not take down all that was imported: in a fork that takes two seconds."""
    code = 1
    try:
        become(words)
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code & 255)


if __name__ == "__main__":
    leave(serve(sys.argv[1]))

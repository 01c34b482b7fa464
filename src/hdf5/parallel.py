"""Write one packed file with many tasks, on one node or many: each writes a shard, then one file leads to them all.

No MPI is needed, and no MPI build of HDF5: the tasks know their rank from Slurm, mpirun or torchrun, and tell each
other the rest by small files in a folder that all of them see:

    data.tasks-1234/0002.h5      what task 2 writes
    data.tasks-1234/0002.alive   is touched as long as task 2 lives and gets on
    data.tasks-1234/0002.json    task 2 is done
    data.tasks-1234/0002.failed  task 2 failed, and why

In the end the shards move to data.shards-ID, where ID is new each time: no later start, which may have the same number,
writes there, whatever data.h5 is called by then. data.h5 holds a link for each group.
"""

import contextlib
import json
import os
import shutil
import threading
import time
from uuid import uuid4

import h5py

from src.hdf5.index import ATTRIBUTE, Index, PackError, read_text, write_durably
from src.hdf5.new_file import finish, new_file, one_sentence, publish, sealed
from src.launch.ranks import MPI_JOB, export_ranks

PATIENCE = 300  # seconds without a sign of life: a network file system may show an old time for a minute
STUCK = 3600  # seconds for one item; a task that takes longer gives no more signs of life
EVERY = 0.5  # seconds between two looks
STOPPED = " (so all tasks stopped)"


def write_parallel(writer, path):
    """All tasks call it. Returns the path when the file is complete, in all of them.

    Raises:
        PackError: in all tasks, also if only one of them failed
    """
    export_ranks()
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    if size == 1:
        return writer.write(path)
    team = Team(path.with_name(f"{path.stem}.tasks-{step_name()}"), rank, size)
    with team.alive():
        try:
            items, context, about = writer.prepare()
            # Task r takes the items r, r + size, ...: neighbours take about the same time.
            mine = [items[number] for number in range(rank, len(items), size)]
            with new_file(team.file(rank, "h5")) as file:
                groups = writer.write_items(file, mine, context, team.look, show=rank == 0)
            with one_sentence(team.folder):
                shard = sealed(team.file(rank, "h5"))
                note = {"length": len(items), "about": about, "groups": groups, "shard": shard}
                write_durably(team.file(rank, "json"), json.dumps(note))
                if rank == 0:
                    team.wait_for(lambda: all(map(team.is_done, range(size))), range(1, size))
                    join(path, team, writer.stacked)
                else:
                    team.wait_for(path.exists, [0])
        except BaseException as error:
            team.fail(error)
            raise
    team.leave()
    return path


def join(path, team, stacked):
    """Write the file that leads to the groups of all shards, in the order of the items."""
    notes = [json.loads(team.file(rank, "json").read_text()) for rank in range(team.size)]
    lengths = [note["length"] for note in notes]
    if len(set(lengths)) > 1:
        raise PackError(f"the tasks had {lengths} items: prepare_globals() has to give all of them the same")
    groups, homes = [], {}
    for number in range(lengths[0]):
        rank, place = number % team.size, number // team.size
        for name, count in notes[rank]["groups"][place]:
            if name in homes:
                raise PackError(
                    f"tasks {homes[name]} and {rank} both wrote the group {name}: each item needs names of its own, "
                    "and prepare_globals() has to give all tasks the same items in the same order"
                )
            homes[name] = rank
            groups.append([name, count])
    identity = uuid4().hex
    folder = path.with_name(f"{path.stem}.shards-{identity[:16]}")
    files = {f"{folder.name}/{team.file(rank, 'h5').name}": notes[rank]["shard"] for rank in range(team.size)}
    shards = list(files)
    with publish(path) as partial:
        index = Index(identity, stacked, notes[0]["about"], groups, files)
        try:
            folder.mkdir()
            for rank in range(team.size):
                os.rename(team.file(rank, "h5"), folder / team.file(rank, "h5").name)
            with new_file(partial) as file:
                for name, rank in homes.items():
                    file[name] = h5py.ExternalLink(shards[rank], f"/{name}")
                file.attrs[ATTRIBUTE] = index.digest()
            finish(partial, path, index)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise


def step_name():
    """A name for this start of these tasks, the same in all of them."""
    names = ["SLURM_JOB_ID", "SLURM_STEP_ID", "SLURM_RESTART_COUNT"]
    if mpi := next((name for name in MPI_JOB if name in os.environ), None):
        names = [mpi, "SLURM_JOB_ID", "SLURM_RESTART_COUNT"]  # a step of mpirun has no number on the first node
    elif "SLURM_STEP_ID" not in os.environ:
        names = ["TORCHELASTIC_RUN_ID", "MASTER_PORT"]
    text = "-".join(os.environ[name] for name in names if name in os.environ)
    return "".join(letter if letter.isalnum() or letter in ".-" else "_" for letter in text)


class Team:
    """What the tasks tell each other, by files in `folder`."""

    def __init__(self, folder, rank, size):
        self.folder, self.rank, self.size = folder, rank, size
        self.looked = self.began = time.monotonic()  # when we last looked for failures; when this item began
        self.signs = {}  # of each rank: the time of its last touch, and when we saw that for the first time
        try:
            folder.mkdir(exist_ok=True)
            if self.file(rank, "failed").exists() or self.file(rank, "json").exists():
                raise FileExistsError
            self.file(rank, "alive").open("x").close()
        except FileExistsError:
            raise PackError(f"{folder} is left from a start that failed or was killed: delete it") from None
        except OSError as error:
            raise PackError(f"cannot write into {folder.parent}: {error.strerror}") from None

    def file(self, rank, kind):
        return self.folder / f"{rank:04d}.{kind}"

    def is_done(self, rank):
        return self.file(rank, "json").exists()

    @contextlib.contextmanager
    def alive(self):
        """Touch our file every few seconds, beside whatever is done. A task that is killed or stuck does not."""
        done = threading.Event()

        def touch():
            while not done.wait(min(EVERY * 4, PATIENCE / 2)):
                if time.monotonic() - self.began < STUCK:
                    with contextlib.suppress(OSError):  # a file server that does not answer for a moment
                        os.utime(self.file(self.rank, "alive"))

        thread = threading.Thread(target=touch, daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()
            with contextlib.suppress(OSError):
                self.file(self.rank, "alive").unlink()

    def leave(self):
        """Delete what told the others that we are done. The last one deletes the folder."""
        with contextlib.suppress(OSError):  # others are still there, or were killed
            self.file(self.rank, "json").unlink()
            self.folder.rmdir()

    def fail(self, error):
        """Leave the reason for the others, and nothing else."""
        with contextlib.suppress(OSError):
            self.file(self.rank, "h5").unlink()
        if not str(error).endswith(STOPPED):
            reason = error if isinstance(error, PackError) else f"{type(error).__name__}: {error}"
            with contextlib.suppress(OSError):  # a full disk: then they notice that we give no sign of life
                write_durably(self.file(self.rank, "failed"), f"task {self.rank}: {reason}")

    def look(self):
        """Stop if another task failed. Asks the file system once in a while only."""
        self.began = time.monotonic()
        if time.monotonic() - self.looked < EVERY:
            return
        self.looked = time.monotonic()
        for path in sorted(self.folder.glob("*.failed")):
            raise PackError(f"{read_text(path)}{STOPPED}")

    def wait_for(self, ready, ranks):
        """Wait until ready() is true, as long as these other ranks live."""
        while not ready():
            self.look()
            for rank in ranks:
                self.check_alive(rank)
            time.sleep(EVERY / 5)

    def check_alive(self, rank):
        """Our own clock counts: that of another node, or of the file server, may be wrong."""
        if rank and self.is_done(rank):  # it has nothing more to do; task 0 has
            return
        path = self.file(rank, "alive")
        touched = path.stat().st_mtime_ns if path.exists() else None
        if self.signs.get(rank, [None])[0] != touched or rank not in self.signs:
            self.signs[rank] = touched, time.monotonic()
        elif time.monotonic() - self.signs[rank][1] > PATIENCE:
            raise PackError(
                f"task {rank} has given no sign of life for {PATIENCE} s: was it killed, or does an item take more "
                f"than {STUCK} s?"
            )

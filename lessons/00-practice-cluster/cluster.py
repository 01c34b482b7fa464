#!/usr/bin/env python3
"""A real Slurm on one Linux machine, to practise on: a login host and four nodes with (pretended) GPUs.

    sudo python3 cluster.py up                  start it: some ten seconds, one line a step
    sudo python3 cluster.py shell               a shell on the login host: sbatch, squeue, sacct, srun, ...
    sudo python3 cluster.py exec head squeue    one command on one host
    sudo python3 cluster.py status              what runs
    sudo python3 cluster.py crash node2         a power cut; `boot node2` brings the node back
    sudo python3 cluster.py down                stop it; queue and accounting are kept for the next `up`

A "host" is a set of Linux namespaces around one init process. It has its own name, address, process table and /dev/shm,
and shares the file system with the other hosts. The addresses exist inside the namespaces only, so nothing can be
reached from outside, and when a host's init is killed the kernel ends everything in it.

All files are in one state folder: /var/lib/practice-cluster, or --dir, or $PRACTICE_CLUSTER_DIR. Clusters in different
folders run side by side. Needs root, and the packages in PACKAGES.
"""

import argparse
import contextlib
import fcntl
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

# ---- what the cluster is

NODES = ["node1", "node2", "node3", "node4"]
ADDRESSES = {"head": "10.77.0.1"} | {node: f"10.77.0.1{number}" for number, node in enumerate(NODES, start=1)}
DAEMONS = {"head": ["munged", "mariadbd", "slurmdbd", "slurmctld"]} | {node: ["slurmd"] for node in NODES}
CPUS, MEMORY_MIB, GPUS = 4, 8192, 4  # of every node, as Slurm is told; it may be more than this machine has
ACCOUNT = "research"
BEGAN = time.monotonic()

PACKAGES = "slurmctld slurmd slurmdbd slurm-client munge mariadb-server iproute2 procps"
PROGRAMS = ["slurmctld", "slurmd", "slurmdbd", "sbatch", "munged", "mariadbd", "mariadb-install-db", "ip", "unshare"]
MAX_DIR = 50  # a Unix socket's path ends at 107 bytes, and Slurm puts sockets with long names in the state folder

# The files `up` writes into the state folder, which stands for @DIR@. To change one, change it here.
FILES = {}

# The first process of a host. Its `wait` buries the orphans, which a host's first process inherits.
FILES["init.sh"] = """\
set -e
mount -t proc proc /proc
hostname "$1"
mount --bind @DIR@/etc/hosts /etc/hosts
mount --bind @DIR@/etc/nsswitch.conf /etc/nsswitch.conf
mount -t tmpfs tmpfs /dev/shm
ip link set lo up
touch @DIR@/run/$1.ready
while :; do sleep 3600 & wait; done
"""

# Real addresses: a name that means 127.0.0.1 on its own node would break training across nodes.
FILES["etc/hosts"] = "127.0.0.1 localhost\n" + "".join(f"{address} {host}\n" for host, address in ADDRESSES.items())
# No name server: it could not be reached from inside, and every look-up would wait ten seconds for it.
FILES["etc/nsswitch.conf"] = "passwd: files\ngroup: files\nshadow: files\nhosts: files\n"
FILES["etc/bashrc"] = "[ -f ~/.bashrc ] && . ~/.bashrc\nunset PROMPT_COMMAND\nPS1='[\\h]$ '\n"

FILES["etc/slurm.conf"] = f"""\
ClusterName=practice
SlurmctldHost=head
SlurmUser=root
SlurmdUser=root
StateSaveLocation=@DIR@/state
SlurmdSpoolDir=@DIR@/spool/%n
SlurmctldPidFile=@DIR@/run/slurmctld.pid
SlurmdPidFile=@DIR@/run/slurmd.%n.pid
SlurmctldLogFile=@DIR@/log/slurmctld.log
SlurmdLogFile=@DIR@/log/slurmd.%n.log
MailProg=/bin/true
MpiDefault=none

# Hosts trust each other by a shared munge key. cred_expire is also how long a requeued job waits (least: 5 s).
AuthType=auth/munge
AuthInfo=socket=@DIR@/run/munge.socket,cred_expire=5

# Find a job's processes through /proc, as there are no cgroups here. A real cluster: proctrack/cgroup, task/cgroup.
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=task=2

# Give out CPUs, memory and GPUs one by one; believe the numbers below, not the machine.
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
SlurmdParameters=config_overrides
DefMemPerCPU={MEMORY_MIB // CPUS}
GresTypes=gpu

# Quick reactions. A busy cluster looks at its queue less often.
SchedulerParameters=batch_sched_delay=0,sched_interval=5,bf_interval=2
KillWait=5
MinJobAge=300
SlurmdTimeout=15
TCPTimeout=2

# A job that lost its node, or had to give way, is queued again. A node that comes back is used again.
JobRequeue=1
ReturnToService=2
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmctldParameters=preempt_send_user_signal

# Every job is written down by slurmdbd. What can never run is refused at once: account, partition, size, time.
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=head
AccountingStoragePass=@DIR@/run/munge.socket
AccountingStorageTRES=gres/gpu
AccountingStorageEnforce=associations,limits,qos
EnforcePartLimits=ALL

NodeName={",".join(NODES)} Sockets=1 CoresPerSocket={CPUS} RealMemory={MEMORY_MIB} Gres=gpu:a100:{GPUS}
PartitionName=DEFAULT Nodes=ALL DefaultTime=01:00:00 MaxTime=1-00:00:00 PreemptMode=OFF
PartitionName=cpu Default=YES
PartitionName=gpu
PartitionName=low PriorityTier=1 PreemptMode=REQUEUE GraceTime=10
PartitionName=urgent PriorityTier=100
"""

FILES["etc/gres.conf"] = f"AutoDetect=off\nName=gpu Type=a100 File=@DIR@/dev/nvidia[0-{GPUS - 1}]\n"

# Newer releases load a plugin for control groups though nothing here uses it. This one starts where there are none.
FILES["etc/cgroup.conf"] = "CgroupPlugin=cgroup/v1\n"

FILES["etc/slurmdbd.conf"] = """\
DbdHost=head
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket=@DIR@/run/munge.socket
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StorageUser=slurm
StoragePass=slurm
LogFile=@DIR@/log/slurmdbd.log
PidFile=@DIR@/run/slurmdbd.pid
"""

FILES["etc/database.sql"] = """\
CREATE DATABASE IF NOT EXISTS slurm_acct_db;
CREATE USER IF NOT EXISTS slurm@127.0.0.1 IDENTIFIED BY 'slurm';
GRANT ALL ON slurm_acct_db.* TO slurm@127.0.0.1;
"""


class Problem(Exception):
    """Why we cannot go on, as one sentence for the reader."""


# ---- what runs, and running things


def arguments_of(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text(errors="replace").split("\0")[:-1]
    except OSError:  # it ended while we looked
        return []


def all_pids() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def running_hosts(state: Path) -> dict[str, int]:
    """Name -> pid of the init of each running host. Read from the process table: a pid file could be out of date."""
    found = {}
    for pid in all_pids():
        words = arguments_of(pid)
        if words[:2] == ["sh", f"{state}/init.sh"]:
            found[words[2]] = pid
    return found


def programs_on(init: int) -> dict[str, int]:
    """Name -> pid of the programs on the host with this init, that is, in its process namespace."""
    found = {}
    for pid in all_pids():
        with contextlib.suppress(OSError):
            if os.readlink(f"/proc/{pid}/ns/pid") == os.readlink(f"/proc/{init}/ns/pid"):
                found[Path(f"/proc/{pid}/comm").read_text().strip()] = pid
    return found


def missing(state: Path) -> list[str]:
    """What should run and does not, such as "node2" or "slurmctld on head". Nothing: the cluster is up."""
    inits, result = running_hosts(state), []
    for host, daemons in DAEMONS.items():
        if host not in inits:
            result.append(host)
        else:
            programs = programs_on(inits[host])
            result += [f"{daemon} on {host}" for daemon in daemons if daemon not in programs]
    return result


def run(command: str | list[str], **options) -> str:
    """Run a program to its end and return what it printed. No word of a command given as text may hold a space."""
    words = command.split() if isinstance(command, str) else command
    done = subprocess.run(words, capture_output=True, text=True, **options)
    if done.returncode:
        lines = (done.stdout + done.stderr).strip().splitlines() or [f"exit code {done.returncode}"]
        raise Problem(f"`{' '.join(words)}` failed: {lines[-1].strip()}")
    return done.stdout


def enter(state: Path, host: str) -> list[str]:
    """The words to put before a command to run it on a host."""
    hosts = running_hosts(state)
    if "head" not in hosts:
        raise Problem(f"no practice cluster runs in {state}: type `python3 cluster.py up`")
    if host not in hosts:
        raise Problem(f"{host} is off: type `python3 cluster.py boot {host}`")
    return f"nsenter --target={hosts[host]} --mount --uts --ipc --net --pid --".split()


def environment(state: Path) -> dict[str, str]:
    """The caller's, less what Slurm left in it if the caller is itself a Slurm job, somewhere else."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("SLURM_")}
    return kept | {"SLURM_CONF": f"{state}/etc/slurm.conf"}


def run_on(state: Path, host: str, command: str) -> str:
    return run([*enter(state, host), *command.split()], env=environment(state))


def works(state: Path, host: str, command: str) -> bool:
    with contextlib.suppress(Problem):
        run_on(state, host, command)
        return True
    return False


def power_off(state: Path, host: str) -> None:
    """Without its init, the kernel ends all processes of a host, and with them its mounts and its network."""

    def is_off() -> bool:
        with contextlib.suppress(KeyError, ProcessLookupError):
            os.kill(running_hosts(state)[host], signal.SIGKILL)
        return not any(words[-2:] == [f"{state}/init.sh", host] for words in map(arguments_of, all_pids()))

    wait_until(is_off, f"{host} is off", state)


def wait_until(condition, what: str, state: Path, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise Problem(f"waited {seconds:.0f} s in vain until {what}: look for the reason in {state}/log")
        time.sleep(0.05)


# ---- the steps of `up`


def write_files(state: Path) -> None:
    for folder in ["etc", "run", "log", "dev", "spool", "state"]:
        (state / folder).mkdir(exist_ok=True)
    for name, text in FILES.items():
        (state / name).write_text(text.replace("@DIR@", str(state)))
    (state / "etc/slurmdbd.conf").chmod(0o600)  # slurmdbd insists, as there is a password in it
    for number in range(GPUS):
        device = state / f"dev/nvidia{number}"
        if not device.exists():  # Slurm looks only whether it is a device; this one is another /dev/null
            try:
                os.mknod(device, 0o666 | stat.S_IFCHR, os.makedev(1, 3))
            except PermissionError:
                raise Problem(
                    "root may not make devices here: should this be a container, start it --privileged"
                ) from None
    key = state / "etc/munge.key"
    if not key.exists() or not key.stat().st_size:
        key.touch(mode=0o600)
        key.write_bytes(os.urandom(128))


def start_host(state: Path, host: str) -> None:
    """New namespaces around init.sh; for `head` a network bridge, for a node a cable into it."""
    with contextlib.suppress(Problem):
        if run_on(state, host, "ip link show dev eth0 up"):
            return
    power_off(state, host)  # it had come half-way when an `up` was interrupted, or it lost the other end of its cable

    ready, log = state / f"run/{host}.ready", state / f"log/{host}.log"
    ready.unlink(missing_ok=True)
    command = f"unshare --net --uts --ipc --mount --pid --fork --kill-child sh {state}/init.sh {host}".split()
    with open(log, "w") as out:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True)
    wait_until(lambda: ready.exists() or process.poll() is not None, f"{host} starts", state)
    if not ready.exists():
        reason = " ".join(log.read_text().split()) or "it ended at once"
        raise Problem(
            f"root may not make namespaces here ({reason}): should this be a container, start it --privileged"
        )

    if host == "head":
        run_on(state, host, "ip link add eth0 type bridge")
    else:
        inits = running_hosts(state)
        on_head = f"nsenter --target={inits['head']} --net"  # but with the pids of outside, for the end of the cable
        subprocess.run(f"{on_head} ip link del {host}".split(), stderr=subprocess.DEVNULL)  # a crash may have left it
        run(f"{on_head} ip link add {host} master eth0 type veth peer name eth0 netns {inits[host]}")
        run(f"{on_head} ip link set {host} up")
    run_on(state, host, f"ip address add {ADDRESSES[host]}/24 dev eth0")
    run_on(state, host, "ip link set eth0 up")


def start_daemon(state: Path, host: str, command: str) -> None:
    """Start a program that goes into the background by itself, if it does not run yet."""
    if command.split()[0] not in programs_on(running_hosts(state)[host]):
        run_on(state, host, command)


def start_munge(state: Path) -> None:
    """One for all hosts: its socket is a file, and they share their files. A real cluster has one on every host."""
    files = f"--key-file={state}/etc/munge.key --socket={state}/run/munge.socket --pid-file={state}/run/munged.pid"
    start_daemon(
        state, "head", f"munged --force {files} --seed-file={state}/run/seed --log-file={state}/log/munged.log"
    )


def start_database(state: Path) -> None:
    data, socket = state / "database", state / "run/mariadb.socket"
    if not (data / "complete").exists():
        shutil.rmtree(data, ignore_errors=True)
        run(f"mariadb-install-db --no-defaults --datadir={data} --user=root --skip-test-db")
        (data / "complete").touch()
    if "mariadbd" not in programs_on(running_hosts(state)["head"]):
        command = f"setsid --fork mariadbd --no-defaults --user=root --datadir={data} --socket={socket}"
        command += f" --pid-file={state}/run/mariadbd.pid --bind-address=127.0.0.1 --init-file={state}/etc/database.sql"
        command += " --innodb-buffer-pool-size=64M --innodb-lock-wait-timeout=900"
        command += " --innodb-flush-log-at-trx-commit=2"  # do not wait for the disk at every job
        with open(state / "log/mariadbd.log", "a") as out:
            words = [*enter(state, "head"), *command.split()]
            subprocess.run(words, stdin=subprocess.DEVNULL, stdout=out, stderr=out)
    ping = f"mariadb-admin --no-defaults --socket={socket} ping"
    wait_until(lambda: works(state, "head", ping), "MariaDB answers", state)


def start_slurmdbd(state: Path) -> None:
    """The accounting. Who may use the cluster has to be in the database before the first job."""
    start_daemon(state, "head", "slurmdbd")
    wait_until(lambda: works(state, "head", "sacctmgr show cluster"), "slurmdbd answers", state)
    if not (state / "database/set-up").exists():
        # Each fails for what is there already, if an earlier `up` was interrupted.
        works(state, "head", "sacctmgr --immediate add cluster practice")
        works(state, "head", f"sacctmgr --immediate add account {ACCOUNT}")
        works(state, "head", f"sacctmgr --immediate add user root account={ACCOUNT} defaultaccount={ACCOUNT}")
        (state / "database/set-up").touch()


def start_slurmctld(state: Path) -> None:
    start_daemon(state, "head", "slurmctld")
    wait_until(lambda: works(state, "head", "scontrol ping"), "slurmctld answers", state)


def start_slurmd(state: Path, nodes: list[str]) -> None:
    """Start slurmd on the nodes, and wait until the controller has heard of it."""
    for node in nodes:
        start_daemon(state, node, "slurmd")

    def in_service() -> bool:
        states = run_on(state, "head", f"sinfo --noheader --nodes={','.join(nodes)} --format=%T")
        return not re.search(r"down|unk|\*", states)  # a star: does not answer

    wait_until(in_service, f"Slurm calls {' '.join(nodes)} idle", state)


# ---- the commands


def say(text: str) -> None:
    print(f"{time.monotonic() - BEGAN:5.1f} s  {text}", flush=True)


def up(state: Path) -> None:
    if not missing(state):
        print(f"the practice cluster in {state} is already up")
        return
    write_files(state)
    for host in ADDRESSES:
        start_host(state, host)
    say(f"hosts {' '.join(ADDRESSES)}: {ADDRESSES['head']}, {ADDRESSES[NODES[0]]} to {ADDRESSES[NODES[-1]]}")
    start_munge(state)
    say("munge, by which the hosts trust each other")
    start_database(state)
    say("MariaDB, where the accounting is kept")
    start_slurmdbd(state)
    say(f"slurmdbd, the accounting: account {ACCOUNT}, user root")
    start_slurmctld(state)
    say("slurmctld, the controller: partitions cpu gpu low urgent")
    start_slurmd(state, NODES)
    say(f"slurmd on {' '.join(NODES)}: each {CPUS} CPUs, {MEMORY_MIB // 1024} GiB, {GPUS} GPUs (pretended)")
    print("The practice cluster is up. Go on with: python3 cluster.py shell")


def down(state: Path) -> None:
    if head := running_hosts(state).get("head"):  # let the controller save its queue and the database close its files
        for daemon in ["slurmctld", "slurmdbd", "mariadbd"]:
            if pid := programs_on(head).get(daemon):
                os.kill(pid, signal.SIGTERM)
                with contextlib.suppress(Problem):
                    wait_until(lambda pid=pid: not arguments_of(pid), f"{daemon} ends", state, seconds=5)
    for host in reversed(ADDRESSES):
        power_off(state, host)
    print(f"the practice cluster in {state} is down")


def status(state: Path) -> int:
    """Exit code 0: up; 1: not, or not all of it."""
    lacking = missing(state)
    if "head" in lacking:
        print(f"no practice cluster runs in {state}")
        return 1
    print(f"the practice cluster in {state} is up" + (f", but without {', '.join(lacking)}" if lacking else ""))
    if "slurmctld on head" not in lacking:
        print(f"{run_on(state, 'head', 'sinfo')}\n{run_on(state, 'head', 'squeue')}", end="")
    return int(bool(lacking))


def execute(state: Path, host: str, command: list[str]) -> None:
    """Become the command, on the host: terminal, pipes and exit code are its own."""
    # nsenter waits outside while the command runs inside. Ctrl-C is for the command (srun asks twice), so nsenter
    # ignores it and `env` undoes that; setpriv ends the command should nsenter be killed.
    words = [*enter(state, host), "setpriv", "--pdeathsig=TERM"]
    words += ["env", "--default-signal=INT", f"--chdir={os.getcwd()}", *command]
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.execvpe(words[0], words, environment(state))


def shell(state: Path) -> None:
    enter(state, "head")
    print("This is head, the login host of the practice cluster. Try: sinfo, srun -N2 hostname, sbatch, squeue, sacct")
    print("Leave with: exit. The cluster goes on until: python3 cluster.py down", flush=True)
    execute(state, "head", ["bash", "--rcfile", f"{state}/etc/bashrc", "-i"])


def crash(state: Path, node: str) -> None:
    if node not in running_hosts(state):
        print(f"{node} is already off")
        return
    power_off(state, node)
    print(f"{node} is off; Slurm will notice when it has not answered for 15 to 40 s")


def boot(state: Path, node: str) -> None:
    start_host(state, node)
    start_slurmd(state, [node])
    print(f"{node} is on")


# ---- the command line


@contextlib.contextmanager
def lock(state: Path):
    """One cluster.py at a time changes a cluster; the kernel opens the lock when its holder ends, however it ends."""
    with open(state / "lock", "a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print("waiting for another cluster.py that works on this cluster", file=sys.stderr)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def check(state: Path, command: str) -> None:
    if sys.platform != "linux":
        raise Problem("the practice cluster is made of Linux namespaces: run it on Linux, say in a virtual machine")
    if os.geteuid() != 0:
        raise Problem(f"the practice cluster needs root: type `sudo python3 cluster.py {command}`")
    if lacking := [program for program in PROGRAMS if not shutil.which(program)]:
        install = f"sudo apt-get install --no-install-recommends {PACKAGES}"
        raise Problem(f"{', '.join(lacking)} not found: on Debian or Ubuntu type `{install}`")
    if len(str(state)) > MAX_DIR or not re.fullmatch(r"/[\w./-]+", str(state), re.ASCII):
        rule = f"at most {MAX_DIR} letters, digits and any of / . _ - (Unix sockets in it must keep below 107 bytes)"
        raise Problem(f"{str(state)[:100]} cannot be the state folder: take a path of {rule}")
    if (arguments_of(1)[1:2] or [""])[0].endswith("/init.sh"):
        raise Problem(f"this shell is itself on {os.uname().nodename}, a host of a practice cluster: type `exit` first")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    folder = os.environ.get("PRACTICE_CLUSTER_DIR") or "/var/lib/practice-cluster"
    parser.add_argument("--dir", default=folder, help="state folder (default: %(default)s)")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    commands.add_parser("up", help="start the cluster, or what is missing of it")
    commands.add_parser("down", help="stop it")
    commands.add_parser("status", help="show whether it is up, its nodes and jobs")
    commands.add_parser("shell", help="open a shell on the login host")
    sub = commands.add_parser("exec", help="run one command on one host")
    sub.add_argument("host", metavar="HOST", help=", ".join(ADDRESSES))
    sub.add_argument("words", metavar="COMMAND", nargs=argparse.REMAINDER)
    for name, text in [("crash", "cut the power of a node"), ("boot", "start a node again")]:
        commands.add_parser(name, help=text).add_argument("host", metavar="NODE", help=", ".join(NODES))
    arguments = parser.parse_args()
    state, command, host = Path(os.path.abspath(arguments.dir)), arguments.command, getattr(arguments, "host", "head")
    os.environ["PATH"] = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"  # plain `su` leaves them out
    check(state, command)

    valid = list(ADDRESSES) if command == "exec" else NODES
    if command in ("exec", "crash", "boot") and host not in valid:
        raise Problem(f"there is no {host} to {command}: take one of {' '.join(valid)}")
    if command == "status":
        return status(state)
    if command == "shell":
        shell(state)
    if command == "exec":
        words = arguments.words[1:] if arguments.words[:1] == ["--"] else arguments.words
        if not words:
            raise Problem(f"say what to run on {host}, such as `exec {host} sinfo`")
        execute(state, host, words)

    if command == "down" and not running_hosts(state):
        print(f"the practice cluster in {state} is not running")
        return 0
    if command in ("crash", "boot"):
        enter(state, "head")  # or say that no cluster runs
    if state.exists() and any(state.iterdir()) and not (state / "lock").exists():
        raise Problem(f"{state} holds other files: take an empty or a new folder as state folder")
    os.umask(0o022)
    state.mkdir(parents=True, exist_ok=True)
    if os.statvfs(state).f_flag & os.ST_NOEXEC:
        raise Problem(f"{state} is on a file system that runs no programs (mounted noexec): give another with --dir")
    with lock(state):
        if command in ("up", "down"):
            {"up": up, "down": down}[command](state)
        else:
            {"crash": crash, "boot": boot}[command](state, host)
    return 0


if __name__ == "__main__":
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # end without a word when a reader such as `head` has seen enough
    try:
        sys.exit(main())
    except Problem as problem:
        sys.exit(f"cluster.py: {problem}")
    except OSError as error:
        sys.exit(f"cluster.py: {error.filename or 'this machine'}: {error.strerror}")
    except KeyboardInterrupt:
        sys.exit("cluster.py: interrupted: `up` goes on from here, `down` cleans up")

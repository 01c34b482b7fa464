"""What one process can find out alone: its node, its share of it, the folders it will use."""

import contextlib
import errno
import fcntl
import os
import re
import resource
import shutil
import socket
import struct
import sys
import tempfile
import time
import warnings
from pathlib import Path

from src.doctor.findings import ERROR, OK, WARNING, Finding, within
from src.launch.ranks import cpus, strays

MIB, GIB = 1024**2, 1024**3
SMALL_FILES = 200
LIMIT = 60  # seconds; what a check may take before it is given up
ENTRY_OF = {
    errno.ENOSPC: "No space left on device",
    errno.EDQUOT: "Disk quota exceeded",
    errno.EROFS: "Read-only file system",
    errno.ESTALE: "Stale file handle",
    errno.EACCES: "Permission denied",
    errno.EPERM: "Permission denied",
}


def interfaces():
    """The names of the network interfaces; on Linux of those that have an IPv4 address."""
    names = [name for _, name in socket.if_nameindex()]
    if sys.platform != "linux":
        return names
    found = []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asked:
        for name in names:
            with contextlib.suppress(OSError):  # it has none
                fcntl.ioctl(asked, 0x8915, struct.pack("256s", name.encode()))  # SIOCGIFADDR
                found.append(name)
    return found


def check_host(nodes):
    """The host's name leads to an address that other nodes can reach: gloo tells them that one."""
    host = socket.gethostname()
    other = next((name for name in interfaces() if not name.startswith("lo")), "eth0")
    do = f"export GLOO_SOCKET_IFNAME={other}, or have /etc/hosts corrected"
    entry = "connectFullMesh failed"
    try:
        address = within(20, socket.gethostbyname, host)
    except (OSError, TimeoutError) as error:
        level = ERROR if nodes > 1 else WARNING
        return Finding("host name", level, f"{host} has no address ({error}): {do}", entry)
    if nodes == 1:
        return Finding("host name", OK, f"{host} is {address}")
    if address.startswith("127.") and "GLOO_SOCKET_IFNAME" not in os.environ:
        return Finding("host name", WARNING, f"{host} is {address}, where no other node can reach it: {do}", entry)
    return Finding("host name", OK, f"{host} is {address}")


def check_interface():
    """The interfaces that gloo and NCCL are told to take are there."""
    names = sorted(interfaces())
    for variable in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
        wanted = os.environ.get(variable, "")
        if not wanted or wanted.startswith("^"):  # NCCL: any but these
            continue
        exact = variable.startswith("GLOO") or wanted.startswith("=")  # else NCCL takes all that begin so
        parts = wanted.lstrip("=").split(",")
        if not any(name in parts if exact else name.startswith(tuple(parts)) for name in names):
            text = f"{variable}={wanted}, but there are {', '.join(names)}: unset it, or name one of them"
            return Finding("interface", ERROR, text, "Unable to find address for")
    told = [f"{name}={os.environ[name]}" for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME") if name in os.environ]
    return Finding("interface", OK, f"{', '.join(names)}{'; ' if told else ''}{', '.join(told)}")


def check_variables(environment, alone):
    """Variables of another job or launcher.

    Args:
        environment: as it was when this process started
        alone: nobody has started it as one of several
    """
    names = strays(environment)
    ranks = [name for name in names if name in ("RANK", "WORLD_SIZE", "LOCAL_RANK")]
    tasks = environment.get("SLURM_STEP_NUM_TASKS")
    of_torchrun = any(name.startswith("TORCHELASTIC_") for name in names)
    entry = "variables: left of another job"
    if ranks and tasks and not of_torchrun and environment.get("WORLD_SIZE") != tasks:
        text = f"left of another job: {', '.join(ranks)}, but srun has started {tasks} processes: "
        return Finding("variables", ERROR, f"{text}unset {' '.join(ranks)} in the shell you submit in", entry)
    asked = environment.get("SLURM_NTASKS", "1")
    if alone and asked != "1":
        text = f"the allocation has {asked} tasks, and this is one process: start it with srun"
        entry = "The `srun` command is available on your system but is not used."
        return Finding("variables", ERROR, text, entry)
    if alone and names and "SLURM_JOB_ID" not in environment:
        few = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
        return Finding("variables", WARNING, f"left of another job: {few}: unset them, or open a new shell", entry)
    return Finding("variables", OK, "none of another job")


def check_cpus():
    asked = int(os.environ.get("SLURM_CPUS_PER_TASK") or 0)
    number = cpus()
    threads = os.environ.get("OMP_NUM_THREADS", "")
    entry = "for this process, which has asked for"
    if number < asked:
        text = f"{number} for this process, which has asked for {asked}: before srun, "
        return Finding("CPUs", ERROR, f"{text}export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK", entry)
    if threads.isdigit() and int(threads) > number:
        text = f"{number} for OMP_NUM_THREADS={threads} threads, which wait for each other: unset OMP_NUM_THREADS"
        return Finding("CPUs", WARNING, text, entry)
    return Finding("CPUs", OK, f"{number} for this process", cost=-number)


def memory_limit():
    """In bytes, of the control groups that this process is in, and of the machine."""
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    groups = Path("/proc/self/cgroup")
    for line in groups.read_text().splitlines() if groups.exists() else []:  # on macOS there are none
        _, controllers, group = line.split(":", 2)
        root, file = ("/sys/fs/cgroup", "memory.max") if not controllers else ("", "")
        if "memory" in controllers.split(","):
            root, file = "/sys/fs/cgroup/memory", "memory.limit_in_bytes"
        if root:
            place = Path(f"{root}{group}")
            for folder in (place, *place.parents):
                with contextlib.suppress(OSError, ValueError):  # "max", or no such file
                    limits.append(int((folder / file).read_text()))
    if "SLURM_MEM_PER_NODE" in os.environ:
        limits.append(int(os.environ["SLURM_MEM_PER_NODE"]) * MIB)
    return min(limits)


def check_memory(local_size):
    limit = memory_limit()
    share = limit / local_size / GIB
    text = f"{limit / GIB:.1f} GiB on this node, {share:.1f} for each process"
    if share < 1:  # torch and Lightning alone take half
        return Finding("memory", WARNING, f"{text}: ask for more with --mem", "Detected 1 oom_kill event")
    return Finding("memory", OK, text, cost=-share)


def check_shared_memory(local_size, workers, batch):
    """Data workers hand their batches over in /dev/shm, each keeps two there. batch: images of a process."""
    if not Path("/dev/shm").is_dir():  # macOS
        return Finding("shared memory", OK, "there is no /dev/shm here, and none is needed")
    free = shutil.disk_usage("/dev/shm").free
    images = local_size * workers * 2 * batch
    small, large = images * 3 * 32 * 32 * 4, images * 3 * 224 * 224 * 4  # bytes: CIFAR's images, ImageNet's
    text = f"{free / MIB:.0f} MiB are free in /dev/shm"
    if free < large:
        need = f"{workers} workers of {local_size} processes with 2 batches of {batch} images"
        text += f", {need} take {small / MIB:.0f} (32 x 32) to {large / MIB:.0f} (224 x 224): fewer --num_workers, "
        text += "a smaller --batch_size, docker run --shm-size 8g"
        return Finding(
            "shared memory", ERROR if free < small else WARNING, text, "unable to allocate shared memory(shm) for file"
        )
    return Finding("shared memory", OK, text, cost=-free)


def check_limits(workers):
    files, processes = (resource.getrlimit(kind)[0] for kind in (resource.RLIMIT_NOFILE, resource.RLIMIT_NPROC))
    files, processes = (10**9 if number == resource.RLIM_INFINITY else number for number in (files, processes))
    if files < 512 + 256 * workers:
        text = f"ulimit -n is {files}, few for {workers} workers: put ulimit -n 65536 under setup: of the config"
        return Finding("limits", WARNING, text, "Too many open files")
    if processes < 512 + 64 * workers:
        text = f"ulimit -u is {processes}, of all your processes and threads here: put ulimit -u 4096 under setup:"
        return Finding("limits", WARNING, text, "Resource temporarily unavailable")
    words = {10**9: "unlimited"}
    return Finding("limits", OK, f"ulimit -n {words.get(files, files)}, -u {words.get(processes, processes)}")


def measure(folder):
    """Write, read, small files, lock: MB/s of both, seconds for a small file, and whether there are locks."""
    block = os.urandom(MIB)
    with tempfile.TemporaryDirectory(prefix=".doctor-", dir=folder) as own:
        path = Path(own, "large")
        start = time.monotonic()
        with open(path, "wb") as file:
            for _ in range(64):
                file.write(block)
            file.flush()
            os.fsync(file.fileno())
            write = 64 * 1.048576 / (time.monotonic() - start)
            if hasattr(os, "posix_fadvise"):  # Linux; elsewhere it is read from memory
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            try:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                locks = True
            except OSError:
                locks = False
        start = time.monotonic()
        with open(path, "rb") as file:
            while file.read(MIB):
                pass
        read = 64 * 1.048576 / (time.monotonic() - start)
        path.unlink()
        start = time.monotonic()
        for number in range(SMALL_FILES):
            Path(own, str(number)).write_bytes(b"x")
        small = (time.monotonic() - start) / SMALL_FILES
    return write, read, small, locks


def check_folder(name, folder):
    """Space, speed and locks of a folder."""
    check = name
    try:
        write, read, small, locks = within(LIMIT, measure, folder)
        disk, inodes = shutil.disk_usage(folder), os.statvfs(folder)
    except TimeoutError as error:
        text = f"{folder}: {error}: the file system is lost or very slow: tell the administrators"
        return Finding(check, ERROR, text, "Stale file handle")
    except OSError as error:
        if name == "data" and error.errno in (errno.EROFS, errno.EACCES):
            return Finding(check, OK, f"{folder} can only be read, which is enough")
        text = f"{folder} cannot be written to ({error.strerror}): take another folder, with --{name.replace(' ', '_')}"
        return Finding(check, ERROR, text, ENTRY_OF.get(error.errno))
    text = f"{folder} writes {write:.0f} MB/s, reads {read:.0f} MB/s, {small * 1000:.1f} ms for a small file, "
    text += f"{disk.free / GIB:.0f} GiB free"
    if disk.free < 5 * GIB or (inodes.f_files and inodes.f_favail < 10_000):
        text += f", room for {inodes.f_favail} files: delete old runs, or take another folder"
        return Finding(check, WARNING, text, "No space left on device")
    if not locks:
        text = f"{folder} has no file locks: no two jobs in one folder; export HDF5_USE_FILE_LOCKING=FALSE for h5py"
        return Finding(check, WARNING, text, "unable to lock file")
    if write < 20 or small > 0.02:
        return Finding(check, WARNING, f"slow disk: {text}: pack small files, stage data (lesson 11)", "slow disk:")
    return Finding(check, OK, text, cost=1 / write + small)


def check_data(folder):
    if not folder.is_dir():
        text = f"there is no {folder} on {socket.gethostname()}: all nodes have to see it, --data_dir names another"
        return Finding("data", ERROR, text, "Dataset not found.")
    return check_folder("data", folder)


def check_gpu(local_rank, local_size, asked):
    """The GPU of this process; asked: of each node, or None if nobody has said."""
    import torch

    driver = Path("/proc/driver/nvidia/version").exists() or shutil.which("nvidia-smi")
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    hidden = visible is not None and not re.match(r"[0-9]|GPU-|MIG-", visible)  # "", -1, NoDevFiles
    if not count and not asked and (hidden or not (driver or visible)):
        return Finding("GPU", OK, "none, the training runs on CPUs")
    if not torch.version.cuda and not torch.version.hip:
        text = "this torch is built without GPUs: pip install torch again, from https://pytorch.org/get-started"
        return Finding("GPU", ERROR, text, "Torch not compiled with CUDA enabled")
    if not count:
        old = next((str(one.message).split(".")[0] for one in said if "driver" in str(one.message)), None)
        if old and "too old" in old:
            text = f"{old}: install a torch for the driver's CUDA version"
            return Finding("GPU", ERROR, text, "The NVIDIA driver on your system is too old")
        text = f"torch sees none, CUDA_VISIBLE_DEVICES is {visible}: is there a driver? try   nvidia-smi   in the job"
        if hidden:
            text = f"CUDA_VISIBLE_DEVICES is {visible!r}, which hides all GPUs: ask for some, or unset it"
        elif visible and not re.fullmatch(r"[0-9, ]+", visible):
            text = f"torch sees none, CUDA_VISIBLE_DEVICES is {visible}: compare with   nvidia-smi -L   in the job"
        return Finding("GPU", ERROR, text, "Found no NVIDIA driver on your system.")
    if count < local_size:
        if "MIG-" in (visible or ""):
            text = f"{local_size} processes on this node, but CUDA shows a process one part of a GPU only "
            text += f"(CUDA_VISIBLE_DEVICES={visible}): use --tasks_per_node 1, or whole GPUs"
            return Finding("GPU", ERROR, text, "need a GPU each, but torch sees")
        text = f"{local_size} processes on this node, but torch sees {count}: --gpus_per_node {local_size}, "
        text += "and no srun --gpus-per-task or --gpu-bind, which hide the others"
        return Finding("GPU", ERROR, text, "need a GPU each, but torch sees")
    name = torch.cuda.get_device_properties(local_rank).name
    try:
        torch.ones(1, device=f"cuda:{local_rank}").add(1).item()
    except RuntimeError as error:  # no code for this GPU in this torch, or somebody has it for himself
        return Finding("GPU", ERROR, f"{name} does not compute: {str(error).splitlines()[0]}")
    return Finding("GPU", OK, f"{count} of {name}, CUDA {torch.version.cuda}, CUDA_VISIBLE_DEVICES {visible}")


def check_python():
    """torch and torchvision fit."""
    try:
        import torch  # noqa: F401
        import torchvision  # noqa: F401
    except (ImportError, RuntimeError, OSError) as error:
        text = f"torch and torchvision do not fit ({str(error).splitlines()[0]}): install both again, together"
        return Finding("Python", ERROR, text, "operator torchvision::nms does not exist")
    return Finding("Python", OK, "torch and torchvision fit")


def check_requeue():
    if "SLURM_JOB_ID" in os.environ and not shutil.which("scontrol"):
        text = "there is no scontrol on this node: a job cannot queue itself again, run.py resume does it"
        return Finding("requeue", WARNING, text, "requeue: there is no scontrol")
    return Finding("requeue", OK, "scontrol is found" if "SLURM_JOB_ID" in os.environ else "no Slurm job")


def check_weights(arguments):
    """If the configuration asks for pretrained weights: they are on the disk."""
    arch = next((word.split("=")[1] for word in reversed(arguments) if word.startswith("--model.arch=")), None)
    if not arch or not any(re.fullmatch(r"--model\.pretrained=true", word, re.IGNORECASE) for word in arguments):
        return Finding("weights", OK, "no pretrained ones are asked for by flags")
    from src.utils.cache_models import check_weights as check

    try:
        check(arch)
    except SystemExit as end:
        return Finding("weights", ERROR, str(end), "Temporary failure in name resolution")
    return Finding("weights", OK, f"those of {arch} are here")

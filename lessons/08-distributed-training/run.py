"""Describe a training job and start it: on Slurm where there is one, otherwise here.

python run.py                        one run
python run.py --lr 1e-4 1e-3         a job array: one run for each value
python run.py --arch resnet18        another network, one of torchvision's
python run.py --nodes 2 --tasks_per_node 2                four processes train one network
python run.py --cluster local --tasks_per_node 2          the same with two, without Slurm
python run.py --fast_dev_run         a batch of everything, to find what would crash
python run.py --dry_run              only show the script that would go to Slurm
"""

import argparse
import contextlib
import difflib
import importlib.util
import itertools
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
from datetime import datetime
from pathlib import Path

import submitit
from submitit.slurm.slurm import _make_sbatch_string

ROOT = Path(__file__).resolve().parent
DATA_DIR = ROOT.parents[1] / "data"

# What the job asks Slurm for.
NODES = 1
GPUS_PER_NODE = 0
CPUS_PER_TASK = 2
MEM = "4G"
TIME = "00:10:00"

# How the network is trained.
LEARNING_RATE = 1e-3
BATCH_SIZE = 64
MAX_EPOCHS = 10
NUM_WORKERS = 0
SEED = 1

# What can be chosen by name. The names are written out, because to ask torch for them takes seconds.
DATASETS = ["mnist", "colour-mnist", "cifar10", "folder"]
ARCHS = ["mlp", "mlp_wide", "cnn"]
TORCHVISION_ARCHS = """
    alexnet convnext_base convnext_large convnext_small convnext_tiny densenet121 densenet161 densenet169 densenet201
    efficientnet_b0 efficientnet_b1 efficientnet_b2 efficientnet_b3 efficientnet_b4 efficientnet_b5 efficientnet_b6
    efficientnet_b7 efficientnet_v2_l efficientnet_v2_m efficientnet_v2_s googlenet inception_v3 maxvit_t mnasnet0_5
    mnasnet0_75 mnasnet1_0 mnasnet1_3 mobilenet_v2 mobilenet_v3_large mobilenet_v3_small regnet_x_16gf regnet_x_1_6gf
    regnet_x_32gf regnet_x_3_2gf regnet_x_400mf regnet_x_800mf regnet_x_8gf regnet_y_128gf regnet_y_16gf regnet_y_1_6gf
    regnet_y_32gf regnet_y_3_2gf regnet_y_400mf regnet_y_800mf regnet_y_8gf resnet101 resnet152 resnet18 resnet34
    resnet50 resnext101_32x8d resnext101_64x4d resnext50_32x4d shufflenet_v2_x0_5 shufflenet_v2_x1_0
    shufflenet_v2_x1_5 shufflenet_v2_x2_0 squeezenet1_0 squeezenet1_1 swin_b swin_s swin_t swin_v2_b swin_v2_s
    swin_v2_t vgg11 vgg11_bn vgg13 vgg13_bn vgg16 vgg16_bn vgg19 vgg19_bn vit_b_16 vit_b_32 vit_h_14 vit_l_16 vit_l_32
    wide_resnet101_2 wide_resnet50_2
""".split()  # noqa: SIM905 (a list would be 80 lines)
STEMS = ["imagenet", "cifar"]
OPTIMIZERS = ["Adam", "AdamW", "SGD", "RMSprop"]
CRITERIA = ["CrossEntropyLoss", "MultiMarginLoss"]  # both take logits
LOGGERS = ["tensorboard", "csv", "mlflow", "wandb"]
PRECISIONS = ["32", "16-mixed", "bf16-mixed"]


def positive_int(text):
    """What argparse calls to read a whole number from 1 up (2**32 is where seeds end)."""
    if not 1 <= int(text) < 2**32:
        raise ValueError
    return int(text)


def whole_number(text):
    """What argparse calls to read a whole number from 0 up."""
    if int(text) < 0:
        raise ValueError
    return int(text)


def positive_float(text):
    """What argparse calls to read a number above 0."""
    if not 0 < float(text) < float("inf"):
        raise ValueError
    return float(text)


def memory(text):
    """What argparse calls to read an amount of memory. Slurm takes a number without a unit for megabytes."""
    if not re.fullmatch(r"[1-9]\d*[MGT]", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number with a unit, such as 500M or 4G")
    return text


def minutes(text):
    """What argparse calls to read a time limit. Slurm takes a single number for minutes, which few expect."""
    match = re.fullmatch(r"(?:(\d+)-)?(\d{1,2}):([0-5]\d):([0-5]\d)", text)
    if not match or not re.search("[1-9]", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not HH:MM:SS or D-HH:MM:SS, such as 00:10:00")
    days, hours, mins, secs = (int(part or 0) for part in match.groups())
    return (days * 24 + hours) * 60 + mins + (secs > 0)


def architecture(text):
    """What argparse calls to read the name of a network."""
    names = ARCHS + TORCHVISION_ARCHS
    if text not in names:
        near = difflib.get_close_matches(text, names, cutoff=0.4)
        hint = f"did you mean {' or '.join(near)}?" if near else "the names stand at the top of run.py"
        raise argparse.ArgumentTypeError(f"there is no network {text!r}: {hint}")
    return text


def name(text):
    """What argparse calls to read a name that becomes part of a folder's."""
    if not re.fullmatch(r"[\w.=-]+", text):
        raise argparse.ArgumentTypeError(f"{text!r} may hold only letters, digits and _ . = -")
    return text


def parse_args():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    job = parser.add_argument_group("the job")
    job.add_argument("--cluster", choices=["auto", "slurm", "local", "debug"], default="auto",
                     help="slurm: submit; local: a process in the background; debug: in this process; "
                          "auto: slurm where sbatch is found, else debug")  # fmt: skip
    job.add_argument("--nodes", type=positive_int, default=NODES)
    job.add_argument("--gpus_per_node", type=whole_number, default=GPUS_PER_NODE)
    job.add_argument("--tasks_per_node", type=positive_int, help="processes; default: one a GPU, without GPUs one")
    job.add_argument("--cpus_per_task", type=positive_int, default=CPUS_PER_TASK, help="threads and workers together")
    job.add_argument("--mem", type=memory, default=MEM, help="per node, such as 4G")
    job.add_argument("--time", type=minutes, default=TIME, help="limit, HH:MM:SS or D-HH:MM:SS")
    job.add_argument("--partition", help="default: the cluster's")
    job.add_argument("--account", help="default: yours")
    job.add_argument("--log_path", type=Path, default=ROOT / "logs")
    job.add_argument("--experiment_name", type=name, help="default: the data set's name")
    job.add_argument("--dry_run", action="store_true", help="print the sbatch script, submit nothing")

    training = parser.add_argument_group("the training")
    training.add_argument("--dataset", choices=DATASETS, default=DATASETS[0],
                          help="folder: your own, --data_dir holds train/<class>/ and test/<class>/")  # fmt: skip
    training.add_argument("--arch", type=architecture, default=ARCHS[0], metavar="NAME",
                          help="mlp, mlp_wide, cnn, or a classifier of torchvision, such as resnet18")  # fmt: skip
    training.add_argument("--stem", choices=STEMS, default=STEMS[0],
                          help="how a ResNet begins; cifar: without making small images smaller still")  # fmt: skip
    training.add_argument("--pretrained", action="store_true", help="begin with torchvision's weights")
    training.add_argument("--no_pretrained", action="store_false", dest="pretrained", help="the default")
    training.add_argument("--optimizer", choices=OPTIMIZERS, default=OPTIMIZERS[0])
    training.add_argument("--criterion", choices=CRITERIA, default=CRITERIA[0])
    training.add_argument("--lr", type=positive_float, nargs="+", default=[LEARNING_RATE])
    training.add_argument("--batch_size", type=positive_int, nargs="+", default=[BATCH_SIZE],
                          help="images in a step, of all processes together")  # fmt: skip
    training.add_argument("--max_epochs", type=positive_int, default=MAX_EPOCHS)
    training.add_argument("--num_workers", type=whole_number, default=NUM_WORKERS, help="of each process")
    training.add_argument("--precision", choices=PRECISIONS, default=PRECISIONS[0],
                          help="mixed: 16 bits where that is safe, 32 elsewhere")  # fmt: skip
    training.add_argument("--sync_batchnorm", action="store_true", help="BatchNorm over the batch of all processes")
    training.add_argument("--no_augment", action="store_true", help="train on the images as they are")
    training.add_argument("--seed", type=positive_int, default=SEED)
    training.add_argument("--data_dir", type=Path, default=DATA_DIR)
    training.add_argument("--logger", choices=LOGGERS, default=LOGGERS[0], help="where the metrics go")

    debugging = parser.add_argument_group("to find a mistake")
    debugging.add_argument("--fast_dev_run", action="store_true",
                           help="one batch of training, validation and test; no checkpoint, no curves")  # fmt: skip
    debugging.add_argument("--limit_train_batches", type=positive_int, metavar="N", help="only N an epoch")
    debugging.add_argument("--limit_val_batches", type=positive_int, metavar="N", help="only N an epoch")
    debugging.add_argument("--overfit_batches", type=positive_int, metavar="N", default=0,
                           help="train on the same N again and again: they must be learned by heart")  # fmt: skip

    args = parser.parse_args()
    args.experiment_name = args.experiment_name or args.dataset
    if args.logger in ("mlflow", "wandb") and importlib.util.find_spec(args.logger) is None:
        parser.error(f"--logger {args.logger} needs a package that is not installed: pip install {args.logger}")
    if args.stem == "cifar" and "resnet" not in args.arch and "resnext" not in args.arch:
        parser.error(f"--stem cifar is for ResNets, such as resnet18, not for --arch {args.arch}")
    if args.stem == "cifar" and args.pretrained:
        parser.error("--stem cifar and --pretrained do not go together: the weights come with the imagenet stem")
    if args.pretrained and args.arch in ARCHS:
        parser.error(f"--pretrained is for torchvision's networks, there are no weights of --arch {args.arch}")
    if args.overfit_batches and (args.limit_train_batches or args.limit_val_batches):
        parser.error("--overfit_batches sets both limits: leave out --limit_train_batches and --limit_val_batches")
    if args.num_workers > args.cpus_per_task:
        parser.error(f"--num_workers {args.num_workers} is more than --cpus_per_task {args.cpus_per_task}")
    if args.dry_run:
        args.cluster = "slurm"
    elif args.cluster == "auto":
        args.cluster = find_cluster()

    # One process a GPU. Without GPUs, as many as you say.
    args.tasks_per_node = args.tasks_per_node or max(1, args.gpus_per_node)
    if args.gpus_per_node and args.tasks_per_node != args.gpus_per_node:
        parser.error(
            f"--tasks_per_node {args.tasks_per_node} does not go with --gpus_per_node {args.gpus_per_node}: "
            "each process takes one GPU, so leave --tasks_per_node away"
        )
    if args.nodes > 1 and args.cluster != "slurm":
        parser.error(f"--nodes {args.nodes} needs Slurm: --cluster {args.cluster} has this machine only")
    processes = args.nodes * args.tasks_per_node
    if args.overfit_batches and processes > 1:
        parser.error("--overfit_batches is for one process: Lightning would give the same images to all")
    if processes > 1 and args.cluster == "debug":
        parser.error(f"--cluster debug is one process, not {processes}: take --cluster local, or Slurm")
    if args.precision == "16-mixed" and not args.gpus_per_node:
        parser.error("--precision 16-mixed needs GPUs (--gpus_per_node): on CPUs take bf16-mixed")
    for batch_size in args.batch_size:
        if batch_size % processes:
            below = batch_size // processes * processes
            nearest = f"{below} or {below + processes}" if below else processes
            parser.error(
                f"--batch_size {batch_size} cannot be divided among {processes} processes: the nearest are {nearest}"
            )
    return args


def find_cluster():
    """Slurm where sbatch is found and knows a cluster (it may be installed without one); otherwise here."""
    if shutil.which("sbatch") is None:
        return "debug"
    answer = subprocess.run(["sinfo"], capture_output=True, text=True)
    return "debug" if "Could not establish a configuration source" in answer.stderr else "slurm"


def describe(args):
    """The job in the names of sbatch."""
    return {
        "job_name": args.experiment_name,
        "nodes": args.nodes,
        "ntasks_per_node": args.tasks_per_node,
        "gpus_per_node": args.gpus_per_node or None,
        "cpus_per_task": args.cpus_per_task,
        "mem": args.mem,
        "time": args.time,
        "partition": args.partition,
        "account": args.account,
        # srun does not inherit --cpus-per-task from sbatch (Slurm 22.05 and later): without this it gets one CPU.
        "setup": ["export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK"],
        # When one process fails the others would wait for it, up to half an hour.
        "srun_args": ["--kill-on-bad-exit=1"],
    }


def folder_name(args):
    """The folder of a run without a job id: logs/<time>_<name>."""
    return args.log_path.resolve() / f"{datetime.now():%Y-%m-%d_%H-%M-%S}_{args.experiment_name}"


def make_folder(args):
    """Make the run's folder, with _2, _3 ... behind its name when others start in the same second."""
    name = folder_name(args)
    for number in itertools.count(1):
        folder = name if number == 1 else name.with_name(f"{name.name}_{number}")
        try:
            folder.mkdir(parents=True)
            return folder
        except FileExistsError:
            continue


def plan_runs(args):
    """One dictionary of hyperparameters for each combination of the values given."""
    values = list(itertools.product(dict.fromkeys(args.lr), dict.fromkeys(args.batch_size)))
    cpus_per_task = args.cpus_per_task
    if args.cluster != "slurm":  # nobody gives out CPUs here: what runs at the same time shares those of this machine
        at_once = args.tasks_per_node * (len(values) if args.cluster == "local" else 1)
        cpus_per_task = max(1, min(cpus_per_task, os.cpu_count() // at_once))
    return [
        {
            "dataset": args.dataset,
            "arch": args.arch,
            "stem": args.stem,
            "pretrained": args.pretrained,
            "optimizer": args.optimizer,
            "criterion": args.criterion,
            "lr": lr,
            "batch_size": batch_size,
            "max_epochs": args.max_epochs,
            "num_workers": args.num_workers,
            "augment": not args.no_augment,
            "seed": args.seed,
            "data_dir": args.data_dir.resolve(),
            "nodes": args.nodes,
            "gpus_per_node": args.gpus_per_node,
            "tasks_per_node": args.tasks_per_node,
            "cpus_per_task": cpus_per_task,
            "precision": args.precision,
            "sync_batchnorm": args.sync_batchnorm,
            "cluster": args.cluster,
            "logger": args.logger,
            "fast_dev_run": args.fast_dev_run,
            "limit_train_batches": args.limit_train_batches,
            "limit_val_batches": args.limit_val_batches,
            "overfit_batches": args.overfit_batches,
            "experiment_name": args.experiment_name,
        }
        for lr, batch_size in values
    ]


def free_port():
    """A port that nobody listens on. The processes of a run meet there, each run at its own."""
    with socket.socket() as listener:
        listener.bind(("", 0))  # 0: the system chooses
        return listener.getsockname()[1]


def train(hparams):
    """What the job runs. Only here is torch imported: describing a job does not need it."""
    if hparams["cluster"] == "local":
        # submitit has started all processes. This tells Lightning which of them it is in, and where they meet; it has
        # to stand here before Lightning is imported. On Slurm it asks Slurm.
        os.environ["LOCAL_RANK"] = str(submitit.JobEnvironment().local_rank)
        os.environ["MASTER_PORT"] = str(hparams["port"])

    # How long a thread that waits for the others keeps its CPU busy: a 30th of what it would. See the README.
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    sys.path.insert(0, str(ROOT))
    from src.main import main

    if "run_folder" not in hparams:  # the job's id, and with it the folder's name, is known only inside the job
        hparams["run_folder"] = submitit.JobEnvironment().paths.folder
        with contextlib.suppress(OSError):  # submitit without Slurm leaves an empty folder called %j
            hparams["run_folder"].with_name("%j").rmdir()
    main(hparams)


def submit(args, folder, runs):
    """Hand the runs to Slurm, or to background processes, and say what to type next.

    folder: of a run, with %j where submitit puts the job id (of a task in an array: <id>_<task>)
    """
    before = set(args.log_path.iterdir())
    if args.cluster == "slurm":
        executor = submitit.SlurmExecutor(folder)
        # Not before the folders are there: a job without a place for its log fails, and nothing says why.
        executor.update_parameters(**describe(args), additional_parameters={"begin": "now+60"})
    else:
        executor = submitit.LocalExecutor(folder)
        executor.update_parameters(
            tasks_per_node=args.tasks_per_node, gpus_per_node=args.gpus_per_node, timeout_min=args.time
        )
        for run in runs:
            run["port"] = free_port()
    try:
        jobs = executor.map_array(train, runs)
    except submitit.core.utils.FailedJobError:  # submitit has printed Slurm's message
        for path in set(args.log_path.iterdir()) - before:  # what it had written for the job
            if not path.is_dir():
                path.unlink()
        sys.exit("Slurm did not take the job, nothing was submitted")

    if args.cluster == "slurm" and len(jobs) > 1:  # the script of an array lies in logs/<id>; each task gets it
        array_id = jobs[0].job_id.split("_")[0]
        array_folder = folder.with_name(array_id)
        for job in jobs:
            shutil.copy(array_folder / f"{array_id}_submission.sh", job.paths.folder)
        shutil.rmtree(array_folder)
    if args.cluster == "slurm":
        subprocess.run(["scontrol", "update", f"job={jobs[0].job_id.split('_')[0]}", "StartTime=now"])
    for link in args.log_path.glob(".submission_file_*"):  # what submitit leaves behind, links to the scripts
        if link.is_symlink():
            link.unlink(missing_ok=True)
    for job, run in zip(jobs, runs, strict=True):
        values = f"lr={run['lr']:g} batch_size={run['batch_size']}"
        print(f"job {job.job_id}    {os.path.relpath(job.paths.folder)}    {values}")
    queue = "squeue --me" if args.cluster == "slurm" else f"ps {' '.join(job.job_id for job in jobs)}"
    print(f"follow the log      tail -F {os.path.relpath(jobs[0].paths.stdout)}")
    print(f"see the queue       {queue}")
    print(f"open TensorBoard    tensorboard --logdir {os.path.relpath(args.log_path)}")


def main():
    args = parse_args()
    folder = args.log_path.resolve() / "%j"
    runs = plan_runs(args)
    if args.dry_run:
        print(
            _make_sbatch_string(
                command=f"{sys.executable} -u -m submitit.core._submit {folder}",
                folder=folder,
                map_count=len(runs) if len(runs) > 1 else None,
                **describe(args),
            )
        )
        return

    # Compute nodes often have no internet, and many jobs may start at once: the data are made ready here and now.
    if args.dataset == "folder":  # your own: there is nothing to get
        for part in (args.data_dir / "train", args.data_dir / "test"):
            if not part.is_dir():
                sys.exit(f"there is no folder {part}: --dataset folder reads train/ and test/ from --data_dir")
    else:
        data = [sys.executable, DATA_DIR / "get_data.py", args.dataset, "--data_dir", args.data_dir]
        if subprocess.run(data).returncode != 0:
            sys.exit(1)
    if args.pretrained:
        weights = [sys.executable, ROOT / "src/utils/cache_models.py", "--check", args.arch]
        if subprocess.run(weights).returncode != 0:
            sys.exit(1)
    try:
        args.log_path.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=args.log_path).close()  # an OSError if it is somebody else's
    except OSError as error:
        sys.exit(f"cannot write to {args.log_path}: {error.strerror}. Name another folder with --log_path.")

    if args.cluster == "debug":
        for run in runs:
            run["run_folder"] = make_folder(args)  # without a job there is no job id
            print(f"run folder {os.path.relpath(run['run_folder'])}")
            train(run)
    else:
        submit(args, folder, runs)


if __name__ == "__main__":
    main()

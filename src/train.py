"""Train, or evaluate, in this process: what every launcher calls.

python src/train.py fit --config laptop --model.arch cnn                          one process
torchrun --nproc_per_node 2 src/train.py fit --config laptop --run_folder logs/a  two, started by torchrun
mpirun -n 2 python src/train.py fit --config laptop --run_folder logs/a           or by MPI

run.py describes a job, starts it here or on Slurm, and calls the same train() in it.
"""

import argparse
import errno
import fcntl
import gc
import logging
import math
import os
import re
import shutil
import signal
import socket
import sys
import time
import warnings
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
if sys.path[:1] != [str(ROOT)]:  # the first, because another package may be called src
    sys.path.insert(0, str(ROOT))

from src.launch.ranks import cpus, export_ranks  # noqa: E402

export_ranks()  # before Lightning is imported: it asks for the rank at once
# A thread that waits for the others does so at full speed, and where somebody else computes too it takes the CPU from
# those it waits for: an epoch took 70 times as long. After a 30th of that time it sleeps; alone that is as fast.
os.environ.setdefault("GOMP_SPINCOUNT", "10000")  # read when torch is imported

gc.disable()  # a million objects are made now that stay: to look through them takes a fifth of the start
import lightning as L  # noqa: E402
import torch  # noqa: E402
import yaml  # noqa: E402
from lightning.pytorch.callbacks import (  # noqa: E402
    GradientAccumulationScheduler,
    ModelCheckpoint,
    ProgressBar,
    WeightAveraging,
)
from lightning.pytorch.loggers import TensorBoardLogger  # noqa: E402
from lightning.pytorch.loggers.logger import DummyLogger  # noqa: E402
from lightning.pytorch.plugins.environments import LightningEnvironment, TorchElasticEnvironment  # noqa: E402
from lightning.pytorch.profilers import AdvancedProfiler, PyTorchProfiler, SimpleProfiler  # noqa: E402
from lightning.pytorch.strategies import ModelParallelStrategy  # noqa: E402
from lightning.pytorch.utilities.exceptions import MisconfigurationException  # noqa: E402
from lightning.pytorch.utilities.model_helpers import is_overridden  # noqa: E402
from lightning.pytorch.utilities.model_summary import ModelSummary  # noqa: E402
from lightning.pytorch.utilities.rank_zero import rank_zero_only  # noqa: E402

from src.callbacks.agreement import Agreement  # noqa: E402
from src.callbacks.checkpoints import (  # noqa: E402
    AtomicCheckpointIO,
    Checkpoints,
    FinalWeights,
    find,
    to_resume,
)
from src.callbacks.epoch_line import EpochLine  # noqa: E402
from src.callbacks.exact_resume import ExactResume, next_logged_step, other_plan, position, refused  # noqa: E402
from src.callbacks.filled_in import FilledIn  # noqa: E402
from src.callbacks.finite_loss import FiniteLoss  # noqa: E402
from src.callbacks.first_look import FirstLook, too_short, unknown_metric, watching  # noqa: E402
from src.callbacks.hooks import skip_empty_hooks, validate_after_steps  # noqa: E402
from src.callbacks.stop_when_asked import StopWhenAsked, leave  # noqa: E402
from src.callbacks.time_limit import TimeLimit  # noqa: E402
from src.callbacks.watchdog import Watchdog  # noqa: E402
from src.config import instantiate, its_own_errors, merge, read, settings_of, short_words  # noqa: E402
from src.datasets.datamodule import DataModule  # noqa: E402
from src.datasets.loaders import share_loaders  # noqa: E402
from src.launch.progress import NONE_YET, note_attempt, superseded, this_attempt, write_note  # noqa: E402
from src.models.frozen import FrozenOrNot  # noqa: E402
from src.models.sharding import attach_sharding  # noqa: E402
from src.settings import indivisible, period, seconds, shortened  # noqa: E402
from src.utils.loggers import check_logger, make_logger, shown_hparams  # noqa: E402
from src.utils.logs import setup_logging  # noqa: E402
from src.utils.predictions import Predictions  # noqa: E402
from src.utils.processes import from_first, meet_on_this_machine  # noqa: E402
from src.utils.seeds import weights_checksum  # noqa: E402
from src.utils.weights import load_into, read_weights  # noqa: E402

gc.enable()

log = logging.getLogger("train")
log_once = rank_zero_only(log.info)  # what is the same in all processes: one of them says it

COMMANDS = ["fit", "validate", "test", "predict"]
PROFILERS = {"simple": SimpleProfiler, "advanced": AdvancedProfiler, "pytorch": PyTorchProfiler}

NOT_FOR_THE_READER = [
    "does not have many workers",  # is for data that is decoded sample by sample
    "The `srun` command is available",  # whoever started this process has said how many there are
    ".isinstance\\(treespec, LeafSpec\\)",  # Lightning's own
]


def prepare(command, argv, run_folder=None) -> str:
    """What can be done and checked before a job starts: the configuration, network and optimizer, the data on disk.

    Args:
        run_folder: of the run that is resumed, if any
    Returns:
        the merged configuration, the YAML text that train() takes
    Raises:
        ValueError, SystemExit: with one sentence that says what is wrong
    """
    text = merge(argv)
    config = read(text)
    if command != "fit":
        check_run(command, config)
    job = config.job or {}  # a preset, given to this program, names few of the job's values
    processes = job.get("nodes", 1) * job.get("tasks_per_node", 1)
    parts = instantiate(config, processes)
    check(parts, config, processes)
    check_trainer_values(config.trainer)
    checkpoint = to_resume(run_folder) if command == "fit" and run_folder else None
    if checkpoint:
        check_kept(run_folder, text)
        check_plan(checkpoint, parts.data, config)
        check_schedule(checkpoint, config)
    elif command == "fit" and config.init_from:
        init_weights(parts.model, config.init_from)
    with its_own_errors(f"--data {type(parts.data).__name__}"):
        parts.data.prepare_data()
    return text


def check_run(command, config):
    """validate, test and predict need to know whose weights.

    Raises:
        ValueError: with one sentence
    """
    if config.run is None and config.ckpt in ("last", "best"):
        raise ValueError(f"--run is missing: {command} needs the folder of a run, or a checkpoint with --ckpt")
    try:
        find(config.run or "", config.ckpt)
    except FileNotFoundError:
        raise
    except OSError as error:  # a name that is too long, a loop of links
        raise ValueError(f"{error.strerror}: {shortened(error.filename)}") from error


def check(parts, settings, processes):
    """Find errors that would otherwise occur after the start.

    Raises:
        ValueError, SystemExit: with one sentence
    """
    model = parts.model
    name = type(model).__name__
    if settings.seed > 2**32 - 1:
        raise ValueError(f"--seed {shortened(settings.seed)} is too large: the largest is {2**32 - 1}")
    if settings.gradient_clip and not math.isfinite(settings.gradient_clip):
        raise ValueError(f"--gradient_clip {settings.gradient_clip} is not a finite number: omit it to clip nothing")
    check_logger(parts.logger)
    own = is_overridden("configure_optimizers", model)
    if not own and any(True for _ in model.parameters()):  # else they are made in setup() or configure_model()
        check_optimizer(parts, settings)
    if not model.automatic_optimization:
        for flag in ("accumulate", "gradient_clip"):
            if settings[flag] not in (None, 1):
                raise ValueError(f"--{flag} has no effect: {name} has automatic_optimization = False")
    if isinstance(parts.data, DataModule) and (sentence := indivisible(settings.batch_size, processes)):
        raise ValueError(sentence)
    if reason := refused(parts.callbacks):
        raise ValueError(reason)
    for callback in parts.callbacks:
        if isinstance(callback, WeightAveraging) and settings.strategy == "fsdp":
            raise ValueError(f"{type(callback).__name__} does not work with --strategy fsdp")
    on_cpu = settings.accelerator == "cpu" or (settings.accelerator == "auto" and not torch.cuda.is_available())
    if settings.sync_batchnorm and processes > 1 and on_cpu:
        raise ValueError("--sync_batchnorm needs GPUs, and these processes are on CPUs: omit it")
    if reports := getattr(model, "reports", None):  # else the first validation shows it
        if settings.monitor and settings.keep == "best":
            in_validation = [metric for metric in reports if metric.startswith("val")]
            if reason := unknown_metric("--monitor", settings.monitor, in_validation):
                raise ValueError(reason)
        for who, metric in watching(parts.callbacks):
            if reason := unknown_metric(who, metric, reports):
                raise ValueError(reason)


def check_optimizer(parts, settings):
    """Make the optimizer and the schedule, as the training will, and look at their numbers.

    Raises:
        ValueError, SystemExit: with one sentence
    """
    with its_own_errors(f"--optimizer {class_name(settings.optimizer)}"):
        made = make_optimizer(parts.model, parts.optimizer)
    for group in made.param_groups:
        check_numbers("optimizer", {name: value for name, value in group.items() if name != "params"})
    if parts.lr_scheduler is None:
        return
    check_numbers("lr_scheduler", (settings.lr_scheduler.get("init_args") or {}))
    name = class_name(settings.lr_scheduler)
    with its_own_errors(f"--lr_scheduler {name}"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scheduler = parts.lr_scheduler(made)
        if type(scheduler).__module__.startswith("torch."):
            is_plateau = isinstance(scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau)
            scheduler.step(*([0.0] if is_plateau else []))  # a division by zero comes here
    if reason := too_short(scheduler, settings.max_epochs if settings.lr_interval == "epoch" else 0, "epochs"):
        raise ValueError(reason)
    schedule_of(scheduler, settings)
    monitor, reports = getattr(scheduler, "monitor", None), getattr(parts.model, "reports", None)
    if monitor and reports and (reason := unknown_metric(name, monitor, reports)):
        raise ValueError(reason)


def class_name(part):
    """The short name of the class in a part of the configuration."""
    return part.class_path.rpartition(".")[2]


def check_numbers(key, settings):
    """Refuse numbers with which nothing can be trained.

    Raises:
        ValueError: with one sentence
    """
    for name, value in (settings if isinstance(settings, dict) else vars(settings)).items():
        for number in value if isinstance(value, (list, tuple)) else [value]:
            if isinstance(number, float) and not math.isfinite(number):
                raise ValueError(f"--{key}.{name} {number} is not a finite number")
            is_rate = name in ("lr", "eta_min") or name.endswith("_lr")
            if is_rate and isinstance(number, (int, float)) and number < 0:
                raise ValueError(f"--{key}.{name} {number} is negative: a learning rate is 0 or more")


def check_trainer_values(more):
    """Refuse values that Lightning's Trainer refuses.

    Raises:
        ValueError: with one sentence
    """
    if not more:
        return
    lightning = logging.getLogger("lightning.pytorch")
    level = lightning.level
    lightning.setLevel(logging.ERROR)  # it would tell which GPUs there are
    try:
        quiet = {
            "plugins": [LightningEnvironment()],
            "enable_checkpointing": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
        }
        L.Trainer(accelerator="cpu", devices=1, logger=DummyLogger(), max_epochs=1, **quiet, **more)
    except (MisconfigurationException, ValueError, TypeError) as error:
        raise ValueError(f"--trainer: {' '.join(str(error).split())}") from error
    finally:
        lightning.setLevel(level)


def check_schedule(checkpoint, config):
    """Refuse to resume a run whose schedule ends before the training would.

    Raises:
        ValueError: with one sentence
    """
    saved = torch.load(checkpoint, map_location="cpu", weights_only=True, mmap=True)
    epochs = saved["loops"]["fit_loop"]["epoch_progress"]["current"]["completed"]
    if not epochs or config.max_time or saved.get("exact_resume", {}).get("in_epoch", True):
        return
    for state in saved["lr_schedulers"]:
        steps = saved["global_step"] // epochs * config.max_epochs
        needed = config.max_epochs if config.lr_interval == "epoch" else min(steps, config.max_steps or steps)
        if 0 < state.get("total_steps", needed) < needed:
            raise ValueError(
                f"the schedule of this run ends after {state['total_steps']} {config.lr_interval}s, and the training "
                f"would take {needed}: begin a new run with --lr_scheduler.total_steps {needed}"
            )


def check_kept(run_folder, text):
    """Refuse other values for the optimizer and the schedule of a run that resumes: its checkpoint brings its own.

    Args:
        text: the new configuration, as merge() made it
    Raises:
        ValueError: with one sentence
    """
    path = Path(run_folder) / "config.yaml"
    if not path.is_file():
        return
    before, now = (optimization(yaml.safe_load(config)) for config in (path.read_text(), text))
    for name in before | now:
        if before.get(name) != now.get(name):
            raise ValueError(
                f"--{name} {shortened(now.get(name))}: this run has {shortened(before.get(name))}, and its checkpoint "
                f"would bring that back: begin a new run with --init_from {run_folder}"
            )


def optimization(config):
    """The values on which the optimizer and the schedule depend, by the names of their flags."""
    names = [
        "optimizer",
        "lr_scheduler",
        "lr_interval",
        "scale_lr",
        *(["batch_size"] if config.get("scale_lr") else []),
    ]
    found = {}
    for name in names:
        part = config.get(name)
        if isinstance(part, dict):
            found[name] = part.get("class_path")
            found |= {f"{name}.{key}": value for key, value in (part.get("init_args") or {}).items()}
        else:
            found[name] = part
    return found


def check_plan(checkpoint, data, config):
    """Whether this configuration can resume the checkpoint, as far as it can be seen without the data.

    Raises:
        ValueError, SystemExit: with one sentence
    """
    before = position(checkpoint) if checkpoint else {}
    if not (before.get("in_epoch") and before.get("plan")):
        return
    now = {"accumulate": config.accumulate, "loaders": [{} for _ in before["plan"]["loaders"]]}
    if isinstance(data, DataModule) and len(now["loaders"]) == 1:
        now["loaders"] = [{"batch_size": data.batch_size, "seed": data.seed}]
    if reason := other_plan(before["plan"], now):
        raise ValueError(reason)


def checkpoint_for(command, run_folder, config, config_text):
    """The checkpoint from which fit continues, or None; the one that is evaluated. The first process chooses it."""

    def choose():
        try:
            path = to_resume(run_folder) if command == "fit" else find(config.run, config.ckpt)
            if command == "fit" and path:
                check_kept(run_folder, config_text)
        except (FileNotFoundError, ValueError) as error:
            sys.exit(str(error))
        if command == "fit" and path is None and not config.fast_dev_run:
            write_note(run_folder, NONE_YET)
        if command == "fit":
            next_logged_step(path)  # refuses what an older version has written
        return path and str(path)

    path = from_first(choose)
    return path and Path(path)


def train(command, config_text, run_folder, callbacks=(), test=True):
    """Run one command in this process, which is one of WORLD_SIZE.

    Args:
        command: fit, validate, test or predict
        config_text: what prepare() returned
        run_folder: where everything is written. If it holds checkpoints, fit goes on from the newest.
        callbacks: besides those of the configuration
        test: whether fit evaluates the test images at its end
    """
    setup_logging()
    config = read(config_text)
    settings = settings_of(config)
    run_folder = Path(run_folder).resolve()
    lock = take(run_folder) if not settings.fast_dev_run else None  # held until the process ends

    for message in NOT_FOR_THE_READER:
        warnings.filterwarnings("ignore", message=f".*{message}")
    L.seed_everything(settings.seed)
    torch.set_num_threads(threads(settings, config.job))
    os.environ["OMP_NUM_THREADS"] = str(torch.get_num_threads())  # else Lightning sets another number with DDP
    processes = int(os.environ["WORLD_SIZE"])
    parts = instantiate(config, processes)
    try:
        check(parts, config, processes)
    except ValueError as error:
        sys.exit(str(error))
    data, model = parts.data, parts.model
    if isinstance(data, DataModule):
        data.shuffle = not settings.overfit_batches
    for source in (data, model):
        share_loaders(source, settings.seed, shuffle=not settings.overfit_batches)
    if hasattr(model, "normalisation"):  # pretrained weights know images that were normalised in their own way
        data.mean, data.std = model.normalisation
    attach_optimizer(model, parts.optimizer, parts.lr_scheduler, config.lr_interval, settings)
    if settings.strategy == "fsdp" and int(os.environ["WORLD_SIZE"]) > 1:
        attach_sharding(model, settings.sync_batchnorm)

    store = meet_on_this_machine()  # held until the processes have parted
    watchdog = None
    if command == "fit" and processes > 1 and not settings.fast_dev_run:
        watchdog = Watchdog(run_folder, int(os.environ["RANK"]), processes, settings.stuck_after)
        watchdog.start()  # before the processes wait for each other for the first time
    checkpoint = checkpoint_for(command, run_folder, config, config_text)
    if lock:
        note_config(run_folder, config_text)
    logger = None
    if command == "fit" and not settings.fast_dev_run:
        logger = make_logger(parts.logger, run_folder, shown_hparams(config), next_logged_step(checkpoint))
    pages = []
    # The pages are drawn by one process: with fsdp it has not the whole network. Other loggers get no pictures.
    if isinstance(logger, TensorBoardLogger) and settings.strategy != "fsdp" and hasattr(model, "tensorboard_pages"):
        pages = model.tensorboard_pages(data)
    callbacks = [*parts.callbacks, *callbacks, *([Predictions(run_folder)] if command == "predict" else [])]
    filled_in = FilledIn(parts.filled_in, parts.model_arguments)
    trainer = make_trainer(settings, run_folder, logger, pages, callbacks, config.trainer, model, [filled_in])
    if command == "fit":
        if watchdog:
            watchdog.trainer = trainer
            for callback in trainer.callbacks:
                if isinstance(callback, StopWhenAsked):
                    callback.watchdog = watchdog
        try:
            fit(trainer, model, data, checkpoint, settings, run_folder, test)
        except Exception:
            if superseded(run_folder):
                make_way(watchdog, lock)
            raise
    else:
        evaluate(command, trainer, model, data, checkpoint, run_folder)
    if watchdog:
        watchdog.end()
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()  # else a thread of gloo's may abort Python while it shuts down
    del lock, store


def fit(trainer, model, data, checkpoint, settings, run_folder, test):
    """Train to the end, then test, if that is wanted and the model has a test_step."""
    if checkpoint:
        log_once(f"going on from {checkpoint}")
    else:
        summary = str(ModelSummary(model, max_depth=-1))  # -1: down to the last layer
        log_once(f"the network\n{summary}")
        if trainer.is_global_zero and not settings.fast_dev_run:
            (run_folder / "model_summary.txt").write_text(f"{summary}\n")
        if settings.init_from:
            init_weights(model, settings.init_from)
    again = "When that is mended, give the same command again: the training goes on from the newest checkpoint."
    try:
        trainer.fit(model, data, ckpt_path=checkpoint, weights_only=True)
    except OSError as error:  # not from the checkpoints, but from TensorBoard's files and the like
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
            raise
        sys.exit(full(error, run_folder) or f"{run_folder} could not be written to ({error.strerror}). {again}")
    except (RuntimeError, ValueError, MisconfigurationException) as error:
        if "Error(s) in loading state_dict" in str(error):
            reason = " ".join(str(error).split())[:300]
            sys.exit(f"{checkpoint} is of another network, so this one cannot resume it: {reason}")
        if sentence := known_mistake(error):
            sys.exit(sentence)
        raise
    if trainer.strategy.checkpoint_io.failed:
        sys.exit(f"the end of the training could not be written to {run_folder}. {again}")
    metrics = {}
    if test and is_overridden("test_step", model):
        if has_loader("test", model, data):
            metrics = in_one(trainer.test(model, data, verbose=False))
        else:
            log_once(f"there is a test_step, but no test_dataloader in {type(data).__name__}: nothing is tested")
    timer = next(callback for callback in trainer.callbacks if isinstance(callback, TimeLimit))
    seconds_per_epoch = timer.time_elapsed("train") / max(1, trainer.current_epoch)
    log_once("    ".join([*in_words(metrics), f"seconds per epoch: {seconds_per_epoch:.2f}"]))
    log.info(f"the weights are {weights_checksum(model)}")  # from every process: they have to be the same in all


SHARED_MEMORY = Path("/dev/shm")


def full(error, run_folder):
    """A sentence if it is the node's shared memory that is full, and not the disk."""
    named = str(error.filename or "").startswith(f"{SHARED_MEMORY}/")
    if not named and (error.filename or not SHARED_MEMORY.is_dir()):
        return None
    free, on_disk = (shutil.disk_usage(path).free for path in (SHARED_MEMORY, run_folder))
    if not named and (free > 2**24 or on_disk < 2**24):
        return None
    return (
        f"{SHARED_MEMORY} of {socket.gethostname()} is full ({free / 2**20:.0f} MB are free): data workers hand over "
        "their batches there. Delete files there, or set --num_workers 0"
    )


def known_mistake(error):
    """A sentence for an exception of torch's or Lightning's that stands for a mistake in the configuration, or None."""
    text = " ".join(str(error).split())
    if "find_unused_parameters" in text:
        return "a step did not use all weights, which DDP requires: set --strategy ddp_find_unused_parameters_true"
    if re.match(r"(Early stopping|ReduceLROnPlateau) conditioned on metric|`ModelCheckpoint\(monitor=", text):
        return text.split(" Condition can be set")[0]
    if re.match("Tried to step [0-9]+ times", text):
        return f"{text}: set --lr_scheduler.total_steps to the number of all steps"
    whole = f"{text} {error.__cause__}"
    if "out of shared memory" in whole or "Unexpected bus error encountered in worker" in whole:
        return f"{SHARED_MEMORY} of {socket.gethostname()} is full: set --num_workers 0, or delete files there"
    return None


def evaluate(command, trainer, model, data, checkpoint, run_folder):
    """validate and test print the metrics; predict writes what predict_step returns."""
    stage = {"validate": "val"}.get(command, command)
    if not has_loader(stage, model, data):
        sys.exit(f"{command} needs a {stage}_dataloader, and {type(data).__name__} has none")
    step = {"val": "validation_step", "test": "test_step", "predict": "predict_step"}[stage]
    if command != "predict" and not is_overridden(step, model):
        sys.exit(f"{command} needs a {step}, and {type(model).__name__} has none")
    options = {"return_predictions": False} if command == "predict" else {"verbose": False}
    # weights_only: torch's safe loader
    results = getattr(trainer, command)(model, data, ckpt_path=checkpoint, weights_only=True, **options)
    if command != "predict":
        step = torch.load(checkpoint, map_location="cpu", weights_only=True, mmap=True)["global_step"]
        log_once("    ".join([*in_words(in_one(results)), f"(checkpoint {checkpoint.name} of step {step})"]))


def has_loader(stage, model, data):
    return any(is_overridden(f"{stage}_dataloader", source) for source in (model, data))


def in_one(results):
    """The metrics of all loaders: Lightning has put the number of the loader behind the names that several have."""
    return {name: value for metrics in results for name, value in metrics.items()}


def in_words(metrics):
    return [f"{name.replace('/', ' ')}: {value:.4f}" for name, value in metrics.items()]


def make_trainer(settings, run_folder, logger, pages, callbacks, more, model, notes=()):
    world_size, local_size = int(os.environ["WORLD_SIZE"]), int(os.environ["LOCAL_WORLD_SIZE"])
    # Lightning has torch ask NVIDIA's library for GPUs. Where there is none, every optimizer step searches for it.
    os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "0"
    gpu = settings.accelerator == "gpu" or (settings.accelerator == "auto" and torch.cuda.is_available())
    if gpu and torch.cuda.device_count() < local_size:
        sys.exit(f"{local_size} processes on this node need a GPU each, but torch sees {torch.cuda.device_count()}")
    checkpoints = Checkpoints(run_folder, settings.checkpoint_every, settings.keep, settings.monitor)
    validate_every, unit = period(settings.validate_every, "--validate_every")
    terminal = sys.stdout.isatty() and sys.stdin.isatty()
    callbacks = [callback for callback in callbacks if terminal or not isinstance(callback, ProgressBar)]
    # The pages come before the checkpoints: what they draw at the end is written when the last checkpoint is.
    # FiniteLoss comes before ExactResume, in which the processes meet: if one stops there, none writes a checkpoint.
    exact_resume = ExactResume(settings.seed)
    own = [Agreement(), FirstLook(settings.max_time), FiniteLoss(run_folder), exact_resume, *notes, *pages]
    if not getattr(model, "writes_epoch_line", False):
        own.append(EpochLine())
    if not settings.fast_dev_run:
        own += [checkpoints, StopWhenAsked(checkpoints)]
        own.insert(1, checkpoints.same_folder)
    last = [FinalWeights(checkpoints), TimeLimit(max_time(settings))]  # these see what the others have done
    exact_resume.ours = [*map(skip_empty_hooks, own), *map(skip_empty_hooks, last)]
    limits = {"limit_train_batches": settings.limit_train_batches, "limit_val_batches": settings.limit_val_batches}
    if settings.overfit_batches:
        limits = dict.fromkeys(limits, settings.overfit_batches)
    if settings.smoke:
        limits = dict.fromkeys(limits, 1)
    profiler = None
    if settings.profile and rank_zero_only.rank == 0:
        profiler = PROFILERS[settings.profile](run_folder, "profiler")
    trainer = L.Trainer(
        accelerator="gpu" if gpu else "cpu",
        devices=local_size,
        num_nodes=world_size // local_size,
        strategy=make_strategy(settings, world_size, model),
        plugins=[TorchElasticEnvironment() if world_size > 1 else LightningEnvironment(), AtomicCheckpointIO()],
        precision=settings.precision,
        sync_batchnorm=settings.sync_batchnorm,
        use_distributed_sampler=False,  # the datamodule divides the images, and without counting any of them twice
        max_epochs=1 if settings.smoke else settings.max_epochs,
        max_steps=settings.max_steps or -1,
        accumulate_grad_batches=settings.accumulate,
        gradient_clip_val=settings.gradient_clip,
        val_check_interval=validate_every if unit == "steps" else None,
        check_val_every_n_epoch=None if unit == "steps" else validate_every,
        fast_dev_run=settings.fast_dev_run,
        **limits,
        default_root_dir=run_folder,
        logger=logger or DummyLogger(),
        callbacks=[*own, *callbacks, *last],
        profiler=profiler,
        # src/callbacks/checkpoints.py does it
        enable_checkpointing=any(isinstance(callback, ModelCheckpoint) for callback in callbacks),
        enable_model_summary=False,  # it is in the log already
        # In a log file a progress bar is a thousand lines. mpirun makes every process believe that it has a terminal,
        # but only for what it writes.
        enable_progress_bar=terminal,
        **more,
    )
    scheduled = any(isinstance(callback, GradientAccumulationScheduler) for callback in callbacks)
    if unit == "steps" and (settings.accumulate > 1 or scheduled):
        validate_after_steps(trainer, validate_every)
    return trainer


def make_strategy(settings, world_size, model):
    if world_size == 1:
        return "auto"
    if settings.strategy == "fsdp":
        # One file, as DDP writes it: any number of processes can read it, with either strategy.
        return ModelParallelStrategy(world_size, tensor_parallel_size=1, save_distributed_checkpoint=False)
    # With several optimizers each uses a part of the network.
    unused = settings.strategy == "ddp_find_unused_parameters_true" or not model.automatic_optimization
    return FrozenOrNot(find_unused_parameters=unused)


def max_time(settings):
    return {"seconds": seconds(settings.max_time, "--max_time")} if settings.max_time else None


def threads(settings, job):
    """Of each process: its CPUs, less those that its data workers take."""
    if settings.threads:
        return settings.threads
    here = cpus() // int(os.environ["LOCAL_WORLD_SIZE"])
    return max(1, (job or {}).get("cpus_per_task", here) - settings.num_workers)


def make_optimizer(model, optimizer):
    """The optimizer of the configuration. A model may want groups of parameters, each with settings of its own."""
    return model.make_optimizer(optimizer) if hasattr(model, "make_optimizer") else optimizer(model.parameters())


def attach_optimizer(model, optimizer, scheduler, interval, settings=None):
    """Give the model the optimizer and scheduler of the configuration, unless it makes its own."""
    if is_overridden("configure_optimizers", model):
        return

    def configure_optimizers():
        made = make_optimizer(model, optimizer)
        if scheduler is None:
            return made
        lr_scheduler = scheduler(made)
        return {
            "optimizer": made,
            "lr_scheduler": {
                "scheduler": lr_scheduler,
                "interval": interval,
                **schedule_of(lr_scheduler, settings, interval),
            },
        }

    model.configure_optimizers = configure_optimizers


def schedule_of(scheduler, settings, interval=None):
    """The metric of ReduceLROnPlateau, and how often it is read: one of the validation is new after a validation only.

    Returns:
        what Lightning takes: {"monitor": ..., "frequency": ...}; nothing for the other schedules
    Raises:
        ValueError: with one sentence
    """
    if not isinstance(scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau):
        return {}
    interval = interval or settings.lr_interval
    monitor = getattr(scheduler, "monitor", "val/loss")  # Lightning's knows what it looks at
    if "val" not in monitor:
        return {"monitor": monitor}
    every, unit = period(settings.validate_every, "--validate_every")
    if interval == "step" and unit == "epochs":
        raise ValueError(
            f"--lr_interval step: {monitor} is new after each {every} epochs only, and ReduceLROnPlateau would count "
            "the same value in each step: omit --lr_interval"
        )
    return {"monitor": monitor, "frequency": every if unit == f"{interval}s" else 1}


def init_weights(model, source):
    """Begin with the weights of a run, of a checkpoint, or of a file that torch.save(model.state_dict()) wrote."""
    try:
        path = Path(source)
        path = find(path) if path.is_dir() else path
        load_into(model, read_weights(path))
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        sys.exit(f"--init_from {shortened(source)}: {reason}")
    log_once(f"beginning with the weights of {path}")


PATIENCE = 120  # seconds that an attempt of a job waits for the one before it to end


def take(run_folder):
    """Make the run's folder this process's own. Only the first process does.

    Returns:
        an open file; the folder is taken as long as it is open
    """
    if int(os.environ["RANK"]) != 0:
        return None
    try:
        run_folder.mkdir(parents=True, exist_ok=True)
        file = open(run_folder / ".taken", "a+")  # noqa: SIM115 (it stays open)
    except OSError as error:
        sys.exit(f"the run folder {shortened(run_folder)} cannot be written to: {error.strerror}")
    note_attempt(run_folder)
    lock(file, run_folder)
    job = os.environ.get("SLURM_JOB_ID")
    attempt = f", restart {os.environ.get('SLURM_RESTART_COUNT') or 0}" if job else ""
    file.truncate(0)
    file.write(f"job {job or '-'}, process {os.getpid()} on {socket.gethostname()}{attempt}\n")
    file.flush()
    return file


def lock(file, run_folder):
    """Lock the file. If another process holds it, this one ends, or waits for it: see below.

    Slurm may give up a node and start the job anew while the processes on that node still live. Then this attempt waits
    for PATIENCE seconds, and after that has the job requeued.
    """
    deadline = time.monotonic() + PATIENCE
    waited = False
    while True:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # not flock: data workers would inherit that, and keep it
        except (BlockingIOError, PermissionError):  # which of them depends on the system
            file.seek(0)
            holder = file.read().strip()
            if not before_this_attempt(holder):
                sys.exit(f"the run folder {run_folder} is in use by {holder}: wait for it, or stop it")
            if time.monotonic() > deadline:
                requeue(f"{run_folder} is still in use by {holder}, an earlier attempt of this job")
            if not waited:
                log.warning(f"{run_folder} is in use by {holder}, an earlier attempt: waiting up to {PATIENCE} seconds")
            waited = True
            time.sleep(min(1, PATIENCE / 10))
        except OSError:  # a file system without locks
            log.warning(f"{run_folder} cannot be locked: make sure that no other job writes there")
            return
        else:
            if waited:
                log.warning(f"{run_folder} is free now")
            return


def before_this_attempt(holder):
    """Whether a note in a run's folder is that of an earlier attempt of this Slurm job."""
    noted = re.fullmatch(r"job (\S+), process .*, restart (\d+)", holder)
    job, restart = this_attempt()
    return bool(noted) and noted[1] == job and int(noted[2]) < restart


def requeue(reason):
    """End this attempt and have the job requeued, as at the end of its time; without submitit it ends with an error."""
    handler = signal.getsignal(signal.SIGUSR2)  # submitit's, if it has started this process
    if callable(handler):
        log.warning(f"{reason}: the job is requeued")
        try:
            handler(signal.SIGUSR2, None)
        except Exception as error:  # submitit refuses: it was requeued too often
            sys.exit(f"{reason}, and the job is not requeued: {error}")
    sys.exit(f"{reason}: wait until that one has ended, and resume the run")


def make_way(watchdog, lock):
    """End this attempt of a job that Slurm has restarted on other nodes while this node was unreachable.

    If this process exited with an error, its srun would cancel the job step, which now belongs to the later attempt.
    Slurm kills the remaining processes on this node.
    """
    log.warning("Slurm has started a later attempt of this job on other nodes: this one makes way")
    if watchdog:
        watchdog.ended.set()
    if lock:
        lock.close()
    time.sleep(PATIENCE)
    leave(0)


def note_config(run_folder, config_text):
    """Write config.yaml of a run. If the run had other values before, they stay in config-1.yaml, config-2.yaml, ..."""
    path = run_folder / "config.yaml"
    if path.exists():
        if path.read_text() == config_text or read(config_text).run:  # an evaluation, into the folder of a training
            return
        number = 1
        while (old := run_folder / f"config-{number}.yaml").exists():
            number += 1
        os.replace(path, old)
        log.warning(f"the configuration has changed: the one before is in {old.name}")
    partial = path.with_suffix(".partial")
    partial.write_text(config_text)
    os.replace(partial, path)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("command", choices=COMMANDS)
    parser.add_argument("--run_folder", help="where this run is written, and gone on with if it was stopped")
    parser.add_argument("--prepare", action="store_true", help="only check and prepare; print the configuration")
    parser.add_argument("--print_config", action="store_true", help="only print the configuration")
    args, argv = parser.parse_known_args()
    try:
        text = prepare(args.command, argv, args.run_folder) if args.prepare else merge(argv)
        if args.command != "fit" and not args.print_config:
            check_run(args.command, read(text))
    except (ValueError, OSError) as error:
        parser.exit(2, f"{parser.prog}: error: {short_words(' '.join(str(error).split()))}\n")
    if args.prepare or args.print_config:
        print(text, end="")
        return
    if not args.run_folder:
        parser.error("--run_folder is missing: all processes have to know the same folder")
    try:
        folder = Path(args.run_folder).expanduser().resolve()
        if folder.exists() and not folder.is_dir():
            raise ValueError("there is a file of this name")
    except (OSError, RuntimeError, ValueError) as error:  # a name too long, a loop of links, a zero byte
        reason = getattr(error, "strerror", None) or error
        parser.error(f"--run_folder {shortened(args.run_folder)!r}: {reason}")
    train(args.command, text, folder)


if __name__ == "__main__":
    main()

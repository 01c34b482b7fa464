"""Train and evaluate: on Slurm where there is one, otherwise here.

python run.py                                  train
python run.py --nodes 2 --tasks_per_node 4     train with eight processes
python run.py --config laptop --max_epochs 3   with the flags of a file; those typed here come last
python run.py --dry_run                        show the script for Slurm and the checks, submit nothing
python run.py --print_config                   show the whole configuration, as a file for --config
python run.py test RUN --ckpt best             test (or validate, predict) with the weights of a run
python run.py resume RUN --max_epochs 20       go on with a run, in its folder
python run.py repeat RUN --seed 2              the same again, in a new one
python run.py search --help                    search for good values of any flags, a run for each trial
python run.py doctor --nodes 2                 examine where such a job would run: network, disks, CPUs, ...
python run.py list                             all runs; log RUN [-f], cancel RUN, report RUN: one of them

RUN is the name of a folder in logs/, or a path. --model, --data, --optimizer, --lr_scheduler, --logger and --callbacks
take the name of a class, --model.x 1 an argument of it, --trainer.x 1 one of Lightning's Trainer.
"""

import contextlib
import errno
import os
import sys

ROOT = os.path.dirname(os.path.realpath(__file__))
if sys.path[:1] != [ROOT]:  # with PYTHONSAFEPATH; another package could be called src
    sys.path.insert(0, ROOT)

try:
    import jsonargparse  # noqa: F401
    import submitit  # noqa: F401
except ModuleNotFoundError as error:
    sys.exit(f"{error.name} is not installed for this Python: activate the environment (source env/bin/activate)")

from src.launch import qsub, runs  # noqa: E402
from src.launch.checks import heed, run_checks  # noqa: E402
from src.launch.files import Unreadable, check_keys, nearest, read_config, read_yaml  # noqa: E402
from src.launch.flags import make_parser, parse  # noqa: E402
from src.launch.job import find_cluster  # noqa: E402
from src.launch.records import (  # noqa: E402
    JOB_TYPES,
    config_of,
    find_run,
    find_study,
    parent_of,
    read_record,
    refuse_trial,
)
from src.launch.report import print_report  # noqa: E402
from src.launch.script import explained_script  # noqa: E402
from src.launch.submit import print_config, submit  # noqa: E402
from src.settings import shortened  # noqa: E402

DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM)
TRAINING = ["fit", "validate", "test", "predict"]
AGAIN = ["resume", "repeat"]
LOOKING = ["list", "log", "cancel", "report"]


def start(command, argv):
    """fit, validate, test, predict, resume, repeat: check the job and submit it."""
    run = None
    if argv and not argv[0].startswith("-"):
        if command == "fit":
            sys.exit(f"fit takes no run, but flags: to go on with {argv[0]} type   python run.py resume {argv[0]}")
        run = find_run(argv.pop(0))
    elif command != "fit":
        sys.exit(f"{command} which run? python run.py list names them, and then:   python run.py {command} RUN")

    train_command = command
    if command in AGAIN:
        record = record_or_config(run)
        train_command = record["command"]
        request = parse(argv, config_of(run), record["job"] | {"log_path": str(parent_of(run))})
    else:
        request = parse(argv, config_of(run) if run else None)
    if run and command in TRAINING:
        request.arguments += [f"--run={run}"] + ([f"--ckpt={request.ckpt}"] if request.ckpt else [])
    elif request.ckpt:
        sys.exit(f"--ckpt {request.ckpt} needs a run: python run.py test RUN --ckpt {request.ckpt}")
    if command == "resume":
        runs.refuse_while_running(run)
        refuse_trial(run)

    job = request.job
    job.name = job.name or train_command
    if request.dry_run:
        job.cluster = "slurm" if job.cluster == "auto" else job.cluster
    elif job.cluster == "auto":
        job.cluster = find_cluster()
    if request.print_config:
        print_config(train_command, request)
    results = run_checks(request)
    if request.dry_run:
        if job.cluster in ("local", "debug"):
            print(f"--cluster {job.cluster} needs no script.")
        elif job.cluster == "slurm":
            with contextlib.suppress(ValueError):  # wrong --directives, of which the checks tell
                print(explained_script(job, run if command == "resume" else f"{job.log_path}/%j"))
        else:
            folder = run if command == "resume" else f"{job.log_path}/TIME_{job.name}"
            print(qsub.explained_script(job, train_command, folder))
    heed(results, request.dry_run)
    if request.dry_run:
        return
    submit(train_command, request, run if command == "resume" else None)


def record_or_config(run):
    """The command and the job of a run; where torchrun or mpirun started it, as its configuration has them."""
    if os.path.lexists(run / "run.json"):
        record = read_record(run)
        check_keys(record["job"], JOB_TYPES, run / "run.json", "job: ")  # a newer version may have more
        return record
    if read_yaml(config_of(run)).get("run"):
        sys.exit(f"{run.name} is an evaluation that run.py did not start: give the command that started it again")
    return {"command": "fit", "job": read_config(config_of(run))[0]}


def main():
    argv = sys.argv[1:]
    if argv[:1] == ["search"] or (argv[:1] in (["resume"], ["cancel"]) and find_study("".join(argv[1:2]))):
        from src.search import command  # with Optuna, which the others do not need

        getattr(command, argv[0])(argv[1:])
        return
    if argv[:1] == ["doctor"]:
        from src.doctor.start import doctor

        doctor(argv[1:])
        return
    if "--help" in argv or "-h" in argv:
        print(__doc__)
        make_parser().print_help()
        return
    command = argv.pop(0) if argv and not argv[0].startswith("-") else "fit"
    if command in TRAINING + AGAIN:
        start(command, argv)
    elif command == "report":
        print_report(runs.only_run(command, argv))
    elif command in LOOKING:
        getattr(runs, f"{command}_")(argv)
    else:
        commands = TRAINING + AGAIN + LOOKING + ["search", "doctor"]
        near = nearest(command[:100], commands)
        hint = f"did you mean {near}?" if near else f"there are {', '.join(commands)}"
        sys.exit(f"there is no command {shortened(command)}: {hint}")


if __name__ == "__main__":
    try:
        main()
    except BrokenPipeError:  # python run.py list | head
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except Unreadable as error:
        sys.exit(str(error))
    except OSError as error:
        if error.errno not in DISK:
            raise
        sys.exit(f"cannot write to {error.filename or 'a file'}: {error.strerror}")
    except KeyboardInterrupt:
        sys.exit(130)  # what a shell says of Ctrl-C

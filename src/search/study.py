"""A study: the folder of a search, and the journal in it, which says what became of each trial.

    logs/lr/study.yaml     what is searched, and how
    logs/lr/config.yaml    the configuration that all trials share
    logs/lr/journal.log    Optuna's, a line for everything that happens: it alone says what is done and what is not
    logs/lr/0, 1, 2, ...   the run of each trial

All trials are put into the journal when the study is made, as waiting ones, and nobody asks Optuna for another later.
Task 3 of the job array works on trial 3, and so does whoever goes on with it after a crash. So no trial can be trained
twice, none can be one too many, and none can get lost between "Optuna has made it" and "it is noted whose it is". Its
values are chosen when it begins, from what is known by then. From there on they stand in the journal.
"""

import contextlib
import json
import os
import sys
import time
import typing
from dataclasses import asdict

import optuna
import yaml
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from optuna.storages.journal._storage import JournalOperation
from optuna.trial import TrialState

from src.launch.files import read_yaml
from src.search.space import OWN, Range, combinations, read_space
from src.settings import shortened

optuna.logging.set_verbosity(optuna.logging.WARNING)

FINISHED = {TrialState.COMPLETE: "complete", TrialState.PRUNED: "pruned", TrialState.FAIL: "failed"}
KINDS = {"trials": int, "at_once": int, "sampler": str, "pruner": str, "monitor": str, "minimize": bool, "seed": int,
         "search": dict}  # fmt: skip
PRUNERS = {
    "none": optuna.pruners.NopPruner,
    "median": optuna.pruners.MedianPruner,
    "halving": optuna.pruners.SuccessiveHalvingPruner,
}


def create(folder, search, texts, seed, monitor, minimize):
    """Make a study in a folder that is there.

    Args:
        search: a Search
        texts: {flag: where its values come from}, as typed
        seed: of the sampler
        monitor: the metric that is compared
        minimize: whether less of it is better
    """
    write(folder, asdict(search) | {"monitor": monitor, "minimize": minimize, "seed": seed, "search": texts})
    direction = "minimize" if minimize else "maximize"
    study = optuna.create_study(storage=JournalStorage(backend(folder)), study_name="search", direction=direction)
    points = combinations(read_space(texts)) if search.sampler == "grid" else [{}] * search.trials
    for point in points:
        study.enqueue_trial(point)


def extend(folder, search):
    """Add the trials that a Search has more than the study; note both numbers."""
    study, settings = load(folder), read(folder)
    for _ in range(search.trials - len(study.get_trials(deepcopy=False))):
        study.enqueue_trial({})
    write(folder, settings | {"trials": search.trials, "at_once": search.at_once})


def write(folder, settings):
    """Write study.yaml."""
    plain = json.loads(json.dumps(settings))  # jsonargparse's numbers are of classes of its own
    partial = folder / "study.partial"
    partial.write_text(yaml.safe_dump(plain, sort_keys=False))
    partial.replace(folder / "study.yaml")


def read(folder):
    """study.yaml as a dictionary. Ends with one sentence if it is damaged."""
    settings = read_yaml(folder / "study.yaml")
    for name, kind in KINDS.items():
        if type(settings.get(name)) is not kind:
            sys.exit(f"{folder / 'study.yaml'} is no study: {name} is missing or wrong")
    texts = [text for pair in settings["search"].items() for text in pair]
    if settings["pruner"] not in PRUNERS or not all(isinstance(text, str) for text in texts):
        sys.exit(f"{folder / 'study.yaml'} is no study: pruner or search is wrong")
    if settings["sampler"] not in typing.get_args(OWN["sampler"]):
        sys.exit(f"{folder / 'study.yaml'} is no study: there is no sampler {shortened(settings['sampler'])}")
    return settings


def backend(folder):
    """The journal. Its lock is a file that open(O_EXCL) makes.

    That is atomic on local disks, Lustre, GPFS, BeeGFS, and NFS from version 3 on, where flock() and fcntl() (which
    SQLite needs) often are not. Optuna's other lock, a symbolic link, is for NFS 2: when an answer of the server gets
    lost and the request is sent again, it takes its own link for another's.
    """
    path = str((folder / "journal.log").resolve())
    return JournalFileBackend(path, JournalFileOpenLock(path))


def load(folder, number=0):
    """Optuna's study, with a sampler for trial `number`. Ends with one sentence if the journal is damaged."""
    repair(folder)
    settings = read(folder)
    # Each trial is a process of its own: with the same seed all of them would draw the same numbers.
    seed = (settings["seed"] * 1_000_003 + number) % 2**32
    tpe = settings["sampler"] == "tpe"
    sampler = optuna.samplers.TPESampler(seed=seed) if tpe else optuna.samplers.RandomSampler(seed=seed)
    storage, pruner = JournalStorage(backend(folder)), PRUNERS[settings["pruner"]]()
    try:
        return optuna.load_study(storage=storage, study_name="search", sampler=sampler, pruner=pruner)
    except KeyError:
        sys.exit(f"there is no study in {folder / 'journal.log'}: begin the search anew, with another --name")


def repair(folder):
    """Cut off what a process has left that was killed while it wrote a line: nobody was told that it was written."""
    path = folder / "journal.log"
    if os.path.lexists(path) and not os.path.isfile(path):  # also a link that leads nowhere, or to itself
        sys.exit(f"{path} is not a regular file, so it is no journal of a study")
    lock = JournalFileOpenLock(str(path.resolve()))
    file = path.with_name("journal.log.lock")
    with contextlib.suppress(OSError):  # it is not there, as nearly always
        before = file.lstat().st_mtime
        time.sleep(1)
        if file.lstat().st_mtime == before:
            print(f"waiting up to {lock.grace_period} s for {file}: a killed process left it", file=sys.stderr)
    try:
        lock.acquire()
        try:
            with open(path, "rb+") as file:
                lines = file.readlines()
                whole = lines[:-1] if lines and not lines[-1].endswith(b"\n") else lines
                check_journal(path, whole or lines)
                if whole != lines:
                    file.truncate(sum(map(len, whole)))
        finally:
            lock.release()
    except OSError as error:
        sys.exit(f"cannot open the journal of the study, {path}: {error.strerror}")


def check_journal(path, lines):
    """Each line has to be an operation that Optuna knows. Ends with one sentence otherwise."""
    for number, line in enumerate(lines, start=1):
        try:
            JournalOperation(json.loads(line)["op_code"])
        except (ValueError, KeyError, TypeError):
            sys.exit(f"{path} is damaged in line {number}: copy the file, remove that line, and give the command again")


def unfinished(study):
    """The numbers of the trials that wait, run, or were broken off."""
    return [trial.number for trial in study.get_trials(deepcopy=False) if trial.state not in FINISHED]


def begin(folder, number):
    """Begin a trial, or go on with it: its values are chosen once.

    Returns:
        an optuna.Trial, with its values in .params
    """
    study = load(folder, number)
    known = study.get_trials(deepcopy=False)[number]
    trial = optuna.Trial(study, known._trial_id)
    if known.state in FINISHED:
        return trial
    if known.state == TrialState.WAITING:
        trial.storage.set_trial_state_values(known._trial_id, TrialState.RUNNING)
    for name, values in read_space(read(folder)["search"]).items():
        if not isinstance(values, Range):
            trial.suggest_categorical(name, values)
        elif isinstance(values.low, int):
            trial.suggest_int(name, values.low, values.high, log=values.log)
        else:
            trial.suggest_float(name, values.low, values.high, log=values.log)
    return trial


def end(trial, failed=False):
    """Tell Optuna how a trial has ended. What it is worth is the best that any of its validations has reported."""
    study, number = trial.study, trial.number
    reported = [value for value in study.trials[number].intermediate_values.values() if value == value]  # no NaN
    best = min if study.direction == optuna.study.StudyDirection.MINIMIZE else max
    if "pruned" in trial.user_attrs:
        study.tell(number, state=TrialState.PRUNED, skip_if_finished=True)
    elif failed or not reported:
        study.tell(number, state=TrialState.FAIL, skip_if_finished=True)
    else:
        study.tell(number, best(reported), skip_if_finished=True)
    return study.trials[number]

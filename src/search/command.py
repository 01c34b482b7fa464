"""python run.py search --search.optimizer.lr log:1e-4..1e-1 --search.batch_size 64,128,256 --trials 12 --at_once 4

Behind --search. stands any flag of the training. Its values are a list, 64,128,256, or a range: 0.1..0.9, 2..8 (whole
numbers), log:1e-4..1e-1 (as many small as large). All other flags are those of `python run.py`, for every trial.

python run.py search --name lr ...             a new study, in logs/lr: on Slurm a job array, elsewhere one by one
python run.py search lr                        what it has found so far: a table, trials.csv, a picture
python run.py resume lr                        go on, after whatever has ended it; --trials 20 adds trials
python run.py cancel lr                        end its jobs
python run.py log lr/3                         each trial is a run: log, report, test, repeat, ...
"""

import contextlib
import dataclasses
import json
import subprocess
import sys
import tempfile
from datetime import datetime
from pathlib import Path

from src.launch.checks import ERROR, heed, run_checks
from src.launch.files import JOB_KEYS, SETTINGS_KEYS, log_path, read_config
from src.launch.flags import check_types, parse, split_flags
from src.launch.job import ROOT, find_cluster
from src.launch.records import find_study
from src.launch.script import explained_script
from src.launch.slurm import ACTIVE
from src.launch.submit import as_noted, clean_environment, print_config, python_here
from src.search.space import SYNTAX, combinations, examples, make_parser, read_search, read_space, split
from src.settings import MONITORS, shortened, smaller_is_better


def search(argv):
    """Begin a study, or show one."""
    if "--help" in argv or "-h" in argv:
        print(__doc__)
        make_parser().print_help()
        return
    if argv and not argv[0].startswith("-"):
        if len(argv) > 1:
            sys.exit(f"search {argv[0]} only shows what it has found: to go on type   python run.py resume {argv[0]}")
        from src.search.table import show

        show(find_study(argv[0]) or sys.exit(f"there is no study {shortened(argv[0])} in {log_path()}"))
        return

    texts, own, rest = split(argv)
    if not texts:
        sys.exit(f"search what? Behind --search. any flag of the training, such as --search.optimizer.lr; {SYNTAX}")
    space, chosen = read_space(texts), read_search(own)
    if chosen.sampler == "grid":
        if chosen.trials:
            sys.exit(f"--trials {chosen.trials}: a grid takes all {len(combinations(space))} combinations, without it")
        chosen.trials = len(combinations(space))
    chosen.trials = chosen.trials or 12
    request = parse(rest)
    job = request.job
    check_request(request, f"search-{datetime.now():%Y-%m-%d_%H-%M-%S}")
    folder = Path(job.log_path) / job.name
    if folder.exists():
        hint = f"go on with it:   python run.py resume {job.name}   or " if find_study(str(folder)) else ""
        sys.exit(f"{shortened(folder)} is there already: {hint}take another --name")
    results = run_checks(request)
    check_values(request, space)
    if request.dry_run:
        array = {"map_count": chosen.trials, "array_parallelism": chosen.at_once}
        with contextlib.suppress(ValueError):  # wrong --directives, of which the checks tell
            print(explained_script(job, folder / "%a", **array))
    heed(results, request.dry_run)
    if request.dry_run:
        return

    config = prepare_study(request, space)
    from src.search import start, study

    Path(job.log_path).mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=job.log_path, prefix=".search-") as partial:  # all of a study, or nothing
        new = Path(partial) / "study"
        new.mkdir()
        (new / "config.yaml").write_text(config)
        monitor = request.settings.monitor or MONITORS[0]
        study.create(new, chosen, texts, request.settings.seed, monitor, smaller_is_better(monitor))
        new.rename(folder)
    start.go_on(folder, job, chosen)


def resume(argv):
    """Resume a study, perhaps with more trials."""
    from src.search import start, study

    folder = find_study(argv[0])
    _, own, rest = split(argv[1:])
    for name, _ in split_flags(rest):
        if name not in JOB_KEYS:
            sys.exit(f"--{name}: trials that were trained with others could not be compared. Begin another study")
    settings = study.read(folder)
    if {"sampler", "pruner"} & set(own) or (settings["sampler"] == "grid" and "trials" in own):
        sys.exit(f"the study {folder.name} goes on as it has begun: only --at_once and --trials may be others")
    chosen = read_search({"at_once": settings["at_once"], "trials": settings["trials"]} | own)
    if chosen.trials < settings["trials"]:
        sys.exit(f"--trials {chosen.trials}: the study {folder.name} has {settings['trials']} already")
    stored = read_config(folder / "config.yaml")[0]
    request = parse(rest, folder / "config.yaml", stored | {"log_path": str(folder.parent), "name": folder.name})
    check_request(request, folder.name)
    heed(run_checks(request), dry_run=False)
    start.go_on(folder, request.job, chosen)


def cancel(argv):
    """End the jobs of a study."""
    from src.launch.runs import cancel_, describe_all

    folder = find_study(argv[0])
    runs = [path.parent for path in folder.glob("*/run.json")]
    active = [run for run, seen in describe_all(runs).items() if seen["state"] in ACTIVE]
    for run in active:
        cancel_([str(run)])
    if not active:
        print(f"no trial of {folder.name} runs")


def check_request(request, name):
    """What holds for every study."""
    job = request.job
    job.name = job.name or name
    if request.settings.fast_dev_run:
        sys.exit("--fast_dev_run writes nothing, so a study would find nothing: take --smoke")
    if request.print_config:
        print_config("fit", request)
    if request.dry_run:
        job.cluster = "slurm"
    elif job.cluster == "auto":
        job.cluster = find_cluster()
    if job.cluster not in ("slurm", "debug"):
        sys.exit(f"--cluster {job.cluster} cannot search: take slurm, or debug, here one trial after the other")


def check_values(request, space):
    """The checks of src/launch/checks.py, for each value that can be searched of the flags that they look at."""
    for name in set(space) & set(SETTINGS_KEYS):
        for value in examples(space[name]):
            try:
                settings = dataclasses.replace(request.settings, **check_types({name: value}))
            except ValueError as error:
                sys.exit(f"--search.{name} {value}: {error}")
            results = run_checks(dataclasses.replace(request, settings=settings))
            if errors := [sentence for level, sentence in results if level == ERROR]:
                sys.exit(f"--search.{name} {value}: {errors[0]}")


def prepare_study(request, space):
    """Check each value that can be searched, as far as that needs torch; returns the merged configuration as YAML."""
    job = request.job
    clean_environment()
    values = {name: examples(values) for name, values in space.items()}
    task = {"arguments": [*request.arguments, f"--job={json.dumps(as_noted(job))}"], "values": values}
    if job.cluster == "debug":
        from src.search.check import prepare_study

        try:
            return prepare_study(**task)
        except (ValueError, FileNotFoundError) as error:
            sys.exit(str(error))
    check = [*python_here(job), str(ROOT / "src/search/check.py"), json.dumps(task)]
    done = subprocess.run(check, stdout=subprocess.PIPE, text=True)
    return done.stdout if done.returncode == 0 else sys.exit(done.returncode)

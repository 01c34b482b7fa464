"""Lesson 12: a study finishes with as many trials as it began with, each trained once, whatever is killed."""

import csv
import json
import re
import signal
import subprocess
import urllib.error
import urllib.request
from pathlib import Path

import pytest
import yaml
from lesson import SLOW, Root, assert_one_sentence, until
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

NAME = "12-hyperparameter-search"
CHECK = "python lessons/check.py 12"  # typed in test_exercises.py

SEARCH = (
    "python run.py search --name lr --search.optimizer.lr log:1e-4..1e-1 --search.batch_size 64,256 "
    "--search.model.arch mlp,mlp_wide,cnn --trials 12 --at_once 4 --pruner median --max_epochs 5 --cpus_per_task 1"
)
SHOW = "python run.py search lr"
LIST = "python run.py list"
KILL = "scancel --signal=KILL 1_0"
REQUEUE = "scontrol requeue 1_1"
CRASH = "python3 lessons/00-practice-cluster/cluster.py crash node2"
BOOT = "python3 lessons/00-practice-cluster/cluster.py boot node2"
RESUME = "python run.py resume lr"
MORE = "python run.py resume lr --trials 16"
TEST = "python run.py test lr/BEST --ckpt best"
REPEAT = "python run.py repeat lr/BEST"
TENSORBOARD = "tensorboard --logdir logs/lr"
GRID = "python run.py search --name dropout --sampler grid --search.model.dropout 0,0.2,0.5 --search.optimizer Adam,SGD"
HELP = "python run.py search --help"
DRY_RUN = f"{GRID} --dry_run"

HERE = "--cluster debug --threads 1 --limit_val_batches 1 --max_epochs 2 --limit_train_batches"
QUICK = f"{HERE} 8"
QUICKER = f"{HERE} 4 --logger csv"  # without pages for TensorBoard

# A training that is sent a signal once, at that step of this trial (-1: at its end); and one that is slow.
CALLBACKS = (
    """
import os
import signal
from pathlib import Path

import lightning as L


class KillOnce(L.Callback):
    def __init__(self, trial: int, step: int, number: int = 9):
        self.trial, self.step, self.number = str(trial), step, number

    def on_train_batch_end(self, trainer, *args):
        if trainer.global_step == self.step:
            self.kill(trainer)

    def on_train_end(self, trainer, *args):
        if self.step == -1:
            self.kill(trainer)

    def kill(self, trainer):
        folder = Path(trainer.log_dir)
        if folder.name == self.trial and not (folder / "killed").exists():
            (folder / "killed").touch()
            os.kill(os.getpid(), self.number)
"""
    + SLOW
)


def make_root(folder):
    root = Root(NAME, folder)
    (root.folder / "src/callbacks/for_tests.py").write_text(CALLBACKS)
    return root


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return make_root(tmp_path_factory.mktemp("lesson-12"))


def rows_of(study: Path) -> list[dict]:
    with open(study / "trials.csv", newline="") as file:
        return list(csv.DictReader(file))


def journal(study: Path) -> list[dict]:
    return [json.loads(line) for line in (study / "journal.log").read_text().splitlines()]


def trained_steps(run: Path) -> list[int]:
    """The steps of a curve, as TensorBoard shows it: none stands there twice."""
    events = EventAccumulator(str(run), size_guidance={"scalars": 0})
    events.Reload()
    steps = [event.step for event in events.Scalars("val/accuracy")]
    assert steps == sorted(set(steps))
    return steps


def weights(output: str) -> list[str]:
    return re.findall(r"the weights are (\w{16})$", output, re.MULTILINE)


def test_every_command_of_the_readme_is_tested_here(root):
    killing = [KILL, REQUEUE, CRASH, BOOT, LIST, RESUME]
    assert root.commands == [SEARCH, SHOW, LIST, *killing, TEST, REPEAT, TENSORBOARD, MORE, DRY_RUN, GRID, HELP, CHECK]


# ---- on this machine, one trial after the other


SPACE = "--search.optimizer.lr log:1e-4..1e-2 --search.batch_size 64,128"


@pytest.fixture(scope="module")
def study(root):
    """Three trials that nobody disturbs. Returns what was printed, and the study's folder."""
    done = root.shell(f"python run.py search --name lr --trials 3 {SPACE} {QUICK}")
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout, root.folder / "logs/lr"


def test_table_and_picture(root, study):
    output, folder = study
    rows = rows_of(folder)
    assert [row["trial"] for row in rows] == ["0", "1", "2"]
    assert [row["run"] for row in rows] == ["lr/0", "lr/1", "lr/2"]
    for row in rows:
        assert row["state"] == "complete" and row["validations"] == "2"
        assert 1e-4 <= float(row["optimizer.lr"]) <= 1e-2 and row["batch_size"] in ("64", "128")
        config = yaml.safe_load((folder / row["trial"] / "config.yaml").read_text())
        assert config["optimizer"]["init_args"]["lr"] == float(row["optimizer.lr"])
        assert config["batch_size"] == int(row["batch_size"])
        assert json.loads((folder / row["trial"] / "trial.json").read_text())["value"] == float(row["val/accuracy"])
    assert len({row["optimizer.lr"] for row in rows}) == 3  # each trial draws its own
    best = max(rows, key=lambda row: float(row["val/accuracy"]))
    assert f"the best is {best['trial']}, with val/accuracy {float(best['val/accuracy']):.4f}" in output
    assert "3 trials: 3 complete; also in logs/lr/trials.csv" in output
    assert (folder / "study.png").read_bytes().startswith(b"\x89PNG")
    assert "test accuracy" not in output  # it is for the one that is chosen
    shown = root.run(SHOW)
    assert shown.stdout.splitlines()[:4] == output.splitlines()[-len(shown.stdout.splitlines()) :][:4]
    listed = root.run(LIST).stdout
    assert [line.split()[:2] for line in listed.splitlines()[1:4]] == [[f"lr/{n}", "COMPLETED"] for n in range(3)]


def test_value_is_the_best_validation(study):
    for row in rows_of(study[1]):
        events = EventAccumulator(str(study[1] / row["trial"]), size_guidance={"scalars": 0}).Reload()
        reported = [event.value for event in events.Scalars("val/accuracy")]
        assert float(row["val/accuracy"]) == pytest.approx(max(reported)) and len(reported) == 2


def test_best_trial_repeats_and_is_tested(root, study):
    """`run.py repeat` of a trial is a run of its own in logs/, with the same weights."""
    best = re.search(r"python run.py repeat (lr/\d)", study[0])[1]
    before = set((root.folder / "logs").iterdir())
    done = root.shell(REPEAT.replace("lr/BEST", best))
    assert done.returncode == 0, done.stderr
    [new] = set((root.folder / "logs").iterdir()) - before
    assert weights(done.stdout)[0] in weights(study[0])
    assert trained_steps(new) == trained_steps(study[1] / best[-1])
    assert "test accuracy" in done.stdout
    tested = root.shell(TEST.replace("lr/BEST", best))
    assert f"test accuracy: {re.search('test accuracy: (0.....)', tested.stdout)[1]}" in tested.stdout
    assert not list(study[1].glob("20*"))  # neither is in the study


def ask(address, page, **question):
    """What the HParams page of TensorBoard asks its server for; None as long as it has not read the runs."""
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(f"{address}data/plugin/hparams/{page}", json.dumps(question).encode(), headers)
    try:
        with urllib.request.urlopen(request) as answer:
            return json.load(answer)
    except urllib.error.HTTPError:
        return None


def test_tensorboard_shows_a_row_for_each_trial(root, study):
    command = [*TENSORBOARD.split(), "--host", "127.0.0.1", "--port", "0"]
    server = subprocess.Popen(command, cwd=root.folder, stderr=subprocess.PIPE, text=True)
    try:
        address = next(match[0] for line in server.stderr if (match := re.search(r"http://\S+:\d+/", line)))
        rows = {"colParams": [], "allowedStatuses": ["STATUS_SUCCESS"], "startIndex": 0, "sliceSize": 100}
        groups = []

        def all_are_there():
            groups[:] = (ask(address, "session_groups", **rows) or {}).get("sessionGroups", [])
            return len(groups) == 3

        until(all_are_there)
        columns = ask(address, "experiment")["hparamInfos"]
    finally:
        server.terminate()
        server.communicate()
    differing = {column["name"] for column in columns if column["differs"]}  # these the page shows
    assert "optimizer.lr" in differing and differing <= {"optimizer.lr", "batch_size", "data.batch_size"}
    shown = {group["name"]: group for group in groups}
    for row in rows_of(study[1]):
        assert shown[row["trial"]]["hparams"]["optimizer.lr"] == float(row["optimizer.lr"])
        assert shown[row["trial"]]["hparams"]["batch_size"] == float(row["batch_size"])
        assert "val/accuracy" in {metric["name"]["tag"] for metric in shown[row["trial"]]["metricValues"]}


def test_killed_study_goes_on(root, study):
    """`kill -9` in the middle of trial 1, Ctrl-C in trial 2: resumed, it is the study that nobody has disturbed."""
    kill = "--callbacks+=src.callbacks.for_tests.KillOnce --callbacks.trial 1 --callbacks.step 13 --checkpoint_every 5"
    ctrl_c = f"--callbacks.trial 2 --callbacks.step 3 --callbacks.number {signal.SIGINT:d}"
    flags = f"{kill} --callbacks+=src.callbacks.for_tests.KillOnce {ctrl_c}"
    done = root.shell(f"python run.py search --name killed --trials 3 {SPACE} {QUICK} {flags}")
    assert done.returncode in (-signal.SIGKILL, 128 + signal.SIGKILL), done.stderr
    folder = root.folder / "logs/killed"
    shown = root.shell("python run.py search killed").stdout
    assert "3 trials: 1 complete, 1 broken off, 1 not begun" in shown
    assert "python run.py resume killed" in shown
    assert_one_sentence(root.shell("python run.py resume killed/1"), "not finished", "python run.py resume killed")

    # As if the machine had gone down in the middle of a line.
    with open(folder / "journal.log", "a") as file:
        file.write('{"op_code":6,"worker_id":"12')
    again = root.shell("python run.py resume killed")
    assert again.returncode == 128 + signal.SIGINT, again.stdout + again.stderr
    assert "stopped at step 3. Resume it with: python run.py resume killed\n" in again.stdout
    last = root.shell("python run.py resume killed")
    assert last.returncode == 0, last.stdout + last.stderr
    output = done.stdout + again.stdout + last.stdout
    assert re.findall(r"rank 0 search: trial (\d): ", output) == ["0", "1", "1", "2", "2"]
    went_on = re.findall(r"going on from \S+killed/(\d)/checkpoints/step=(\d+)", output)
    assert went_on == [("1", "00000010"), ("2", "00000003")]
    assert weights(output) == weights(study[0])
    values = [[row[key] for key in ("val/accuracy", "optimizer.lr", "batch_size")] for row in rows_of(folder)]
    assert values == [[row[key] for key in ("val/accuracy", "optimizer.lr", "batch_size")] for row in rows_of(study[1])]
    assert [trained_steps(folder / str(n)) for n in range(3)] == [trained_steps(study[1] / str(n)) for n in range(3)]
    assert sorted(path.name for path in folder.iterdir() if path.is_dir()) == ["0", "1", "2"]
    nothing = root.shell("python run.py resume killed")
    assert "3 trials: 3 complete" in nothing.stdout and "trial 0" not in nothing.stdout


def test_more_trials_and_no_others(root, study):
    """--trials of a resumed study adds trials; what would make them differ from the others is refused."""
    assert_one_sentence(root.run(RESUME, "--max_epochs 3"), "--max_epochs", "Begin another study")
    assert_one_sentence(root.run(RESUME, "--trials 2"), "has 3 already")
    assert_one_sentence(root.run(RESUME, "--sampler random"), "only --at_once and --trials")
    done = root.shell(MORE.replace("16", "4"))
    assert done.returncode == 0, done.stderr
    assert [row["state"] for row in rows_of(study[1])] == ["complete"] * 4
    assert yaml.safe_load((study[1] / "study.yaml").read_text())["trials"] == 4


def test_pruned(root):
    """A grid of six; the last is worse than the median of the others. Killed before it says so, it does not go on."""
    grid = "--sampler grid --pruner median --search.optimizer.lr 1e-3,2e-3,3e-3,4e-3,5e-3,1e-7"
    kill = "--callbacks+=src.callbacks.for_tests.KillOnce --callbacks.trial 5 --callbacks.step -1"
    done = root.shell(f"python run.py search --name grid {grid} {QUICKER} {kill}")
    assert "pruned: val/accuracy" in done.stdout and "trial 5 is pruned" not in done.stdout
    again = root.shell("python run.py resume grid")
    assert "trial 5 is pruned" in again.stdout
    assert "6 trials: 5 complete, 1 pruned" in again.stdout, again.stdout + again.stderr
    rows = rows_of(root.folder / "logs/grid")
    assert [row["optimizer.lr"] for row in rows] == ["1e-3", "2e-3", "3e-3", "4e-3", "5e-3", "1e-7"]
    assert [row["validations"] for row in rows] == ["2"] * 5 + ["1"]
    steps = [path.name for path in (root.folder / "logs/grid/5/checkpoints").glob("step=*")]
    assert steps == ["step=00000004.ckpt"]  # one epoch of two
    assert json.loads((root.folder / "logs/grid/5/trial.json").read_text())["state"] == "pruned"


def test_loss_that_is_not_finite_is_the_trials_fault(root):
    """It has failed, and the others go on. Also when it was seen in a process that could not tell Optuna."""
    grid = "--sampler grid --search.optimizer.lr 1e30,0.01,0.02 --optimizer SGD"
    kill = "--callbacks+=src.callbacks.for_tests.KillOnce --callbacks.trial 1 --callbacks.step 1"
    done = root.shell(f"python run.py search --name far {grid} {QUICKER} {kill}")
    assert "is not finite" in done.stdout and "trial 0 is failed" in done.stdout
    (root.folder / "logs/far/1/not_finite_step=00000002_rank=1.pt").touch()
    again = root.shell("python run.py resume far")
    assert again.returncode == 0, again.stderr
    assert re.findall(r"rank 0 search: trial (\d): ", again.stdout) == ["2"]
    assert "3 trials: 2 failed, 1 complete" in again.stdout and "the best is 2" in again.stdout


def test_ranges_lists_and_classes(root):
    """Whole numbers, lists of lists and classes are typed as on the command line."""
    flags = "--search.seed 3..4 --search.optimizer Adam,SGD --optimizer.lr 0.01 --sampler random --trials 2"
    done = root.shell(f"python run.py search --name kinds {flags} {QUICKER} --max_epochs 1")
    assert done.returncode == 0, done.stderr
    for row in rows_of(root.folder / "logs/kinds"):
        config = yaml.safe_load((root.folder / "logs/kinds" / row["trial"] / "config.yaml").read_text())
        assert config["seed"] == int(row["seed"]) and row["seed"] in ("3", "4")
        assert config["optimizer"]["class_path"] == f"torch.optim.{row['optimizer']}"
        assert config["optimizer"]["init_args"]["lr"] == 0.01


# ---- mistakes


WRONG = {
    "": ["search what?", "--search.optimizer.lr", "log:1e-4..1e-1"],
    "--search.optimizr.lr 1,2": ["--search.optimizr.lr", "only flags of the training"],
    "--search.nodes 1,2": ["--search.nodes", "only flags of the training"],
    "--search.monitor a,b": ["--search.monitor"],
    "--search.optimizer.lr": ["needs a value", "64,128,256"],
    "--search.optimizer.lr 0.1": ["one value alone is no choice"],
    "--search.optimizer.lr 0.1,,2": ["empty or there twice"],
    "--search.optimizer.lr 5..5": ["the range is empty"],
    "--search.optimizer.lr 9..1": ["the range is empty"],
    "--search.optimizer.lr a..b": ["are numbers"],
    "--search.optimizer.lr log:0..1": ["numbers above 0"],
    "--search.optimizer.lr log:1,2": ["log: is for a range"],
    "--search.precision 16,32": ["--precision 16 is not one of 32, 16-mixed, bf16-mixed"],
    "--search.batch_size 1.5..3.5": ["--batch_size 1.5 is not a whole number above 0"],
    "--search.seed 1,2 --trials 0": ["--trials 0 is not a whole number above 0"],
    "--search.seed 1,2 --sampler best": ["--sampler best is not one of tpe, random, grid"],
    "--search.seed 1..9 --sampler grid": ["a grid needs values"],
    "--search.seed 1,2 --sampler grid --trials 3": ["takes all 2 combinations"],
    "--search.seed 1,2 --fast_dev_run": ["--smoke"],
    "--search.seed 1,2 --cluster local": ["--cluster local cannot search"],
    "--search.seed 1,2 --max_epoch 3": ["did you mean --max_epochs?"],
    "--search.batch_size 64,65 --tasks_per_node 2 --dry_run": ["--search.batch_size 65", "the nearest are 64 or 66"],
    "--search.optimizer.lrr 1,2 --cluster debug": ["Adam has no lrr, but lr"],
    "--search.model.arch mlp,mlq --cluster debug": ["--search.model.arch mlq", "did you mean mlp"],
    "--search.optimizer.weight_decay 0,-1 --cluster debug": [
        "weight_decay -1: --optimizer Adam: Invalid weight_decay value: -1"
    ],
    "--search.seed 1,2 --name lr --cluster debug": ["is there already", "python run.py resume lr"],
}


@pytest.mark.parametrize("flags", WRONG)
def test_mistakes_get_one_sentence(root, study, flags):
    before = sorted((root.folder / "logs").iterdir())
    assert_one_sentence(root.shell(f"python run.py search {flags}"), *WRONG[flags])
    assert sorted((root.folder / "logs").iterdir()) == before  # no half a study


def test_mistakes_about_studies(root, study, tmp_path):
    assert_one_sentence(root.shell("python run.py search nobody"), "there is no study nobody")
    assert_one_sentence(root.shell("python run.py log lr"), "lr is a search", "lr/0")
    assert_one_sentence(root.shell("python run.py search lr --trials 3"), "only shows", "python run.py resume lr")
    no_metric = root.shell(f"python run.py search --name m --search.seed 1,2 --monitor val/f2 --trials 2 {QUICKER}")
    assert "--monitor val/f2 is not among what the validation reports: " in no_metric.stderr
    assert "Traceback" not in no_metric.stderr
    text = (study[1] / "journal.log").read_text()
    (study[1] / "journal.log").write_text(text.replace('"op_code":5', "oops", 1))
    assert_one_sentence(root.run(SHOW), "journal.log is damaged in line")
    (study[1] / "journal.log").write_text(text)
    assert root.run(SHOW).returncode == 0
    (study[1] / "journal.log").rename(tmp_path / "journal.log")
    assert_one_sentence(root.run(SHOW), "cannot open the journal of the study", "No such file")
    (tmp_path / "journal.log").rename(study[1] / "journal.log")


def test_help_and_dry_run(root):
    done = root.run(HELP)
    for word in (
        "log:1e-4..1e-1",
        "64,128,256",
        "--trials",
        "--at_once",
        "--sampler",
        "--pruner",
        "python run.py resume lr",
    ):
        assert word in done.stdout
    done = root.run(DRY_RUN)
    assert "#SBATCH --array=0-5%4\n" in done.stdout and "nothing was submitted" in done.stdout
    assert not (root.folder / "logs/dropout").exists()


def test_nothing_that_describes_imports_torch_or_optuna(root):
    code = "import sys, runpy; sys.argv = {!r}; runpy.run_path('run.py', run_name='__main__')"
    for argv in (["run.py", "list"], ["run.py", "--dry_run"]):
        done = root.shell(
            f"python -c \"{code.format(argv)}; print(sorted({{'torch', 'optuna'}} & set(sys.modules)))\"", True
        )
        assert done.stdout.splitlines()[-1] == "[]", done.stdout + done.stderr


# ---- on the practice cluster


def log_of(run: Path, rank: int = 0) -> str:
    """Of all jobs that have worked on the run, in their order."""
    logs = run.glob(f"*_{rank}_log.out")
    return "".join(path.read_text() for path in sorted(logs, key=lambda path: int(path.name.split("_")[0])))


@pytest.mark.campaign
def test_search_on_a_cluster_where_jobs_are_killed_and_a_node_crashes(tmp_path, own_cluster):
    """Twelve trials, one on each node. One is killed, one preempted, a node crashes: twelve finish, none twice."""
    root, cluster = make_root(tmp_path), own_cluster
    study = root.folder / "logs/lr"
    # The pruner would make it depend on who is first how many trials are pruned.
    flags = (
        "--pruner none --partition low --mem 8000M --max_epochs 2 --limit_train_batches 20 --limit_val_batches 4 "
        "--checkpoint_every 5 --callbacks+=src.callbacks.for_tests.Slow --callbacks.seconds 0.5"
    )
    done = cluster.run(f"{SEARCH} {flags}", root.folder, timeout=300, check=True)
    assert "12 jobs, 4 at the same time" in done.stdout
    first = [study / str(number) for number in range(4)]
    until(lambda: all(list(run.glob("checkpoints/step=*")) for run in first), 300)
    queue = cluster.run("squeue --noheader --array --states=R --format='%i %N'", "/", check=True).stdout
    nodes = dict(line.split() for line in queue.splitlines())
    assert sorted(nodes) == ["1_0", "1_1", "1_2", "1_3"]  # not more at once than that
    assert len(set(nodes.values())) == 4

    cluster.run(KILL, "/", check=True)  # trial 0
    urgent = f"sbatch --partition=urgent --nodelist={nodes['1_1']} --exclusive --output=/dev/null --wrap='sleep 1'"
    cluster.run(urgent, "/", check=True)  # in place of trial 1
    assert cluster.cluster_py(*CRASH.split()[2:-1], nodes["1_2"]).returncode == 0  # below trial 2
    until(lambda: "1_2 R" not in cluster.run("squeue --noheader --array --format='%i %t'", "/").stdout)
    assert cluster.cluster_py(*BOOT.split()[2:-1], nodes["1_2"]).returncode == 0
    assert cluster.wait("1", 600) == "CANCELLED"  # trial 0: all others have ended well
    states = {row["JobID"]: row["State"].split()[0] for row in cluster.sacct("1", "JobID,State")}
    assert states == {"1_0": "CANCELLED"} | {f"1_{number}": "COMPLETED" for number in range(1, 12)}
    shown = cluster.run(SHOW, root.folder, check=True).stdout
    assert "12 trials: 1 broken off, 11 complete" in shown

    done = cluster.run(RESUME, root.folder, timeout=300, check=True)
    assert "1 job, 1 at the same time" in done.stdout
    again = max(int(path.name.split("_")[0]) for path in study.glob("*_submission.sh"))
    assert "12 trials" in cluster.run(RESUME, root.folder, check=True).stdout  # it runs: there is nothing to start
    assert cluster.wait(again, 300) == "COMPLETED"
    assert len(list(study.glob("*_submission.sh"))) == 2

    assert [row["state"] for row in rows_of(study)] == ["complete"] * 12  # the last trial has written the table
    assert [row["trial"] for row in rows_of(study)] == [str(number) for number in range(12)]
    assert all(row["validations"] == "2" for row in rows_of(study))
    assert (study / "study.png").exists()
    lines = journal(study)
    assert sum(line["op_code"] == 4 for line in lines) == 12  # made
    ends = sorted(line["trial_id"] for line in lines if line["op_code"] == 6 and line["state"] == 1)
    assert ends == list(range(12))  # each is complete once
    assert sorted(int(path.name) for path in study.iterdir() if path.is_dir()) == list(range(12))
    attempts = {}
    for number in range(12):
        log = log_of(study / str(number))
        assert log.count("INFO    rank 0 train: the network") == 1, log  # begun at step 0 once
        attempts[number] = 1 + log.count("INFO    rank 0 train: going on from")
        assert len(weights(log)) == 1 and f"trial {number} is complete" in log
        assert trained_steps(study / str(number)) == [19, 39]
        reported = re.findall(r"epoch: (\d+)/02 +(training .*)$", log, re.MULTILINE)
        assert len(set(reported)) == 2, log
    assert attempts == {0: 2, 1: 2, 2: 2} | dict.fromkeys(range(3, 12), 1)

    best = re.search(r"repeat (lr/(\d+))", cluster.run(SHOW, root.folder, check=True).stdout)
    repeated = cluster.run(f"{REPEAT.replace('lr/BEST', best[1])} --callbacks=[]", root.folder, timeout=300, check=True)
    job = re.search(r"^run (\d+) ", repeated.stdout, re.MULTILINE)[1]
    assert cluster.wait(job) == "COMPLETED"
    assert weights(log_of(root.folder / "logs" / job)) == weights(log_of(study / best[2]))


@pytest.mark.campaign
def test_several_processes_prune_together(tmp_path, cluster):
    """Trials of two processes on two nodes; the last is pruned, by both at the same step."""
    root = make_root(tmp_path)
    grid = "--sampler grid --pruner median --search.optimizer.lr 1e-3,2e-3,3e-3,4e-3,5e-3,1e-7 --at_once 1"
    flags = "--nodes 2 --cpus_per_task 1 --limit_train_batches 12 --limit_val_batches 4 --max_epochs 2"
    done = cluster.run(f"python run.py search --name pair {grid} {flags}", root.folder, timeout=300, check=True)
    assert "6 jobs, 1 at the same time" in done.stdout
    study = root.folder / "logs/pair"
    [job] = [path.name.split("_")[0] for path in study.glob("*_submission.sh")]
    assert cluster.wait(job, 400) == "COMPLETED"
    assert [row["state"] for row in rows_of(study)] == ["complete"] * 5 + ["pruned"]
    for number in range(6):
        checksums = [weights(log_of(study / str(number), rank)) for rank in range(2)]
        assert len(checksums[0]) == 1 and checksums[0] == checksums[1]
    checkpoints = [path.name for path in (study / "5/checkpoints").glob("step=*")]
    assert checkpoints == ["step=00000012.ckpt"]


@pytest.mark.slow
def test_study_that_slurm_does_not_take(tmp_path, cluster):
    """It is there, and can be gone on with; and cancel ends its jobs."""
    root = make_root(tmp_path)
    search = "python run.py search --name lr --search.seed 1..99 --trials 3 --at_once 1 --cpus_per_task 1"
    done = cluster.run(f"{search} --partition nowhere", root.folder, timeout=300)
    assert "Slurm did not take the jobs" in done.stderr and "python run.py resume lr" in done.stderr
    assert "Traceback" not in done.stderr
    done = cluster.run(f"{RESUME} --partition cpu", root.folder, timeout=300, check=True)
    assert "3 jobs, 1 at the same time" in done.stdout
    cluster.run("python run.py cancel lr", root.folder, check=True)
    until(lambda: "lr" not in cluster.run("squeue --noheader --format=%j", "/").stdout)
    assert "complete" not in cluster.run(SHOW, root.folder, check=True).stdout

    # Trials that were cancelled while they waited resume, those of a whole array too: sacct knows little of them.
    for cancel in ("scancel {0}_2; scancel {0}_0; scancel {0}_1", "scancel {0}"):
        done = cluster.run(f"{RESUME} --partition cpu", root.folder, timeout=300, check=True)
        assert "3 jobs, 1 at the same time" in done.stdout
        job = json.loads((root.folder / "logs/lr/2/run.json").read_text())["submissions"][-1]["id"].partition("_")[0]
        cluster.run(cancel.format(job), "/", check=True)
        until(lambda: "lr" not in cluster.run("squeue --noheader --format=%j", "/").stdout)
    assert "UNKNOWN" not in cluster.run(LIST, root.folder, check=True).stdout
    done = cluster.run(f"{RESUME} --partition cpu", root.folder, timeout=300, check=True)
    assert "3 jobs, 1 at the same time" in done.stdout and not (root.folder / "logs/lr/.starting").exists()
    cluster.run("python run.py cancel lr", root.folder, check=True)
    until(lambda: "lr" not in cluster.run("squeue --noheader --format=%j", "/").stdout)


@pytest.mark.slow
def test_what_is_wrong_with_a_study_is_one_sentence(root, study):
    """An old lock, a damaged study.yaml, trials that never validate."""
    lock = study[1] / "journal.log.lock"
    lock.touch()
    shown = root.run(SHOW)
    assert shown.returncode == 0 and f"waiting up to 30 s for {lock}" in shown.stderr
    text = (study[1] / "study.yaml").read_text()
    (study[1] / "study.yaml").write_text(text.replace("trials:", "trails:"))
    assert_one_sentence(root.run(SHOW), "study.yaml is no study: trials is missing or wrong")
    (study[1] / "study.yaml").write_text(text)
    assert_one_sentence(root.shell("python run.py search --name .. --search.seed 1,2"), "--name '..'")
    done = root.shell(f"python run.py search --name n --search.seed 1,2 --validate_every 50 --trials 1 {QUICKER}")
    assert "trial 0 ended without a validation, so there is no val/accuracy: lower --validate_every" in done.stdout

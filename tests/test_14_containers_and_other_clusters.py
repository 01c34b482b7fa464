"""Lesson 14: the same training in a container, on other clusters, by other launchers."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from lesson import REPOSITORY, SLOW, Root, assert_one_sentence, modules_of, readme_commands, until
from sge import Sge
from training import Training, weights

NAME = "14-containers-and-other-clusters"
CHECK = "python lessons/check.py 14"  # typed in test_exercises.py
STANDINS = f"lessons/{NAME}/standins"

PATH = f"export PATH=$PWD/{STANDINS}:$PATH"
TOUCH = "touch project.sif"
DRY = "python run.py --container project.sif --container_binds [/scratch] --gpus_per_node 2 --dry_run"
SITE = f"RUN_SITE=lessons/{NAME}/site.yaml python run.py --nodes 2 --tasks_per_node 2 --cpus_per_task 1"
USR2 = "scancel --signal=USR2 RUN"
LIST = "python run.py list"
PBS_DRY = "python run.py --cluster pbs --nodes 2 --gpus_per_node 4 --dry_run"
SGE_DRY = "python run.py --cluster sge --nodes 2 --gpus_per_node 4 --dry_run"
PBS = "python run.py --cluster pbs --tasks_per_node 2 --cpus_per_task 1"
CANCEL = "python run.py cancel RUN"
TORCHRUN = "torchrun --nproc_per_node 2 src/train.py fit --run_folder logs/torchrun"
MPIRUN = "mpirun -n 2 python src/train.py fit --run_folder logs/mpirun"
SAGEMAKER = [
    "mkdir -p logs/ml/input/config",
    """echo '{"config": "laptop", "max_epochs": "2"}' > logs/ml/input/config/hyperparameters.json""",
    "SM_PREFIX=logs/ml python src/launch/sagemaker.py",
]
BUILD = [
    'apptainer build --build-arg commit="$(git rev-parse HEAD)" project.sif apptainer.def',
    'docker build --tag project --build-arg COMMIT="$(git rev-parse HEAD)" .',
]

# 28 steps an epoch; dropout draws random numbers in every step; a step takes a while, so that it can be interrupted.
SHORT = "--batch_size 2000 --max_epochs 2 --checkpoint_every 7 --model.dropout 0.2"
SLOWLY = "--callbacks+=slow.Slow --callbacks.seconds"
MPI = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}  # the tests run as root


@pytest.fixture
def root(tmp_path):
    root = Root(NAME, tmp_path)
    (root.folder / "slow.py").write_text(SLOW)  # the root is on PYTHONPATH
    (root.folder / "project.sif").touch()
    return root


@pytest.fixture
def pbs(root, tmp_path):
    """Types a command where qsub is the stand-in's."""

    def type_(command, **options):
        return root.shell(f"{PATH}; {command}", PBS_STANDIN=str(tmp_path / "pbs"), **MPI, **options)

    return type_


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The checksum of the weights that SHORT leads to, by the number of processes; nobody stops this training."""
    folder, known = tmp_path_factory.mktemp("alone"), {}

    def checksum(processes):
        if processes not in known:
            training = Training(folder / str(processes), f"{SHORT} --threads 1", processes=processes)
            known[processes] = weights(training.ends_well())
        return known[processes]

    return checksum


def text(path):
    return path.read_text() if path.exists() else ""


def checksum_in(*logs):
    """That all processes have logged."""
    [found] = {found for log in logs for found in re.findall(r"the weights are (\w{16})$", log, re.MULTILINE)}
    return found


def run_of(root, done):
    """The folder of the run that a command has started."""
    assert done.returncode == 0, done.stdout + done.stderr
    return root.folder / "logs" / re.search(r"^run (\S+) ", done.stdout, re.MULTILINE)[1]


def state_of(shown, run):
    return re.search(rf"^{run.name} +(\S+)", shown.stdout, re.MULTILINE)[1]


def test_every_command_of_the_readme_is_tested_here():
    known = [BUILD[0], PATH, TOUCH, DRY, SITE, USR2, LIST, PBS_DRY, SGE_DRY, PBS, CANCEL, TORCHRUN, MPIRUN]
    assert readme_commands(REPOSITORY / "lessons" / NAME) == [*known, *SAGEMAKER, BUILD[1], CHECK]


# Containers


def submit(root, cluster, command, flags):
    return run_of(root, cluster.run(f"{PATH}; {command} {flags}", root.folder, timeout=300))


def log_of(run, rank=0):
    return text(run / f"{run.name}_{rank}_log.out")


@pytest.mark.campaign
def test_a_job_in_a_container_is_requeued_from_outside(root, cluster, alone):
    """Inside there is no scontrol, and nothing of the disk but what is bound. Four processes on two nodes."""
    run = submit(root, cluster, SITE, f"{SHORT} {SLOWLY} 0.3")
    until(lambda: "epoch: 01/02" in log_of(run))
    cluster.run(USR2.replace("RUN", run.name), "/", check=True)
    assert cluster.wait(run.name) == "COMPLETED", log_of(run)
    assert [row["State"] for row in cluster.sacct(run.name, "State", "-X -D")] == ["REQUEUED", "COMPLETED"]
    log = log_of(run)
    assert f"Asked for job {run.name} to be queued again (99 remaining timeouts)" in log
    assert log.count("going on from") == 1 and log.count("epoch: 01/02") == log.count("epoch: 02/02") == 1
    assert checksum_in(*(log_of(run, rank) for rank in range(4))) == alone(4)
    assert not (run / ".requeue").exists()


@pytest.mark.slow
def test_a_job_in_a_container_that_fails_has_failed(root, cluster):
    run = submit(root, cluster, SITE, f"--nodes 1 --tasks_per_node 1 {SHORT} --optimizer.lr 1e30")
    assert cluster.wait(run.name) == "FAILED"
    assert "is not finite" in log_of(run) + text(run / f"{run.name}_0_log.err")


@pytest.mark.slow
def test_a_job_in_a_container_that_may_not_be_queued_again_has_failed(root, cluster):
    run = submit(root, cluster, SITE, f"--nodes 1 --tasks_per_node 1 --requeues 0 {SHORT} {SLOWLY} 0.3")
    until(lambda: "epoch: 01/02" in log_of(run))
    cluster.run(USR2.replace("RUN", run.name), "/", check=True)
    assert cluster.wait(run.name) == "FAILED"
    assert "timed-out too many times" in log_of(run)


def test_the_script_shows_the_container(root):
    done = root.shell(f"{PATH}; {DRY}")
    assert done.returncode == 0, done.stdout + done.stderr
    line = re.search(r"^srun .*$", done.stdout, re.MULTILINE)[0]
    binds = re.search(r" apptainer exec --nv --bind (\S+) --env=PYTHONNOUSERSITE=1 ", line)[1].split(",")
    assert sorted(binds) == sorted([str(root.folder), str(REPOSITORY / "data"), f"{root.folder}/logs", "/scratch"])
    assert f" {root.folder}/project.sif python -u -m submitit.core._submit " in line
    assert "it leaves a note that it wants to be queued again" in done.stdout
    assert "WARNING  --container_binds /scratch: there is no such folder here" in done.stdout
    data = root.shell(f"{PATH}; {DRY} --data_dir ../mine --container_program /opt/apptainer").stdout
    assert f",/scratch,{root.folder.parent}/mine --env" in data and "/opt/apptainer exec --nv" in data
    assert "needs /opt/apptainer, which is not found here: this Python checks" in data


def test_what_is_wrong_is_one_sentence(root):
    for flags, words in [
        ("--container_env [A]", ["--container_env 'A' is not NAME=VALUE"]),
        ("--container none.sif --cluster local", ["none.sif", "there is no such image"]),
        ("--mpirun 'aprun {cores}'", ["may name {nodes}, {tasks_per_node}, {cpus_per_task}, {processes}, {hostfile}"]),
        ("--directives '[-l rt_F=2]' --cluster local", ["--directives are for --cluster slurm, pbs and sge"]),
    ]:
        assert_one_sentence(root.shell(f"python run.py {flags}"), *words)
    command = [sys.executable, "run.py", "--cluster", "pbs"]
    done = subprocess.run(command, cwd=root.folder, env={"PATH": "/nowhere"}, capture_output=True, text=True)
    assert_one_sentence(done, "--cluster pbs needs qsub, which is not found here")


# What an image is made of


def sources(file):
    """What is copied into the image, of what is where."""
    if file == "Dockerfile":
        lines = re.findall(r"^COPY (.*) \./(\S*)$", (REPOSITORY / file).read_text(), re.MULTILINE)
        return {source: target for sources, target in lines for source in sources.split()}
    files = re.search(r"^%files\n((?: +\S+ \S+\n)+)", (REPOSITORY / file).read_text(), re.MULTILINE)[1]
    return dict(line.split() for line in files.splitlines())


def test_both_images_hold_the_code_and_nothing_else():
    held = {"requirements.txt", "run.py", "src", "data/get_data.py", "data/colour_mnist.py"}
    for file in ("Dockerfile", "apptainer.def"):
        assert set(sources(file)) == held
    allowed = [line[1:] for line in (REPOSITORY / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    assert set(allowed) == held
    bases = {
        re.search(r"(?:FROM|From:) (\S+)", (REPOSITORY / file).read_text())[1]
        for file in ("Dockerfile", "apptainer.def")
    }
    assert bases == {"python:3.12-slim-bookworm"}


@pytest.mark.slow
def test_the_code_of_an_image_trains_without_the_repository(tmp_path):
    """What the images copy, elsewhere, started as they start it."""
    for source, target in sources("apptainer.def").items():
        path = tmp_path / target.lstrip("/")
        path.parent.mkdir(parents=True, exist_ok=True)
        copy = shutil.copytree if (REPOSITORY / source).is_dir() else shutil.copy
        copy(REPOSITORY / source, path)
    train = [sys.executable, tmp_path / "opt/project/src/train.py", "fit", "--smoke=true"]
    flags = ["--data_dir", REPOSITORY / "data", "--run_folder", tmp_path / "a"]
    done = subprocess.run([*train, *flags], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0 and "the weights are" in done.stdout + done.stderr


# The tools are installed by .ci/run


@pytest.mark.slow
def test_hadolint_has_nothing_to_say():
    done = subprocess.run(["hadolint", REPOSITORY / "Dockerfile"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.slow
def test_shellcheck_has_nothing_to_say(root):
    for command in [DRY, PBS_DRY, SGE_DRY, f"{PBS_DRY} --container project.sif", "python run.py --dry_run"]:
        script = root.shell(f"{PATH}; {command}").stdout.partition("\nThe checks:")[0]
        done = subprocess.run(["shellcheck", "-"], input=script, capture_output=True, text=True)
        assert (done.returncode, done.stdout) == (0, ""), command
    post = re.search(r"^%post\n((?: .*\n)+)", (REPOSITORY / "apptainer.def").read_text(), re.MULTILINE)[1]
    done = subprocess.run(["shellcheck", "--shell=sh", "-"], input=post, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")


# PBS and SGE


def test_the_scripts_for_pbs_and_sge_are_complete_and_explained(root):
    more = "--account mine --partition fast --modules [gcc] --setup '[ulimit -n 9999]' --directives '[-l site=1]'"
    heads = {
        PBS_DRY: ["#PBS -N fit", "#PBS -l select=2:ncpus=8:mpiprocs=4:ngpus=4:mem=4096mb", "#PBS -l walltime=26:00:00",
                  "#PBS -q fast", "#PBS -A mine", "#PBS -r y", "#PBS -l site=1"],
        SGE_DRY: ["#$ -N fit", "#$ -pe mpi 16", "#$ -l h_rt=26:00:00", "#$ -l mem_free=4G", "#$ -l gpu=4",
                  "#$ -q fast", "#$ -P mine", "#$ -r y", "#$ -l site=1"],
    }  # fmt: skip
    for command, head in heads.items():
        done = root.shell(f"{command} --time 1-02:00:00 {more}")
        assert done.returncode == 0, done.stdout + done.stderr
        lines = done.stdout.partition("\nThe checks:")[0].splitlines()
        assert set(head) <= set(lines) and "module load gcc" in lines and "ulimit -n 9999" in lines
        for before, line in zip(lines, lines[1:], strict=False):
            if line.startswith(("#PBS", "#$")):
                assert before.startswith("# "), line
        train = next(line for line in lines if "mpirun" in line)
        assert train.startswith('timeout --preserve-status --signal=USR1 93510 mpirun -n 8 --hostfile "$hostfile" env')
        assert lines[-1] == 'exit "$code"'
    aprun = root.shell(f"{PBS_DRY} --mpirun 'aprun -n {{processes}} -N {{tasks_per_node}}'").stdout
    assert " aprun -n 8 -N 4 env MASTER_ADDR=" in aprun
    assert not (root.folder / "logs").exists()


@pytest.mark.parametrize(
    "mpirun", [pytest.param("mpirun", marks=pytest.mark.slow), pytest.param("mpirun.mpich", marks=pytest.mark.campaign)]
)
def test_pbs_time_is_up_requeued_and_cancelled_while_pending(root, pbs, alone, mpirun):
    line = f"--mpirun '{mpirun} -n {{processes}} --hostfile {{hostfile}}'"
    run = run_of(root, pbs(f"{PBS} {SHORT} {SLOWLY} 0.5 {line}"))  # it still runs when the other has been submitted
    second = run_of(root, pbs(f"{PBS} {SHORT} --name second"))
    shown = pbs(LIST)
    assert (state_of(shown, run), state_of(shown, second)) == ("RUNNING", "PENDING")
    assert pbs(CANCEL.replace("RUN", second.name)).stdout == f"cancelled {second.name}, which was PENDING\n"
    until(lambda: "epoch: 01/02" in text(run / "log.out"))
    first = text(run / "job_id").strip()
    session = text(Path(run.parents[2] / "pbs" / first / "pid"))
    # What `timeout` of the script sends when the time is up.
    subprocess.run(["pkill", "-USR1", "--session", session, mpirun], check=True)
    until(lambda: text(run / "exit_code"))
    assert text(run / "exit_code") == "0\n", text(run / "log.out")
    log = text(run / "log.out")
    assert "SIGUSR1: saving at step" in log and log.count("going on from") == 1
    assert checksum_in(log) == alone(2)  # that of torchrun, too: see test_train.py
    assert text(run / "job_id").strip() != first and len(text(run / "attempts").split()) == 2
    shown = pbs(LIST)
    assert (state_of(shown, run), state_of(shown, second)) == ("COMPLETED", "CANCELLED")
    assert not text(second / "log.out")
    assert "epoch: 02/02" in pbs(f"python run.py log {run.name}").stdout


@pytest.mark.campaign
def test_pbs_at_the_real_time_limit_and_a_failure(root, pbs, alone):
    """timeout of the script sends the signal: 30 s before the end of these 90 s."""
    run = run_of(root, pbs(f"{PBS} {SHORT} {SLOWLY} 1.2 --time 00:01:30"))
    failing = run_of(root, pbs(f"{PBS} {SHORT} {SLOWLY} -1 --name failing"))  # nobody can sleep for -1 s
    until(lambda: text(run / "exit_code") and text(failing / "exit_code"), 300)
    assert text(run / "exit_code") == "0\n" and len(text(run / "attempts").split()) >= 2
    assert checksum_in(text(run / "log.out")) == alone(2)
    assert text(failing / "exit_code") == "1\n" and state_of(pbs(LIST), failing) == "FAILED"
    [status] = (run.parents[2] / "pbs").glob(f"{text(failing / 'job_id').strip()}/exit_status")
    assert status.read_text() == "1"  # what PBS sees
    resumed = pbs(f"python run.py resume {failing.name} --callbacks=[]")
    assert resumed.returncode == 0, resumed.stderr
    until(lambda: text(failing / "exit_code") == "0\n")
    assert checksum_in(text(failing / "log.out")) == alone(2)


@pytest.mark.slow
def test_pbs_with_the_container(root, pbs, alone):
    run = run_of(root, pbs(f"{PBS} {SHORT} --container project.sif", real=True))  # what is installed in the image
    until(lambda: text(run / "exit_code"))
    assert text(run / "exit_code") == "0\n" and checksum_in(text(run / "log.out")) == alone(2)


@pytest.mark.slow
def test_on_a_real_grid_engine(root, tmp_path, alone):
    """Its own qsub, qstat, qdel. Time is up, queued again by SGE, a job that fails, one that is cancelled."""
    setup = "--setup '[export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1]'"
    command = f"{PBS.replace('pbs', 'sge')} --cpus_per_task 2 --threads 1 {SHORT} {setup}"  # 4 slots, all there are
    with Sge(tmp_path / "sge") as sge:

        def type_(line):
            return sge.run(line, root.folder)

        run = run_of(root, type_(f"{command} {SLOWLY} 0.5"))  # it still runs when the others have been submitted
        second = run_of(root, type_(f"{command} --name second"))
        failing = run_of(root, type_(f"{command} --optimizer.lr 1e30 --name failing"))
        until(lambda: state_of(type_(LIST), run) == "RUNNING")
        assert state_of(type_(LIST), second) == "PENDING"
        assert type_(CANCEL.replace("RUN", second.name)).returncode == 0
        until(lambda: "epoch: 01/02" in text(run / "log.out"))
        type_("pkill -USR1 mpirun")
        until(lambda: text(run / "exit_code") and text(failing / "exit_code"), 200)

        def codes():  # what SGE sees; it writes its accounting late
            return re.findall(r"exit_status +(\d+)", type_("qacct -j fit; qacct -j failing").stdout)

        until(lambda: len(codes()) == 3)
        assert sorted(codes()) == ["0", "1", "99"]
        shown = type_(LIST)
    log = text(run / "log.out")
    assert text(run / "exit_code") == "0\n" and log.count("going on from") == 1, log
    assert checksum_in(log) == alone(2)
    assert [state_of(shown, one) for one in (run, second, failing)] == ["COMPLETED", "CANCELLED", "FAILED"]
    assert not text(second / "log.out")


@pytest.mark.parametrize(
    "launcher",
    [
        # test_train.py compares these two in the root.
        pytest.param("torchrun --nproc_per_node 2 --", marks=pytest.mark.campaign),
        pytest.param("mpirun -n 2 python", marks=pytest.mark.campaign),
        pytest.param("mpirun.mpich -n 2 python", marks=pytest.mark.slow),
    ],
)
def test_torchrun_open_mpi_and_mpich(tmp_path, alone, launcher, monkeypatch):
    for name, value in MPI.items():
        monkeypatch.setenv(name, value)
    assert TORCHRUN.startswith("torchrun --nproc_per_node 2") and MPIRUN.startswith("mpirun -n 2 python")
    training = Training(tmp_path / "run", f"{SHORT} --threads 1", launcher=launcher).ends_well()
    assert checksum_in(training.output()) == alone(2)
    failing = Training(tmp_path / "failing", f"{SHORT} --optimizer.lr 1e30", launcher=launcher)
    assert failing.wait() == 1


# SageMaker


def make_ml(folder, hosts, current, **hyperparameters):
    (folder / "input/config").mkdir(parents=True)
    (folder / "input/data").mkdir()
    (folder / "input/data/training").symlink_to(REPOSITORY / "data")
    config = folder / "input/config"
    (config / "hyperparameters.json").write_text(json.dumps(hyperparameters))
    (config / "resourceconfig.json").write_text(json.dumps({"hosts": hosts, "current_host": current}))
    return folder


def start_on_sagemaker(ml, name=None):
    log = open(f"{ml}.log", "a")  # noqa: SIM115
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SM_")}
    environment |= {"SM_PREFIX": str(ml), "TRAINING_JOB_NAME": name or str(ml)}
    command = [sys.executable, REPOSITORY / "src/launch/sagemaker.py"]
    return subprocess.Popen(command, env=environment, cwd=ml, stdout=log, stderr=log)


HYPER = {  # as SageMaker's Python package writes them, and plain
    "batch_size": "2000",
    "max_epochs": "2",
    "checkpoint_every": '"7"',
    "model.dropout": "0.2",
    "threads": "1",
    "monitor": "val/loss",  # torchrun has flags that begin so
    "sagemaker_program": '"train.py"',
    "model": '"Classifier"',
}


def test_hyperparameters_are_flags_and_hosts_are_nodes(monkeypatch):
    monkeypatch.setenv("TRAINING_JOB_NAME", "mine")
    with modules_of(REPOSITORY):
        from src.launch.sagemaker import flags_of, torchrun_of
    assert flags_of(HYPER)[-4:] == ["--model.dropout=0.2", "--threads=1", "--monitor=val/loss", "--model=Classifier"]
    assert not any("sagemaker" in flag for flag in flags_of(HYPER))
    assert flags_of({"callbacks": '[{"class_path": "a.B"}]'}) == ['--callbacks=[{"class_path": "a.B"}]']
    second = torchrun_of({"hosts": ["algo-1", "algo-2"], "current_host": "algo-2"}, gpus=8)
    assert second[:4] == ["--nnodes=2", "--node_rank=1", "--nproc_per_node=8", "--master_addr=algo-1"]
    first = torchrun_of({"hosts": ["algo-1", "algo-2"], "current_host": "algo-1"}, gpus=8)
    assert first[1] == "--node_rank=0" and first[4] == second[4]  # where they meet
    monkeypatch.setenv("TRAINING_JOB_NAME", "other")
    assert torchrun_of({}, gpus=0)[:4] == [
        "--nnodes=1",
        "--node_rank=0",
        "--nproc_per_node=1",
        "--master_addr=127.0.0.1",
    ]
    assert torchrun_of({}, gpus=0)[4] != first[4]


@pytest.mark.slow
def test_a_wrong_hyperparameter_is_the_failure_that_sagemaker_shows(tmp_path):
    ml = make_ml(tmp_path / "ml", ["algo-1"], "algo-1", **HYPER, max_epochz="3")
    assert start_on_sagemaker(ml).wait(300) == 2
    [line] = text(ml / "output/failure").splitlines()
    assert "there is no flag --max_epochz=3: did you mean --max_epochs" in line


@pytest.mark.campaign
def test_sagemaker_on_one_host(tmp_path, alone):
    ml = make_ml(tmp_path / "ml", ["algo-1"], "algo-1", **HYPER)
    assert start_on_sagemaker(ml).wait(300) == 0, text(Path(f"{ml}.log"))
    assert checksum_in(text(Path(f"{ml}.log"))) == alone(1)
    assert not (ml / "output/failure").exists()
    assert list((ml / "output/data").glob("events.out.tfevents.*")) and (ml / "checkpoints/checkpoints").is_dir()
    with modules_of(REPOSITORY):
        from src.load import load_run
    assert sum(values.numel() for values in load_run(ml / "model").parameters()) > 100_000


@pytest.mark.slow
def test_the_readmes_way_to_sagemaker(root):
    for command in SAGEMAKER[:2]:
        assert root.run(command).returncode == 0
    done = root.run(SAGEMAKER[2])
    assert done.returncode == 0 and "epoch: 02/02" in done.stdout, done.stdout + done.stderr
    assert {path.name for path in (root.folder / "logs/ml").iterdir()} == {"input", "output", "checkpoints", "model"}


@pytest.mark.campaign
def test_sagemaker_on_two_hosts_interrupted(tmp_path, alone):
    """Each host has a disk of its own; /opt/ml/checkpoints is what S3 would hold."""
    hosts = ["127.0.0.1", "127.0.0.2"]
    slow = HYPER | {"callbacks": '[{"class_path": "slow.Slow", "init_args": {"seconds": 0.2}}]'}
    (tmp_path / "slow.py").write_text(SLOW)
    logs, first = "", []
    for attempt in range(2):
        trees = [make_ml(tmp_path / f"{attempt}-{host}", hosts, host, **slow) for host in hosts]
        for folder in first:
            shutil.copytree(folder / "checkpoints", trees[0] / "checkpoints", dirs_exist_ok=True)
            shutil.copytree(folder / "checkpoints", trees[1] / "checkpoints", dirs_exist_ok=True)
        os.environ["PYTHONPATH"] = str(tmp_path)
        jobs = [start_on_sagemaker(ml, f"{tmp_path} {attempt}") for ml in trees]
        log = Path(f"{trees[0]}.log")
        if attempt == 0:
            until(lambda log=log: "epoch: 01/02" in text(log))
            for job in jobs:
                job.send_signal(signal.SIGTERM)
        codes = [job.wait(300) for job in jobs]
        assert codes == [0, 0] if attempt else 0 not in codes, text(log)
        logs += "".join(text(Path(f"{ml}.log")) for ml in trees)
        first = trees[:1]
    assert "SIGTERM: saving at step" in logs and logs.count("going on from") == 1
    assert checksum_in(logs) == alone(2)
    assert not (tmp_path / f"0-{hosts[0]}/output/failure").exists()

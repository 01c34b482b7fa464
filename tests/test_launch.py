"""run.py and src/launch: describe a job, check it, submit it, look at it, by the commands that a user types."""

import fcntl
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from lesson import REPOSITORY, Lesson, assert_one_sentence, until

# In place of src/train.py: all that run.py needs of it, without torch. --model.seconds 5: train for so long.
STUB = """
import json, os, sys, time
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
from src.launch.ranks import OURS, export_ranks


def prepare(command, argv, run_folder=None):
    config = {}
    words = [word for argument in argv for word in argument.split("=", 1)]
    for name, value in zip(words[::2], words[1::2]):
        name = name[2:]
        if name == "run_folder":
            continue
        if name == "config":
            config |= yaml.safe_load(Path(value).read_text())
        elif "." in name:
            section, key = name.split(".")
            config.setdefault(section, {})[key] = value
        else:
            config[name] = yaml.safe_load(value)
    if config.get("model", {}).get("fails"):
        raise ValueError("the model fails")
    return yaml.safe_dump(config)


def train(command, config_text, folder):
    export_ranks()
    config = yaml.safe_load(config_text)
    rank = os.environ["RANK"]
    seen = {"command": command, "host": os.uname().nodename, "pid": os.getpid()}
    seen |= {name: os.environ[name] for name in OURS}
    (folder / f"rank-{rank}.json").write_text(json.dumps(seen | {"environment": dict(os.environ)}))
    print("epoch: 01/01    training loss: 0.5000", flush=True)
    time.sleep(float(config.get("model", {}).get("seconds", 0)))
    print("the end", flush=True)


if __name__ == "__main__":
    argv = [word for word in sys.argv[2:] if word != "--prepare"]
    try:
        print(prepare(sys.argv[1], argv))
    except ValueError as error:
        sys.exit(str(error))
"""
IDENTITY = "-c user.name=reader -c user.email=reader@example.org"


class Project(Lesson):
    """A copy of the final stage, in git, with a stand-in for src/train.py."""

    def __init__(self, parent: Path, stub: bool = True) -> None:
        self.folder = parent / "project"
        self.logs = self.folder / "logs"
        shutil.copytree(REPOSITORY / "src", self.folder / "src", ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(REPOSITORY / "run.py", self.folder)
        (self.folder / "data").symlink_to(REPOSITORY / "data")
        if stub:
            (self.folder / "src/train.py").write_text(STUB)
            (self.folder / "src/presets").mkdir(exist_ok=True)
            (self.folder / "src/presets/laptop.yaml").write_text("max_epochs: 3\njob: {mem: 2G}\n")
        (self.folder / ".gitignore").write_text("logs/\n__pycache__/\n/data\n")
        done = self.shell(f"git init -q && git add . && git {IDENTITY} commit -qm first")
        assert done.returncode == 0, done.stderr

    def dry_run(self, flags: str = "", **environment: str) -> list[str]:
        """The lines that --dry_run prints."""
        done = self.shell(f"python run.py {flags} --dry_run", **environment)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout.splitlines()


def run_of(done: subprocess.CompletedProcess) -> str:
    """The run's name, as run.py printed it."""
    assert done.returncode == 0, done.stdout + done.stderr
    return re.search(r"^run (\S+) ", done.stdout, re.MULTILINE)[1]


def rows_of(done: subprocess.CompletedProcess) -> dict[str, dict[str, str]]:
    """The table of `run.py list`: run -> its columns."""
    assert done.returncode == 0, done.stdout + done.stderr
    head, *lines = done.stdout.split("\n\n")[0].splitlines()
    names = head.split()
    return {line.split()[0]: dict(zip(names, re.split(" {2,}", line), strict=False)) for line in lines}


def ranks_of(folder: Path) -> list[dict[str, str]]:
    return [json.loads(path.read_text()) for path in sorted(folder.glob("rank-*.json"))]


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    return Project(tmp_path_factory.mktemp("launch"))


@pytest.fixture
def own(tmp_path):
    """A project that the test may change."""
    return Project(tmp_path)


# What needs no Slurm


@pytest.mark.parametrize("flags", ["--help", "--nodes 2 --dry_run", "list"])
def test_describing_a_job_is_instant_and_imports_no_torch(project, flags):
    done = project.shell(f"python -X importtime run.py {flags}")
    assert done.returncode == 0, done.stderr
    imported = {line.split("|")[-1].strip() for line in done.stderr.splitlines() if line.startswith("import time:")}
    assert "submitit" in imported
    assert not imported & {"torch", "lightning", "numpy", "torchvision"}


def test_help_names_every_flag_with_its_default(project):
    text = project.shell("python run.py --help").stdout
    for words in ("--nodes", "--cpus_per_task", "--batch_size", "--precision", "--config", "--dry_run", "resume RUN"):
        assert words in text
    assert "limit, HH:MM:SS or D-HH:MM:SS" in " ".join(text.split())


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("--cluster local --tasks_per_node 2 --batch_size 63", ["--batch_size 63", "2 processes", "62 or 64"]),
        ("--cluster slurm --nodes 2 --tasks_per_node 3 --batch_size 4", ["--batch_size 4", "6 processes", "are 6"]),
        ("--gpus_per_node 4 --tasks_per_node 2", ["--tasks_per_node 2", "--gpus_per_node 4", "leave"]),
        ("--cluster debug --tasks_per_node 2", ["--cluster debug", "one process, not 2", "--cluster local"]),
        ("--nodes 2 --cluster local", ["--nodes 2", "needs Slurm", "--cluster local"]),
        ("--precision 16-mixed", ["16-mixed", "--gpus_per_node", "bf16-mixed"]),
        ("--accelerator gpu", ["--accelerator gpu", "--gpus_per_node"]),
        ("--precision 16", ["--precision 16 ", "one of 32, 16-mixed, bf16-mixed"]),
        ("--num_workers 3", ["--num_workers 3", "--cpus_per_task 2"]),
        ("--tasks_per_node 0", ["--tasks_per_node 0", "a whole number above 0"]),
        ("--nodes two", ["--nodes two", "a whole number above 0"]),
        ("--nodes", ["--nodes needs a value", "a whole number above 0"]),
        ("--nodes --dry_run", ["--nodes needs a value"]),
        ("--mem 4000", ["--mem '4000'", "500M or 4G"]),
        ("--mem 4GB", ["--mem '4GB'"]),
        ("--time 30", ["--time '30'", "HH:MM:SS"]),
        ("--time 00:00:00", ["--time '00:00:00'"]),
        ("--name a/b", ["--name 'a/b'"]),
        ("--name ..", ["--name '..'"]),
        ("--name -x", ["--name '-x'"]),
        (f"--name {'a' * 300}", ["(300 characters) is too long: at most 100"]),
        (f"--log_path {'a' * 300}", ["--log_path aaa", "File name too long"]),
        ("--log_path a%j", ["a%j holds %", "name another"]),
        ("--log_path ~nobodyhere/logs", ["--log_path ~nobodyhere/logs", "no such user"]),
        ("--config ~nobodyhere/x", ["--config ~nobodyhere/x", "no such user"]),
        ("test ~nobodyhere", ["~nobodyhere", "no such user"]),
        (f"resume {'a' * 300}", ["aaa", "File name too long"]),
        (f"--container ~nobodyhere/{'a' * 300}", ["--container", "no such user"]),
        ("--log_path=", ["--log_path needs a value"]),
        ("--cluster pbs --log_path '/tmp/a b'", ["/tmp/a b holds ' '", "--cluster pbs"]),
        ("--cluster sge --log_path '/tmp/a:b'", ["/tmp/a:b", "--cluster sge"]),
        ("--cluster pbs --partition 'a b'", ["--partition 'a b'"]),
        ("--cluster sge --parallel_environment 'a\"b'", ["--parallel_environment"]),
        ("--partition $'a\\ntouch /tmp/x'", ["--partition", "line breaks"]),
        ("--setup $'[\"a\\\\nb\"]' ", ["--setup", "line breaks"]),
        ("--modules '[gcc cuda]'", ["--modules 'gcc cuda'", "separate them"]),
        ("--nodes 1_000", ["--nodes 1_000", "a whole number above 0"]),
        ("--gradient_clip inf", ["--gradient_clip inf", "finite"]),
        ("--seed 4294967296", ["--seed 4294967296", "4294967295"]),
        ("--seed -1", ["--seed -1", "0 or more"]),
        ("--monitor null", ["--monitor null"]),
        ("--setup '[export WANDB_API_KEY=abc]'", ["value of WANDB_API_KEY", "cat FILE"]),
        ("--container_env '[DB_PASSWORD=abc]'", ["value of DB_PASSWORD", "APPTAINERENV_DB_PASSWORD"]),
        ("--mpirun 'mpirun {processes!r:>999999999}'", ["--mpirun", "{processes}"]),
        ("list --log_path", ["--log_path needs a value"]),
        ("list --log_path=", ["--log_path needs a value"]),
        ("list --log_path run.py", ["run.py", "no such folder"]),
        ("list --log_path nowhere", ["nowhere", "no such folder"]),
        ("list --log_path ~nobodyhere", ["~nobodyhere", "no such user"]),
        ("--fast_dev_run maybe", ["'maybe' is not expected"]),
        ("--cluster lsf", ["--cluster lsf", "one of auto, slurm, local, debug, pbs, sge"]),
        ("--node 2", ["no flag --node", "--nodes"]),
        ("--max-epochs 2", ["no flag --max-epochs", "--max_epochs"]),
        ("--optimiser.lr 2", ["no flag --optimiser.lr", "--optimizer.lr"]),
        ("--zzz 2", ["no flag --zzz", "--help"]),
        ("extra", ["no command extra", "fit, validate"]),
        ("tets", ["no command tets", "test"]),
        ("fit extra", ["fit takes no run", "resume extra"]),
        ("test nowhere", ["no run nowhere", "python run.py list"]),
        ("resume", ["resume which run?"]),
        ("resume nowhere", ["no run nowhere"]),
        ("log", ["log takes one run"]),
        ("test --ckpt best", ["test which run?", "python run.py list"]),
        ("--config nowhere", ["--config nowhere", "no such file", "laptop"]),
        ("--cluster local --container image.sif", ["image.sif", "no such image"]),
        ("--log_path /proc/none", ["cannot write to /proc/none", "--log_path"]),
        ("--overfit_batches 2 --limit_val_batches 1", ["--overfit_batches sets both limits"]),
        ("--cluster local --model.fails true", ["the model fails"]),
        ("--config /etc", ["--config /etc", "no such file"]),
        ("--cluster debug --model.fails true", ["the model fails"]),
    ],
)
def test_a_mistake_is_one_sentence(project, flags, words):
    before = set(project.folder.glob("logs/*"))
    assert_one_sentence(project.shell(f"python run.py {flags}"), *words)
    assert set(project.folder.glob("logs/*")) == before


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("max_epohs: 3", ["no max_epohs", "max_epochs"]),
        ("nodes: 3", ["nodes belongs under job:"]),
        ("job: {node: 3}", ["no job: node", "nodes"]),
        ("job: {nodes: none}", ["nodes: none", "a whole number above 0"]),
        ("job: 3", ["job: has to hold"]),
        ("batch_size: big", ["batch_size: big", "a whole number above 0"]),
        ("[1, 2]", ["has to hold lines"]),
        ("a: [1", ["is not YAML", "line"]),
        ("seed: 1\nseed: 2", ["the key seed is there twice in line 2"]),
        ("model: {a: 1,\n  a: 2}", ["the key a is there twice in line 2"]),
        ("model: &a {init_args: *a}", ["a value contains itself in line 1"]),
        ("seed: 1\n---\nseed: 2", ["several documents", "line 2"]),
        ("model: " + "[" * 700 + "]" * 700, ["more than 100 levels", "line 1"]),
        ("seed: " + "9" * 5000, ["more than 100 digits", "line 1"]),
        ("seed: 1_000", ["seed: 1_000", "a whole number, 0 or more"]),
        ("seed: 4294967296", ["--seed 4294967296 is too large", "4294967295"]),
        ("gradient_clip: 1e400", ["--gradient_clip inf", "finite"]),
        ("job: {partition: 7}", ["partition: 7 is not a text"]),
        ("data_dir: ~nobodyhere/x", ["--data_dir ~nobodyhere/x", "no such user"]),
    ],
)
def test_a_mistake_in_a_file_is_one_sentence(project, tmp_path, text, words):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    place = "" if words[0].startswith("--") else str(path)
    assert_one_sentence(project.shell(f"python run.py --config {path}"), place, *words)
    if text.startswith("a"):
        assert_one_sentence(project.shell("python run.py", RUN_SITE=str(path)), str(path), *words)


def test_the_later_wins(project, tmp_path):
    """Defaults, site.yaml, config files in their order, flags."""
    (tmp_path / "site.yaml").write_text("partition: site\naccount: site\nmem: 1G\ntime: 10:00:00\nwckey: site\n")
    (tmp_path / "a.yaml").write_text("job: {account: a, mem: 3G, qos: a}\nbatch_size: 512\n")
    (tmp_path / "b.yaml").write_text("job: {mem: 5G}\nmodel: {hidden: 3}\n")
    site = {"RUN_SITE": str(tmp_path / "site.yaml")}
    lines = project.dry_run(f"--config {tmp_path}/a.yaml --mem 6G --config={tmp_path}/b.yaml", **site)
    for line in ("partition=site", "account=a", "qos=a", "mem=6G", "time=600", "wckey=site", "nodes=1"):
        assert f"#SBATCH --{line}" in lines
    assert any("--batch_size 512" in line for line in lines)
    lines = project.dry_run(f"--config {tmp_path}/a.yaml --config {tmp_path}/b.yaml")
    assert "#SBATCH --mem=5G" in lines
    assert not any("--wckey" in line or "--partition" in line for line in lines)
    assert "#SBATCH --mem=2G" in project.dry_run("--config laptop")  # a preset
    assert_one_sentence(project.shell("python run.py", RUN_SITE="/nowhere"), "RUN_SITE", "/nowhere")


def test_the_dry_run_explains_every_line(project):
    flags = (
        "--nodes 2 --gpus_per_node 4 --partition gpu --qos high --constraint a100 --account me --wckey w"
        " --precision bf16-mixed --modules '[gcc/12, cuda/12]' --setup '[ulimit -n 4096]'"
    )
    script, checks = "\n".join(project.dry_run(flags)).split("\n\nThe checks:\n")
    lines = script.splitlines()
    for line in (
        "nodes=2",
        "ntasks-per-node=4",
        "gpus-per-node=4",
        "partition=gpu",
        "requeue",
        "begin=now+60",
        "wckey=w",
    ):
        assert f"#SBATCH --{line}" in lines
    for line in ("module load gcc/12", "module load cuda/12", "ulimit -n 4096"):
        assert line in lines
    assert "export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK" in lines
    assert "--kill-on-bad-exit=1" in lines[-1] and f"{project.logs}/%j" in lines[-1]
    for above, line in zip(["", *lines], lines, strict=False):
        if line and not (line.startswith("#") and not line.startswith("#SBATCH")):
            assert above.startswith("# "), f"no word about {line}"
    assert "2 x 4 = 8 processes" in checks and "nothing was submitted" in checks
    assert not project.logs.exists() or not any(project.logs.glob("%j"))


@pytest.mark.parametrize(
    ("flags", "content"),
    [
        ("--data mine.Tones", ""),
        ("--data.class_path mine.Tones", ""),
        ("", "data: mine.Tones"),
        ("", "data: {class_path: mine.Tones, init_args: {batch_size: 6}}"),
        ("--data mine.Tones", "data: {class_path: src.datasets.mnist.MNIST}"),
    ],
)
def test_the_dry_run_says_whose_batch_size_it_is(project, tmp_path, flags, content):
    """Data modules of the user have loaders whose batch size is that of one process. Ours divide the global batch."""
    (tmp_path / "mine.yaml").write_text(content)
    job = f"--nodes 2 --tasks_per_node 2 --config {tmp_path}/mine.yaml"
    own = "ok       the batch size of Tones is per process: the global batch is 4 times as large"
    assert own in project.dry_run(f"{job} {flags}")
    ours = "ok       --batch_size 64 is 16 for each process"
    assert ours in project.dry_run(f"{job} --data src.datasets.mnist.MNIST")


def test_the_dry_run_shows_what_is_wrong(project):
    done = project.shell(
        "python run.py --dry_run --num_workers 3 --tasks_per_node 3 --mem 2G --time 00:01:00",
        SLURM_JOB_ID="1",
        SLURM_NTASKS="3",
        SBATCH_PARTITION="x",
    )
    assert done.returncode == 1 and "#SBATCH --mem=2G" in done.stdout
    for start, words in [
        ("ERROR", "--num_workers 3 is more than"),
        ("ERROR", "--batch_size 64 cannot be divided among 3"),
        ("WARNING", "682 MB for each of its 3"),
        ("WARNING", "--time 00:01:00 is 1 minutes"),
        ("WARNING", "SBATCH_PARTITION in your environment"),
        ("ok", "no container"),
    ]:
        assert re.search(rf"^{start} +.*{re.escape(words)}", done.stdout, re.MULTILINE), words
    assert "in a job of its own" in "\n".join(project.dry_run(SLURM_JOB_ID="1"))
    container = project.shell("python run.py --dry_run --gpus_per_node 1 --container docker://image").stdout
    assert "apptainer exec --nv --bind" in container and " docker://image python -u -m submitit" in container
    assert "needs apptainer" in container


def test_debug_trains_in_this_process_and_leaves_a_record(own):
    strays = {"SLURM_JOB_ID": "1", "SLURM_NTASKS": "4", "SLURM_PROCID": "0", "RANK": "3", "MASTER_PORT": "1"}
    (own.folder / "src/settings.py").open("a").write("# changed\n")
    (own.folder / "new.py").write_text("print(1)\n")
    (own.folder / "ödd name.py").write_text("print(2)\n")
    (own.folder / ".env").write_text("PASSWORD=swordfish\n")
    (own.folder / "tokens.yaml").write_text("key: swordfish\n")
    (own.folder / "big.py").write_text("#" * 200_000)
    done = own.shell("python run.py --cluster debug --max_epochs 2 --name first", **strays, MY_KEY="swordfish")
    name = run_of(done)
    assert re.fullmatch(r"\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d_first", name)
    folder = own.logs / name
    [rank] = ranks_of(folder)
    assert (rank["RANK"], rank["WORLD_SIZE"], rank["LOCAL_RANK"]) == ("0", "1", "0")
    assert "SLURM_JOB_ID" not in rank["environment"]
    config = (folder / "config.yaml").read_text()
    assert "max_epochs: 2" in config and "accelerator: cpu" in config

    # The commit and the patch bring the code back.
    assert "changed since: yes" in (folder / "git.txt").read_text()
    assert "big.py" in (folder / "git.txt").read_text()
    written = "".join(path.read_text() for path in folder.iterdir() if not path.name.startswith("rank-"))
    assert "swordfish" not in written
    restored = own.shell(f"git stash -uq && git apply {folder}/changes.patch && git status --porcelain")
    assert restored.returncode == 0, restored.stderr
    assert "new.py" in restored.stdout and "src/settings.py" in restored.stdout and "name.py" in restored.stdout

    row = rows_of(own.shell("python run.py list"))[name]
    assert (row["state"], row["name"], row["command"], row["processes"]) == ("COMPLETED", "first", "fit", "1 x 1")
    assert_one_sentence(own.shell(f"python run.py log {name}"), "--cluster debug", "no log file")
    assert_one_sentence(own.shell(f"python run.py report {name}"), "without Slurm", "no accounting")
    assert "does not run: COMPLETED" in own.shell(f"python run.py cancel {name}").stdout
    assert_one_sentence(own.shell(f"python run.py list {name}"), "list takes nothing")


def test_without_git_there_is_nothing_of_git(own):
    shutil.rmtree(own.folder / ".git")
    done = own.shell("python run.py --cluster debug", GIT_CEILING_DIRECTORIES=str(own.folder.parent))
    folder = own.logs / run_of(done)
    assert not list(folder.glob("git*")) and not list(folder.glob("changes*"))


def test_evaluate_repeat_and_resume_take_the_configuration_of_a_run(own):
    first = run_of(own.shell("python run.py --cluster debug --max_epochs 2 --seed 3 --model.hidden 7"))
    tested = run_of(own.shell(f"python run.py test logs/{first} --cluster debug --ckpt best"))
    config = (own.logs / tested / "config.yaml").read_text()
    assert f"run: {own.logs / first}" in config and "ckpt: best" in config and "hidden: '7'" in config
    assert ranks_of(own.logs / tested)[0]["command"] == "test"
    again = run_of(own.shell(f"python run.py repeat {first} --seed 4"))
    config = (own.logs / again / "config.yaml").read_text()
    assert "seed: 4" in config and "max_epochs: 2" in config and "hidden: '7'" in config
    assert again != first
    done = own.shell(f"python run.py resume {first} --max_epochs 9")
    assert run_of(done) == first
    assert "max_epochs: 9" in (own.logs / first / "config.yaml").read_text()
    assert len(json.loads((own.logs / first / "run.json").read_text())["submissions"]) == 2
    assert rows_of(own.shell("python run.py list"))[first]["attempts"] == "2"
    assert_one_sentence(own.shell(f"python run.py test {first[:-1]}"), "did you mean", first)

    # torchrun src/train.py --run_folder leaves no run.json.
    (own.logs / first / "run.json").unlink()
    assert rows_of(own.shell("python run.py list"))[first]["state"] == "UNKNOWN"
    assert run_of(own.shell(f"python run.py test {first} --cluster debug"))
    with open(own.logs / first / ".taken", "w") as taken:
        fcntl.lockf(taken, fcntl.LOCK_EX)
        assert_one_sentence(own.shell(f"python run.py resume {first}"), "in use by a training")
    done = own.shell(f"python run.py resume {first} --cluster debug --max_epochs 11")
    assert run_of(done) == first and "max_epochs: 11" in (own.logs / first / "config.yaml").read_text()
    assert rows_of(own.shell("python run.py list"))[first]["state"] == "COMPLETED"
    (own.logs / tested / "run.json").unlink()
    assert_one_sentence(own.shell(f"python run.py repeat {tested}"), "is an evaluation that run.py did not start")


def test_local_runs_processes_that_find_each_other(own):
    name = run_of(own.shell("python run.py --cluster local --tasks_per_node 2 --model.seconds 3", RANK="7"))
    folder = own.logs / name
    assert rows_of(own.shell("python run.py list"))[name]["state"] == "RUNNING"
    assert_one_sentence(own.shell(f"python run.py resume {name}"), f"{name} is RUNNING", "cancel")
    until(lambda: len(list(folder.glob("*_result.pkl"))) == 2)
    ranks = ranks_of(folder)
    assert [(rank["RANK"], rank["WORLD_SIZE"], rank["LOCAL_RANK"]) for rank in ranks] == [
        ("0", "2", "0"),
        ("1", "2", "1"),
    ]
    assert ranks[0]["MASTER_PORT"] == ranks[1]["MASTER_PORT"] and ranks[0]["MASTER_ADDR"] == "127.0.0.1"
    assert [path.name for path in own.logs.iterdir()] == [name]  # and no %j
    assert not list(folder.glob(".submission*"))
    until(lambda: rows_of(own.shell("python run.py list"))[name]["state"] == "COMPLETED")
    row = rows_of(own.shell("python run.py list"))[name]
    assert row["progress"] == "epoch: 01/01, training loss: 0.5000"
    assert "the end" in own.shell(f"python run.py log {name}").stdout


def test_a_local_run_is_cancelled_with_all_its_processes(own):
    name = run_of(own.shell("python run.py --cluster local --tasks_per_node 2 --model.seconds 100"))
    folder = own.logs / name
    until(lambda: len(ranks_of(folder)) == 2)

    # Another process with that number is not this run.
    record = folder / "run.json"
    text = record.read_text()
    [submission] = json.loads(text)["submissions"]
    record.write_text(text.replace(str(submission["started"]), "1.0"))
    assert "does not run: FAILED" in own.shell(f"python run.py cancel {name}").stdout
    record.write_text(text.replace(submission["host"], "elsewhere"))
    assert_one_sentence(own.shell(f"python run.py resume {name}"), "cannot be seen from here", "elsewhere")
    record.write_text(text)

    assert f"cancelled {name}" in own.shell(f"python run.py cancel {name}").stdout
    assert rows_of(own.shell("python run.py list"))[name]["state"] == "CANCELLED"
    processes = subprocess.run(["ps", "-A", "-o", "stat=,args="], capture_output=True, text=True).stdout
    assert not [line for line in processes.splitlines() if str(folder) in line and not line.startswith("Z")]


def test_a_local_run_that_is_told_to_stop_goes_on(own):
    """Its folder holds all that the second attempt needs; submitit counts how often."""
    name = run_of(own.shell("python run.py --cluster local --model.seconds 4 --requeues 7"))
    folder = own.logs / name
    until(lambda: ranks_of(folder))
    pid = ranks_of(folder)[0]["pid"]
    own.shell(f"kill -USR2 {pid}")
    until(lambda: list(folder.glob("*_result.pkl")))
    log = own.shell(f"python run.py log {name}").stdout
    assert "(6 remaining timeouts)" in log
    assert log.count("epoch: 01/01") == 2 and log.count("the end") == 1
    assert ranks_of(folder)[0]["pid"] != pid


def test_in_a_container(own, tmp_path):
    """With a stand-in for apptainer, which notes its arguments and runs what stands behind the image."""
    program = tmp_path / "bin/apptainer"
    program.parent.mkdir()
    program.write_text(
        f'#!/bin/bash\necho "$@" >> {tmp_path}/calls\n'
        'while [ "${1##*/}" != image.sif ]; do shift || exit; done\nshift\nexec "$@"\n'
    )
    program.chmod(0o755)
    (own.folder / "image.sif").touch()
    name = run_of(own.shell(f"PATH={program.parent}:$PATH python run.py --cluster local --container image.sif"))
    until(lambda: list((own.logs / name).glob("*_result.pkl")))
    prepare, train = (tmp_path / "calls").read_text().splitlines()
    assert "/image.sif python " in prepare and prepare.endswith("--prepare")
    assert "/image.sif python -u -m submitit" in train
    assert ranks_of(own.logs / name)
    assert_one_sentence(own.shell("python run.py --cluster debug --container image.sif"), "another --cluster")


# Who started this process?

SHOW = "from src.launch.ranks import *; export_ranks(); print(*[os.environ[name] for name in OURS])"


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, "0 1 0 1 0 127.0.0.1"),
        # a script without srun
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "4", "SLURM_NODEID": "0"}, "0 1 0 1 0 127.0.0.1"),
        ({"SLURM_PROCID": "5", "SLURM_STEP_NUM_TASKS": "7", "SLURM_LOCALID": "1", "SLURM_NODEID": "2",
          "SLURM_JOB_ID": "9", "SLURM_STEP_TASKS_PER_NODE": "2(x3),1", "SLURM_STEP_NODELIST": "gpu[07-09,12]"},
         "5 7 1 2 2 gpu07"),
        ({"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2", "GROUP_RANK": "1",
          "MASTER_ADDR": "a"}, "3 4 1 2 1 a"),
        ({"OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_LOCAL_RANK": "1",
          "OMPI_COMM_WORLD_LOCAL_SIZE": "2"}, "1 2 1 2 0 127.0.0.1"),
        ({"PMI_RANK": "1", "PMI_SIZE": "2", "MPI_LOCALRANKID": "1", "MPI_LOCALNRANKS": "2"}, "1 2 1 2 0 127.0.0.1"),
        # mpirun in a Slurm job
        ({"OMPI_COMM_WORLD_RANK": "2", "OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_LOCAL_RANK": "0",
          "OMPI_COMM_WORLD_LOCAL_SIZE": "2", "SLURM_JOB_NODELIST": "a1,b[1-2]", "SLURM_PROCID": "0"}, "2 4 0 2 1 a1"),
        ({"PALS_RANKID": "3", "PMI_SIZE": "4", "PALS_LOCAL_RANKID": "1", "PMI_LOCAL_SIZE": "2", "MASTER_ADDR": "a"},
         "3 4 1 2 1 a"),
    ],
)  # fmt: skip
def test_ranks_are_read_from_every_launcher(project, environment, expected):
    done = project.shell(f"python -c '{SHOW}'", **environment)
    assert done.returncode == 0, done.stderr
    *ranks, port = done.stdout.split()
    assert ranks == expected.split()
    assert 20000 <= int(port) < 32000


def test_ranks_that_cannot_be_known_are_one_sentence(project):
    nodes = {"PMI_RANK": "1", "PMI_SIZE": "4", "MPI_LOCALRANKID": "1", "MPI_LOCALNRANKS": "2"}
    assert_one_sentence(project.shell(f"python -c '{SHOW}'", **nodes), "several nodes", "set MASTER_ADDR")
    assert_one_sentence(project.shell(f"python -c '{SHOW}'", RANK="1", WORLD_SIZE="2"), "LOCAL_RANK")


def test_a_restart_has_another_port(project):
    step = {"SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "1", "SLURM_LOCALID": "0", "SLURM_NODEID": "0",
            "SLURM_STEP_TASKS_PER_NODE": "1", "SLURM_JOB_ID": "9", "SLURM_STEP_ID": "0"}  # fmt: skip
    ports = [
        project.shell(f"python -c '{SHOW}'", **step, SLURM_RESTART_COUNT=str(count)).stdout.split()[-1]
        for count in range(3)
    ]
    assert len(set(ports)) == 3


@pytest.mark.skipif(shutil.which("mpirun") is None, reason="no mpirun")
def test_mpirun(project):
    command = f"mpirun --allow-run-as-root --oversubscribe -n 2 python -c '{SHOW}'"
    first, second = sorted(project.shell(command).stdout.splitlines())
    assert first.startswith("0 2 0 2 0 127.0.0.1 ") and second.startswith("1 2 1 2 0 127.0.0.1 ")
    assert first.split()[-1] == second.split()[-1]


# On Slurm


def test_a_job_on_slurm_from_submission_to_report(own, cluster, tmp_path):
    """With an sbatch that answers late, from within another job, from another folder."""
    late = tmp_path / "bin/sbatch"
    late.parent.mkdir()
    late.write_text(f'#!/bin/sh\n{shutil.which("sbatch")} "$@" && sleep 1\n')
    late.chmod(0o755)
    (tmp_path / "src").mkdir()
    (tmp_path / "src/train.py").write_text("raise SystemExit('the wrong src')")  # of the folder where it is typed
    (own.folder / "new.py").write_text("print(1)\n")
    flags = "--nodes 2 --tasks_per_node 2 --cpus_per_task 1 --mem 1G --time 00:20:00 --name mine --model.seconds 2"
    strays = "SLURM_STEP_NUM_TASKS=9 SLURM_NPROCS=9 SLURM_MEM_PER_CPU=1 MASTER_ADDR=nowhere RANK=5"
    command = f"PATH={tmp_path}/bin:$PATH {strays} python {own.folder}/run.py {flags}"
    done = cluster.run(command, tmp_path)
    name = run_of(done)
    folder = own.logs / name
    assert "in a job of its own" in done.stderr
    assert rows_of(cluster.run("python run.py list", own.folder))[name]["state"] in ("PENDING", "RUNNING")
    assert_one_sentence(cluster.run(f"python run.py resume {name}", own.folder), f"{name} is ", "cancel")
    assert cluster.wait(name) == "COMPLETED"

    ranks = ranks_of(folder)
    assert [(rank["RANK"], rank["LOCAL_RANK"], rank["GROUP_RANK"], rank["host"]) for rank in ranks] == [
        ("0", "0", "0", "node1"), ("1", "1", "0", "node1"), ("2", "0", "1", "node2"), ("3", "1", "1", "node2"),
    ]  # fmt: skip
    assert {(rank["WORLD_SIZE"], rank["LOCAL_WORLD_SIZE"], rank["MASTER_ADDR"]) for rank in ranks} == {
        ("4", "2", "node1")
    }
    assert len({rank["MASTER_PORT"] for rank in ranks}) == 1
    assert all("SLURM_MEM_PER_CPU" not in rank["environment"] for rank in ranks)
    [row] = cluster.sacct(name, "JobName,NNodes,Timelimit,ReqMem,State")
    assert row == {"JobName": "mine", "NNodes": "2", "Timelimit": "00:20:00", "ReqMem": "2G", "State": "COMPLETED"}
    assert cluster.sacct(f"{name}.0", "NTasks,AllocCPUS", "") == [{"NTasks": "4", "AllocCPUS": "4"}]
    for file in ("config.yaml", "run.json", "git.txt", "changes.patch", f"{name}_submission.sh", f"{name}_3_log.out"):
        assert (folder / file).exists(), file
    assert [path.name for path in own.logs.iterdir()] == [name]

    # --dry_run showed this script, with a word above each line.
    script = [line for line in (folder / f"{name}_submission.sh").read_text().splitlines() if line]
    dry = cluster.run(f"python run.py {flags} --dry_run", own.folder, check=True).stdout.split("\n\nThe checks:")[0]
    bare = [line for line in dry.splitlines() if line and not line.startswith("# ")]
    assert bare == [line for line in script if not line.startswith("# ")]

    row = rows_of(cluster.run("python run.py list", own.folder))[name]
    assert (row["state"], row["name"], row["processes"], row["attempts"]) == ("COMPLETED", "mine", "2 x 2", "1")
    assert "the end" in cluster.run(f"python run.py log {name}", own.folder).stdout
    report = cluster.run(f"python run.py report {name}", own.folder, check=True).stdout
    assert f"run {name}: 1 attempt (COMPLETED), 4 processes" in report
    assert re.search(r"^memory of a node +1G +\d+M$", report, re.MULTILINE)
    assert "--time 00:05:00: it took 00:00:0" in report

    again = run_of(cluster.run(f"python run.py repeat {name} --nodes 1 --model.seconds 60", own.folder))
    until(lambda: ranks_of(own.logs / again))
    assert rows_of(cluster.run("python run.py list", own.folder))[again]["processes"] == "1 x 2"
    # Queued again by Slurm: the folder stays.
    cluster.run(f"scontrol requeue {again}", own.folder, check=True)
    until(lambda: rows_of(cluster.run("python run.py list", own.folder))[again]["state"] == "PENDING")
    assert (
        f"cancelled job {again}, which was PENDING" in cluster.run(f"python run.py cancel {again}", own.folder).stdout
    )
    until(lambda: rows_of(cluster.run("python run.py list", own.folder))[again]["state"] == "CANCELLED")

    done = cluster.run(f"python run.py resume {again} --model.seconds 0 --tasks_per_node 1", own.folder)
    assert run_of(done) == again
    job = json.loads((own.logs / again / "run.json").read_text())["submissions"][-1]["id"]
    assert cluster.wait(job) == "COMPLETED"
    assert "the end" in cluster.run(f"python run.py log {again}", own.folder).stdout
    assert rows_of(cluster.run("python run.py list", own.folder))[again]["attempts"] == "3"
    assert (own.logs / again / f"{job}_0_log.out").exists()


def test_a_refusal_of_slurm_leaves_nothing_behind(own, cluster):
    for flags, words in [
        ("--partition nowhere", "invalid partition specified: nowhere"),
        ("--mem 99G", "Requested node configuration is not available"),
    ]:
        done = cluster.run(f"python run.py {flags}", own.folder)
        assert done.returncode == 1 and "Traceback" not in done.stderr
        assert "nothing was submitted" in done.stderr and words in done.stderr
        assert list(own.logs.iterdir()) == []

    # Slurm's numbers begin again, as on another cluster: the old run in that folder is not gone on with.
    next_id = int(cluster.submit("--wrap true", own.folder)) + 1
    (own.logs / str(next_id)).mkdir()
    (own.logs / str(next_id) / "run.json").write_text("{}")
    done = cluster.run("python run.py", own.folder)
    assert done.returncode == 1 and f"job {next_id} would go on with the old run" in done.stderr
    assert cluster.wait(next_id) == "CANCELLED"


@pytest.mark.slow
def test_two_nodes_train_one_network(tmp_path, cluster):
    """With the real src/train.py."""
    project = Project(tmp_path, stub=False)
    flags = "--nodes 2 --max_epochs 1 --batch_size 2000 --limit_train_batches 5"
    name = run_of(cluster.run(f"python run.py {flags}", project.folder))
    assert cluster.wait(name) == "COMPLETED"
    logs = [(project.logs / name / f"{name}_{rank}_log.out").read_text() for rank in range(2)]
    assert len({re.search("the weights are (\\w+)", log)[1] for log in logs}) == 1
    assert "epoch: 01/01" in rows_of(cluster.run("python run.py list", project.folder))[name]["progress"]
    assert f"run: {project.logs / name}" not in (project.logs / name / "config.yaml").read_text()


def test_the_printed_configuration_is_a_file_for_config(tmp_path):
    project = Project(tmp_path, stub=False)
    first = project.shell("python run.py --print_config --nodes 2 --model.arch cnn --max_time 10:00:00")
    assert first.returncode == 0, first.stderr
    printed = [line.strip() for line in first.stdout.splitlines()]
    assert "arch: cnn" in printed
    assert "nodes: 2" in printed
    assert "max_time: '10:00:00'" in printed
    (tmp_path / "all.yaml").write_text(first.stdout)
    second = project.shell(f"python run.py --print_config --config {tmp_path / 'all.yaml'}")
    assert second.stdout == first.stdout


GPUS = """python -c '
from types import SimpleNamespace
from src.launch.submit import visible_gpus
print(visible_gpus(SimpleNamespace(gpus_per_node=2)))'"""


def test_a_local_run_takes_the_gpus_that_you_let_it_see(project):
    assert project.shell(f"unset CUDA_VISIBLE_DEVICES; {GPUS}").stdout == "()\n"
    for said, gpus in {
        "2,3": (2, 3),
        "2, 3": (2, 3),
        "GPU-8a,GPU-9b": ("GPU-8a", "GPU-9b"),
        "MIG-377e-554c,MIG-GPU-8932/1/0": ("MIG-377e-554c", "MIG-GPU-8932/1/0"),
    }.items():
        assert project.shell(f"CUDA_VISIBLE_DEVICES='{said}' {GPUS}").stdout == f"{gpus}\n"
    for said, count in {"3": 1, "": 0, "-1": 0, "1,-1,2": 1, "1,1": 1}.items():
        few = project.shell(f"CUDA_VISIBLE_DEVICES={said} {GPUS}")
        assert_one_sentence(few, "--gpus_per_node 2", f"CUDA_VISIBLE_DEVICES={said}", f"there are {count}")
    assert_one_sentence(project.shell(f"CUDA_VISIBLE_DEVICES=a,b {GPUS}"), "a is no GPU")


def test_a_forgotten_environment_is_one_sentence():
    command = [sys.executable, "-S", "run.py", "list"]  # -S: without what is installed
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert_one_sentence(done, "jsonargparse is not installed for this Python", "source env/bin/activate")

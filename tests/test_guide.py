"""README.md, the guide: every command it names is typed; so is each by which troubleshooting.md looks at a cluster.

The quick start's two commands are typed by .ci/run, and so is `python -m pytest -m slow`.
"""

import re
import shlex
import time

import pytest
from lesson import REPOSITORY, Root, readme_commands, until

GUIDE = (REPOSITORY / "README.md").read_text()
ROWS = re.findall(r"^\| `(python .*?|torchrun .*?)` \|", GUIDE, re.MULTILINE)
SHORT = "--max_epochs 1 --limit_train_batches 2 --limit_val_batches 2"

# A command of the guide: the flags behind it that make it short. RUN is a run that has ended. In this order.
COMMANDS = {
    "python run.py --config laptop": SHORT,
    "python run.py --model.arch resnet18 --optimizer SGD --optimizer.lr 0.1": SHORT,
    "python run.py --nodes 2 --tasks_per_node 2 --dry_run": "",
    "python run.py doctor --nodes 2": "",
    "python run.py list": "",
    "python run.py resume RUN": "",
    "python run.py repeat RUN": "",
    "python run.py search --search.optimizer.lr log:1e-4..1e-1 --trials 12": f"{SHORT} --trials 3",
    "python run.py test RUN --ckpt best": "",
    "python run.py --cluster pbs --nodes 2 --dry_run": "",
    "python run.py --container project.sif": "--dry_run",
    "torchrun --nproc_per_node 2 src/train.py fit --run_folder logs/a": SHORT,
}
OF_A_RUN = ["log", "report", "cancel"]  # they share a row with list


def test_every_command_of_the_guide_is_typed():
    assert list(COMMANDS) == ROWS
    assert all(f"`{command} RUN`" in GUIDE for command in OF_A_RUN)


@pytest.mark.campaign
def test_the_commands_of_the_guide(cluster, tmp_path):
    root = Root("09-surviving-preemption", tmp_path)
    (root.folder / "project.sif").touch()

    def typed(command):
        """What it printed, when the jobs it has submitted have ended well."""
        before = cluster.run("sacct -X -n -P -o JobID", "/").stdout.split()
        said = cluster.run(command, root.folder, timeout=300, check=True).stdout
        until(lambda: not cluster.run("squeue -h", "/").stdout, 400)
        time.sleep(2)  # sacct is late
        ended = dict(line.split("|") for line in cluster.run("sacct -X -n -P -o JobID,State", "/").stdout.splitlines())
        jobs = {job: state for job, state in ended.items() if job not in before}
        assert set(jobs.values()) <= {"COMPLETED"}, f"{command}: {jobs}"
        return said, list(jobs)

    _, [run] = typed(f"python run.py {SHORT}")
    submitted = {}
    for command, flags in COMMANDS.items():
        said, jobs = typed(f"{command.replace('RUN', run)} {flags}")
        submitted[command] = len(jobs)
        if "dry_run" in command + flags:
            assert "#SBATCH" in said or "#PBS" in said
    nothing = re.compile("dry_run|list|torchrun|container")  # doctor and search are jobs, too
    assert submitted == {c: 0 if nothing.search(c) else 3 if " search " in c else 1 for c in COMMANDS}
    for command in OF_A_RUN:
        typed(f"python run.py {command} {run}")
    assert (root.folder / "logs/a/checkpoints").is_dir()
    typed([line for line in readme_commands(REPOSITORY) if line.endswith("--nodes 2 --dry_run")][0])


LOOKING = "sinfo|squeue|sacctmgr show|df|ip|ulimit|quota|sacct"


def looking():
    text = (REPOSITORY / "lessons/troubleshooting.md").read_text()
    return sorted({line for line in re.findall(r"`([^`\n]+)`", text) if re.match(rf"({LOOKING})( |$)", line)})


@pytest.mark.slow
def test_the_commands_that_look_at_a_cluster(cluster, tmp_path):
    """quota needs a file system that has them: only its name is looked at."""
    job = cluster.submit("--wrap true", tmp_path)
    cluster.wait(job)
    lines = [line for line in looking() if " " in line and not line.startswith("quota")]
    assert len(lines) >= 8
    for line in lines:
        assert shlex.split(line)
        cluster.run(re.sub(r"\bID\b", job, line), tmp_path, check=True)

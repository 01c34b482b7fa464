"""What is known of a run, where Slurm tells little, and of what was typed."""

import os
import pickle
import subprocess

import pytest
import yaml
from lesson import REPOSITORY, assert_one_sentence, until
from test_launch import Project, ranks_of, rows_of, run_of
from test_trust import GOOD, programs, run_with

from src.launch import runs, slurm
from src.launch.flags import check_types, parse
from src.launch.ranks import first_host
from src.search.space import Range, values_of

GREETING = "echo '-----'; echo 'Welcome. No reservation for job 99'; echo '-----'"


@pytest.fixture
def standins(tmp_path, monkeypatch):
    """Makes programs that are found before Slurm's."""

    def make(**scripts):
        programs(tmp_path / "bin", **scripts)
        return f"{tmp_path}/bin:{os.environ['PATH']}"

    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")
    return make


# Slurm


@pytest.mark.parametrize(
    ("sacct", "squeue", "states"),
    [
        # an array that was cancelled as a whole, of which one task had begun
        ("16_0|COMPLETED|2026-01-31T12:00:00|00:01:00\n16_[1-3%1]|CANCELLED by 0|None|00:00:00", "",
         ["COMPLETED", "CANCELLED", "CANCELLED", "CANCELLED"]),
        # waiting tasks that were cancelled alone: they are in no row
        ("16_0|COMPLETED|2026-01-31T12:00:00|00:01:00", "",
         ["COMPLETED", "CANCELLED", "CANCELLED", "CANCELLED"]),
        # two of them wait
        ("16_0|FAILED|2026-01-31T12:00:00|00:01:00\n16_[2-3%1]|PENDING|Unknown|00:00:00",
         "16_2|PENDING|N/A|0:00\n16_3|PENDING|N/A|0:00",
         ["FAILED", "CANCELLED", "PENDING", "PENDING"]),
        # no accounting
        (None, "16_1|RUNNING|2026-01-31T12:00:00|1:00", ["ENDED", "RUNNING", "ENDED", "ENDED"]),
        # a greeting in the answer
        (None, "Welcome\n16_1|RUNNING|2026-01-31T12:00:00|1:00", ["ENDED", "RUNNING", "ENDED", "ENDED"]),
        # Slurm cannot be asked
        (None, None, [None, None, None, None]),
    ],
)  # fmt: skip
def test_the_states_of_the_tasks_of_an_array(standins, sacct, squeue, states):
    def answer(text):
        return "exit 1" if text is None else f"cat <<'END'\n{text}\nEND" if text else ""

    standins(sacct=answer(sacct), squeue=answer(squeue))
    ids = [f"16_{task}" for task in range(4)]
    attempts = slurm.attempts_of(ids)
    assert [attempts[job][-1]["state"] if attempts[job] else None for job in ids] == states


def test_the_tasks_in_a_row_of_sacct():
    for row, tasks in {
        "12": ["12"],
        "12_3": ["12_3"],
        "12_[1-3%1]": ["12_1", "12_2", "12_3"],
        "12_[1,5-9:2%4]": ["12_1", "12_5", "12_7", "12_9"],
        "12_[1-2,...]": ["12_1", "12_2"],
    }.items():
        assert slurm.tasks_of(row) == tasks


def test_a_job_of_which_only_its_results_are_known(tmp_path, standins, capsys):
    standins(sacct="exit 1", squeue="")
    submission = {"submitted": "2026-01-31 12:00:00", "id": "57"}
    folder = run_with(tmp_path / "57", GOOD | {"submissions": [submission]})

    def state():
        return runs.describe_all([folder])[folder]["state"]

    assert state() == "ENDED"
    runs.refuse_while_running(folder)
    assert "nothing says how it ended: the run resumes" in capsys.readouterr().err
    (folder / "57_0_result.pkl").write_bytes(pickle.dumps(("success", None)))
    assert state() == "COMPLETED"
    (folder / "57_0_result.pkl").unlink()
    standins(squeue="exit 1")
    assert state() == "UNKNOWN (on Slurm)"
    with pytest.raises(SystemExit, match="cannot be seen from here"):
        runs.refuse_while_running(folder)


def test_a_cluster_without_accounting_that_greets(tmp_path):
    """From the submission to resume."""
    project = Project(tmp_path)
    programs(
        tmp_path / "bin",
        sbatch=f"{GREETING}; echo 'Submitted batch job 4711 on cluster c1'",
        sacct="echo 'Slurm accounting storage is disabled' >&2; exit 1",
        squeue="",
        sinfo="",
        scontrol="",
        scancel="",
        srun="",
    )
    path = f"PATH={tmp_path}/bin:$PATH"
    done = project.shell(f"{path} python run.py --cluster slurm")
    assert run_of(done) == "4711"
    assert rows_of(project.shell(f"{path} python run.py list"))["4711"]["state"] == "ENDED"
    done = project.shell(f"{path} python run.py resume 4711")
    assert run_of(done) == "4711" and "the run resumes" in done.stderr
    programs(tmp_path / "bin", squeue="exit 1")
    assert_one_sentence(project.shell(f"{path} python run.py resume 4711"), "cannot be seen from here")
    programs(tmp_path / "bin", sbatch="echo 'sbatch: error: Requested node configuration is not available' >&2; exit 1")
    done = project.shell(f"{path} python run.py --cluster slurm --gpus_per_node 9 --batch_size 9")
    assert_one_sentence(done, "nothing was submitted: Requested node configuration is not available")
    programs(tmp_path / "bin", sbatch=GREETING)
    done = project.shell(f"{path} python run.py --cluster slurm")
    assert_one_sentence(done, "sbatch has answered", "squeue --me")


def test_pbs_greets_and_refuses(tmp_path):
    project = Project(tmp_path)
    programs(tmp_path / "bin", qsub=f"{GREETING}; echo 12.server", qstat="exit 35", qdel="")
    path = f"PATH={tmp_path}/bin:$PATH"
    name = run_of(project.shell(f"{path} python run.py --cluster pbs"))
    assert rows_of(project.shell(f"{path} python run.py list"))[name]["state"] == "FAILED"
    assert "qstat -f 12.server\n" in (tmp_path / "bin/calls").read_text()
    programs(tmp_path / "bin", qsub="echo 'qsub: Unknown queue' >&2; exit 1")
    done = project.shell(f"{path} python run.py --cluster pbs")
    assert_one_sentence(done, "nothing was submitted: qsub: Unknown queue")
    assert [folder.name for folder in project.logs.iterdir()] == [name]


@pytest.mark.parametrize(
    ("directives", "lines", "absent"),
    [
        ("[--reservation=course, --exclusive]", ["reservation=course", "exclusive", "mem=4G"], []),
        ("[--mem-per-cpu=2G]", ["mem-per-cpu=2G"], ["mem="]),
        ("[--gres=gpu:a100:2]", ["gres=gpu:a100:2"], ["gpus-per-node"]),
        ("[--gpus-per-node=a100:2]", ["gpus-per-node=a100:2"], ["gpus-per-node=2"]),
        ("['--comment=a b']", ["comment='a b'"], []),
    ],
)
def test_directives_are_lines_of_the_script(tmp_path, directives, lines, absent):
    command = f"python run.py --dry_run --gpus_per_node 2 --log_path {tmp_path} --directives"
    done = subprocess.run(["bash", "-c", f'{command} "{directives}"'], cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    head = [line for line in done.stdout.splitlines() if line.startswith("#SBATCH ")]
    for line in lines:
        assert head.count(f"#SBATCH --{line}") == 1
    for line in absent:
        assert not any(each.startswith(f"#SBATCH --{line}") for each in head)


def test_a_dry_run_is_refused_as_the_job_is(tmp_path):
    for flags, words in {
        "--directives [--nodes=2]": "--directives --nodes=2 cannot be set",
        "--directives '[-l x]'": "'-l x' is not --flag=value",
        "--cluster debug --tasks_per_node 2": "--cluster debug (the default without Slurm) is one process, not 2",
        "--cluster local --nodes 2": "--nodes 2 needs Slurm",
        "--container docker://x --container_binds '[/a,b]'": "",
        "--container docker://x --container_binds '[\"/a,/b\"]'": "--container_binds /a,/b is not one FOLDER",
        f"--container docker://x --log_path {tmp_path}/a,b": "a,b holds ,",
    }.items():
        done = subprocess.run(
            ["bash", "-c", f"python run.py {flags} --dry_run --log_path {tmp_path}/logs"]
            if "--log_path" not in flags
            else ["bash", "-c", f"python run.py {flags} --dry_run"],
            cwd=REPOSITORY,
            capture_output=True,
            text=True,
        )
        errors = [line for line in done.stdout.splitlines() if line.startswith("ERROR")]
        if words:
            assert done.returncode == 1 and any(words in line for line in errors), flags


# What was typed


@pytest.mark.parametrize("text", ["#x", "007", "null", "yes", "~", "1e3", "[a]", "{a: 1}", "a: b", "2026-01-31"])
def test_a_text_is_the_text_that_was_typed(text):
    for name in ("partition", "account", "qos", "constraint", "wckey", "container_program", "data_dir", "monitor"):
        assert check_types({name: text})[name] == text


def test_the_texts_of_a_list_are_those_that_were_typed():
    assert check_types({"modules": "[007, 12.10, yes, '#x']"}) == {"modules": ["007", "12.10", "yes", "#x"]}


@pytest.mark.parametrize("text", ["#x", "~", "null"])
def test_a_path_that_yaml_would_lose_reaches_the_training(text):
    [flag] = [word for word in parse(["--data_dir", text]).arguments if word.startswith("--data_dir=")]
    assert yaml.safe_load(flag.partition("=")[2]).startswith("/")


def test_seeds():
    assert parse(["--seed", "0"]).settings.seed == 0
    assert parse(["--seed", str(2**32 - 1)]).settings.seed == 2**32 - 1


def test_presets_come_before_files_of_the_same_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "laptop").write_text("max_epochs: 77\n")
    assert parse(["--config", "laptop"]).settings.max_epochs != 77
    assert parse(["--config", "./laptop"]).settings.max_epochs == 77


def test_another_package_called_src(tmp_path):
    (tmp_path / "src").mkdir()
    (tmp_path / "src/__init__.py").write_text("raise ImportError('the wrong src')\n")
    for settings in ({}, {"PYTHONSAFEPATH": "1"}):
        environment = os.environ | {"PYTHONPATH": f"{tmp_path}:{REPOSITORY}"} | settings
        done = subprocess.run(
            ["python", f"{REPOSITORY}/run.py", "list", f"--log_path={tmp_path}"],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr


def test_lists_of_paths_are_no_ranges():
    assert values_of("data_dir", "../a,../b") == ["../a", "../b"]
    assert values_of("data_dir", "a/../b, c") == ["a/../b", "c"]
    assert values_of("x", "0.1..0.9") == Range(0.1, 0.9, False)
    assert values_of("x", "log:1e-4..1e-1") == Range(1e-4, 1e-1, True)
    for text in ("0.1..0.9,5", "../a", "1_0..2_0", "1..1e400"):
        with pytest.raises(SystemExit):
            values_of("x", text)


# Who started this process


def test_the_first_host_without_scontrol(monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    for nodes, first in {
        "gpu[03-05,9],login1": "gpu03",
        "login1,gpu[1-2]": "login1",
        "rack[0-1]n[03-04]": "rack0n03",
        "node[01-02]-ib": "node01-ib",
        "tux[1-2].uni.de": "tux1.uni.de",
        "tux1.uni.de,tux2.uni.de": "tux1.uni.de",
        "a": "a",
    }.items():
        assert first_host(nodes) == first
    for nodes in ("", "[", ",a"):
        with pytest.raises(SystemExit, match="set MASTER_ADDR"):
            first_host(nodes)


# On the practice cluster


@pytest.mark.slow
def test_usr2_right_after_the_start_and_edits_while_waiting(tmp_path, cluster):
    """Slurm asks to save before Python can answer. The code and the configuration are edited before the job starts."""
    project = Project(tmp_path)
    (project.folder / "wait.py").write_text("x = 1\n")
    subprocess.run(["git", "-C", project.folder, "add", "."], check=True)
    name = run_of(cluster.run("python run.py --model.seconds 6 --setup '[sleep 4]'", project.folder))
    folder = project.logs / name
    until(lambda: rows_of(cluster.run("python run.py list", project.folder))[name]["state"] == "RUNNING")
    (project.folder / "wait.py").write_text("x = 2\n")
    config = (folder / "config.yaml").read_text()
    (folder / "config.yaml").write_text("seed: 5\n")
    until(lambda: cluster.run(f"sstat -n --jobs={name}.0 --format=JobID", "/").stdout.strip())
    cluster.run(f"scancel --signal=USR2 {name}", "/", check=True)
    assert cluster.wait(name) == "COMPLETED"
    log = (folder / f"{name}_0_log.out").read_text() + (folder / f"{name}_0_log.err").read_text()
    assert ranks_of(folder)
    assert "config.yaml was edited while the job waited" in log and "the code was edited while the job waited" in log
    assert (folder / "config.yaml").read_text() == config
    assert (folder / f"config-edited-{name}-0.yaml").read_text() == "seed: 5\n"
    assert "+x = 2" in (folder / f"changes-{name}-0.patch").read_text()

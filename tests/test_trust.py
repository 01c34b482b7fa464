"""What a stranger can put into a run's folder: it is read as data, and neither executed nor believed."""

import json
import os
import pickle
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from src.launch import provenance, qsub, records, runs
from src.launch.checks import SECRET
from src.launch.job import Job
from src.launch.script import IGNORE_USR2, python_command

JOB = {"cluster": "slurm", "nodes": 1, "tasks_per_node": 1, "cpus_per_task": 2, "mem": "1G", "time": "00:10:00"}
SUBMISSION = {"submitted": "2026-01-31 12:00:00", "pid": 2, "started": 1.0, "host": os.uname().nodename}
GOOD = {"command": "fit", "job": JOB | {"name": "good"}, "submissions": [SUBMISSION]}


class Evil:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def run_with(folder, record):
    """A run's folder with this run.json, a text or what becomes JSON."""
    folder.mkdir(parents=True)
    (folder / "run.json").write_text(record if isinstance(record, str) else json.dumps(record))
    return folder


def ended(function, *arguments):
    """The sentence with which a function ends the program."""
    with pytest.raises(SystemExit) as raised:
        function(*arguments)
    assert "\n" not in str(raised.value)
    return str(raised.value)


# Pickles


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_the_results_of_submitit_are_read(tmp_path, protocol):
    for pair, succeeded in {("success", None): True, ("success", "text"): True, ("error", "text"): False}.items():
        (tmp_path / "result.pkl").write_bytes(pickle.dumps(pair, protocol))
        assert runs.has_succeeded(tmp_path / "result.pkl") is succeeded


# A dictionary whose key is a pair of pairs of pairs ...: to compute its hash takes a thousand years.
ENDLESS = b"\x80\x02})" + 60 * b"q\x00h\x00\x86" + b"Ns."


@pytest.mark.parametrize(
    "make",
    [
        lambda path: pickle.dumps(Evil(path)),
        lambda path: pickle.dumps(("success", Evil(path))),
        lambda path: ENDLESS,
        lambda path: b"\x80\x04}" + b"(" * 1000,
        lambda path: f"cos\nsystem\n(S'touch {path}'\ntR.".encode(),
        lambda path: pickle.dumps(["success", None]),
        lambda path: pickle.dumps(("success", None, None)),
        lambda path: pickle.dumps("success"),
        lambda path: pickle.dumps(("success", None))[:-3],
        lambda path: b"",
        lambda path: b"\xff" * 100,
        lambda path: b"\x80\x05\x8d" + b"\xff" * 8 + b"x",  # a text of 2**64 bytes
        lambda path: b"\x80\x05\x85.",  # takes from an empty stack
    ],
)
def test_what_a_pickle_would_do_is_not_done(tmp_path, make):
    folder = run_with(tmp_path / "run", GOOD)
    (folder / "2_0_result.pkl").write_bytes(make(tmp_path / "executed"))
    assert runs.describe_all([folder])[folder]["state"] == "FAILED"
    assert not (tmp_path / "executed").exists()


def test_a_pickle_that_is_no_file(tmp_path):
    folder = run_with(tmp_path / "run", GOOD)
    for make in (os.mkfifo, os.mkdir, lambda path: os.symlink("/dev/zero", path), lambda path: os.symlink(path, path)):
        path = folder / "2_0_result.pkl"
        make(path)
        assert runs.describe_all([folder])[folder]["state"] == "FAILED"
        path.rmdir() if path.is_dir() else path.unlink()


# run.json


def wrong(**values):
    return GOOD | values


@pytest.mark.parametrize(
    "record",
    [
        "",
        "{",
        "[]",
        "3",
        "null",
        "{}",
        "[" * 100_000,
        '{"command": "fit", "job": {"nodes": ' + "9" * 5000 + "}}",
        json.dumps(GOOD)[:-30],
        wrong(command=3),
        wrong(command="fit\x1b[2J"),
        wrong(job=[]),
        wrong(job=JOB | {"nodes": "two"}),
        wrong(job=JOB | {"nodes": 0}),
        wrong(job=JOB | {"nodes": True}),
        wrong(job=JOB | {"nodes": 1.5}),
        wrong(job=JOB | {"nodes": 10**30}),
        wrong(job=JOB | {"cluster": "lsf"}),
        wrong(job=JOB | {"cluster": ["slurm"]}),
        wrong(job=JOB | {"name": 3}),
        wrong(job=JOB | {"modules": "gcc"}),
        wrong(job=JOB | {"modules": [3]}),
        wrong(job=JOB | {"mem": "much"}),
        wrong(job=JOB | {"mem": None}),
        wrong(job=JOB | {"time": "9" * 5000}),
        wrong(job={}),
        wrong(submissions=None),
        wrong(submissions=[]),
        wrong(submissions={}),
        wrong(submissions=[3]),
        wrong(submissions=[{}]),
        wrong(submissions=[{"submitted": "2026-01-31 12:00:00"}]),
        wrong(submissions=[SUBMISSION | {"submitted": "yesterday"}]),
        wrong(submissions=[SUBMISSION | {"submitted": 3}]),
        wrong(submissions=[SUBMISSION | {"submitted": "0001-01-01 00:00:00", "ended": []}]),
        wrong(submissions=[SUBMISSION | {"pid": "1 -o args"}]),
        wrong(submissions=[SUBMISSION | {"pid": -1}]),
        wrong(submissions=[SUBMISSION | {"pid": 1}]),
        wrong(submissions=[SUBMISSION | {"pid": 10**30}]),
        wrong(submissions=[SUBMISSION | {"started": "then"}]),
        wrong(submissions=[SUBMISSION | {"host": 3}]),
        wrong(submissions=[SUBMISSION | {"host": "a\x1b]52;c;x\x07"}]),
        wrong(submissions=[SUBMISSION | {"outcome": 3}]),
        wrong(submissions=[SUBMISSION | {"outcome": "x\ny"}]),
        wrong(submissions=[SUBMISSION | {"id": 3}]),
        wrong(submissions=[SUBMISSION | {"id": "*"}]),
        wrong(submissions=[SUBMISSION | {"id": "1,2"}]),
        wrong(submissions=[SUBMISSION | {"id": "--user=me"}]),
    ],
)
def test_a_record_that_cannot_be_right(tmp_path, capsys, record):
    """It is listed with the reason, those beside it are listed too, and what is done to it ends with one sentence."""
    bad, good = run_with(tmp_path / "bad", record), run_with(tmp_path / "good", GOOD)
    runs.list_(["--log_path", str(tmp_path)])
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines() if line}
    assert "UNREADABLE" in lines["bad"] and str(bad / "run.json") in lines["bad"]
    assert "FAILED" in lines[good.name]
    for command in (runs.log_, runs.cancel_):
        assert str(bad / "run.json") in ended(command, [str(bad)])
    assert str(bad / "run.json") in ended(runs.refuse_while_running, bad)


def test_a_record_that_is_no_file(tmp_path, capsys):
    kinds = {
        "fifo": os.mkfifo,
        "folder": os.mkdir,
        "loop": lambda path: os.symlink(path, path),
        "zeros": lambda path: os.symlink("/dev/zero", path),
        "nothing": lambda path: os.symlink("/nowhere", path),
        "latin1": lambda path: path.write_bytes('{"command": "ü"}'.encode("latin1")),
        "large": lambda path: path.write_bytes(b" " * 11_000_000),
    }
    for name, make in kinds.items():
        (tmp_path / name).mkdir()
        make(tmp_path / name / "run.json")
    run_with(tmp_path / "good", GOOD)
    runs.list_(["--log_path", str(tmp_path)])
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines() if line}
    for name in kinds:
        assert "UNREADABLE" in lines[name], name
    assert "FAILED" in lines["good"]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_a_record_of_another_user(tmp_path):
    """Its run.json cannot be read, or its folder, or the folder of all runs."""
    public = Path(subprocess.run(["mktemp", "-d"], capture_output=True, text=True, check=True).stdout.strip())
    try:
        run_with(public / "good", GOOD)
        run_with(public / "secret", GOOD).joinpath("run.json").chmod(0o600)
        public.chmod(0o755)
        code = (
            "import _strptime, os, sys; from src.launch import runs; os.setgid(65534); os.setuid(65534)\n"
            f"runs.list_(['--log_path', {str(public)!r}])"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        lines = {line.split()[0]: line for line in done.stdout.splitlines() if line}
        assert "FAILED" in lines["good"] and "UNREADABLE" in lines["secret"]
        assert "Permission denied" in lines["secret"]
        public.chmod(0o700)
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert done.returncode == 1 and "Permission denied" in done.stderr and "Traceback" not in done.stderr
    finally:
        shutil.rmtree(public)


def test_control_characters_do_not_reach_the_terminal(tmp_path, capsys):
    folder = run_with(tmp_path / "run\x1b[2J", wrong(job=JOB | {"name": "\x1b]52;c;ZXZpbA==\x07"}))
    (folder / "2_0_log.out").write_text("epoch: 01/01    \x1b[31mred\x9b2J\n")
    runs.list_(["--log_path", str(tmp_path)])
    shown = capsys.readouterr().out
    assert all(letter.isprintable() or letter == "\n" for letter in shown)
    assert "epoch: 01/01" in shown and "]52;c;" in shown


def test_a_log_that_is_no_file(tmp_path, capsys):
    folder = run_with(tmp_path / "run", GOOD)
    log = folder / "2_0_log.out"
    for make in (os.mkfifo, lambda path: os.symlink("/dev/zero", path), os.mkdir):
        make(log)
        runs.list_(["--log_path", str(tmp_path)])
        assert "FAILED" in capsys.readouterr().out
        for words in ([str(folder)], [str(folder), "-f"]):
            assert "not a regular file" in ended(runs.log_, words)
        log.rmdir() if log.is_dir() else log.unlink()
    log.write_bytes(b"M\xe9\n")
    runs.log_([str(folder)])
    assert capsys.readouterr().out == "M\N{REPLACEMENT CHARACTER}\n"


def test_a_full_disk_leaves_the_old_record(tmp_path):
    import resource

    folder = run_with(tmp_path / "run", GOOD)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
    try:
        with pytest.raises(OSError):
            records.write_end(folder, "COMPLETED")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert records.record_of(folder) == GOOD
    assert [path.name for path in folder.iterdir()] == ["run.json"]


def test_a_run_that_run_py_has_not_started(tmp_path, capsys):
    """torchrun src/train.py --run_folder leaves a config.yaml and no run.json."""
    folder = tmp_path / "torchrun"
    folder.mkdir()
    (folder / "config.yaml").write_text("seed: 1\n")
    assert records.find_run(str(folder)) == folder
    runs.list_(["--log_path", str(tmp_path)])
    assert "run.py did not start this run" in capsys.readouterr().out
    assert "run.py did not start this run" in ended(runs.cancel_, [str(folder)])


# cancel


def test_the_process_of_another_program_is_not_cancelled(tmp_path):
    sleep = subprocess.Popen(["sleep", "100"])
    try:
        submission = SUBMISSION | records.this_process(sleep.pid)
        for cluster in ("local", "debug"):
            folder = run_with(tmp_path / cluster, wrong(job=JOB | {"cluster": cluster}, submissions=[submission]))
            assert runs.describe_all([folder])[folder]["state"] == "RUNNING"
            assert f"does not write into {folder}" in ended(runs.cancel_, [str(folder)])
        assert sleep.poll() is None
    finally:
        sleep.kill()
        sleep.wait()


def programs(folder, **scripts):
    """A folder for PATH with these programs, each of which notes its arguments in `calls`."""
    folder.mkdir(exist_ok=True)
    for name, script in scripts.items():
        (folder / name).write_text(f'#!/bin/bash\necho "{name} $*" >> {folder}/calls\n{script}\n')
        (folder / name).chmod(0o755)
    return folder


@pytest.mark.parametrize("theirs", [False, True])
def test_the_job_of_another_run_is_not_cancelled(tmp_path, monkeypatch, capsys, theirs):
    """Slurm has begun to count anew, or run.json is a stranger's."""
    submission = {"submitted": "2026-01-31 12:00:00", "id": "57"}
    folder = run_with(tmp_path / "57", wrong(submissions=[submission]))
    output = tmp_path / "other" if theirs else folder
    programs(
        tmp_path / "bin",
        squeue="echo '57|RUNNING|2026-01-31T12:00:00|1:00'",
        sacct="exit 1",
        scontrol=f"echo 'JobId=57 JobName=fit'; echo '   StdErr=/x'; echo '   StdOut={output}/57_0_log.out'",
        scancel="",
    )
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")
    if theirs:
        assert "job 57 does not write into" in ended(runs.cancel_, [str(folder)])
    else:
        runs.cancel_([str(folder)])
        assert "cancelled job 57" in capsys.readouterr().out
    assert ("scancel 57" in (tmp_path / "bin/calls").read_text()) is not theirs


@pytest.mark.parametrize("theirs", [False, True])
@pytest.mark.parametrize("cluster", ["pbs", "sge"])
def test_the_job_of_another_run_is_not_deleted(tmp_path, monkeypatch, cluster, theirs):
    folder = run_with(tmp_path / "run", wrong(job=JOB | {"cluster": cluster}, submissions=[SUBMISSION]))
    (folder / "job_id").write_text("Welcome to the cluster\n57.server\n")
    output = tmp_path / "other" if theirs else folder
    if cluster == "pbs":  # which breaks long lines
        told = f"    Output_Path = host:{output}/job.out"
        told = f"{told[:30]}\n\t{told[30:]}"
    else:
        told = f"stdout_path_list:           NONE:NONE:{output}/job.out"
    programs(tmp_path / "bin", qstat=f"cat <<'END'\n{told}\nEND", qdel="")
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")
    if theirs:
        assert "job 57.server does not write into" in ended(runs.cancel_, [str(folder)])
    else:
        runs.cancel_([str(folder)])
    assert ("qdel 57.server" in (tmp_path / "bin/calls").read_text()) is not theirs


@pytest.mark.parametrize("text", ["*", "-u me", "", "57 58", "57; x", "\x1b[2J"])
def test_a_job_id_that_is_none(tmp_path, text):
    folder = run_with(tmp_path / "run", wrong(job=JOB | {"cluster": "sge"}, submissions=[SUBMISSION]))
    (folder / "job_id").write_text(text)
    with pytest.raises(records.Unreadable):
        qsub.id_of(folder)


# Scripts


@pytest.mark.parametrize("letter", ["\n", "\r", "\x00", "\t", "\x1b", "\x7f", "\x85", "\u2028", "\udcff"])
@pytest.mark.parametrize(
    "name",
    [
        *("partition", "account", "qos", "constraint", "wckey", "parallel_environment", "mpirun", "log_path"),
        *("container", "container_program", "name"),
    ],
)
def test_control_characters_are_refused_in_every_text(name, letter):
    with pytest.raises(ValueError, match=f"--{name} .*control characters"):
        Job(**{name: f"a{letter}b"})


@pytest.mark.parametrize("name", ["modules", "setup", "container_binds", "container_env", "directives"])
def test_control_characters_are_refused_in_every_list(name):
    with pytest.raises(ValueError, match=f"--{name} .*control characters"):
        Job(**{name: ["A=1", "A=1\ntouch x"]})


def test_the_words_of_mpirun():
    job = Job(nodes=2, tasks_per_node=3, mpirun="aprun -n {processes} -N {tasks_per_node} {hostfile}")
    assert job.filled_mpirun("file") == "aprun -n 6 -N 3 file"
    for text in ("{processes!r}", "{processes:>9}", "{processes.__class__}", "{0}", "{", "}", "{}", "{cores}", "{{}}"):
        with pytest.raises(ValueError, match="--mpirun .* may name"):
            Job(mpirun=text)


def test_the_variables_of_a_container_arrive_as_they_are(tmp_path):
    values = ["LDFLAGS=-Wl,-rpath=/opt/lib,-O1", 'Q=a"b=c"', "S=a b'c", "E="]
    command = python_command(Job(container="docker://image", container_program="printenv", container_env=values))
    assert command[0] == "env" and not any(word.startswith("--env=") and "LDFLAGS" in word for word in command)
    for prefix in ("APPTAINERENV", "SINGULARITYENV"):
        for variable in values:
            name, value = variable.split("=", 1)
            words = command[: command.index("printenv") + 1] + [f"{prefix}_{name}"]
            assert subprocess.run(words, capture_output=True, text=True).stdout == f"{value}\n"


def test_secrets_are_told_from_other_variables():
    for text in ("export WANDB_API_KEY=abc", "A=1 HF_TOKEN='abc'", "db_password=x", "AWS_SECRET_ACCESS_KEY=x", "KEY=x"):
        assert SECRET.search(text), text
    for text in (
        "export WANDB_API_KEY=$(cat ~/.key)",
        'export HF_TOKEN="$MINE"',
        "SSH_KEY=~/.ssh/id",
        "TOKENIZERS_PARALLELISM=false",
        "NUM_TOKENS=5",
        "KEYBOARD=us",
        "MONKEY=x",
        "NCCL_DEBUG=INFO",
    ):
        assert not SECRET.search(text), text


def test_usr2_in_the_first_moments_does_not_end_a_process():
    code = (
        "import signal, time; print('begins', flush=True); time.sleep(1)\n"
        "signal.signal(signal.SIGUSR2, lambda *_: (print('asked', flush=True), exit(0)))\n"
        "print('ready', flush=True); time.sleep(60)"
    )
    process = subprocess.Popen([*IGNORE_USR2, sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "begins\n"
    for _ in range(4):
        process.send_signal(12)
        time.sleep(0.1)
    assert process.stdout.readline() == "ready\n"
    process.send_signal(12)
    assert process.stdout.read() == "asked\n" and process.wait() == 0


# The difference to the commit


@pytest.fixture
def code(tmp_path, monkeypatch):
    """A repository in place of this one."""
    root = tmp_path / "code"
    root.mkdir()
    monkeypatch.setattr(provenance, "ROOT", root)
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(tmp_path / "gitconfig"))
    (tmp_path / "gitconfig").write_text("[user]\nname = reader\nemail = reader@example.org\n")
    (root / "a.py").write_text("".join(f"line {number}\n" for number in range(30)))
    (root / "b.bin").write_bytes(bytes(range(256)))
    (root / "latin1.txt").write_bytes(b"M\xe9\n")
    for words in (["init", "-q"], ["add", "."], ["commit", "-qm", "first"]):
        subprocess.run(["git", "-C", root, *words], check=True)
    return root


@pytest.mark.parametrize(
    "settings",
    [
        "[color]\nui = always\ndiff = always",
        "[diff]\nnoprefix = true",
        "[diff]\nmnemonicPrefix = true",
        "[diff]\nexternal = true",
        "[diff]\ncontext = 0",
        "[diff]\nsrcPrefix = x/\ndstPrefix = y/",
        "[diff]\nrenames = copies",
        "[core]\nquotePath = false",
        "[diff]\nwordRegex = .\nsuppressBlankEmpty = true\nalgorithm = patience",
    ],
)
def test_the_patch_applies_whatever_the_settings_of_git_are(code, tmp_path, settings):
    with open(tmp_path / "gitconfig", "a") as file:
        file.write(settings)
    (code / "a.py").write_text((code / "a.py").read_text().replace("line 15", "changed"))
    (code / "b.bin").write_bytes(bytes(range(255, -1, -1)))
    (code / "latin1.txt").write_bytes(b"th\xe9\n")
    (code / "n\xf6w.py").write_text("print(1)\n")
    wanted = {path.name: path.read_bytes() for path in code.iterdir() if path.is_file()}
    folder = tmp_path / "run"
    folder.mkdir()
    provenance.store(folder)
    (tmp_path / "gitconfig").unlink()
    clone = tmp_path / "clone"
    subprocess.run(["git", "clone", "-q", code, clone], check=True)
    subprocess.run(["git", "-C", clone, "apply", folder / "changes.patch"], check=True)
    assert {path.name: path.read_bytes() for path in clone.iterdir() if path.is_file()} == wanted
    assert "torch==" in (folder / "packages.txt").read_text()


def test_passwords_are_not_kept(code, tmp_path):
    (code / "a.py").write_text('PASSWORD = "swordfish1"\n')
    (code / "latin1.txt").write_text("changed\n")
    for name, text in {
        "keys.yaml": "a: swordfish1\n",
        "wandb.yaml": "swordfish1\n",
        "aws.cfg": "swordfish1\n",
        "auth.py": "x = 'swordfish1'\n",
        "netrc.sh": "swordfish1\n",
        "db_pwd.yaml": "swordfish1\n",
        "docker-compose.yml": "services:\n  db:\n    password: swordfish1\n",
        "kaggle.toml": "swordfish1\n",
        "config.local.yaml": "api_key: swordfish1\n",
        "notes.md": "postgres://me:swordfish1@host/x\n",
        "good.py": "token = read()\nself.secret = make.one\nclass A:\n    token: Tensor\n",
        "tokenizer.py": "print(1)\n",
    }.items():
        (code / name).write_text(text)
    folder = tmp_path / "run"
    folder.mkdir()
    provenance.store(folder)
    patch, told = (folder / "changes.patch").read_text(errors="replace"), (folder / "git.txt").read_text()
    assert "swordfish1" not in patch
    for name in ("a.py", "keys.yaml", "wandb.yaml", "aws.cfg", "auth.py", "docker-compose.yml", "notes.md"):
        assert f"not kept: {name}\n" in told
    for name in ("good.py", "tokenizer.py", "latin1.txt"):
        assert f" b/{name}\n" in patch


def test_a_large_difference_is_not_kept(code, tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    (code / "latin1.txt").write_text("changed\n")
    (code / "a.py").write_text("0123456789\n" * 600_000)  # alone
    provenance.store(folder)
    assert "not kept: a.py" in (folder / "git.txt").read_text()
    assert b"latin1.txt" in (folder / "changes.patch").read_bytes()
    (code / "a.py").write_text("0123456789\n" * 430_000)
    (code / "latin1.txt").write_text("0123456789\n" * 430_000)
    provenance.store(folder)
    assert (folder / "changes.patch").stat().st_size < 1000
    assert "larger than 10 MB" in (folder / "changes.patch").read_text()


def test_code_that_is_edited_while_the_job_waits(code, tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    provenance.store(folder)
    assert provenance.store_if_changed(folder, "57-0") is False
    (code / "a.py").write_text("changed\n")
    assert provenance.store_if_changed(folder, "57-0") is True
    assert "+changed" in (folder / "changes-57-0.patch").read_text()
    assert "see changes-57-0.patch" in (folder / "git-57-0.txt").read_text()
    assert "changed since: no" in (folder / "git.txt").read_text()
    assert provenance.store_if_changed(folder, "57-1") is False
    (code / "a.py").write_text("again\n")
    assert provenance.store_if_changed(folder, "57-2") is True


def test_the_packages_of_a_container_are_those_that_are_kept(code, tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    provenance.store(folder, container="image.sif")
    assert (folder / "git.txt").exists() and not (folder / "packages.txt").exists()
    assert provenance.store_if_changed(folder, "57-0") is False  # in the container
    assert "torch==" in (folder / "packages.txt").read_text()


def test_a_repository_that_git_refuses_is_said(code, monkeypatch):
    from src.launch import checks

    monkeypatch.setattr(checks, "ROOT", code)
    monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")
    level, sentence = checks.check_git(None)
    assert level == "WARNING" and "belongs to another user" in sentence and "safe.directory" in sentence

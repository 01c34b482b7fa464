"""Wrong inputs: a table of what a user may type, or have in a file, by mistake.

Each row is a command, the files around it, and words that its message has to hold: what was given, and what is allowed.
test_bad_input.py runs them all. A new flag, file or command belongs here with what can be wrong about it.
"""

import json
import os
import shlex
import shutil
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

Content = str | bytes | Callable[[Path], object]


@dataclass
class Row:
    """One wrong input.

    Args:
        name: of the test
        words: a program of the repository and what is typed behind it
        message: words that have to be in the message; of "a|b" one is enough
        files: path in the sandbox: what is there before
        env: variables; None: not set
        uid: the user, if the tests run as root; 0: who runs the tests
        listed: what `list` has to show all the same, and then any exit code is right
        harmless: whether any exit code and message is right, as long as nothing else happens
        stdout: whether the message is what the command has to say, and so goes to standard output
    """

    name: str
    words: list[str]
    message: list[str]
    files: dict[str, Content] = field(default_factory=dict)
    env: dict[str, str | None] = field(default_factory=dict)
    uid: int = 0
    listed: list[str] = field(default_factory=list)
    harmless: bool = False
    stdout: bool = False

    @property
    def heavy(self) -> bool:
        """Whether the command imports torch; what run.py starts for that, the other server runs."""
        return self.words[0].startswith("src/") or "debug" in self.words

    @property
    def slow(self) -> bool:
        """Whether it is much like other rows, and need not be tried each time."""
        return self.name.startswith(SLOW)


ROWS: list[Row] = []
SLOW = (
    *("lesson-05", "lesson-06", "lesson-07", "cancel-damaged", "report-damaged", "repeat-damaged"),
    *(
        "resume-config",
        "repeat-config",
        "hdf5-",
        "pack-image",
        "max_time",
        "validate_every",
        "test-",
        "check-",
        "train-",
    ),
    *("trainer-", "time-", "search-values", "doctor-patience", "lr_scheduler-"),
)
LONG = "x" * 300  # longer than a name may be in any file system
DIGITS = "9" * 5000  # more than Python reads as a number
NOBODY = 65534  # the user who may not read what another user keeps to himself
STRANGER = 12345  # a user whom the system does not know by name
TEMPLATES = Path()  # the folder that make_templates() has filled


def row(name: str, command: str | list[str], *message: str, **more) -> None:
    """Add a row. command: as it is typed, or a list of words."""
    words = shlex.split(command) if isinstance(command, str) else command
    assert name not in {known.name for known in ROWS}, name
    ROWS.append(Row(name, words, list(message), **more))


def make_templates(folder: Path) -> None:
    """Make what is copied into sandboxes: a run, a packed file and a study. Needs the process that has imported src."""
    import contextlib
    import dataclasses
    import io

    import numpy as np

    from src.config import merge
    from src.hdf5.pack import ImageWriter
    from src.launch.job import Job
    from src.search import study
    from src.search.space import Search

    class Writer(ImageWriter):
        def decode(self, part, number):
            return np.zeros((3, 8, 8), np.uint8), number % 2

    for name in ("run", "packed", "study"):
        (folder / name).mkdir(parents=True)
        (folder / name / "config.yaml").write_text(merge([]))
    (folder / "run/job.json").write_text(json.dumps(dataclasses.asdict(Job(name="fit"))))
    with contextlib.redirect_stderr(io.StringIO()):
        Writer({"train": range(12), "test": range(12)}, ["a", "b"]).write(folder / "packed/data.h5")
    study.create(folder / "study", Search(2, 1), {"optimizer.lr": "0.1,0.2"}, 1, "val/accuracy", False)


# What files can be, other than a text.


def fifo(path: Path) -> None:
    os.mkfifo(path)


def folder(path: Path) -> None:
    path.mkdir()


def loop(path: Path) -> None:
    path.symlink_to(path.name)


def zeros(path: Path) -> None:
    path.symlink_to("/dev/zero")


def foreign(path: Path) -> None:
    """Another user's, which NOBODY may not read."""
    path.write_text("{}")
    path.chmod(0o600 if os.getuid() == 0 else 0)


def foreign_folder(path: Path) -> None:
    path.mkdir()
    path.chmod(0o700 if os.getuid() == 0 else 0)


def full(path: Path) -> None:
    """A folder that NOBODY may read, but not write to."""
    path.mkdir()
    path.chmod(0o755 if os.getuid() == 0 else 0o555)


BINARY = bytes(range(256)) * 4
ODD_FILES: dict[str, Content] = {
    "empty": "",
    "binary": BINARY,
    "fifo": fifo,
    "folder": folder,
    "loop": loop,
    "zeros": zeros,
}


def run(record: object = None, text: Content | None = None, config: Content | None = None, **job) -> Content:
    """A run's folder.

    Args:
        record: keys of run.json that are other than usual; ... removes a key
        text: all of run.json
        config: all of config.yaml
        job: keys of the job in it that are other than usual
    """

    def make(path: Path) -> None:
        path.mkdir(parents=True, exist_ok=True)
        submission = {"submitted": "2026-01-02 03:04:05", "pid": 4242, "started": 1.0, "host": "elsewhere"}
        submission |= {"ended": "2026-01-02 03:05:05", "outcome": "COMPLETED"}
        defaults = json.loads((TEMPLATES / "run/job.json").read_text())
        usual = {"command": "fit", "submissions": [submission], "job": defaults | {"cluster": "local"} | job}
        content = {key: value for key, value in (usual | (record or {})).items() if value is not ...}
        content["job"] = (
            {key: value for key, value in content["job"].items() if value is not ...}
            if isinstance(content.get("job"), dict)
            else content.get("job")
        )
        if "job" in (record or {}) and record["job"] is ...:
            content.pop("job")
        place(path / "run.json", json.dumps(content) if text is None else text)
        place(path / "config.yaml", (TEMPLATES / "run/config.yaml").read_text() if config is None else config)
        (path / "4242_0_log.out").write_text("epoch: 01/10    training loss: 0.5\n")

    return make


def place(path: Path, content: Content) -> None:
    if callable(content):
        content(path)
    elif isinstance(content, bytes):
        path.write_bytes(content)
    else:
        path.write_text(content)


def submission(**changes) -> dict:
    """A record with one submission, of which these keys are other than usual; ... removes a key."""
    usual = {"submitted": "2026-01-02 03:04:05", "pid": 4242, "started": 1.0, "host": "elsewhere"}
    usual |= {"ended": "2026-01-02 03:05:05", "outcome": "COMPLETED"}
    return {"submissions": [{key: value for key, value in (usual | changes).items() if value is not ...}]}


def png(size: tuple[int, int] = (8, 8), depth: int = 8, kind: int = 2) -> bytes:
    """An image in black. kind: PNG's number of the colour type; 2: RGB, 0: grey."""
    samples = {0: 1, 2: 3, 6: 4}[kind]
    line = b"\0" + bytes(size[0] * samples * depth // 8)

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    head = struct.pack(">IIBBBBB", *size, depth, kind, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", head)
        + chunk(b"IDAT", zlib.compress(line * size[1]))
        + chunk(b"IEND", b"")
    )


# ---- flags of run.py

WHOLE = "whole number"
WRONG_NUMBERS = {
    "negative": "-1",
    "point": "1.5",
    "word": "two",
    "nan": "nan",
    "inf": "inf",
    "huge-float": "1e400",
    "underscore": "1_000",
    "superscript": "²",
    "empty": "",
    "blank": " ",
    "hex": "0x10",
    "true": "true",
    "list": "[1]",
    "digits": DIGITS,
}
for kind, value in WRONG_NUMBERS.items():
    row(f"nodes-{kind}", ["run.py", f"--nodes={value}"], "--nodes", value[:9], f"{WHOLE}|digits|at most|too large")
for flag, values in {
    "nodes": ["0", "null"],
    "gpus_per_node": ["-1", "1.5", "a100", "1_0"],
    "tasks_per_node": ["0", "-1", "²"],
    "cpus_per_task": ["0", "two"],
    "requeues": ["-1", "1e400"],
    "seed": ["-1", "1.5", "1e400", "x"],
    "batch_size": ["0", "-64", "1_024", "6.4e1x"],
    "num_workers": ["-1", "2.5", "١"],
    "max_epochs": ["0", "-1", "ten", "1e400", "nan"],
    "max_steps": ["0", "inf"],
    "threads": ["0", "-2"],
    "accumulate": ["0", "0.5"],
    "scale_lr": ["0", "-64"],
    "overfit_batches": ["-1", "0.1"],
    "limit_train_batches": ["0", "0.5"],
    "limit_val_batches": ["-1", "1.0"],
}.items():
    for value in values:
        row(f"{flag}-{value}", ["run.py", f"--{flag}={value}"], f"--{flag}", value, WHOLE)
for value in ("nan", "inf", "1e400", "-1", "0", "x", "1_0.5", ""):
    row(
        f"gradient_clip-{value}",
        ["run.py", f"--gradient_clip={value}"],
        "--gradient_clip",
        value.replace("1e400", "inf"),
        "number above 0|finite",
    )
row("seed-too-large", "run.py --seed 4294967296", "--seed 4294967296", "4294967295|2**32")
row("seed-a-date", "run.py --seed 20261127223141", "--seed 20261127223141", "4294967295|2**32")
row("seed-in-a-file", "run.py --config a.yaml", "seed", "4294967296", "4294967295|2**32",
    files={"a.yaml": "seed: 4294967296\n"})  # fmt: skip
HUGE = "1" + "0" * 30
for flag in ("accumulate", "threads"):  # as many epochs may be, they do not come to an end
    row(f"{flag}-huge", f"run.py --{flag} {HUGE}", f"--{flag}", HUGE[:9])
row("scale_lr-huge", f"run.py --scale_lr 1{'0' * 400}", "--scale_lr", HUGE[:9])
row("threads-many", "run.py --threads 1000000", "--threads 1000000")
for kind, value in {"empty": "", "no-unit": "4000", "GB": "4GB", "zero": "0G", "negative": "-1G", "small": "4g",
                    "blank": "4 G", "arabic": "1٤G", "point": "1.5G", "newline": "4G\n"}.items():  # fmt: skip
    row(f"mem-{kind}", ["run.py", f"--mem={value}"], "--mem", "500M or 4G|needs a value|line breaks")
row("mem-digits", ["run.py", "--mem", f"{DIGITS}G"], "--mem", "99999")
TIMES = {"empty": "", "number": "30", "zero": "00:00:00", "minutes": "00:61:00", "negative": "-00:10:00",
         "days": "1-2-3", "words": "10 min", "arabic": "٠٠:10:00", "newline": "00:10:00\n", "inf": "inf"}  # fmt: skip
for kind, value in TIMES.items():
    row(f"time-{kind}", ["run.py", f"--time={value}"], "--time", "HH:MM:SS|needs a value|line breaks")
    row(f"max_time-{kind}", ["run.py", f"--max_time={value}"], "--max_time", "HH:MM:SS|needs a value|line breaks")
row("time-digits", ["run.py", "--time", f"{DIGITS}-00:00:00"], "--time", "99999")
for flag in ("checkpoint_every", "validate_every"):
    for value in ("0", "-1", "1.5", "2weeks", "", "1_000", "²epochs", "epochs", "inf", "true", "[1]"):
        row(f"{flag}-{value}", ["run.py", f"--{flag}={value}"], f"--{flag}", value, "1epoch|whole number")
row("checkpoint_every-digits", ["run.py", f"--checkpoint_every={DIGITS}"], "--checkpoint_every", "99999")
for flag, value, allowed in [
    ("cluster", "lsf", "slurm, local"),
    ("cluster", "", "slurm, local"),
    ("precision", "16", "16-mixed"),
    ("precision", "64", "16-mixed"),
    ("accelerator", "tpu", "cpu, gpu"),
    ("strategy", "deepspeed", "ddp"),
    ("keep", "none", "best, last, all"),
    ("profile", "yes", "simple, advanced"),
    ("sync_batchnorm", "2", "true or false"),
    ("fast_dev_run", "3", "true or false|not expected"),
    ("smoke", "maybe", "true or false|not expected"),
    ("lr_interval", "hour", "epoch"),
]:
    row(f"{flag}-{value or 'empty'}", ["run.py", f"--{flag}={value}"], f"--{flag}", value, allowed)
for kind, value in {"slash": "a/b", "dots": "..", "dot": ".", "empty": "", "blank": "a b", "long": LONG,
                    "newline": "a\nb", "percent": "a%jb", "escape": "a\x1b[2J", "star": "*"}.items():  # fmt: skip
    row(f"name-{kind}", ["run.py", f"--name={value}"], "--name", value.split("\n")[0][:5].replace("\x1b[2J", ""))
CONTROL = ["partition", "account", "qos", "constraint", "wckey", "log_path", "parallel_environment", "container",
           "container_program", "mpirun"]  # fmt: skip
for flag in CONTROL:
    row(f"{flag}-newline", ["run.py", f"--{flag}=a\ntouch x"], f"--{flag}", "newline|line|control|character")
for flag in ("modules", "directives", "container_binds", "container_env"):
    more = " --cluster pbs" if flag == "directives" else ""
    row(f"{flag}-newline", shlex.split(f"run.py{more}") + [f'--{flag}=["A=a\\ntouch x"]'],
        f"--{flag}", "newline|line|control|character")  # fmt: skip
for flag in ("partition", "account", "qos"):
    row(f"{flag}-escape", ["run.py", f"--{flag}=a\x1b]52;c;x"], f"--{flag}", "control|character")
for flag in ("partition", "account"):
    for cluster in ("pbs", "sge"):
        row(
            f"{flag}-blank-{cluster}",
            ["run.py", "--cluster", cluster, f"--{flag}=a -l b"],
            f"--{flag}",
            "a -l b",
            "blank|space|holds",
        )
row("modules-command", ["run.py", "--modules=[gcc; touch X]"], "--modules", "gcc; touch X")
row("modules-scalar", ["run.py", "--modules={a: 1}"], "--modules", "a list")
row("setup-scalar", ["run.py", "--setup=3"], "--setup", "a list")
for value in ("{x}", "{", "}", "{}", "{0}", "{processes!r:>999999999}", "{processes.__class__}", "{nodes[0]}"):
    row(f"mpirun-{value}", ["run.py", "--cluster", "pbs", f"--mpirun=mpirun {value}"], "--mpirun", "{processes}")
row("directives-slurm", "run.py --cluster slurm --directives '[-l x]'", "--directives", "pbs|sbatch")
row("container-missing", "run.py --container no.sif", "--container", "no.sif", "no such image")
row("container-nouser", ["run.py", "--container=~nouser/a.sif"], "--container", "nouser")
row("container-long", f"run.py --container {LONG}", "--container", "xxx")
row("container-loop", "run.py --container a.sif", "--container", "a.sif", files={"a.sif": loop})
row("container-debug", "run.py --cluster debug --container a.sif", "--container", "--cluster", files={"a.sif": ""})
for value in ("3=x", "=x", "NAME", "A B=x", "A\u0300=x"):
    row(f"container_env-{value}", ["run.py", f"--container_env=['{value}']"], "--container_env", "NAME=VALUE")
for kind, more in {"file": "", "fifo": fifo, "loop": loop, "zeros": zeros}.items():
    row(f"log_path-{kind}", "run.py --log_path there", "there|/dev/zero", "--log_path", files={"there": more})
row("log_path-proc", "run.py --log_path /proc/none", "/proc/none", "--log_path")
row("log_path-below-a-file", "run.py --log_path there/logs", "there", "--log_path", files={"there": ""})
row("log_path-nouser", "run.py --log_path=~nouser/logs", "--log_path", "nouser")
row("log_path-long", f"run.py --log_path {LONG}", "xxx", "--log_path")
row("log_path-percent", "run.py --log_path 100%train", "--log_path", "%")
row("log_path-foreign", "run.py --log_path there", "there", "--log_path", files={"there": full}, uid=NOBODY)
row(
    "log_path-blank-pbs",
    ["run.py", "--cluster", "pbs", "--log_path", "my logs"],
    "--log_path",
    "my logs",
    "blank|space|holds",
)

row("no-command", "run.py extra", "no command extra", "fit, validate")
row("no-command-near", "run.py tets", "no command tets", "test")
row("no-command-empty", ["run.py", ""], "command", "fit, validate")
row("no-command-long", ["run.py", LONG], "xxxxx", "fit, validate")
row("no-command-escape", ["run.py", "a\x1b[2Jb"], "no command", "fit, validate")
row("two-words", "run.py --nodes 2 3", "'3'|3 ", "begins with --")
row("one-dash", "run.py -nodes 2", "-nodes", "--")
row("two-dashes", "run.py -- 2", "--", "flag")
row("equals-alone", "run.py --=3", "flag")
row("flag-typo", "run.py --node 2", "--node", "--nodes")
row("flag-dash", "run.py --max-epochs 2", "--max-epochs", "--max_epochs")
row("flag-unknown", "run.py --zzzz 2", "--zzzz", "--help")
row("flag-long", ["run.py", f"--{LONG}", "2"], "--xxxx", "--help")
row("flag-section-typo", "run.py --optimiser.lr 2", "--optimiser.lr", "--optimizer.lr")
row("flag-no-value", "run.py --nodes", "--nodes needs a value", WHOLE)
row("flag-no-value-but-flag", "run.py --nodes --dry_run", "--nodes needs a value")
row("flag-underscores-of-settings", "run.py --nodes.x 2", "--nodes.x")
row("fit-with-run", "run.py fit extra", "extra", "resume")
row("ckpt-without-run", "run.py --ckpt best", "--ckpt best", "needs a run")
row("place-local-nodes", "run.py --nodes 2 --cluster local", "--nodes 2", "needs Slurm")
row("place-debug-processes", "run.py --cluster debug --tasks_per_node 2", "--cluster debug", "one process")
row("place-debug-processes-dry", "run.py --cluster debug --tasks_per_node 2 --dry_run", "one process", stdout=True)
row("place-no-sbatch", "run.py --cluster slurm", "--cluster slurm", "sbatch", env={"PATH": "/nowhere"})
row("place-no-qsub", "run.py --cluster pbs", "--cluster pbs", "qsub", env={"PATH": "/nowhere"})
row("gpus-and-tasks", "run.py --gpus_per_node 4 --tasks_per_node 2", "--tasks_per_node 2", "--gpus_per_node 4")
row("batch-indivisible", "run.py --nodes 3 --batch_size 64", "--batch_size 64", "63 or 66")
row("half-on-cpu", "run.py --precision 16-mixed", "16-mixed", "--gpus_per_node")
row("gpu-without", "run.py --accelerator gpu", "--accelerator gpu", "--gpus_per_node")
row("workers-many", "run.py --num_workers 3", "--num_workers 3", "--cpus_per_task 2")
row("overfit-and-limit", "run.py --overfit_batches 2 --limit_val_batches 1", "--overfit_batches", "--limit_val_batches")
row("fsdp-half", "run.py --strategy fsdp --precision 16-mixed --gpus_per_node 1", "--strategy fsdp", "bf16-mixed")
row("sync-batchnorm-cpu", "run.py --sync_batchnorm true --tasks_per_node 2 --cluster local --model.arch resnet18",
    "--sync_batchnorm", "GPU")  # fmt: skip

# ---- classes and their arguments: what needs torch

for section in ("model", "data", "optimizer", "lr_scheduler"):
    row(f"{section}-unknown", f"run.py --{section} Nope", f"--{section}", "Nope", "name of a class")
    row(f"{section}-empty", ["run.py", f"--{section}="], f"--{section}")
    row(f"{section}-number", f"run.py --{section} 3", f"--{section}", "3")
    row(f"{section}-foreign-class", f"run.py --{section} subprocess.Popen", f"--{section}", "subprocess.Popen")
    row(f"{section}-module", f"run.py --{section} src.models.nope.Nope", f"--{section}", "nope")
    row(f"{section}-argument", f"run.py --{section}.nope 3", f"--{section}.nope", "nope")
row("model-argument-type", "run.py --model.dropout x", "dropout", "x")
row("model-arch", "run.py --model.arch nope", "nope", "cnn|mlp")
row("model-arch-list", "run.py --model.arch [1]", "--model.arch|arch")
row("model-function", "run.py --model os.system", "--model", "os.system")
row("model-path", "run.py --model ../x", "../x")
row("model-itself", "run.py --config a.yaml", "a.yaml", files={"a.yaml": "model: &a\n  init_args: *a\n"})
for value in ("nan", "inf", "1e400", "-1", "", "abc", "1_0", "²"):
    row(f"lr-{value}", ["run.py", f"--optimizer.lr={value}"], "lr|learning rate", value.replace("1e400", "inf"))
row("lr-list", "run.py --optimizer.lr [1]", "lr")
row("optimizer-betas", "run.py --optimizer.betas 3", "betas")
row("scheduler-incomplete", "run.py --lr_scheduler StepLR", "StepLR", "step_size")
row("logger-unknown", "run.py --logger nope", "--logger", "nope", "tensorboard")
row("logger-not-installed", "run.py --logger wandb", "--logger wandb", "pip install wandb|installed")
row("callbacks-unknown", "run.py --callbacks Nope", "--callbacks", "Nope", "EarlyStopping")
row("callbacks-foreign-class", "run.py --callbacks subprocess.Popen", "--callbacks", "subprocess.Popen")
row("callbacks-argument", "run.py --callbacks EarlyStopping --callbacks.nope 3", "nope")
row("callbacks-incomplete", "run.py --callbacks EarlyStopping", "EarlyStopping", "monitor")
for name, hint in {"nope": "no argument nope", "max_epochs": "--max_epochs", "devices": "--gpus_per_node",
                   "precision": "--precision", "logger": "--logger", "strategy": "--strategy",
                   "accumulate_grad_batches": "--accumulate", "log_every_n_step": "log_every_n_steps",
                   "plugins": "plugins", "callbacks": "--callbacks", "fast_dev_run": "--fast_dev_run",
                   "accelerator": "--accelerator"}.items():  # fmt: skip
    row(f"trainer-{name}", f"run.py --trainer.{name} 1", name, hint)
row("trainer-scalar", "run.py --trainer 3", "--trainer")
row("trainer-value", "run.py --trainer.benchmark maybe", "benchmark", "maybe")
row("trainer-value-number", "run.py --trainer.limit_test_batches -1", "limit_test_batches", "-1")

for kind, more in {"missing": None, "fifo": fifo, "loop": loop, "binary": BINARY, "empty": "", "folder": folder,
                   "zeros": zeros}.items():  # fmt: skip
    row(f"init_from-{kind}", "run.py --init_from there.ckpt", "there.ckpt",
        files={} if more is None else {"there.ckpt": more})  # fmt: skip
row("init_from-nouser", "run.py --init_from=~nouser/a.ckpt", "--init_from", "nouser")
row("init_from-long", f"run.py --init_from {LONG}", "--init_from", "xxx")
row("init_from-foreign", "run.py --init_from there.ckpt", "there.ckpt", files={"there.ckpt": foreign}, uid=NOBODY)
row("init_from-empty-text", ["run.py", "--init_from="], "--init_from")

# ---- config files

DEEP = "a: " + "[" * 700 + "]" * 700 + "\n"
LETTERS = "abcdefghi"  # of which each names nine of the one before
LAUGHS = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{new}: &{new} [{','.join([f'*{old}'] * 9)}]\n" for old, new in zip(LETTERS, LETTERS[1:], strict=False)
)
YAML: dict[str, tuple[Content, list[str]]] = {
    "duplicate": ("max_epochs: 1\nbatch_size: 8\nmax_epochs: 2\n", ["max_epochs"]),
    "duplicate-deep": ("model:\n  init_args: {arch: cnn, arch: mlp}\n", ["arch"]),
    "duplicate-in-job": ("job: {nodes: 1, nodes: 2}\n", ["nodes"]),
    "cycle": ("data: &a\n  init_args: *a\n", []),
    "cycle-list": ("callbacks: &a [*a]\n", ["callbacks|mine.yaml"]),
    "deep": (DEEP, []),
    "deep-block": ("".join(f"{' ' * level}a:\n" for level in range(700)), []),
    "latin1": ("# f\xfcr M\xfcller\nmax_epochs: 2\n".encode("latin1"), ["UTF-8|utf-8"]),
    "utf16": ("max_epochs: 2\n".encode("utf-16"), ["UTF-8|utf-8"]),
    "nul": ("max_epochs: 2\n\0\n", []),
    "escape": ("max_epochs: 2\x1b[2J\n", []),
    "tab": ("model:\n\tarch: cnn\n", ["line 2"]),
    "two-documents": ("max_epochs: 2\n---\nmax_epochs: 3\n", ["document|line"]),
    "list": ("- max_epochs\n", ["name: value"]),
    "scalar": ("max_epochs\n", ["name: value"]),
    "number": ("3\n", ["name: value"]),
    "digits": (f"max_epochs: {DIGITS}\n", []),
    "digits-key": (f"{DIGITS}: 1\n", []),
    "huge": (f"threads: {HUGE}\n", ["threads", HUGE[:9]]),
    "python-object": ("model: !!python/object:os.system {}\n", ["python/object"]),
    "python-apply": ("!!python/object/apply:os.system [touch owned]\n", ["python/object"]),
    "tag": ("model: !mine {arch: cnn}\n", ["!mine"]),
    "laughs": (LAUGHS, []),
    "unknown": ("max_epohs: 3\n", ["max_epohs", "max_epochs"]),
    "unknown-number": ("3: 4\n", ["3"]),
    "unknown-null": ("~: 4\n", []),
    "unknown-list": ("? [a, b]\n: 4\n", []),
    "unknown-date": ("2026-01-01: 4\n", ["2026"]),
    "unknown-in-job": ("job: {node: 3}\n", ["node", "nodes"]),
    "job-outside": ("nodes: 3\n", ["nodes belongs under job"]),
    "job-scalar": ("job: 3\n", ["job"]),
    "job-list": ("job: [nodes]\n", ["job"]),
    "type": ("batch_size: big\n", ["batch_size: big", WHOLE]),
    "type-list": ("batch_size: [1]\n", ["batch_size", WHOLE]),
    "type-map": ("batch_size: {a: 1}\n", ["batch_size", WHOLE]),
    "type-null": ("batch_size:\n", ["batch_size", WHOLE]),
    "type-bool": ("batch_size: true\n", ["batch_size", WHOLE]),
    "type-date": ("max_epochs: 2026-01-01\n", ["max_epochs", WHOLE]),
    "type-float": ("gradient_clip: .nan\n", ["gradient_clip", "number above 0"]),
    "type-infinite": ("gradient_clip: .inf\n", ["gradient_clip", "number above 0|finite"]),
    "time-sexagesimal": ("job: {time: 600}\n", ["600", "HH:MM:SS|a text"]),
    "mem-number": ("job: {mem: 4000}\n", ["4000", "500M or 4G|a text"]),
    "name-number": ("job: {name: [a]}\n", ["name"]),
    "modules-text": ("job: {modules: gcc}\n", ["modules", "a list"]),
    "setup-number": ("job: {setup: [1]}\n", ["setup"]),
    "partition-newline": ('job: {partition: "a\\nb"}\n', ["partition"]),
    "partition-nul": ('job: {partition: "a\\0b"}\n', ["partition"]),
    "partition-number": ("job: {partition: 3}\n", ["partition"]),
    "log-path-nul": ('job: {log_path: "a\\0b"}\n', ["log_path"]),
    "log-path-nouser": ("job: {log_path: ~nouser/logs}\n", ["log_path", "nouser"]),
    "model-list": ("model: [Classifier]\n", ["model"]),
    "model-number": ("model: 3\n", ["model"]),
    "model-nul": ('model: {class_path: "a\\0b"}\n', ["model"]),
    "model-no-class": ("model: {init_args: 3}\n", ["model"]),
    "model-class-number": ("model: {class_path: 3}\n", ["model"]),
    "model-class-list": ("model: {class_path: [a]}\n", ["model"]),
    "data-class-map": ("data: {class_path: {a: 1}}\n", ["data"]),
    "model-arguments": ("model: {class_path: Classifier, init_args: {nope: 1}}\n", ["nope", "arch"]),
    "trainer-list": ("trainer: [max_epochs]\n", ["trainer"]),
    "trainer-scalar": ("trainer: 3\n", ["trainer"]),
    "trainer-unknown": ("trainer: {nope: 1}\n", ["nope"]),
    "trainer-number": ("trainer: {3: 1}\n", ["3"]),
    "callbacks-map": ("callbacks: {a: 1}\n", ["callbacks"]),
    "callbacks-numbers": ("callbacks: [3]\n", ["callbacks"]),
    "optimizer-list": ("optimizer: [Adam]\n", ["optimizer"]),
    "lr-nan": ("optimizer: {class_path: Adam, init_args: {lr: .nan}}\n", ["lr|learning rate"]),
    "lr-text": ("optimizer: {class_path: Adam, init_args: {lr: big}}\n", ["lr", "big"]),
    "logger-number": ("logger: 3\n", ["logger"]),
    "data-dir-number": ("data_dir: 3\n", ["data_dir"]),
    "data-dir-nul": ('data_dir: "a\\0b"\n', ["data_dir"]),
    "config-in-config": ("config: other.yaml\n", ["config"]),
    "dry-run": ("dry_run: true\n", ["dry_run"]),
    "anchor": ("model: *nope\n", ["line 1|nope"]),
    "merge": ("<<: 3\n", ["line|merge|<<"]),
    "colon": ("model: arch: cnn\n", ["line 1"]),
    "percent": ("%x\n", ["line"]),
}  # fmt: skip
# What is wrong with a class or its arguments, jsonargparse finds when it no longer knows in which file they stood.
NO_FILE = (
    *("model-", "data-class", "trainer-", "callbacks-", "optimizer-", "lr-", "logger-", "cycle-list", "type-infinite"),
    *("partition-newline", "partition-nul", "log-path-nul", "data-dir-nul", "log-path-nouser", "huge"),
)
for kind, (content, words) in YAML.items():
    names = words if kind.startswith(NO_FILE) else ["mine.yaml", *words]
    row(f"config-{kind}", "run.py --config mine.yaml", *names, files={"mine.yaml": content})
for kind in ("duplicate", "cycle", "deep", "latin1", "utf16", "nul", "tab", "two-documents", "list", "scalar", "digits",
             "unknown", "type", "python-object", "job-scalar", "model-list", "trainer-list"):  # fmt: skip
    content, words = YAML[kind]
    name = (
        words[0].split(":")[0]
        if kind in ("type", "unknown", "job-scalar", "model-list", "trainer-list")
        else "mine.yaml"
    )
    row(f"train-config-{kind}", "src/train.py fit --prepare --config mine.yaml", name, files={"mine.yaml": content})
for kind, content in {"fifo": fifo, "folder": folder, "loop": loop, "zeros": zeros, "foreign": foreign}.items():
    more = {"files": {"mine.yaml": content}, "uid": NOBODY if kind == "foreign" else 0}
    row(f"config-{kind}", "run.py --config mine.yaml", "mine.yaml", **more)
    row(f"train-config-{kind}", "src/train.py fit --prepare --config mine.yaml", "mine.yaml", **more)
for kind, value in {
    "missing": "nowhere",
    "empty": "",
    "long": LONG,
    "nouser": "~nouser/a.yaml",
    "folder": "/etc",
}.items():
    row(f"config-name-{kind}", ["run.py", f"--config={value}"], "--config", value[:5])
    row(f"train-config-name-{kind}", ["src/train.py", "fit", "--prepare", f"--config={value}"], value[:5])
row("config-home-unset", "run.py --config ~/a.yaml", "a.yaml", env={"HOME": None}, uid=STRANGER)
row("log_path-home-unset", ["run.py", "--log_path=~/logs"], "--log_path", "~/logs", env={"HOME": None}, uid=STRANGER)
for kind in ("latin1", "list", "tab", "duplicate", "nul", "deep", "digits"):
    row(f"site-{kind}", "run.py", "mine.yaml", files={"mine.yaml": YAML[kind][0]}, env={"RUN_SITE": "mine.yaml"})
for kind, text in {"unknown": "partitionn: x\n", "type": "nodes: many\n", "log_path-number": "log_path: 5\n",
                   "log_path-list": "log_path: [a]\n", "mem": "mem: 4\n", "log_path-nul": 'log_path: "a\\0"\n',
                   "log_path-nouser": "log_path: ~nouser/x\n", "settings": "max_epochs: 3\n"}.items():  # fmt: skip
    key = text.split(":")[0]
    row(
        f"site-{kind}",
        "run.py",
        "mine.yaml|--mem|--log_path",
        key,
        files={"mine.yaml": text},
        env={"RUN_SITE": "mine.yaml"},
    )
    if kind.startswith("log_path"):
        row(
            f"site-{kind}-list",
            "run.py list",
            "mine.yaml|nouser",
            files={"mine.yaml": text},
            env={"RUN_SITE": "mine.yaml"},
        )
        row(
            f"site-{kind}-log",
            "run.py log 5",
            "mine.yaml|nouser",
            files={"mine.yaml": text},
            env={"RUN_SITE": "mine.yaml"},
        )
for kind, value in {"missing": "nowhere.yaml", "long": LONG, "nouser": "~nouser/site.yaml"}.items():
    row(f"site-name-{kind}", "run.py", "RUN_SITE", value[:5], env={"RUN_SITE": value})
for kind, content in {"folder": folder, "fifo": fifo, "loop": loop, "foreign": foreign}.items():
    row(f"site-is-{kind}", "run.py", "there.yaml", files={"there.yaml": content}, env={"RUN_SITE": "there.yaml"},
        uid=NOBODY if kind == "foreign" else 0)  # fmt: skip

# ---- runs

AGAIN = ["resume", "repeat", "test", "validate", "predict"]
LOOK = ["log", "cancel", "report"]
for command in AGAIN + LOOK:
    row(f"{command}-which", f"run.py {command}", command, "python run.py list")
    row(f"{command}-nowhere", f"run.py {command} nowhere", "nowhere", "list")
for kind, value in {"long": LONG, "nouser": "~nouser", "dots": "..", "empty": "", "root": "/", "newline": "a\nb",
                    "latin1": "M\udcfcller", "escape": "\x1b[2J", "below": "there/x",
                    "loop": "round"}.items():  # fmt: skip
    for command in ("log", "test", "resume", "cancel") if kind in ("long", "nouser", "latin1") else ("log",):
        row(f"{command}-name-{kind}", ["run.py", command, value], "run|log", files={"there": "", "round": loop})
row("log-two", "run.py log a b", "log takes one run")
row("log-flag", "run.py log --nodes", "log takes one run")
row("list-word", "run.py list nowhere", "list", "--log_path")
row("list-flag", "run.py list --nodes 2", "list", "--log_path")
row("list-three", "run.py list --log_path a b", "list", "--log_path")
row("list-no-value", "run.py list --log_path", "--log_path", "needs a value|FOLDER")
for kind, content in {"missing": None, "file": "", "fifo": fifo, "loop": loop}.items():
    row(f"list-{kind}", "run.py list --log_path there", "there", files={} if content is None else {"there": content})
row("list-foreign", "run.py list --log_path there", "there", files={"there": foreign_folder}, uid=NOBODY)
row("list-nouser", "run.py list --log_path=~nouser", "nouser")
row("list-long", f"run.py list --log_path {LONG}", "xxx")

DAMAGED: dict[str, Content] = {
    "empty": run(text=""),
    "cut": run(text='{"command": "fit", "subm'),
    "binary": run(text=BINARY),
    "list": run(text="[]"),
    "text": run(text='"fit"'),
    "null": run(text="null"),
    "number": run(text="3"),
    "nan": run(text="NaN"),
    "deep": run(text="[" * 100_000),
    "digits": run(text=f'{{"command": {DIGITS}}}'),
    "nothing": run(text="{}"),
    "foreign": run(text=foreign),
    "no-job": run({"job": ...}),
    "job-null": run({"job": None}),
    "job-list": run({"job": []}),
    "job-empty": run({"job": {}}),
    "submissions-none": run({"submissions": ...}),
    "submissions-empty": run({"submissions": []}),
    "submissions-null": run({"submissions": None}),
    "submissions-map": run({"submissions": {"0": 1}}),
    "submissions-numbers": run({"submissions": [3]}),
    "submissions-maps": run({"submissions": [{}]}),
    "submitted-words": run(submission(submitted="yesterday", ended=..., outcome=...)),
    "submitted-number": run(submission(submitted=5)),
    "submitted-missing": run(submission(submitted=...)),
    "cluster-number": run(cluster=5),
    "cluster-missing": run(cluster=...),
    "nodes-text": run(nodes="two"),
    "nodes-missing": run(nodes=...),
    "tasks-null": run(tasks_per_node=None),
    "name-list": run(name=["a"]),
    "pid-text": run(submission(pid="x", outcome=..., ended=...)),
    "pid-missing": run(submission(pid=..., outcome=..., ended=...)),
    "ended-words": run(submission(ended="later")),
    "outcome-number": run(submission(outcome=7)),
}
HERE = os.uname().nodename
RUNNING = {
    "pid-negative": run(submission(pid=-1, host=HERE, outcome=..., ended=...)),
    "pid-huge": run(submission(pid=10**30, host=HERE, outcome=..., ended=...)),
    "pid-text-here": run(submission(pid="1; touch x", host=HERE, outcome=..., ended=...)),
    "started-text": run(submission(pid=1, started="x", host=HERE, outcome=..., ended=...)),
    "id-star": run(submission(id="*", pid=..., outcome=..., ended=...), cluster="slurm"),
    "id-flag": run(submission(id="--me", pid=..., outcome=..., ended=...), cluster="slurm"),
    "id-number": run(submission(id=57, pid=..., outcome=..., ended=...), cluster="slurm"),
}
for kind, make in (DAMAGED | RUNNING).items():
    more = {"files": {"logs/good": run(), "logs/other": make}, "uid": NOBODY if kind == "foreign" else 0}
    row(f"list-damaged-{kind}", "run.py list --log_path logs", "other", listed=["good", "other"], **more)
    part = kind in RUNNING or kind.startswith(("name-", "outcome-", "ended-", "pid-", "cluster-", "nodes-", "tasks-"))
    row(f"cancel-damaged-{kind}", "run.py cancel logs/other", "run.json|other", harmless=part, **more)
    if kind not in RUNNING and not kind.startswith(("name-", "outcome-", "ended-", "pid-")):
        row(f"resume-damaged-{kind}", "run.py resume logs/other", "run.json|other|cluster|nodes|tasks_per_node", **more)
for kind in ("empty", "cut", "binary", "list", "null", "deep", "foreign", "no-job", "submissions-empty", "job-list",
             "submissions-numbers"):  # fmt: skip
    more = {"files": {"logs/other": DAMAGED[kind]}, "uid": NOBODY if kind == "foreign" else 0}
    for command in ("log", "report", "repeat"):
        if command == "repeat" and kind.startswith("submissions"):
            continue  # of them it needs nothing
        row(f"{command}-damaged-{kind}", f"run.py {command} logs/other", "run.json|other", **more)
for kind in ("fifo", "folder", "loop", "zeros"):
    more = {"files": {"logs/good": run(), "logs/other": run(text=ODD_FILES[kind])}}
    row(f"list-record-{kind}", "run.py list --log_path logs", listed=["good"], **more)
    for command in ("log", "resume", "cancel"):
        row(f"{command}-record-{kind}", f"run.py {command} logs/other", "other", **more)
row("resume-renamed-key", "run.py resume logs/other", "cpus", files={"logs/other": run(cpus=3)})
row("resume-wrong-job", "run.py resume logs/other", "nodes", files={"logs/other": run(nodes="many")})
row("repeat-wrong-job", "run.py repeat logs/other", "mem", files={"logs/other": run(mem="lots")})
row("report-local", "run.py report logs/good", "good", "Slurm", files={"logs/good": run()})
row("log-debug", "run.py log logs/good", "good", "terminal", files={"logs/good": run(cluster="debug")})
for kind, content in (ODD_FILES | {"foreign": foreign}).items():
    if kind in ("empty", "binary"):
        continue

    def make(path, content=content):
        run()(path)
        (path / "4242_0_log.out").unlink()
        place(path / "4242_0_log.out", content)

    more = {"files": {"logs/good": run(), "logs/other": make}, "uid": NOBODY if kind == "foreign" else 0}
    row(f"log-file-{kind}", "run.py log logs/other", "4242_0_log.out|other", **more)
    row(f"list-log-file-{kind}", "run.py list --log_path logs", listed=["good", "other"], **more)
CONFIGS = {"empty": "", "cut": "max_epochs: 3\nmodel: {class_", "list": "- a\n", "binary": BINARY, "fifo": fifo,
           "folder": folder, "loop": loop, "foreign": foreign, "deep": DEEP, "duplicate": YAML["duplicate"][0],
           "cycle": YAML["cycle"][0], "unknown": "max_epohs: 3\n",
           "model-gone": "model: {class_path: src.models.gone.Gone}\n"}  # fmt: skip
for kind, content in CONFIGS.items():
    more = {"files": {"logs/other": run(config=content)}, "uid": NOBODY if kind == "foreign" else 0}
    for command in ("resume", "repeat", "test"):
        if kind == "empty" and command != "test":
            continue  # of an empty one all values are defaults
        row(f"{command}-config-{kind}", f"run.py {command} logs/other", "config.yaml|Gone|checkpoint", **more)
row("test-no-checkpoint", "run.py test logs/good", "good", "checkpoint", files={"logs/good": run()})
row("test-ckpt-word", "run.py test logs/good --ckpt worst", "worst", files={"logs/good": run()})
row("resume-flag", "run.py resume logs/good --nope 3", "--nope", files={"logs/good": run()})
row("repeat-type", "run.py repeat logs/good --max_epochs none", "--max_epochs", files={"logs/good": run()})
for kind, content in {"binary": BINARY, "empty": "", "fifo": fifo, "folder": folder, "loop": loop, "zeros": zeros,
                      "zip": b"PK\x03\x04" + BINARY, "pickle": b"cos\nsystem\n(S'touch owned'\ntR.",
                      "foreign": foreign}.items():  # fmt: skip
    more = {"uid": NOBODY if kind == "foreign" else 0}
    row(f"test-ckpt-{kind}", "run.py test logs/good --ckpt there.ckpt", "there.ckpt",
        files={"logs/good": run(), "there.ckpt": content}, **more)  # fmt: skip
    row(f"test-last-{kind}", "run.py test logs/good", "step=3.ckpt|good",
        files={"logs/good": run(), "logs/good/checkpoints/step=3.ckpt": content}, **more)  # fmt: skip
row("test-ckpt-nouser", "run.py test logs/good --ckpt=~nouser/a.ckpt", "nouser", files={"logs/good": run()})
row("test-ckpt-long", f"run.py test logs/good --ckpt {LONG}", "xxx", files={"logs/good": run()})

# ---- search

SEARCH = "run.py search --name st"
row("search-nothing", "run.py search", "search what", "--search.")
row("search-no-value", "run.py search --search.optimizer.lr", "--search.optimizer.lr", "64,128,256|log:")
row("search-of-job", "run.py search --search.nodes 1,2", "--search.nodes", "training")
row("search-unknown", "run.py search --search.nope 1,2", "--search.nope", "training")
row("search-monitor", "run.py search --search.monitor a,b", "--search.monitor")
row("search-empty-name", "run.py search --search. 1,2", "--search.")
row("search-study", "run.py search nowhere", "nowhere", "study")
row("search-study-flags", "run.py search nowhere --trials 3", "nowhere", "resume")
row("search-study-long", f"run.py search {LONG}", "xxx")
row("search-study-nouser", "run.py search ~nouser", "nouser")
for value in ("1", "1,1", "1,", ",", "", " ", "1..", "..", "2..1", "1..1", "nan..1", "0..inf", "a..b", "log:0..1",
              "log:1,2", "log:", "-1..2..3", "1e400..2", "²..3"):  # fmt: skip
    row(
        f"search-values-{value}", ["run.py", "search", f"--search.optimizer.lr={value}"], "--search.optimizer.lr", value
    )
row("search-value-type", "run.py search --search.batch_size 8,big", "batch_size", "big", WHOLE)
row("search-value-zero", "run.py search --search.batch_size 0..8", "batch_size", "0", WHOLE)
row("search-value-indivisible", "run.py search --search.batch_size 63,64 --nodes 2", "batch_size", "63")
row("search-value-class", "run.py search --search.optimizer Adam,Nope", "--search.optimizer", "Nope")
row("search-value-lr", "run.py search --search.optimizer.lr 0.1,x", "lr", "x")
row("search-value-arch", "run.py search --search.model.arch mlp,nope", "arch", "nope")
row("search-value-argument", "run.py search --search.optimizer.nope 1,2", "nope")
LR = "--search.optimizer.lr 0.1,0.2"
for flag, value, allowed in [("trials", "0", WHOLE), ("trials", "-1", WHOLE), ("trials", "x", WHOLE),
                             ("trials", "1.5", WHOLE), ("at_once", "0", WHOLE), ("at_once", "", WHOLE),
                             ("sampler", "best", "tpe, random, grid"), ("pruner", "x", "none, median")]:  # fmt: skip
    row(f"search-{flag}-{value}", ["run.py", "search", *LR.split(), f"--{flag}={value}"], f"--{flag}", value, allowed)
row("search-trials-digits", ["run.py", "search", *LR.split(), f"--trials={DIGITS}"], "--trials", "99999")
row("search-grid-range", "run.py search --search.optimizer.lr 0.1..0.2 --sampler grid", "--search.optimizer.lr", "grid")
row("search-grid-trials", f"run.py search {LR} --sampler grid --trials 3", "--trials 3", "grid")
row("search-local", f"run.py search {LR} --cluster local", "--cluster local", "slurm")
row("search-pbs", f"run.py search {LR} --cluster pbs", "--cluster pbs", "slurm")
row("search-fast", f"run.py search {LR} --fast_dev_run", "--fast_dev_run", "--smoke")
row("search-name-dots", f"run.py search {LR} --name ..", "--name", "..")
row("search-name-there", f"{SEARCH} {LR} --log_path logs", "st", "--name", files={"logs/st/x": ""})
row("search-name-long", f"run.py search {LR} --name {LONG}", "--name", "xxx")
row("search-seed", f"run.py search {LR} --seed 4294967296", "--seed", "4294967296", "4294967295|2**32")
STUDY = """\
sampler: tpe
pruner: none
trials: 2
at_once: 1
monitor: val/accuracy
minimize: false
seed: 1
search: {optimizer.lr: '0.1,0.2'}
"""


def study(text: Content = STUDY, journal: Content | None = None) -> Content:
    """A study's folder: study.yaml with this text, and a journal, which is right if none is given."""

    def make(path: Path) -> None:
        shutil.copytree(TEMPLATES / "study", path)
        (path / "study.yaml").unlink()
        place(path / "study.yaml", text)
        if journal is not None:
            (path / "journal.log").unlink()
            place(path / "journal.log", journal)

    return make


STUDIES = {"empty": "", "list": "- a\n", "scalar": "a\n", "binary": BINARY, "latin1": YAML["latin1"][0],
           "tab": "search:\n\ta: 1\n", "deep": DEEP, "no-search": STUDY.partition("search:")[0],
           "search-list": STUDY.partition("search:")[0] + "search: [a]\n",
           "sampler": STUDY.replace("tpe", "best"), "pruner": STUDY.replace("none", "some"),
           "seed": STUDY.replace("seed: 1", "seed: x"),
           "trials": STUDY.replace("trials: 2", "trials: many")}  # fmt: skip
for kind, text in STUDIES.items():
    for command in ("search", "resume"):
        if command == "search" and kind in ("sampler", "trials"):
            continue  # to show what was found it needs neither
        row(
            f"{command}-study-{kind}",
            f"run.py {command} logs/st",
            "study.yaml|--trials",
            files={"logs/st": study(text)},
        )
for kind, content in {"missing": lambda path: None, "empty": "", "binary": BINARY, "words": "abc\n", "json": "{}\n",
                      "list": "[1]\n", "folder": folder, "fifo": fifo, "loop": loop, "op": '{"op_code": 99}\n',
                      "op-text": '{"op_code": "x"}\n'}.items():  # fmt: skip
    row(
        f"search-journal-{kind}",
        "run.py search logs/st",
        "journal.log|study",
        files={"logs/st": study(journal=content)},
    )
row("resume-study-flag", "run.py resume logs/st --max_epochs 3", "--max_epochs", "study", files={"logs/st": study()})
row("log-study", "run.py log logs/st", "st", "search", files={"logs/st": study()})
for kind in ("fifo", "loop", "zeros", "foreign"):
    content = foreign if kind == "foreign" else ODD_FILES[kind]
    row(f"search-study-is-{kind}", "run.py search logs/st", "st",
        files={"logs/st/study.yaml": content}, uid=NOBODY if kind == "foreign" else 0)  # fmt: skip

# ---- doctor

for value in ("0", "-1", "²", "x", "", "1.5", "1e9", "inf", DIGITS):
    row(f"doctor-patience-{value[:9]}", ["run.py", "doctor", f"--patience={value}"], "--patience", value[:9], "seconds")
row("doctor-word", "run.py doctor nodes", "nodes", "--")
row("doctor-unknown", "run.py doctor --zzzz 3", "--zzzz")
row("doctor-dry", "run.py doctor --dry_run", "doctor", "--dry_run")
row("doctor-pbs", "run.py doctor --cluster pbs", "--cluster pbs", "mpirun")
row("doctor-nodes", "run.py doctor --nodes 0", "--nodes 0", WHOLE)
row("doctor-nodes-local", "run.py doctor --nodes 2 --cluster local", "--nodes 2", "Slurm")
row("doctor-log-path", "run.py doctor --log_path there", "there", "--log_path", files={"there": ""})
row("doctor-config", "run.py doctor --config nowhere", "nowhere", "preset")
row("doctor-slurm-alone", "run.py doctor --cluster local", "SLURM|RANK",
    env={"SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "2"})  # fmt: skip

# ---- src/train.py

TRAIN = "src/train.py fit --prepare"
row("train-nothing", "src/train.py", "command|fit")
row("train-command", "src/train.py train", "train", "fit")
row("train-no-folder", "src/train.py fit", "--run_folder")
row("train-flag", f"{TRAIN} --zzzz 3", "--zzzz")
row("train-flag-of-job", f"{TRAIN} --nodes 3", "--nodes")
row("train-word", f"{TRAIN} extra", "extra")
row("train-no-run", "src/train.py test --prepare", "--run")
row("train-no-run-folder", "src/train.py test --run_folder a", "--run")
row("train-run-missing", "src/train.py test --prepare --run nowhere", "nowhere")
row("train-run-empty", ["src/train.py", "test", "--prepare", "--run="], "run")
row("train-job-text", f"{TRAIN} --job x", "--job")
row("train-job-list", f"{TRAIN} --job [1]", "--job")
row("train-ckpt", "src/train.py test --prepare --run . --ckpt nowhere.ckpt", "nowhere.ckpt")
for kind, value in {"nodes-²": "--batch_size=²", "seed": "--seed=4294967296", "clip": "--gradient_clip=inf",
                    "lr": "--optimizer.lr=nan", "every": "--checkpoint_every=0", "time": "--max_time=30",
                    "underscore": "--max_epochs=1_000", "empty": "--max_epochs=", "digits": f"--max_epochs={DIGITS}",
                    "trainer": "--trainer.max_epochs=3", "nope": "--trainer.nope=1", "init": "--init_from=nowhere",
                    "arch": "--model.arch=nope"}.items():  # fmt: skip
    name, _, given = value[2:].partition("=")
    given = "" if kind in ("trainer", "nope") else given[:9]  # no value would be right
    row(f"train-{kind}", [*TRAIN.split(), value], f"{name.split('.')[-1]}|network", given)
for kind, content in {"file": "", "fifo": fifo, "loop": loop}.items():
    row(f"train-folder-{kind}", "src/train.py fit --run_folder there", "there", files={"there": content})
row("train-folder-foreign", "src/train.py fit --run_folder there", "there", files={"there": full}, uid=NOBODY)
row("train-folder-long", f"src/train.py fit --run_folder {LONG}", "xxx")
row("train-folder-proc", "src/train.py fit --run_folder /proc/none", "/proc/none")
row("train-folder-below-a-file", "src/train.py fit --run_folder there/run", "there", files={"there": ""})
RANKS = {
    "rank-word": {"RANK": "x", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"},
    "rank-alone": {"RANK": "0"},
    "rank-negative": {"RANK": "-1", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"},
    "rank-beyond": {"RANK": "2", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"},
    "local-beyond": {"RANK": "1", "LOCAL_RANK": "3", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"},
    "local-size-zero": {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "0"},
    "local-size-large": {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "4"},
    "size-zero": {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "0", "LOCAL_WORLD_SIZE": "1"},
    "size-word": {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "two", "LOCAL_WORLD_SIZE": "1"},
    "size-superscript": {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "²", "LOCAL_WORLD_SIZE": "1"},
    "nodes-no-address": {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "1"},
    "slurm-no-node": {"SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "2"},
    "slurm-no-local": {"SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "2", "SLURM_NODEID": "0"},
    "slurm-tasks": {"SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "2", "SLURM_NODEID": "0", "SLURM_LOCALID": "0",
                    "SLURM_STEP_TASKS_PER_NODE": "x"},
    "slurm-node-word": {"SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "2", "SLURM_NODEID": "x", "SLURM_LOCALID": "0",
                        "SLURM_STEP_TASKS_PER_NODE": "2"},
    "slurm-node-beyond": {"SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "2", "SLURM_NODEID": "3", "SLURM_LOCALID": "0",
                          "SLURM_STEP_TASKS_PER_NODE": "1(x2)"},
    "slurm-no-list": {"SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "2", "SLURM_NODEID": "0", "SLURM_LOCALID": "0",
                      "SLURM_STEP_TASKS_PER_NODE": "1(x2)"},
    "port-word": {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_PORT": "x"},
    "openmpi-word": {"OMPI_COMM_WORLD_RANK": "0", "OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_LOCAL_RANK": "0",
                     "OMPI_COMM_WORLD_LOCAL_SIZE": "0"},
}  # fmt: skip
for kind, environment in RANKS.items():
    first = "|".join([*environment, "MASTER_ADDR", "SLURM", "on its node"])
    row(f"train-ranks-{kind}", TRAIN, first, env=environment)
for kind, value in {"word": "x", "negative": "-2", "point": "0.5"}.items():
    row(f"cuda-{kind}", "run.py --cluster local --gpus_per_node 2", "CUDA_VISIBLE_DEVICES", value,
        env={"CUDA_VISIBLE_DEVICES": value})  # fmt: skip
row(
    "cuda-too-few",
    "run.py --cluster local --gpus_per_node 2",
    "CUDA_VISIBLE_DEVICES=0",
    env={"CUDA_VISIBLE_DEVICES": "0"},
)
row("cuda-none", "run.py --cluster local --gpus_per_node 2", "--gpus_per_node 2", "CUDA_VISIBLE_DEVICES|GPU")

# ---- data

IMAGES = {
    f"images/{part}/{kind}/{number}.png": png() for part in ("train", "test") for kind in "ab" for number in range(6)
}
FOLDER = "run.py --data Folder --data_dir images"
PACK = "src/hdf5/pack.py folder images out.h5"
FIRST = "images/train/a/0.png"
ODD_IMAGES: dict[str, Content] = {
    "empty": b"",
    "text": "not an image",
    "cut": png()[:40],
    "fifo": fifo,
    "loop": loop,
    "zeros": zeros,
    "foreign": foreign,
    "bomb": png()[:16] + struct.pack(">II", 100_000, 100_000) + png()[24:],
}
for kind, content in ODD_IMAGES.items():
    more = {"files": IMAGES | {FIRST: content}, "uid": NOBODY if kind == "foreign" else 0}
    row(f"folder-image-{kind}", FOLDER, "0.png", **more)
    row(f"pack-image-{kind}", PACK, "0.png", **more)
for kind in ("size", "folder-missing", "folder-file", "folder-fifo", "folder-loop", "folder-empty", "no-classes",
             "no-test", "class-empty", "other-classes", "few"):  # fmt: skip
    files = dict(IMAGES)
    words = "images"
    if kind == "size":
        files["images/train/b/5.png"], words = png((9, 8)), "5.png"
    elif kind.startswith("folder-"):
        files = {"images": {"file": "", "fifo": fifo, "loop": loop, "empty": folder, "missing": folder}[kind[7:]]}
        files = {} if kind == "folder-missing" else files
    elif kind == "no-classes":
        files = {"images/train/0.png": png(), "images/test/0.png": png()}
    elif kind == "no-test":
        files = {name: content for name, content in IMAGES.items() if "/train/" in name}
    elif kind == "class-empty":
        files |= {"images/train/c": folder, "images/test/c": folder}
    elif kind == "other-classes":
        files = {name.replace("test/b", "test/c"): content for name, content in IMAGES.items()}
    elif kind == "few":
        files = {name: content for name, content in IMAGES.items() if name.endswith(("/0.png", "/1.png"))}
    if kind != "size":  # of the others only the first is looked at before the training
        row(f"data-folder-{kind}", FOLDER, words, files=files)
    if kind not in ("no-test", "few"):
        row(f"pack-folder-{kind}", PACK, words, files=files)
row("data-folder-foreign", FOLDER, "images", files={"images": foreign_folder}, uid=NOBODY)
row("data-folder-nouser", "run.py --data Folder --data_dir=~nouser/images", "nouser")
row("data-folder-long", f"run.py --data Folder --data_dir {LONG}", "xxx")
row("data-folder-none", "run.py --data Folder", "train|--data_dir")
for kind, content in {"file": "", "fifo": fifo, "loop": loop}.items():
    row(f"data-dir-{kind}", "run.py --data_dir there", "there", files={"there": content})
row("data-dir-nouser", "run.py --data_dir=~nouser/data", "nouser")
row("data-dir-long", f"run.py --data_dir {LONG}", "xxx")
row("data-dir-foreign", "run.py --data_dir there", "there", files={"there": full}, uid=NOBODY)

row("pack-nothing", "src/hdf5/pack.py", "command|folder")
row("pack-command", "src/hdf5/pack.py nope", "nope", "folder")
row("pack-no-out", "src/hdf5/pack.py folder images", "out")
row("pack-torchvision", "src/hdf5/pack.py torchvision NOPE out.h5", "NOPE", "CIFAR10")
row("pack-torchvision-missing", "src/hdf5/pack.py torchvision CIFAR10 out.h5 --data_dir there", "CIFAR10", "there")
row(
    "pack-torchvision-kind",
    "src/hdf5/pack.py torchvision VOCDetection out.h5 --data_dir there",
    "VOCDetection",
    "there|label",
)
row("pack-torchvision-function", "src/hdf5/pack.py torchvision os out.h5", "os", "CIFAR10")
for value in ("0", "-1", "x", "2.5", "", "²", "1_0", HUGE, DIGITS):
    row(f"pack-size-{value[:9]}", [*PACK.split(), f"--size={value}"], "--size", value[:9], files=IMAGES)
row("pack-out-folder", "src/hdf5/pack.py folder images there", "there", files=IMAGES | {"there": folder})
row("pack-out-nowhere", "src/hdf5/pack.py folder images there/out.h5", "there", files=IMAGES)
row("pack-out-below-a-file", "src/hdf5/pack.py folder images there/out.h5", "there", files=IMAGES | {"there": ""})
row("pack-out-fifo", PACK, "out.h5", files=IMAGES | {"out.h5": fifo})
row("pack-out-long", f"src/hdf5/pack.py folder images {LONG}.h5", "xxx", files=IMAGES)
row(
    "pack-out-foreign",
    "src/hdf5/pack.py folder images there/out.h5",
    "there",
    files=IMAGES | {"there": full},
    uid=NOBODY,
)
row("pack-index-foreign-kind", PACK, "out.json", files=IMAGES | {"out.json": '{"mine": 1}'})


def packed(change: Callable[[dict], object] | None = None, index: Content | None = None, data: Content | None = None):
    """A packed file, data.h5 with data.json, both right but for one thing.

    Args:
        change: a function that changes the index, a dictionary
        index: in place of the index
        data: in place of data.h5, or a function that changes it
    """

    def make(path: Path) -> None:
        shutil.copytree(TEMPLATES / "packed", path)
        if change:
            content = json.loads((path / "data.json").read_text())
            content = change(content) or content
            (path / "data.json").write_text(json.dumps(content))
        for name, other in (("data.json", index), ("data.h5", data)):
            if other is not None:
                if not (callable(other) and getattr(other, "keeps", False)):
                    (path / name).unlink()
                place(path / name, other)

    return make


def keeps(function):
    """Mark a function that changes what is there."""
    function.keeps = True
    return function


@keeps
def cut(path: Path) -> None:
    with open(path, "rb+") as file:
        file.truncate(path.stat().st_size // 2)


@keeps
def no_attribute(path: Path) -> None:
    import h5py

    with h5py.File(path, "r+") as file:
        file.attrs.clear()


def shard(name: str, path: str) -> dict:
    """What an index says of a file. path: the same one, from the sandbox."""
    return {name: {"bytes": os.stat(path).st_size, "sha256": "x"}}


RUN_PY = "../../repository/run.py"
PACKED = {
    "no-index": packed(lambda index: None, index=lambda path: None),
    "index-empty": packed(index=""),
    "index-binary": packed(index=BINARY),
    "index-list": packed(index="[]"),
    "index-null": packed(index="null"),
    "index-deep": packed(index="[" * 100_000),
    "index-fifo": packed(index=fifo),
    "index-folder": packed(index=folder),
    "index-loop": packed(index=loop),
    "index-zeros": packed(index=zeros),
    "index-foreign": packed(index=foreign),
    "index-format": packed(lambda index: index | {"format": 99}),
    "index-format-text": packed(lambda index: index | {"format": "x"}),
    "index-no-groups": packed(lambda index: {key: value for key, value in index.items() if key != "groups"}),
    "index-groups-number": packed(lambda index: index | {"groups": 5}),
    "index-groups-text": packed(lambda index: index | {"groups": [["a", "x"]]}),
    "index-groups-negative": packed(lambda index: index | {"groups": [["a", -1]]}),
    "index-files-number": packed(lambda index: index | {"files": 5}),
    "index-files-empty": packed(lambda index: index | {"files": {}}),
    "index-bytes-text": packed(lambda index: index | {"files": {"data.h5": {"bytes": "x", "sha256": "x"}}}),
    "index-absolute": packed(lambda index: index | {"files": index["files"] | shard("/etc/passwd", "/etc/passwd")}),
    "index-dots": packed(lambda index: index | {"files": index["files"] | shard(RUN_PY, RUN_PY[3:])}),
    "index-about": packed(lambda index: index | {"about": 5}),
    "index-unknown": packed(lambda index: index | {"more": 5}),
    "data-empty": packed(data=b""),
    "data-text": packed(data="not HDF5"),
    "data-cut": packed(data=cut),
    "data-fifo": packed(data=fifo),
    "data-folder": packed(data=folder),
    "data-loop": packed(data=loop),
    "data-zeros": packed(data=zeros),
    "data-foreign": packed(data=foreign),
    "data-missing": packed(data=lambda path: None),
    "data-no-attribute": packed(data=no_attribute),
}  # fmt: skip
for kind, make in PACKED.items():
    more = {"files": {"packed": make}, "uid": NOBODY if kind.endswith("foreign") else 0}
    row(f"check-{kind}", "src/hdf5/pack.py check packed/data.h5", "data.|the file", **more)
    row(f"hdf5-{kind}", "run.py --data HDF5Images --data.path packed/data.h5", "data.|the file", **more)
row("hdf5-no-path", "run.py --data HDF5Images", "path")
row("hdf5-missing", "run.py --data HDF5Images --data.path nowhere.h5", "nowhere.h5")
row("hdf5-nouser", "run.py --data HDF5Images --data.path=~nouser/a.h5", "nouser")
row("hdf5-long", f"run.py --data HDF5Images --data.path {LONG}", "xxx")
row("hdf5-empty", ["run.py", "--data", "HDF5Images", "--data.path="], "path|.json")
row("check-missing", "src/hdf5/pack.py check nowhere.h5", "nowhere.h5")
row("check-long", f"src/hdf5/pack.py check {LONG}", "xxx")
row("check-empty", ["src/hdf5/pack.py", "check", ""], "file|out")

row("get-nothing", "data/get_data.py", "mnist")
row("get-unknown", "data/get_data.py nope", "nope", "mnist")
row("get-empty", ["data/get_data.py", ""], "data set", "mnist")
row("get-long", ["data/get_data.py", LONG], "xxx", "mnist")
row("get-flag", "data/get_data.py mnist --nope", "--nope")
row("get-no-value", "data/get_data.py mnist --data_dir", "--data_dir")
for kind, content in {"file": "", "fifo": fifo, "loop": loop}.items():
    row(f"get-dir-{kind}", "data/get_data.py mnist --data_dir there", "there", files={"there": content})
row("get-dir-foreign", "data/get_data.py mnist --data_dir there", "there", files={"there": full}, uid=NOBODY)
row("get-dir-nouser", "data/get_data.py mnist --data_dir=~nouser", "nouser", "--data_dir|user")
row("get-dir-long", f"data/get_data.py mnist --data_dir {LONG}", "xxx")
row("get-dir-proc", "data/get_data.py mnist --data_dir /proc/none", "/proc/none")
row("get-check-missing", "data/get_data.py mnist --check --data_dir there", "mnist: missing", stdout=True)
RAW = "there/MNIST/raw/train-images-idx3-ubyte"
for kind, content in {"text": "x", "fifo": fifo, "folder": folder, "loop": loop, "zeros": zeros}.items():
    row(f"get-check-{kind}", "data/get_data.py mnist --check --data_dir there", "mnist:", "train-images",
        files={RAW: content}, stdout=True)  # fmt: skip
    if kind != "loop":  # it is no file, and is replaced
        row(
            f"get-archive-{kind}",
            "data/get_data.py mnist --data_dir there",
            "train-images",
            files={f"{RAW}.gz": content},
        )

# ---- lesson 0: cluster.py

CLUSTER = "lessons/00-practice-cluster/cluster.py --dir state"
row("cluster-nothing", "lessons/00-practice-cluster/cluster.py", "COMMAND")
row("cluster-command", f"{CLUSTER} nope", "nope", "up")
row("cluster-no-host", f"{CLUSTER} exec", "HOST")
row("cluster-no-node", f"{CLUSTER} crash", "NODE")
row("cluster-host", f"{CLUSTER} exec node9 hostname", "node9", "node1")
row("cluster-crash-head", f"{CLUSTER} crash head", "head", "node1")
row("cluster-boot", f"{CLUSTER} boot node5", "node5", "node1")
row("cluster-host-long", f"{CLUSTER} boot {LONG}", "xxx", "node1")
row("cluster-no-words", f"{CLUSTER} exec head", "head", "sinfo")
row("cluster-off", f"{CLUSTER} shell", "state", "up")
row("cluster-crash-off", f"{CLUSTER} crash node1", "state", "up")
row("cluster-flag", f"{CLUSTER} up --nope", "--nope")
for kind, value in {"blank": "my state", "long": LONG, "newline": "a\nb", "unicode": "zust\xe4nde", "quote": "a'b",
                    "tilde": "~nouser/x"}.items():  # fmt: skip
    row(
        f"cluster-dir-{kind}",
        ["lessons/00-practice-cluster/cluster.py", "--dir", value, "up"],
        "state folder",
        value[:4],
    )
row("cluster-dir-empty", ["lessons/00-practice-cluster/cluster.py", "--dir=", "up"], "state folder|--dir")
row("cluster-dir-file", f"{CLUSTER} up", "state", files={"state": ""})
row("cluster-dir-fifo", f"{CLUSTER} up", "state", files={"state": fifo})
row("cluster-dir-loop", f"{CLUSTER} up", "state", files={"state": loop})
row("cluster-dir-used", f"{CLUSTER} up", "state", "empty", files={"state/mine.txt": "x"})
row("cluster-dir-used-down", f"{CLUSTER} crash node1", "state", files={"state/mine.txt": "x"})
row("cluster-user", f"{CLUSTER} up", "root", "sudo", uid=NOBODY)

# ---- the lessons' own run.py

LESSONS = {
    "04": "lessons/04-auto-slurm-script-generation/run.py",
    "05": "lessons/05-improved-logging/run.py",
    "06": "lessons/06-lightning-data-module/run.py",
    "07": "lessons/07-changing-architectures/run.py",
    "08": "lessons/08-distributed-training/run.py",
}
for number, program in LESSONS.items():
    for flag, value, allowed in [
        ("nodes", "0", "positive_int|above 0"),
        ("nodes", "²", "positive_int|above 0"),
        ("nodes", "", "positive_int|above 0"),
        ("seed", "4294967296", "positive_int|above 0"),
        ("lr", "nan", "positive_float|above 0"),
        ("lr", "1e400", "positive_float|above 0"),
        ("batch_size", "-1", "positive_int|above 0|expected"),
        ("mem", "4000", "4G"),
        ("time", "30", "HH:MM:SS"),
        ("experiment_name", "a/b", "letters"),
        ("cluster", "pbs", "slurm"),
        ("zzzz", "3", "--zzzz"),
        ("num_workers", "3", "--cpus_per_task"),
    ]:
        row(f"lesson-{number}-{flag}-{value[:9]!r}", [program, f"--{flag}={value}"], f"--{flag}",
            value[:9].split("\n")[0], allowed)  # fmt: skip
    row(f"lesson-{number}-nodes-local", [program, "--nodes=2", "--cluster=local"], "--nodes 2", "Slurm")
    for kind, content in {"file": "", "fifo": fifo}.items():
        row(f"lesson-{number}-log_path-{kind}", [program, "--log_path", "there"], "there", files={"there": content})
    row(f"lesson-{number}-log_path-long", [program, "--log_path", LONG], "xxx")
    row(f"lesson-{number}-data_dir-file", [program, "--data_dir", "there"], "there", files={"there": ""})
    row(f"lesson-{number}-data_dir-nouser", [program, "--data_dir=~nouser"], "nouser")
    row(f"lesson-{number}-word", [program, "extra"], "extra")
for number in ("06", "07", "08"):
    row(f"lesson-{number}-dataset", [LESSONS[number], "--dataset", "nope"], "nope", "cifar10")
    row(
        f"lesson-{number}-folder", [LESSONS[number], "--dataset", "folder", "--data_dir", "nowhere"], "nowhere", "train"
    )
for number in ("07", "08"):
    row(f"lesson-{number}-arch", [LESSONS[number], "--arch", "resnet19"], "resnet19", "resnet18")
    row(f"lesson-{number}-arch-long", [LESSONS[number], "--arch", LONG], "xxx", "network")
    row(f"lesson-{number}-stem", [LESSONS[number], "--stem", "cifar"], "--stem cifar", "resnet18")
row("lesson-05-logger", [LESSONS["05"], "--logger", "nope"], "nope", "tensorboard")
row("lesson-08-tasks", [LESSONS["08"], "--tasks_per_node", "0"], "--tasks_per_node", "positive_int|above 0")
row("lesson-08-batch", [LESSONS["08"], "--tasks_per_node", "3", "--cluster", "local"], "--batch_size 64", "63 or 66")

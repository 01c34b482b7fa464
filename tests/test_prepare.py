"""Mistakes in the configuration end the command, before a run folder is made or a job submitted."""

import argparse
import errno
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from types import SimpleNamespace

import lightning as L
import pytest
import torch
import yaml
from lesson import REPOSITORY
from torch import nn

PROJECTS = REPOSITORY / "tests/projects"
sys.path[:0] = [str(REPOSITORY), str(PROJECTS)]
from small import Lines, Net  # noqa: E402

import src.config  # noqa: E402
import src.train  # noqa: E402
from src.callbacks.exact_resume import KEYS  # noqa: E402
from src.callbacks.first_look import FirstLook, too_short  # noqa: E402
from src.config import instantiate, merge, read  # noqa: E402
from src.launch.progress import superseded  # noqa: E402
from src.train import check_kept, note_config, prepare  # noqa: E402
from src.utils.loggers import make_logger  # noqa: E402

SMALL = "--model small.Net --data small.Lines"
LONG = "x" * 5000
PLATEAU = "--lr_scheduler ReduceLROnPlateau --lr_scheduler.monitor"
ONE_CYCLE = "--lr_scheduler OneCycleLR --lr_scheduler.max_lr 0.1"


def refusal(*words, command="fit", run_folder=None):
    """The sentence with which a command ends."""
    argv = [part for word in words for part in word.split()]
    with pytest.raises((ValueError, SystemExit, FileNotFoundError)) as raised:
        prepare(command, argv, run_folder)
    sentence = str(raised.value)
    assert 0 < len(sentence) < 500 and "\n" not in sentence, sentence
    return sentence


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("--trainer.max_epochs 3", "use --max_epochs"),
        ("--trainer.nonsense 1", "no argument nonsense"),
        ("--trainer.log_every_n_step 1", "did you mean --trainer.log_every_n_steps?"),
        ("--trainer.strategy ddp", "use --strategy"),
        ("--trainer.log_every_n_steps abc", "--trainer.log_every_n_steps abc is not a whole number"),
        ("--trainer.benchmark 3.5", "--trainer.benchmark 3.5 is not true or false"),
        ("--trainer.gradient_clip_algorithm foo", "gradient_clip_algorithm"),
        (f"--trainer.{LONG} 1", "no argument xxx"),
        (
            "--monitor val/accuracyy",
            "--monitor val/accuracyy is not among what the validation reports: did you mean val/accuracy?",
        ),
        ("--monitor train/loss", "did you mean val/loss?"),
        ("--callbacks EarlyStopping --callbacks.monitor val/los", "EarlyStopping monitors val/los"),
        ("--callbacks ModelCheckpoint --callbacks.monitor val_loss", "ModelCheckpoint monitors val_loss"),
        (
            f"{PLATEAU} val/los",
            "ReduceLROnPlateau monitors val/los, which is not among what is reported: did you mean val/loss?",
        ),
        ("--lr_scheduler ReduceLROnPlateau", "--lr_scheduler.monitor is missing"),
        (f"{PLATEAU} val/loss --lr_interval step", "omit --lr_interval"),
        ("--logger mlflow", "pip install mlflow"),
        ("--logger CometLogger", "--logger CometLogger: Requirement 'comet-ml"),
        ("--seed 4294967296", "--seed 4294967296 is too large: seeds are 0 to 4294967295"),
        ("--optimizer.lr 1e400", "--optimizer.lr inf is not a finite number"),
        ("--optimizer.lr nan", "--optimizer.lr nan is not a number"),
        ("--optimizer.lr -1", "--optimizer Adam: Invalid learning rate: -1.0"),
        ("--optimizer.weight_decay 1e400", "--optimizer.weight_decay inf"),
        ("--optimizer Adam --optimizer.fused true --optimizer.foreach true", "`fused` and `foreach`"),
        ("--optimizer SGD --optimizer.lr 0.1 --optimizer.momentm 1", "--optimizer.momentm: SGD has no momentm"),
        ("--lr_scheduler Nonsense", "--lr_scheduler Nonsense: there is no class of this name"),
        ("--lr_scheduler StepLR", "--lr_scheduler.step_size is missing: StepLR needs it"),
        ("--lr_scheduler StepLR --lr_scheduler.step_size 0", "ZeroDivisionError"),
        (ONE_CYCLE, "OneCycleLR: You must define either total_steps"),
        (f"{ONE_CYCLE} --lr_scheduler.total_steps 3", "set --lr_scheduler.total_steps 10"),
        ("--lr_scheduler OneCycleLR --lr_scheduler.max_lr -1 --lr_scheduler.total_steps 99", "max_lr -1.0 is negative"),
        ("--gradient_clip inf", "--gradient_clip inf"),
        ("--model.num_classes abc", "--model.num_classes abc is not a whole number"),
        ("--model.dropout 7", "dropout 7.0"),
        (f"--model.arch {LONG}", "there is no network"),
        (f"--model {LONG}", "there is no class of this name"),
        (f"--monitor {LONG}", "is not among"),
        (f"--max_epochs {LONG}", "is not a whole number above 0"),
        (f"--max_epochs {'9' * 5000}", "999 (5000 characters) is too large for a whole number"),
        (f"--config {LONG}", "--config"),
        (f"--init_from {LONG}", "File name too long"),
        (f"--{LONG} 3", "there is no flag"),
        ("--init_from /no/such", "--init_from /no/such: No such file"),
        ('--sync_batchnorm true --accelerator cpu --job {"tasks_per_node":2}', "--sync_batchnorm needs GPUs"),
    ],
)
def test_refused(flags, words):
    assert words in refusal(flags)


@pytest.mark.parametrize(
    "flags",
    [
        "--trainer.benchmark true --trainer.log_every_n_steps 1",
        "--monitor val/f1 --callbacks EarlyStopping --callbacks.monitor train/loss",
        f"{PLATEAU} val/loss --validate_every 2epochs",
        f"{ONE_CYCLE} --lr_scheduler.total_steps 10",
        "--sync_batchnorm true --accelerator cpu",
    ],
)
def test_accepted(flags):
    assert yaml.safe_load(prepare("fit", flags.split()))["max_epochs"] == 10


@pytest.mark.parametrize("command", ["test", "validate", "predict"])
def test_an_evaluation_names_its_run(command):
    assert "--run is missing" in refusal(command=command)
    assert "no checkpoint" in refusal("--run /no/such", command=command)
    assert "File name too long" in refusal(f"--run {LONG}", command=command)


# --- what a user's own class raises


class Failing(L.LightningModule):
    def __init__(self, what: str = "value"):
        super().__init__()
        if what == "value":
            raise ValueError("the user's own words")
        if what == "module":
            import there_is_no_such_package  # noqa: F401
        if what == "sentence":
            sys.exit("one sentence of the user's")
        self.net = nn.Linear(2, 1)

    def make_optimizer(self, optimizer):
        raise RuntimeError("the user's own words")


@pytest.mark.parametrize(
    ("what", "shown"),
    [("value", "the user's own words"), ("module", "there_is_no_such_package"), ("optimizer", "the user's own words")],
)
def test_the_traceback_of_a_users_class_is_shown(what, shown, capsys):
    with pytest.raises(SystemExit) as end:
        prepare("fit", f"--model {__name__}.Failing --model.what {what} --data small.Lines".split())
    error = capsys.readouterr().err
    assert "Traceback" in error and "test_prepare.py" in error and shown in error.splitlines()[-1]
    assert str(end.value).endswith("the error above comes from its code")


def test_the_sentence_of_a_users_class_is_the_sentence():
    assert (
        refusal(f"--model {__name__}.Failing --model.what sentence --data small.Lines") == "one sentence of the user's"
    )


@pytest.fixture
def broken(tmp_path, monkeypatch):
    """A file in src/models that cannot be imported, as the module src.config has found it."""
    (tmp_path / "unfinished.py").write_text("import torch\nclass Mine(torch.nn.Module):\n    x = not_there\n")
    monkeypatch.syspath_prepend(tmp_path)
    try:
        import unfinished  # noqa: F401
    except NameError as error:
        monkeypatch.setitem(src.config.BROKEN, "unfinished", src.config.in_one_line(error))


@pytest.mark.usefixtures("broken")
def test_a_file_that_cannot_be_imported(capsys):
    merge(SMALL.split())
    [line] = capsys.readouterr().err.splitlines()
    assert "unfinished cannot be imported" in line and "NameError: name 'not_there'" in line
    assert "unfinished.py:3" in line
    for name in ("Mine", "unfinished.Mine"):
        sentence = refusal(f"--model {name}")
        assert sentence.startswith(f"{name} cannot be used, because unfinished cannot be imported: NameError")


def test_a_file_of_ones_own_that_cannot_be_imported(tmp_path, monkeypatch):
    """Elsewhere than in src/models: whatever its import raises."""
    monkeypatch.syspath_prepend(tmp_path)
    for name, text in {"syntax": "def f(:", "ends": "import sys; sys.exit(3)", "divides": "1 / 0"}.items():
        (tmp_path / f"{name}_file.py").write_text(text)
        assert f"{name}_file cannot be imported" in refusal(f"--model {name}_file.Net")


# --- learning rates


def rates(flags):
    """The learning rates of the groups, and the arguments of the schedule."""
    config = read(merge(flags.split()))
    parts = instantiate(config)
    optimizer = src.train.make_optimizer(parts.model, parts.optimizer)
    scheduler = parts.lr_scheduler(optimizer) if parts.lr_scheduler else None
    return optimizer, scheduler


def test_scale_lr_scales_the_schedule():
    flags = "--optimizer SGD --optimizer.lr 0.25 --batch_size 64 --scale_lr 32"
    optimizer, _ = rates(flags)
    assert optimizer.param_groups[0]["lr"] == 0.5 and optimizer.defaults["lr"] == 0.5
    one_cycle = "--lr_scheduler OneCycleLR --lr_scheduler.total_steps 100 --lr_scheduler.max_lr"
    for max_lr in ("0.4", "[0.4]"):
        optimizer, _ = rates(f"{flags} {one_cycle} {max_lr}")
        assert optimizer.param_groups[0]["max_lr"] == 0.8
    _, plateau = rates(f"{flags} {PLATEAU} val/loss --lr_scheduler.min_lr 0.01")
    assert plateau.min_lrs == [0.02]
    _, cosine = rates(f"{flags} --lr_scheduler CosineAnnealingLR --lr_scheduler.T_max 5 --lr_scheduler.eta_min 0.1")
    assert cosine.eta_min == 0.2 and cosine.base_lrs == [0.5]
    _, steps = rates(f"{flags} --lr_scheduler StepLR --lr_scheduler.step_size 3 --lr_scheduler.gamma 0.3")
    assert steps.gamma == 0.3 and steps.base_lrs == [0.5]


class Groups(L.LightningModule):
    """Makes groups of its own, as its users may."""

    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Linear(2, 2), nn.Linear(2, 1)

    def make_optimizer(self, optimizer):
        return optimizer([{"params": self.body.parameters(), "lr": 0.01}, {"params": self.head.parameters()}])


def test_scale_lr_scales_groups_of_parameters():
    flags = f"--model {__name__}.Groups --optimizer SGD --optimizer.lr 0.5 --batch_size 64 --scale_lr 32"
    optimizer, _ = rates(flags)
    assert [group["lr"] for group in optimizer.param_groups] == [0.02, 1.0]
    assert "needs the batch size, and Lines has no argument" in refusal(f"{flags} --data small.Lines".replace(
        "--batch_size 64", ""))  # fmt: skip
    assert "--scale_lr cannot be used with" in refusal(f"--optimizer {__name__}.Rateless --scale_lr 32")


class Rateless(torch.optim.Optimizer):
    def __init__(self, params: Iterable, step_size: float = 1.0):
        super().__init__(params, {"step_size": step_size})


@pytest.mark.parametrize(
    ("flags", "schedule"),
    [
        (f"{PLATEAU} val/loss --validate_every 2epochs", {"monitor": "val/loss", "frequency": 2}),
        (f"{PLATEAU} train/loss --validate_every 2epochs", {"monitor": "train/loss"}),
        (f"{PLATEAU} val/loss --validate_every 7 --lr_interval step", {"monitor": "val/loss", "frequency": 7}),
        (f"{PLATEAU} val/loss --validate_every 7", {"monitor": "val/loss", "frequency": 1}),
        ("--lr_scheduler torch.optim.lr_scheduler.ReduceLROnPlateau", {"monitor": "val/loss", "frequency": 1}),
        ("--lr_scheduler StepLR --lr_scheduler.step_size 3", {}),
    ],
)
def test_plateaus_are_looked_for_when_there_was_a_validation(flags, schedule):
    config = read(merge(flags.split()))
    parts = instantiate(config)
    assert src.train.schedule_of(parts.lr_scheduler(torch.optim.SGD(parts.model.parameters())), config) == schedule


def test_the_short_name_in_a_file(tmp_path):
    (tmp_path / "plateau.yaml").write_text(
        "lr_scheduler: {class_path: ReduceLROnPlateau, init_args: {monitor: val/loss, patience: 3}}"
    )
    config = yaml.safe_load(merge(["--config", str(tmp_path / "plateau.yaml")]))
    assert config["lr_scheduler"]["class_path"] == "lightning.pytorch.cli.ReduceLROnPlateau"
    assert config["lr_scheduler"]["init_args"]["patience"] == 3


# --- the first look, in a training


def fit(model, epochs=2, **options):
    quiet = {"logger": False, "enable_progress_bar": False, "enable_checkpointing": False}
    callbacks = [FirstLook(options.pop("max_time", None)), *options.pop("callbacks", [])]
    trainer = L.Trainer(accelerator="cpu", devices=1, max_epochs=epochs, callbacks=callbacks, **quiet,
                        enable_model_summary=False, **options)  # fmt: skip
    trainer.fit(model, Lines())
    return trainer


class Cycle(Net):
    total_steps, interval = 50, "step"

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=self.total_steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": self.interval}}


def test_a_schedule_that_is_too_short_ends_the_training_before_its_first_step():
    assert fit(Cycle()).global_step == 50  # 250 lines, batches of 10, 2 epochs
    with pytest.raises(SystemExit, match="ends after 50 steps, and the training takes 75: set --lr_scheduler.total_st"):
        fit(Cycle(), epochs=3)
    model = Cycle()
    model.interval, model.total_steps = "epoch", 2
    assert fit(model).global_step == 50
    with pytest.raises(SystemExit, match="ends after 2 epochs, and the training takes 3"):
        fit(model, epochs=3)
    schedule = SimpleNamespace(total_steps=18, last_epoch=18)
    assert "cannot be made longer" in too_short(schedule, 27, "steps")


def test_a_run_is_not_resumed_beyond_its_schedule(tmp_path):
    """The checkpoint says how long the schedule is, whatever the flags say."""
    saved = {
        "global_step": 18,
        "loops": {"fit_loop": {"epoch_progress": {"current": {"completed": 2}}}},
        "exact_resume": dict.fromkeys(KEYS) | {"in_epoch": False},
        "lr_schedulers": [{"total_steps": 18}],
        "state_dict": {"x": torch.ones(1)},
    }
    (tmp_path / "checkpoints").mkdir()
    torch.save(saved, tmp_path / "checkpoints/step=00000018.ckpt")
    flags = f"{ONE_CYCLE} --lr_scheduler.total_steps 27 --lr_interval step --max_epochs"
    assert "ends after 18 steps, and the training would take 27" in refusal(f"{flags} 3", run_folder=tmp_path)
    assert prepare("fit", f"{flags} 2".split(), tmp_path)


@pytest.mark.parametrize(
    ("flags", "refused"),
    [
        ("--optimizer.lr 0.1", "--optimizer.lr 0.1: this run has 0.001"),
        ("--optimizer.betas [0.8,0.99]", "--optimizer.betas"),
        ("--optimizer SGD --optimizer.lr 0.001", "--optimizer "),
        ("--lr_scheduler StepLR --lr_scheduler.step_size 2", "--lr_scheduler"),
        ("--scale_lr 32", "--scale_lr 32: this run has None"),
        ("--batch_size 32", None),
        ("--max_epochs 5 --checkpoint_every 3", None),
    ],
)
def test_what_a_checkpoint_brings_back_is_refused(tmp_path, flags, refused):
    """Lightning restores the optimizer: a new learning rate would be in config.yaml and have no effect."""
    (tmp_path / "config.yaml").write_text(merge(["--optimizer.lr", "0.001"]))
    text = merge(["--optimizer.lr", "0.001", *flags.split()])
    if refused is None:
        return check_kept(tmp_path, text)
    with pytest.raises(ValueError) as raised:
        check_kept(tmp_path, text)
    assert refused in str(raised.value) and f"--init_from {tmp_path}" in str(raised.value)


@pytest.mark.parametrize("watching", ["EarlyStopping", "ModelCheckpoint"])
def test_a_metric_that_nobody_reports_ends_the_training_in_its_first_seconds(watching):
    callback = getattr(L.pytorch.callbacks, watching)(monitor="val_los")
    options = {"enable_checkpointing": True} if watching == "ModelCheckpoint" else {}
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "max_epochs": 1}
    trainer = L.Trainer(accelerator="cpu", devices=1, callbacks=[FirstLook(None), callback], **quiet, **options)
    with pytest.raises(SystemExit, match=f"{watching} monitors val_los, .* did you mean val_loss"):
        trainer.fit(Net(), Lines())
    assert trainer.global_step == 0


def test_a_metric_of_the_training_is_not_known_before_it():
    stopping = L.pytorch.callbacks.EarlyStopping(monitor="train_loss_epoch")
    assert fit(Net(), epochs=1, callbacks=[stopping]).global_step == 25


def caused(error, cause):
    error.__cause__ = cause
    return error


NO_MEMORY = RuntimeError(
    "DataLoader worker (pid 7) is killed by signal: Bus error. It is possible that dataloader's workers are out of "
    "shared memory."
)


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (RuntimeError("Early stopping conditioned on metric `loss` which is not available."), "metric `loss`"),
        (ValueError("Tried to step 19 times. The specified number of total steps is 18"), "--lr_scheduler.total_steps"),
        (NO_MEMORY, "--num_workers 0"),
        (caused(RuntimeError("DataLoader worker (pid(s) 7) exited unexpectedly"), NO_MEMORY), "--num_workers 0"),
    ],
)  # fmt: skip
def test_exceptions_that_stand_for_a_mistake(error, words):
    assert words in src.train.known_mistake(error)
    assert src.train.known_mistake(ValueError("anything else")) is None


# --- paths


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A current folder, and a home beside it."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return tmp_path / "here"


class Paths(L.LightningDataModule):
    def __init__(self, path: str, root: str = "nothing", stage: str = "train", own_file: str = "", options: dict = {}):  # noqa: B006
        super().__init__()


def test_paths_are_absolute(here):
    (here / "there").mkdir()
    flags = f"--model small.Net --data {__name__}.Paths --data.path there --init_from ~/w.pt --data.own_file ~/f"
    options = '--data.options={"data_dir": "there", "name": "there"}'
    config = yaml.safe_load(merge([*flags.split(), options]))
    data = config["data"]["init_args"]
    assert data["path"] == data["options"]["data_dir"] == str(here / "there")
    assert data["root"] == "nothing" and data["stage"] == "train"  # there is no such file
    assert data["own_file"] == str(here.parent / "home/f") and data["options"]["name"] == "there"
    assert config["init_from"] == str(here.parent / "home/w.pt")
    config = yaml.safe_load(merge(["--data_dir", "~/data", "--model.arch", "cnn"]))
    assert config["data"]["init_args"]["data_dir"] == config["data_dir"] == str(here.parent / "home/data")
    assert merge(["--data_dir", ""]) and yaml.safe_load(merge([]))["data"]["init_args"]["data_dir"] is None


# --- weights to begin with


def network():
    return Net()


@pytest.fixture
def begun(tmp_path):
    """begun(content): whether a network has the weights of this file afterwards; the sentence if it is refused."""

    def begin(content, **options):
        path = tmp_path / "weights.pt"
        torch.save(content, path, **options) if not isinstance(content, bytes) else path.write_bytes(content)
        model = network()
        try:
            src.train.init_weights(model, path)
        except SystemExit as end:
            return str(end)
        return all(torch.equal(value, WEIGHTS[name]) for name, value in model.state_dict().items())

    return begin


WEIGHTS = network().state_dict()


def test_weights_of_all_kinds(begun):
    lightning = {"state_dict": WEIGHTS, "global_step": 5}
    assert begun(WEIGHTS) is True
    assert begun(lightning) is True
    assert begun({"state_dict": WEIGHTS}) is True
    assert begun({"model": WEIGHTS, "epoch": 3}) is True
    assert begun({f"module.{name}": value for name, value in WEIGHTS.items()}) is True
    assert begun(lightning | {"hyper_parameters": argparse.Namespace(lr=0.1)}) is True
    assert begun(WEIGHTS, _use_new_zipfile_serialization=False) is True


def test_weights_that_are_refused(begun):
    assert "it holds model, ema, each with weights" in begun({"model": WEIGHTS, "ema": WEIGHTS})
    assert "there are no weights in it" in begun({"epoch": 3})
    assert "there are no weights in it" in begun([1, 2])
    assert "it holds a fractions.Fraction, which is not loaded" in begun({"a": __import__("fractions").Fraction(1, 2)})
    other = begun({f"net.{name}": value for name, value in WEIGHTS.items()})
    assert "they lack backbone.0.weight" in other and "have net.backbone.0.weight" in other
    larger = WEIGHTS | {"head.1.weight": torch.ones(1, 99)}
    assert "head.1.weight has the shape [1, 99], and this network needs [1, 32]" in begun(larger)
    assert "damaged" in begun(b"not a file of torch") or "no file of" in begun(b"not a file of torch")


def test_a_damaged_file_of_weights(tmp_path):
    path = tmp_path / "weights.pt"
    torch.save(WEIGHTS, path)
    content = bytearray(path.read_bytes())
    content[content.find(bytes(WEIGHTS["backbone.0.weight"].numpy().tobytes())) + 8] ^= 1
    path.write_bytes(content)
    assert "it is damaged" in refusal(f"{SMALL} --init_from {path}")
    path.write_bytes(content[: len(content) // 2])
    assert "damaged" in refusal(f"{SMALL} --init_from {path}")


# --- the run's folder


@pytest.fixture
def rank_0(monkeypatch):
    monkeypatch.setenv("RANK", "0")
    for name in ("SLURM_JOB_ID", "SLURM_RESTART_COUNT"):
        monkeypatch.delenv(name, raising=False)


HOLD = """
import fcntl, sys, time
file = open(sys.argv[1], "a+")
fcntl.lockf(file, fcntl.LOCK_EX)
print("held", flush=True)
time.sleep(float(sys.argv[2]))
"""


@pytest.fixture
def held(tmp_path):
    """held(note, seconds): another process has the folder for that long."""
    processes = []

    def hold(note, seconds):
        path = tmp_path / ".taken"
        path.write_text(note)
        command = [sys.executable, "-c", HOLD, str(path), str(seconds)]
        processes.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
        assert processes[-1].stdout.readline() == "held\n"

    yield hold
    for process in processes:
        process.kill()
        process.wait()
        process.stdout.close()


def slurm(monkeypatch, job, restart):
    monkeypatch.setenv("SLURM_JOB_ID", job)
    monkeypatch.setenv("SLURM_RESTART_COUNT", restart)


@pytest.mark.usefixtures("rank_0")
def test_an_earlier_attempt_of_the_job_is_waited_for(tmp_path, held, monkeypatch):
    slurm(monkeypatch, "83", "1")
    held("job 83, process 2074 on node1, restart 0\n", 1.5)
    before = time.monotonic()
    src.train.take(tmp_path).close()
    assert 0.5 < time.monotonic() - before < 30
    assert (tmp_path / ".taken").read_text().startswith("job 83, process ")
    assert (tmp_path / ".taken").read_text().endswith(", restart 1\n")


@pytest.mark.usefixtures("rank_0")
def test_an_attempt_knows_that_a_later_one_has_begun(tmp_path, monkeypatch):
    """It ends without an exit code, which would end the step of the later one."""
    assert not superseded(tmp_path)
    for job, restart in (("83", "1"), ("84", "0")):
        slurm(monkeypatch, job, restart)
        src.train.take(tmp_path).close()
        assert not superseded(tmp_path)
        slurm(monkeypatch, "83", "0")
        assert superseded(tmp_path) == (job == "83")


@pytest.mark.usefixtures("rank_0")
def test_an_attempt_that_does_not_end_has_the_job_requeued(tmp_path, held, monkeypatch):
    slurm(monkeypatch, "83", "1")
    monkeypatch.setattr(src.train, "PATIENCE", 0.5)
    held("job 83, process 2074 on node1, restart 0\n", 60)
    with pytest.raises(SystemExit, match="is still in use by job 83, process 2074 on node1"):
        src.train.take(tmp_path)
    asked = []

    def requeue(number, frame):  # as submitit's: it ends the process
        asked.append(number)
        sys.exit(0)

    before = signal.signal(signal.SIGUSR2, requeue)
    try:
        with pytest.raises(SystemExit) as end:
            src.train.take(tmp_path)
    finally:
        signal.signal(signal.SIGUSR2, before)
    assert asked == [signal.SIGUSR2] and end.value.code == 0


@pytest.mark.usefixtures("rank_0")
@pytest.mark.parametrize("holder", ["job 84, process 1 on n1, restart 0", "job 83, process 1 on n1, restart 1", "?"])
def test_anybody_else_is_not_waited_for(tmp_path, held, monkeypatch, holder):
    slurm(monkeypatch, "83", "1")
    held(holder, 60)
    with pytest.raises(SystemExit, match=r"is in use by .*: wait for it, or stop it"):
        src.train.take(tmp_path)


def test_the_folder_says_what_ran(tmp_path):
    first, second, third = (merge(["--seed", seed]) for seed in "123")
    for text in (first, first, second, second, third):
        note_config(tmp_path, text)
    names = ["config.yaml", "config-2.yaml", "config-1.yaml"]
    assert [(tmp_path / name).read_text() for name in names] == [third, second, first]
    note_config(tmp_path, merge(["--run", str(tmp_path)]))  # an evaluation
    assert (tmp_path / "config.yaml").read_text() == third and len(list(tmp_path.iterdir())) == 3


@pytest.mark.usefixtures("rank_0")
def test_run_folders_that_cannot_be(tmp_path, monkeypatch, capsys):
    (tmp_path / "file").write_text("")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "loop.2").symlink_to(tmp_path / "loop" / "x")
    monkeypatch.setattr(src.train, "train", lambda command, text, folder: src.train.take(folder))
    for name in ("file", "file/x", "loop", "loop/x", "loop.2", LONG, "zero\0byte", ""):
        folder = f"{tmp_path}/{name}" if name else ""
        monkeypatch.setattr(sys, "argv", ["train.py", "fit", *SMALL.split(), "--run_folder", folder])
        with pytest.raises(SystemExit) as end:
            src.train.main()
        message = str(end.value) if isinstance(end.value.code, str) else capsys.readouterr().err.splitlines()[-1]
        assert end.value.code != 0 and "run" in message and len(message) < 300, name


def test_test_without_a_run(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(sys, "argv", ["train.py", "test", "--run_folder", str(tmp_path / "x")])
    with pytest.raises(SystemExit) as end:
        src.train.main()
    assert end.value.code == 2 and "--run is missing" in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


def test_full_shared_memory_is_not_the_disk(tmp_path, monkeypatch):
    usage = {"/dev/shm": 0, str(tmp_path): 2**40}
    monkeypatch.setattr(src.train.shutil, "disk_usage", lambda path: SimpleNamespace(free=usage[str(path)]))
    no_space = OSError(errno.ENOSPC, "No space left on device")
    assert "/dev/shm" in src.train.full(no_space, tmp_path)
    assert "/dev/shm" in src.train.full(OSError(errno.ENOSPC, "No space", "/dev/shm/sem.x"), tmp_path)
    assert src.train.full(OSError(errno.ENOSPC, "No space", f"{tmp_path}/x"), tmp_path) is None
    usage["/dev/shm"] = 2**30
    assert src.train.full(no_space, tmp_path) is None


def test_a_run_folder_may_have_the_name_of_a_logger(tmp_path, monkeypatch):
    made = []

    class Wandb:
        def __init__(self, *names, **options):
            made.append((*names, options["id"]))

        def log_hyperparams(self, hparams):
            made.append(hparams)

    monkeypatch.setattr("src.utils.loggers.WandbLogger", Wandb)
    make_logger("wandb", tmp_path / "tensorboard", {"seed": 1}, 0)
    assert made == [("tensorboard", "tensorboard"), {"seed": 1}]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"seed: [", "is not YAML"),
        (b"- seed", "has to hold lines such as"),
        ("# für Müller\nseed: 3".encode("latin1"), "utf-8"),
    ],
)
def test_files_that_cannot_be_read(tmp_path, content, words):
    (tmp_path / "mine.yaml").write_bytes(content)
    sentence = refusal(f"--config {tmp_path}/mine.yaml")
    assert words in sentence.replace("UTF", "utf") and "mine.yaml" in sentence
    assert "no such preset: these are cifar10_fast" in refusal("--config /no/such.yaml")


def test_an_empty_file_has_no_effect(tmp_path):
    (tmp_path / "empty.yaml").write_text("# nothing\n")
    assert merge(["--config", f"{tmp_path}/empty.yaml"]) == merge([])

"""Which checkpoint a training resumes, which one is the best, and what a resume refuses to do."""

import math
import shutil
import sys
from types import SimpleNamespace

import optuna
import pytest
import torch
from lesson import REPOSITORY
from torch import nn
from training import Training, curves, steps, weights

sys.path.insert(0, str(REPOSITORY))
from src.callbacks.checkpoints import Checkpoints, differs, to_resume
from src.callbacks.exact_resume import other_plan, position
from src.launch.progress import NONE_YET, NOTE, no_progress, write_note
from src.search.trial import Report
from src.utils.mean import Mean
from src.utils.seeds import content_of, weights_checksum

SMALL = "--threads 1 --limit_train_batches 20 --limit_val_batches 2"  # MNIST, 3 layers
FLAGS = f"{SMALL} --max_epochs 1 --checkpoint_every 5 --validate_every 10"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run of one epoch: best.ckpt and the checkpoints of steps 15 and 20."""
    return Training(tmp_path_factory.mktemp("checkpoints") / "run", FLAGS).ends_well()


@pytest.fixture
def folder(run, tmp_path):
    """A copy of its folder."""
    shutil.copytree(run.folder, tmp_path / "run")
    return tmp_path / "run"


def remove(folder, pattern):
    for path in folder.glob(pattern):
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def cut(folder, pattern):
    for path in folder.glob(pattern):
        path.write_bytes(path.read_bytes()[:1000])


def test_the_newest_complete_checkpoint_is_resumed(folder):
    assert to_resume(folder).name == "step=00000020.ckpt"
    cut(folder, "checkpoints/step=00000020.ckpt")
    assert to_resume(folder).name == "step=00000015.ckpt"


@pytest.mark.parametrize("lose", [remove, cut])
def test_without_a_checkpoint_of_a_step_the_best_is_resumed(folder, lose, caplog):
    lose(folder, "checkpoints/step=*.ckpt")
    assert to_resume(folder).name == "best.ckpt"
    assert "no complete checkpoint but best.ckpt: the training continues from that one" in caplog.text
    assert "the checkpoint before it is taken" not in caplog.messages[-1]


@pytest.mark.parametrize(
    ("lose", "patterns"),
    [
        (remove, ["checkpoints"]),
        (remove, ["checkpoints/*.ckpt"]),
        (remove, ["checkpoints", NOTE]),
        (cut, ["checkpoints/*.ckpt"]),
    ],
)
def test_a_run_whose_checkpoints_are_lost_is_not_overwritten(folder, lose, patterns):
    for pattern in patterns:
        lose(folder, pattern)
    with pytest.raises(FileNotFoundError) as raised:
        to_resume(folder)
    message = str(raised.value)
    assert "cannot be resumed" in message and "--init_from" in message and "python run.py repeat run" in message
    assert "\n" not in message


def test_the_command_for_it_changes_nothing(folder):
    remove(folder, "checkpoints/*.ckpt")
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != ".taken"}
    again = Training(folder, f"{SMALL} --max_epochs 2")
    assert again.wait() == 1
    assert "Traceback" not in again.output()
    assert "step=00000020.ckpt is missing" in again.output().splitlines()[-1]
    assert before == {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != ".taken"}
    prepared = Training(folder, f"{SMALL} --max_epochs 2 --prepare")
    assert prepared.wait() == 2
    assert "cannot be resumed" in prepared.output() and "Traceback" not in prepared.output()


def test_a_run_that_was_killed_before_its_first_checkpoint_starts_again(tmp_path):
    assert to_resume(tmp_path) is None
    write_note(tmp_path, NONE_YET)
    (tmp_path / "events.out.tfevents.1.a.1.0").touch()
    assert to_resume(tmp_path) is None
    (tmp_path / NOTE).write_text("")  # torn
    with pytest.raises(FileNotFoundError, match="cannot be resumed"):
        to_resume(tmp_path)


def test_best_is_resumed_exactly(run, folder):
    """From the validation after step 10 or 20, whichever was the best."""
    remove(folder, "checkpoints/step=*.ckpt")
    again = Training(folder, FLAGS).ends_well()
    assert weights(again) == weights(run)
    assert curves(folder)["val/loss"] == curves(run.folder)["val/loss"]


@pytest.mark.parametrize(
    ("name", "values", "best"),
    [
        ("val/accuracy", [math.nan, 0.5, 0.4, math.nan, 0.6], [0.5, 0.6]),
        ("val/loss", [math.nan, 0.5, math.nan, 0.6, 0.4], [0.5, 0.4]),
        ("val/loss", [-math.inf, 0.5, 0.4], [0.5, 0.4]),
        ("val/accuracy", [math.inf, 0.5, 0.6], [0.5, 0.6]),
        ("val/loss", [math.nan, math.nan], []),
    ],
)
def test_a_value_that_is_not_a_number_is_never_the_best(tmp_path, name, values, best):
    callback = Checkpoints(tmp_path, "1epoch", "best", name)
    written = []
    io = SimpleNamespace(failed=False)
    trainer = SimpleNamespace(
        state=SimpleNamespace(fn="fit"),
        sanity_checking=False,
        is_global_zero=True,
        global_step=0,
        strategy=SimpleNamespace(checkpoint_io=io),
        save_checkpoint=lambda path, weights_only: written.append(trainer.callback_metrics[name].item()),
    )
    for value in values:
        trainer.callback_metrics = {name: torch.tensor(value, dtype=torch.float64)}
        callback.on_validation_end(trainer, None)
    assert written == best


def test_a_best_value_that_an_older_version_froze_is_replaced(tmp_path):
    callback = Checkpoints(tmp_path, "1epoch", "best", None)
    callback.load_state_dict({"best": math.nan})
    assert callback.is_better(0.1, "val/accuracy")


def test_another_monitor_is_not_compared_with_the_first(tmp_path):
    callback = Checkpoints(tmp_path, "1epoch", "best", None)
    callback.load_state_dict({"best": 0.95, "best_of": "val/accuracy"})
    assert callback.is_better(-0.3, "val/loss")  # a loss of 0.3
    assert not callback.is_better(0.9, "val/accuracy")


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("--batch_size 32", "batch_size was 64 and is now 32"),
        ("--batch_size 128", "batch_size was 64 and is now 128"),
        ("--seed 7", "seed was 1 and is now 7"),
        ("--accumulate 3", "accumulate was 1 and is now 3"),
    ],
)
def test_another_plan_in_the_middle_of_an_epoch_is_refused(folder, flags, words):
    remove(folder, "checkpoints/step=00000020.ckpt")
    for more, code in (("--prepare", 2), ("", 1)):
        again = Training(folder, f"{SMALL} --max_epochs 2 {flags} {more}")
        assert again.wait() == code
        assert words in again.output() and "Traceback" not in again.output()
    assert steps(folder) == [15]


def test_another_plan_between_two_epochs_is_accepted(folder):
    Training(folder, f"{SMALL} --max_epochs 2 --batch_size 32 --accumulate 2 --seed 3").ends_well()
    assert steps(folder) == [20, 30]


def test_another_network_is_one_sentence(folder):
    again = Training(folder, f"{SMALL} --max_epochs 2 --model.arch cnn")
    assert again.wait() == 1
    assert "Traceback" not in again.output()
    assert "step=00000020.ckpt is of another network, so this one cannot resume it" in again.output().splitlines()[-1]


def test_a_trial_is_not_pruned_for_a_value_that_is_not_a_number(tmp_path):
    """Optuna prunes if it is told of a NaN."""
    study = optuna.create_study(direction="maximize", pruner=optuna.pruners.MedianPruner(n_startup_trials=1))
    study.add_trial(optuna.trial.create_trial(value=0.5, intermediate_values={0: 0.5, 1: 0.5}))
    report = Report(study.ask(), "val/accuracy")
    for value in (math.nan, math.inf, 0.6):
        report.report(value)
        report.validations += 1
        assert not report.pruned
    assert report.trial.study.trials[1].intermediate_values == {2: 0.6}


def test_what_makes_another_plan():
    plan = {"accumulate": 1, "loaders": [{"samples": 96, "batch_size": 8, "seed": 1, "shuffle": True}]}
    assert other_plan(plan, plan) is None and other_plan(None, plan) is None
    assert other_plan(plan, plan | {"loaders": [{}]}) is None  # used as it is
    other = plan | {"loaders": [plan["loaders"][0] | {"samples": 95}]}
    assert "samples was 96 and is now 95" in other_plan(plan, other)
    assert "there were 1 training loaders and are now 2" in other_plan(plan, plan | {"loaders": plan["loaders"] * 2})


@pytest.mark.parametrize("content", [{}, {"exact_resume": {"metrics": [], "in_epoch": True}}])
def test_a_checkpoint_of_an_older_version_is_one_sentence(tmp_path, content):
    torch.save({"state_dict": {}, **content}, tmp_path / "step=00000001.ckpt")
    with pytest.raises(SystemExit, match=r"did not write it: exact_resume lacks .*attributes.*--init_from"):
        position(tmp_path / "step=00000001.ckpt")


@pytest.mark.parametrize(("batches", "epochs"), [(9, 4), (10, 3)])
def test_validations_and_checkpoints_count_the_same_steps(tmp_path, batches, epochs):
    """Three batches to a step; of ten batches the last is a step of its own."""
    flags = f"--threads 1 --limit_train_batches {batches} --limit_val_batches 1 --keep all --max_epochs {epochs}"
    run = Training(tmp_path / "run", f"{flags} --accumulate 3 --validate_every 3 --checkpoint_every 3").ends_well()
    assert steps(run.folder) == [3, 6, 9, 12]
    assert [step + 1 for step, _ in curves(run.folder)["val/loss"]] == [3, 6, 9, 12]


def test_a_mean_counts_beyond_what_float32_can():
    mean = Mean()
    mean.update(torch.tensor(0.0), 2**24)
    for _ in range(10):
        mean.update(torch.tensor(1.0), 1)
    assert mean.count.item() == 2**24 + 10 and mean.total.item() == 10
    mean.update(torch.tensor(float(2**24)), 0)
    for _ in range(10):
        mean.update(torch.tensor(1.0), 0)
    assert mean.total.item() == 2**24 + 20
    assert mean.compute().dtype == torch.float32


class Extra(nn.Module):
    """Keeps something besides tensors."""

    def __init__(self, extra):
        super().__init__()
        self.extra = extra

    def get_extra_state(self):
        return self.extra

    def set_extra_state(self, state):
        self.extra = state


def kinds():
    numbers = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
    yield from (numbers.to(dtype) for dtype in (torch.bfloat16, torch.float16, torch.float64, torch.int8, torch.bool))
    yield from (numbers.to(dtype) for dtype in (torch.float8_e4m3fn, torch.float8_e5m2, torch.complex64))
    yield numbers.to(torch.complex64).conj()
    yield from (numbers.to_sparse(), numbers.to_sparse_csr(), numbers.to_sparse_csc(), numbers.t(), torch.tensor(1.5))
    yield torch.quantize_per_tensor(numbers, 0.1, 0, torch.qint8)
    yield torch.empty(0)
    yield torch.empty(2, device="meta")


def test_a_checksum_of_weights_of_all_kinds():
    for number, tensor in enumerate(kinds()):
        module = nn.Module()
        module.register_buffer("kept", tensor)
        assert weights_checksum(module) == weights_checksum(module), number
    for extra in (None, 3, "text", b"bytes", {"scale": torch.ones(3), "name": "a"}, [1, (2, torch.zeros(1))], {1, 2}):
        assert len(weights_checksum(Extra(extra))) == 16
    one, two = ({"scale": torch.arange(float(5000))} for _ in range(2))
    two["scale"][2500] = -1  # print() would not show it
    assert content_of(one) != content_of(two)
    assert weights_checksum(Extra(one)) != weights_checksum(Extra(two))
    plain = nn.Linear(3, 2)
    before = weights_checksum(plain)
    with torch.no_grad():
        plain.weight[1, 2] += 1e-7
    assert weights_checksum(plain) != before


def test_the_last_checkpoint_is_compared_with_weights_of_all_kinds(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    module = Extra({"count": 3})
    module.register_buffer("kept", torch.tensor([math.nan, 1.0], dtype=torch.bfloat16))
    torch.save({"state_dict": module.state_dict()}, tmp_path / "checkpoints/step=00000001.ckpt")
    assert not differs(module, tmp_path)
    module.extra = {"count": 4}
    assert differs(module, tmp_path)


@pytest.mark.parametrize("logger", ["tensorboard", "csv"])
@pytest.mark.parametrize("recreate", [False, True])
def test_a_run_whose_folder_is_renamed_stops(tmp_path, logger, recreate):
    (tmp_path / "renaming.py").write_text(RENAMING)
    flags = f"{SMALL} --max_epochs 1 --checkpoint_every 5 --validate_every 10 --logger {logger}"
    flags += f" --callbacks+=renaming.Renaming --callbacks.recreate {recreate}"
    run = Training(tmp_path / "runs/run", flags, path=tmp_path)
    assert run.wait() == 1
    assert "Traceback" not in run.output()
    assert "runs/run was renamed or removed while the run was at step 7, so it stops" in run.output()
    assert steps(tmp_path / "runs/renamed") == [5]
    left = {path.name for path in (tmp_path / "runs").iterdir() if path.is_dir()}
    assert left == {"renamed", *(["run"] if recreate else [])}
    assert not list((tmp_path / "runs/run").glob("*"))


RENAMING = """
from pathlib import Path

import lightning as L


class Renaming(L.Callback):
    def __init__(self, recreate: bool):
        self.recreate = recreate

    def on_train_batch_end(self, trainer, *args):
        if trainer.global_step == 7:
            folder = Path(trainer.default_root_dir)
            folder.rename(folder.with_name("renamed"))
            if self.recreate:
                folder.mkdir()
"""


def test_attempts_without_a_step_are_not_requeued_for_ever(tmp_path):
    def attempt(note):
        if note:
            write_note(tmp_path, note)
        return no_progress(tmp_path)

    assert attempt("step=00000005.ckpt") is None
    assert attempt("best.ckpt of step=00000007") is None
    assert attempt(None) is None and attempt(None) is None
    assert "the last 3 attempts made no step beyond step 7" in attempt(None)
    assert attempt(None) is None and attempt(None) is None  # after a resume by hand
    assert attempt("step=00000008.ckpt") is None
    assert attempt(None) is None and attempt(None) is None
    assert attempt("step=00000008.ckpt")


def test_attempts_that_never_begin_to_train_are_counted(tmp_path):
    assert no_progress(tmp_path) is None and no_progress(tmp_path) is None
    assert "beyond step 0" in no_progress(tmp_path)
    (tmp_path / ".attempts").write_text("torn {")
    assert no_progress(tmp_path) is None


COUNTING = """
import os

from src.callbacks import checkpoints
from src.models.classifier import Classifier

complete = checkpoints.is_complete


def noted(path):
    print("rank", os.environ["RANK"], "reads", path, flush=True)
    return complete(path)


checkpoints.is_complete = noted


class Mine(Classifier):
    pass
"""


@pytest.mark.slow
def test_the_first_of_two_processes_chooses_the_checkpoint(run, folder, tmp_path):
    """It alone reads all of it; if the run cannot be resumed, both end."""
    (tmp_path / "mine.py").write_text(COUNTING)
    flags = f"{SMALL} --max_epochs 1 --model mine.Mine"
    again = Training(folder, flags, processes=2, path=tmp_path).ends_well()
    assert weights(again) == weights(run)
    assert "rank 0 reads" in again.output() and "rank 1 reads" not in again.output()
    remove(folder, "checkpoints/*.ckpt")
    refused = Training(folder, flags, processes=2, path=tmp_path)
    assert refused.wait(120) == 1 and refused.codes() == [1, 1]
    assert "Traceback" not in refused.output()
    assert refused.output().count("cannot be resumed: step=00000020.ckpt is missing") == 1


def test_a_scheduled_number_of_batches_is_validated_after_steps_too(tmp_path):
    """Two batches to a step in the first epoch, one in the second: 5 steps, then 10."""
    flags = "--threads 1 --limit_train_batches 10 --limit_val_batches 1 --keep all --max_epochs 2 --validate_every 4"
    scheduler = '[{"class_path":"GradientAccumulationScheduler","init_args":{"scheduling":{"0":2,"1":1}}}]'
    run = Training(tmp_path / "run", f"{flags} --checkpoint_every 4 --callbacks={scheduler}").ends_well()
    assert steps(run.folder) == [4, 8, 12, 15]
    assert [step + 1 for step, _ in curves(run.folder)["val/loss"]] == [4, 8, 12]

"""What predict_step returns is written as it is: as one array if it can be one, else batch by batch."""

import sys

import numpy as np
import pytest
import torch
from lesson import REPOSITORY
from training import Training

sys.path.insert(0, str(REPOSITORY))
from src.utils.predictions import join

FLAGS = "--threads 1 --limit_train_batches 2 --limit_val_batches 1 --max_epochs 1"


def written(folder, batches, classes=None):
    """Two batches of results as they lie on the disk, joined."""
    (folder / "predictions").mkdir()
    for number, (samples, result) in enumerate(batches):
        path = folder / f"predictions/loader=0_batch={number:08d}_rank=0000.pt"
        torch.save({"samples": torch.tensor(samples), "result": result}, path)
    join(folder / "predictions", 1, classes)
    target = folder / "predictions.npz"
    return dict(np.load(target)) if target.exists() else None


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [
        (torch.float32, np.float32),
        (torch.bfloat16, np.float32),
        (torch.float8_e4m3fn, np.float32),
        (torch.float16, np.float16),
        (torch.int64, np.int64),
        (torch.complex64, np.complex64),
        (torch.bool, np.bool_),
    ],
)
def test_numbers_of_all_types(tmp_path, dtype, expected):
    rows = torch.tensor([[1, 0], [0, 1], [1, 1]]).to(dtype)
    found = written(tmp_path, [([2, 0], rows[[2, 0]]), ([1], rows[[1]])])["predictions"]
    assert found.dtype == expected
    assert (found == np.array([[1, 0], [0, 1], [1, 1]])).all()


def test_fewer_samples_are_fewer_rows(tmp_path):
    found = written(tmp_path, [([0, 2], torch.ones(2, 2)), ([1], torch.zeros(1, 2))], classes=["a", "b"])
    assert found["probabilities"].tolist() == [[1, 1], [0, 0], [1, 1]]
    assert list(found["predicted"]) == [0, 0, 0] and list(found["classes"]) == ["a", "b"]


@pytest.mark.parametrize(
    "results",
    [
        (torch.ones(2, 2).to_sparse(), torch.ones(1, 2).to_sparse()),
        (torch.ones(2, 2), torch.ones(1, 3)),
        (["a", "b"], ["c"]),
    ],
)
def test_what_is_no_array_stays_in_files(tmp_path, results):
    assert written(tmp_path, [([0, 1], results[0]), ([2], results[1])]) is None
    assert len(list((tmp_path / "predictions").iterdir())) == 2


def test_samples_without_a_prediction_stay_in_files(tmp_path):
    assert written(tmp_path, [([0, 1], torch.ones(2, 2)), ([5], torch.ones(1, 2))]) is None


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize(("flags", "rows"), [("--fast_dev_run true", 64), ("--trainer.limit_predict_batches 2", 128)])
def test_predictions_of_few_batches(tmp_path, processes, flags, rows):
    run = Training(tmp_path / "run", FLAGS).ends_well()
    known = f"--config {run.folder}/config.yaml --run {run.folder}"
    Training(tmp_path / "predict", f"{known} {flags}", "predict", processes).ends_well()
    assert np.load(tmp_path / "predict/predictions.npz")["probabilities"].shape == (rows, 10)

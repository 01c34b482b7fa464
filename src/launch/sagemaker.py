"""The entry point of a training job on Amazon SageMaker: python src/launch/sagemaker.py

hyperparameters              flags of src/train.py, such as {"config": "laptop", "model.arch": "cnn"}
the channel "training"       --data_dir
the hosts and their GPUs     one process a GPU on each, by torchrun
/opt/ml/checkpoints          the run's folder: SageMaker copies it to S3 all the time, and back when a job that was
                             interrupted starts again; then the training goes on
/opt/ml/model                the best weights, for load_run()
/opt/ml/output/data          the curves
/opt/ml/output/failure       why the training failed
"""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections import deque
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[0] = str(ROOT)

from src.launch.ranks import port_of  # noqa: E402


def read_json(path):
    return json.loads(path.read_text()) if path.is_file() else {}


def flags_of(hyperparameters):
    """["--max_epochs=3", ...]. All values are texts; SageMaker's own Python package writes them as JSON once more."""
    flags = []
    for name, value in hyperparameters.items():
        if name.startswith("sagemaker_"):  # for that package
            continue
        try:
            decoded = json.loads(value)
        except ValueError:
            decoded = value
        flags.append(f"--{name}={decoded if isinstance(decoded, str) else value}")
    return flags


def torchrun_of(resources, gpus):
    """torchrun's flags for this host."""
    hosts = resources.get("hosts", ["localhost"])
    return [
        f"--nnodes={len(hosts)}",
        f"--node_rank={hosts.index(resources.get('current_host', hosts[0]))}",
        f"--nproc_per_node={max(1, gpus)}",
        f"--master_addr={hosts[0] if len(hosts) > 1 else '127.0.0.1'}",
        f"--master_port={port_of(os.environ.get('TRAINING_JOB_NAME', ''))}",
    ]


def run(command):
    """Run a command that is told, too, when the job is to be stopped. Its exit code, and why it failed if it did."""
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, errors="replace")
    stopped = []

    def stop(number, frame):
        stopped.append(number)
        process.terminate()

    signal.signal(signal.SIGTERM, stop)
    last = deque(maxlen=20)
    for line in process.stderr:
        sys.stderr.write(line)
        last.append(line)
    return process.wait(), "" if stopped else "".join(last)


def main():
    ml = Path(os.environ.get("SM_PREFIX", "/opt/ml"))
    hyperparameters = read_json(ml / "input/config/hyperparameters.json")
    resources = read_json(ml / "input/config/resourceconfig.json")
    data = Path(os.environ.get("SM_CHANNEL_TRAINING", ml / "input/data/training"))
    model = Path(os.environ.get("SM_MODEL_DIR", ml / "model"))
    output = Path(os.environ.get("SM_OUTPUT_DATA_DIR", ml / "output/data"))
    gpus = int(os.environ.get("SM_NUM_GPUS", len(list(Path("/dev").glob("nvidia[0-9]*")))))
    run_folder = ml / "checkpoints"

    flags = flags_of(hyperparameters) + ([f"--data_dir={data}"] if data.is_dir() else [])
    train = [str(ROOT / "src/train.py"), "fit", *flags]
    # First what can be wrong with the flags, and the data, by one process.
    checked = subprocess.run([sys.executable, *train, "--prepare"], capture_output=True, text=True)
    code, errors = checked.returncode, checked.stderr
    if code:
        sys.stderr.write(errors)
    else:
        # --: else torchrun takes a flag of ours that begins as one of its own, such as --monitor, for that one
        torchrun = [sys.executable, "-m", "torch.distributed.run", *torchrun_of(resources, gpus)]
        code, errors = run([*torchrun, "--", *train, f"--run_folder={run_folder}"])
    if (run_folder / "config.yaml").is_file():  # on the first host
        curves = shutil.ignore_patterns("checkpoints", ".*")
        shutil.copytree(run_folder, output, ignore=curves, dirs_exist_ok=True)
        best = run_folder / "checkpoints/best.ckpt"
        if code == 0 and best.is_file():
            (model / "checkpoints").mkdir(parents=True, exist_ok=True)
            shutil.copy(best, model / "checkpoints")
            shutil.copy(run_folder / "config.yaml", model)
    if code and errors:
        (ml / "output").mkdir(parents=True, exist_ok=True)
        (ml / "output/failure").write_text(errors)
    sys.exit(code)


if __name__ == "__main__":
    main()

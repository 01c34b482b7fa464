"""Take the screenshots of TensorBoard that the READMEs show, into .img/: runs are trained for them, then looked at.

python lessons/screenshots.py                     tensorboard.png and 05-*.png, about five minutes
python lessons/screenshots.py --search logs/lr    12-hparams.png, of the search that you have made as lesson 12 says

It needs Chromium: apt install chromium.
"""

import argparse
import json
import re
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

from PIL import Image
from tqdm import tqdm

ROOT = Path(__file__).resolve().parents[1]
LESSON = Path("lessons/05-improved-logging")
# What is trained: the quick start's command in the root, and in lesson 5 its commands, with the ids of its README.
RUNS = {
    "logs/1": "run.py",
    f"{LESSON}/logs/1": "run.py",
    f"{LESSON}/logs/2_0": "run.py --lr 1e-4",
    f"{LESSON}/logs/2_1": "run.py --lr 1e-3",
    f"{LESSON}/logs/3": "run.py --arch cnn",
}
# What is looked at: the folder, TensorBoard's page with the settings in its address, and what of the window is shown:
# left, top, right, bottom.
CURVES = "custom_scalars&_smoothingWeight=0"
PICTURES = {
    "tensorboard": ("logs", CURVES, (0, 0, 1560, 650)),
    "05-curves": (LESSON / "logs", f"{CURVES}&regexInput=^(1|2_0)$", (0, 68, 1200, 700)),
    "05-images": (LESSON / "logs", "images&regexInput=^1$", (0, 68, 1100, 1090)),
    "05-hparams": (LESSON / "logs", "hparams", (345, 68, 1695, 326)),
}
SEARCH = ("hparams", (479, 68, 2318, 622))
SCALE = 2  # pixels of a picture for one of the page: TensorBoard makes the runs' own pictures small
# --run-all-...: no part of the page is still to be painted when the picture is taken.
FLAGS = "--headless --no-sandbox --hide-scrollbars --run-all-compositor-stages-before-draw --disable-gpu"
QUIET = "--disable-quic --no-first-run --disable-background-networking --disable-sync"


def train(folder):
    """Train the runs in a copy of what they need; yours is left as it is."""
    for part in ("src", LESSON):
        shutil.copytree(ROOT / part, folder / part, ignore=shutil.ignore_patterns("logs", "__pycache__"))
    shutil.copy(ROOT / "run.py", folder)
    (folder / "data").symlink_to(ROOT / "data")
    for run, command in tqdm(RUNS.items(), disable=None):  # None: only on a terminal
        logs = (folder / run).parent
        command = [sys.executable, *command.split(), "--cluster", "debug", "--log_path", str(logs / "new")]
        subprocess.run(command, cwd=logs.parent, stdout=subprocess.DEVNULL, check=True)
        [trained] = (logs / "new").iterdir()
        trained.rename(folder / run)
        (logs / "new").rmdir()


def take(browser, folder, pictures, out):
    """Take pictures, {name: as in PICTURES}, of the runs below a folder."""
    for logs in dict.fromkeys(logs for logs, _, _ in pictures.values()):
        place = folder / logs
        command = "-m tensorboard.main --host 127.0.0.1 --port 0 --logdir"
        command = [sys.executable, *command.split(), place.name]
        with subprocess.Popen(command, cwd=place.parent, stderr=subprocess.PIPE, text=True) as server:
            try:
                address = next(match[0] for line in server.stderr if (match := re.search(r"http://\S+:\d+/", line)))
                wait_until_read(address, place)
                for name, (where, page, box) in pictures.items():
                    if where == logs:
                        shoot(browser, f"{address}#{page}", box, out / f"{name}.png")
                        print(out / f"{name}.png")
            finally:
                server.terminate()


def wait_until_read(address, logs):
    """TensorBoard reads in the background: wait until it has all runs, and nothing new comes for some seconds."""
    runs = {path.parent.name for path in logs.glob("*/events.*")}
    tags, since = {}, time.monotonic()
    while not runs <= tags.keys() or time.monotonic() < since + 5:
        urllib.request.urlopen(f"{address}data/plugins_listing", timeout=30)  # it looks for the projector's data
        found = json.load(urllib.request.urlopen(f"{address}data/plugin/scalars/tags", timeout=30))
        if found != tags:
            tags, since = found, time.monotonic()
        time.sleep(0.5)


def shoot(browser, address, box, path):
    """A picture of a part of a page, with as many colours as a screenshot needs."""
    with tempfile.TemporaryDirectory() as profile:
        page = f"{profile}/page.png"
        command = [browser, *FLAGS.split(), *QUIET.split(), f"--user-data-dir={profile}", f"--screenshot={page}"]
        command += [f"--window-size={box[2]},{box[3]}", f"--force-device-scale-factor={SCALE}"]
        # Half a minute of the page's own clock: it asks the server for the runs, then draws them.
        subprocess.run([*command, "--virtual-time-budget=30000", address], capture_output=True, check=True, timeout=120)
        picture = Image.open(page).convert("RGB").crop([SCALE * edge for edge in box])
    picture.quantize(256, dither=Image.Dither.NONE).save(path, optimize=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--search", type=Path, help="the folder of lesson 12's search, logs/lr")
    parser.add_argument("--out", type=Path, default=ROOT / ".img", help="where they go")
    args = parser.parse_args()
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if not browser:
        parser.error("there is no Chromium here: apt install chromium")
    args.out.mkdir(parents=True, exist_ok=True)
    if args.search:
        search = args.search.resolve()
        if not list(search.glob("*/events.*")):
            parser.error(f"--search {args.search}: no trials in this folder; it is logs/ and the name of a search")
        take(browser, search.parent, {"12-hparams": (search.name, *SEARCH)}, args.out)
        return
    with tempfile.TemporaryDirectory() as folder:
        train(Path(folder))
        take(browser, Path(folder), PICTURES, args.out)


if __name__ == "__main__":
    main()

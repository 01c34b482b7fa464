"""What holds for the whole repository: the lessons build on each other, the READMEs say what is there."""

import functools
import os
import re
import shutil
import subprocess
import sys

import pytest
import quick_python
from lesson import REPOSITORY, chromium, readme_commands
from PIL import Image, ImageStat

READMES = sorted([REPOSITORY / "README.md", REPOSITORY / "data/README.md", *REPOSITORY.glob("lessons/*/README.md")])
PAGES = [*READMES, *sorted(REPOSITORY.glob("lessons/*.md"))]


def test_the_readmes_show_todays_changes():
    done = subprocess.run(
        [sys.executable, REPOSITORY / "lessons/changes.py", "--check"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("readme", PAGES, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_every_link_to_a_file_leads_somewhere(readme):
    text = re.sub(r"```.*?```", "", readme.read_text(), flags=re.DOTALL)
    links = [link for link in re.findall(r"\]\(([^)\s]+)\)", text) if not link.startswith(("http", "#"))]
    for link in links:
        assert (readme.parent / link.split("#")[0]).exists(), link


# Commands that end or delete by a name that is not of one run alone.
BROAD = r"\b(pkill|killall) \S|\bscancel .*(-u\b|--user|--me\b)|\brm .*/dev/shm|\bkill .*-1$|\bprune\b|-delete\b"


@pytest.mark.parametrize("readme", PAGES, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_no_command_hits_other_jobs_of_the_reader(readme):
    text = readme.read_text()
    blocks = re.compile(r"^```(?:bash|console)\n(.*?)^```|^<!-- output(.*?)-->", re.MULTILINE | re.DOTALL)
    code = ["".join(block) for block in blocks.findall(text)]
    prose = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    code += [words for _, words in re.findall(r"(?<!`)(`+)(?!`)((?:(?!\n\n).)+?)(?<!`)\1(?!`)", prose, re.DOTALL)]
    assert not [line for part in code for line in part.splitlines() if re.search(BROAD, line)]


def flags_in(text):
    """Of every run.py or main.py that stands in it, the flags up to the end of the line or of the code."""
    for _, rest in re.findall(r"(?<!benchmarks/)((?:run|main|train)\.py)\b([^`\n|;]*)", text):
        yield from re.findall(r"(?<=\s)--([a-z]\w*)", rest)


@functools.cache
def helps(folder):
    """What the programs of a lesson, or of the root, say about themselves."""
    programs = ["run.py"] if (folder / "run.py").exists() else ["src/main.py"]
    if folder == REPOSITORY:
        programs += ["run.py search"]
    text = "--run_folder\n"  # src/train.py's own
    for program in programs:
        command = [sys.executable, *program.split(), "--help"]
        text += subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True).stdout
    return text


@pytest.mark.parametrize("readme", PAGES, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_every_flag_that_is_named_exists(readme):
    number = re.match(r"\d\d", readme.parent.name)
    own = number and 1 <= int(number[0]) <= 8
    known = set(re.findall(r"--(\w+)", helps(readme.parent if own else REPOSITORY)))
    assert set(flags_in(readme.read_text())) - known == set()


def test_the_readme_starts_with_exactly_two_commands():
    first, second = readme_commands(REPOSITORY)[:2]
    assert "requirements.txt" in first
    assert first.endswith("run.py")
    assert "pytest" in second


def assert_drawn_again(folder, names):
    """The folder holds pictures with these names: none is blank, each as large as the one that the READMEs show."""
    assert {path.stem for path in folder.iterdir()} == set(names)
    for path in folder.iterdir():
        picture = Image.open(path).convert("L")
        width, height = picture.size
        assert picture.size == Image.open(REPOSITORY / ".img" / path.name).size
        inner = picture.crop((width // 3, height // 4, width, height))  # not TensorBoard's own words
        assert ImageStat.Stat(inner).stddev[0] > 12, path.name


DRAWN_FAST = ["07-resnet18", "08-ddp", "08-launch", "road-map"]
DRAWN = ["01-network", "03-workers", "07-architectures", *DRAWN_FAST]


@pytest.mark.parametrize(
    ("arguments", "drawn"), [(DRAWN_FAST, DRAWN_FAST), pytest.param([], DRAWN, marks=pytest.mark.slow)]
)
def test_pictures_are_drawn_again(tmp_path, arguments, drawn):
    command = ["python", REPOSITORY / "lessons/pictures.py", "--out", tmp_path, *arguments]
    subprocess.run(command, env=quick_python.environment(), check=True)
    assert_drawn_again(tmp_path, drawn)


@pytest.mark.campaign
def test_screenshots_are_taken_again(tmp_path):
    chromium()
    few = {"PL_TRAINER_LIMIT_TRAIN_BATCHES": "50"}  # lesson 5's runs take minutes, and their numbers are not looked at
    command = [sys.executable, REPOSITORY / "lessons/screenshots.py", "--out", tmp_path]
    subprocess.run(command, env=os.environ | few, check=True)
    assert_drawn_again(tmp_path, ["05-curves", "05-hparams", "05-images", "tensorboard"])


def test_a_correction_is_carried_forward(tmp_path):
    """In a repository of three small lessons: one that merges, one that has gone its own way, and the root."""

    def git(*arguments):
        identity = ["-c", "user.name=a reader", "-c", "user.email=reader@example.org"]
        subprocess.run(["git", *identity, *arguments], cwd=tmp_path, check=True, capture_output=True)

    ten_lines = [f"line {number}\n" for number in range(10)]
    lessons = [tmp_path / "lessons" / name for name in ("01-a", "02-b", "03-c")]
    for folder in [*lessons, tmp_path]:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "run.py").write_text("".join(ten_lines))
        (folder / "exercises").mkdir()
        (folder / "exercises/checks.py").write_text("".join(ten_lines))
    (tmp_path / "run.py").write_text("".join(ten_lines[:-1]) + "the root's own\n")
    (lessons[2] / "run.py").write_text("lesson 3's own\n" + "".join(ten_lines[1:]))
    shutil.copy(REPOSITORY / "lessons/carry.py", tmp_path / "lessons")
    git("init", "--quiet")
    git("add", ".")
    git("commit", "--quiet", "--message", "before")

    (lessons[0] / "run.py").write_text("corrected\n" + "".join(ten_lines[1:]))
    (lessons[0] / "exercises/checks.py").write_text("corrected\n")  # each lesson has its own
    done = subprocess.run([sys.executable, tmp_path / "lessons/carry.py", "1"], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stdout.splitlines() == [
        "merged: lessons/02-b/run.py",
        "CONFLICT: lessons/03-c/run.py",
        "merged: run.py",
    ]
    assert (lessons[1] / "run.py").read_text() == (lessons[0] / "run.py").read_text()
    assert (tmp_path / "run.py").read_text() == "corrected\n" + "".join(ten_lines[1:-1]) + "the root's own\n"
    assert "<<<<<<< here\nlesson 3's own\n=======\ncorrected\n>>>>>>> carried\n" in (lessons[2] / "run.py").read_text()

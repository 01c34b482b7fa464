"""The exercises of all lessons: their checks refuse the broken programs with a hint and accept what is right."""

import os
import re
import shutil
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import quick_python
from lesson import REPOSITORY, assert_one_sentence, readme_commands

LESSONS = sorted(path.parent.name for path in REPOSITORY.glob("lessons/*/exercises"))
# A few files of an exercise, each with something else in it, and a word of what is then said; None: it is right.
ANSWERS = [
    ("01", "1_mean_loss.py", "len(loader.dataset)", "len(loader)", "36 images"),
    ("01", "1_mean_loss.py", "loss_function(network(images), labels).item()",
     'torch.nn.functional.cross_entropy(network(images), labels, reduction="sum").item()', None),
    ("01", "2_gradients.py", "optimizer.step()", "optimizer.step()\n        network.zero_grad()", None),
    ("01", "3_shuffle.py", "DataLoader(train_set, batch_size),", "DataLoader(train_set, batch_size, "
     "shuffle=True, generator=torch.Generator(), drop_last=True),", "each training image once"),
    ("02", "2_dropout.py", "return (", "network.eval()\n    return (", "stays without dropout"),
    ("03", "2_same_noise.py", "np.random.default_rng(0)", "np.random.default_rng()", "two images"),
    ("03", "2_same_noise.py", "self.random.random()", "np.random.default_rng().random()", "bring them back"),
    ("04", "1_two_hours.py", '"mem": 4, "time": 2', '"mem": "4096M", "time": 120', None),
    ("04", "2_one_task_a_gpu.py", '"additional_parameters": {"ntasks": gpus_per_node}',
     '"additional_parameters": {"ntasks": nodes * gpus_per_node}', "evenly"),
    ("06", "2_download.py", "setup(self, stage)", "prepare_data(self)", "only the process that ran prepare_data()"),
    ("07", "1_head.py", "network.fc = nn.Linear(512, num_classes)",
     "return nn.Sequential(network, nn.Linear(1000, num_classes))", "one too many"),
    ("07", "2_loss.py", "nll_loss(logits", "nll_loss(logits.log_softmax(dim=1)", None),
    ("07", "2_loss.py", "nll_loss(logits", "nll_loss(logits.softmax(dim=1).log()", "200"),
    ("08", "2_uneven.py", "arange(length)[", "arange(length + length % 2).remainder(length)[", None),
    ("09", "1_twice.py", '"epoch": epoch,', '"epoch": epoch + 1,', "some images come twice"),
    ("09", "2_torn.py", "torch.save(state, path)",
     "if path.exists():\n        path.rename('old')\n    torch.save(state, 'new')\n    Path('new').rename(path)",
     "there is no last.ckpt any more"),
    ("10", "2_constants.py", "self.scale = scale", "self.scale = nn.Parameter(scale)", "an optimizer would train it"),
    ("12", "2_same_trials.py", "seed=seed", "seed=None", "each time it is repeated"),
    ("13", "3_noisier.py", "- weight", "+ abs(weight)", None),
    ("14", "2_exit_code.sh", "#!/bin/bash", "#!/bin/bash\nset -eo pipefail", "last line"),
]  # fmt: skip
# What is not an answer at all: the beginning of the file, and what is said about it.
BROKEN = {
    "def mean_loss(:": r"1_mean_loss.py, line 1: .+",
    "x = 1\nraise ValueError('no')": r"1_mean_loss.py, line 2: ValueError: no",
    "import sys\nsys.exit(0)": r"1_mean_loss.py, line 2: SystemExit: 0",
    "import os\nos._exit(7)": r"it has ended the process that checks it, with exit code 7",
    "def mean_loss(*_):\n    return 1 / 0": r"1_mean_loss.py, line 2: ZeroDivisionError: division by zero",
    "": r"1_mean_loss.py: AttributeError: .+mean_loss.+",
    "import subprocess\nsubprocess.run(['sleep', '987654'])": r"it still runs after 2 seconds.+",
}


def copy_of_all(parent):
    """All exercises, as they are in the last commit: in the working tree somebody may have mended them."""
    for name in LESSONS:
        folder = f"lessons/{name}/exercises"
        shutil.copytree(REPOSITORY / folder, parent / folder, ignore=shutil.ignore_patterns("__pycache__"))
        for path in (parent / folder).glob("[0-9]_*"):
            committed = subprocess.run(
                ["git", "show", f"HEAD:{folder}/{path.name}"], cwd=REPOSITORY, capture_output=True
            )
            if committed.returncode == 0:
                path.write_bytes(committed.stdout)
    shutil.copy(REPOSITORY / "lessons/check.py", parent / "lessons")
    return parent / "lessons"


def type_(command, folder):
    return subprocess.run(
        ["bash", "-c", command],
        cwd=folder,
        env=os.environ | quick_python.environment(),
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=300,
    )


def content(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def verdicts(done):
    """What is said of each exercise."""
    lines = [line.split(maxsplit=1) for line in done.stdout.splitlines()]
    return {name: verdict for name, verdict in lines}


@pytest.fixture(scope="module")
def lessons(tmp_path_factory):
    return copy_of_all(tmp_path_factory.mktemp("exercises"))


@pytest.fixture(scope="module")
def checked(lessons):
    """For each lesson: what its README's command says of the exercises, and of the solutions."""

    def check(name):
        [command] = [command for command in readme_commands(REPOSITORY / "lessons" / name) if "check.py" in command]
        folder = lessons / name if "../" in command else lessons.parent
        return type_(command, folder), type_(f"{command} --solutions", folder)

    before = content(lessons)
    first = sorted(LESSONS, key=lambda name: not name.startswith("08"))  # two of its programs hang for a while
    with ThreadPoolExecutor(2) as pool:
        results = dict(zip(first, pool.map(check, first), strict=True))
    assert content(lessons) == before, "nothing is written beside the exercises"
    return results


@pytest.mark.parametrize("name", LESSONS)
def test_the_exercises_are_refused_and_the_solutions_are_right(lessons, checked, name):
    exercises = [path.name for path in sorted((lessons / name / "exercises").glob("[0-9]_*"))]
    assert len(exercises) >= 2
    assert [path.name for path in sorted((lessons / name / "exercises/solutions").iterdir())] == exercises
    text = (REPOSITORY / "lessons" / name / "README.md").read_text()
    assert re.findall(r"^\d\. \[`(\S+)`\]\(exercises/\1\)", text, re.MULTILINE) == exercises

    broken, solved = checked[name]
    assert (broken.returncode, broken.stderr) == (1, "")
    assert list(verdicts(broken)) == exercises
    for exercise, verdict in verdicts(broken).items():
        assert verdict.startswith("not yet: "), f"{exercise}: {verdict}"
        assert f"{exercise}" not in verdict and "still runs" not in verdict, f"not a hint: {verdict}"
    assert (solved.returncode, solved.stderr) == (0, "")
    assert verdicts(solved) == dict.fromkeys(exercises, "right")


@pytest.mark.slow
@pytest.mark.parametrize(("lesson", "name", "old", "new", "word"), ANSWERS)
def test_other_answers(tmp_path, lessons, lesson, name, old, new, word):
    [original] = lessons.glob(f"{lesson}-*/exercises/{name}")
    folder = tmp_path / "lessons" / original.parts[-3] / "exercises"
    shutil.copytree(original.parent, folder)
    shutil.copy(lessons / "check.py", tmp_path / "lessons")
    assert original.read_text().count(old) == 1
    (folder / name).write_text(original.read_text().replace(old, new))
    done = type_(f"python lessons/check.py {lesson} {name[0]}", tmp_path)
    assert list(verdicts(done)) == [name]
    assert (done.returncode, done.stderr) == (int(word is not None), "")
    assert verdicts(done)[name] == "right" if word is None else word in verdicts(done)[name], done.stdout


@pytest.mark.slow
def test_what_is_no_answer_gets_one_line(tmp_path, lessons):
    folder = tmp_path / LESSONS[0] / "exercises"
    shutil.copytree(lessons / LESSONS[0] / "exercises", folder)
    shutil.copy(lessons / "check.py", tmp_path)
    command = "import sys, check; check.SECONDS = 2; sys.argv = ['check.py', '1', '1']; check.main()"
    for text, expected in BROKEN.items():
        (folder / "1_mean_loss.py").write_text(text)
        check = command if "987654" in text else command.replace("check.SECONDS = 2; ", "")
        done = type_(f'python -c "{check}"', tmp_path)
        assert done.returncode == 1
        assert done.stderr == ""
        assert re.fullmatch(rf"1_mean_loss.py +not yet: {expected}\n", done.stdout), done.stdout
        assert (folder / "1_mean_loss.py").read_text() == text
    time.sleep(0.2)
    running = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True).stdout
    assert "sleep 987654" not in running.splitlines(), "what the exercise has started is ended with it"


def test_the_list(lessons):
    done = type_("python check.py", lessons)
    assert done.returncode == 0, done.stderr
    names = [line.split()[0] for line in done.stdout.splitlines()]
    expected = []
    for name in LESSONS:
        expected += [name, *(path.name for path in sorted((lessons / name / "exercises").glob("[0-9]_*")))]
    assert names == expected
    assert all(len(line.split()) > 4 for line in done.stdout.splitlines() if line.startswith(" "))


def test_what_there_is_not(lessons):
    assert_one_sentence(type_("python check.py 99", lessons), "lesson 99 has no exercises", "1, 2, 3")
    assert_one_sentence(type_("python check.py 01 7", lessons), "no exercise 7 in lesson 1", "1 to 3")


@pytest.mark.slow
def test_slurm_ignores_what_the_exercise_says_it_ignores(tmp_path, lessons, cluster):
    said = {}
    for folder, log in ("exercises", "slurm-{}.out"), ("exercises/solutions", "slurm.{}.out"):
        shutil.copy(lessons / "04-auto-slurm-script-generation" / folder / "3_ignored.sh", tmp_path)
        job = cluster.submit("3_ignored.sh", tmp_path)
        assert cluster.wait(job) == "COMPLETED"
        said[folder] = (tmp_path / log.format(job)).read_text()
    assert said == {
        "exercises": "experiment first: no CPUs asked for\n",
        "exercises/solutions": "experiment first: 2 CPUs asked for\n",
    }


@pytest.mark.slow
@pytest.mark.parametrize(
    "path", [path for name in LESSONS for path in sorted((REPOSITORY / "lessons" / name).glob("exercises/solutions/*"))]
)
def test_a_solution_runs_as_it_says(path, tmp_path):
    """The command in its docstring, typed in the lesson's folder, from lesson 9 on (but 11) in the root."""
    text = path.read_text()
    command = re.search(
        rf"^(?:# )?((?:python|torchrun|bash) .*{re.escape(path.name)}.*?)(?:   .*)?$", text, re.MULTILINE
    )[1]
    script = command.split(path.parent.name)[0].split()[-1] + path.parent.name
    (tmp_path / script).parent.mkdir(parents=True, exist_ok=True)
    shutil.copytree(path.parent, tmp_path / script)
    done = type_(command, tmp_path)
    assert done.returncode == (2 if "no_such_file" in command else 0), done.stderr

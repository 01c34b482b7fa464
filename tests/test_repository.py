"""What holds for the whole repository: the lessons build on each other, the READMEs say what is there."""

import re
import subprocess
import sys

import pytest
from lesson import REPOSITORY, readme_commands

READMES = sorted([REPOSITORY / "README.md", REPOSITORY / "data/README.md", *REPOSITORY.glob("lessons/*/README.md")])
FINAL_STAGE = REPOSITORY / "lessons/04-auto-slurm-script-generation"


def test_the_root_is_the_final_stage():
    """The same programs, but for the line that says where data/ is."""
    lesson = (FINAL_STAGE / "run.py").read_text()
    assert lesson.count('DATA_DIR = ROOT.parents[1] / "data"\n') == 1
    assert (REPOSITORY / "run.py").read_text() == lesson.replace("ROOT.parents[1]", "ROOT")

    sources = {path.relative_to(FINAL_STAGE) for path in FINAL_STAGE.glob("src/**/*.py")}
    assert sources == {path.relative_to(REPOSITORY) for path in REPOSITORY.glob("src/**/*.py")}
    for source in sources:
        assert (REPOSITORY / source).read_text() == (FINAL_STAGE / source).read_text()


def test_the_readmes_show_todays_changes():
    done = subprocess.run(
        [sys.executable, REPOSITORY / "lessons/changes.py", "--check"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("readme", READMES, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_every_link_to_a_file_leads_somewhere(readme):
    text = re.sub(r"```.*?```", "", readme.read_text(), flags=re.DOTALL)
    links = [link for link in re.findall(r"\]\(([^)\s]+)\)", text) if not link.startswith(("http", "#"))]
    for link in links:
        assert (readme.parent / link.split("#")[0]).exists(), link


def test_the_readme_starts_with_exactly_two_commands():
    first, second = readme_commands(REPOSITORY)[:2]
    assert "requirements.txt" in first
    assert first.endswith("run.py")
    assert "pytest" in second

"""What the READMEs show was printed by lessons/outputs.py's commands, with date and machine, and comes again."""

import re
import subprocess
import sys

import lesson
import pytest
from cluster import unavailable
from lesson import REPOSITORY, cannot_run

sys.path.insert(0, str(REPOSITORY / "lessons"))
import outputs

READMES = [REPOSITORY / "README.md", *sorted(REPOSITORY.glob("lessons/[0-9]*/README.md"))]
WITH_OUTPUT = [path.parent.name for path in READMES if outputs.BLOCK.search(path.read_text())]
SCRIPT = REPOSITORY / "lessons/outputs.py"

LOG = """\
2026-11-21 12:10:38,957 INFO    rank 0 src.main: epoch: 01/10    training loss: 0.2593    accuracy: 0.9219
JobID           State    Elapsed
------------ ---------- --------
1           COMPLETED   00:01:07
the weights are 69ca850a8269a886
"""


def changed(old, new, before=LOG):
    assert old in before
    return outputs.shape(before) != outputs.shape(before.replace(old, new))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("12:10:38,957", "9:01:00,001"),
        ("2026-11-21", "2027-01-02"),
        ("0.2593", "1.7e-05"),
        ("0.2593", "-12.5"),
        ("69ca850a8269a886", "aaaaaaaaaaaaaaaa"),
        ("00:01:07", "1-00:00:59"),
        ("1           COMPLETED", "1234 COMPLETED"),
        ("------------ ----", "-------------------- ----"),
    ],
)
def test_other_numbers_and_widths_do_not_matter(old, new):
    assert not changed(old, new)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("1           COMPLETED   00:01:07\n", ""),
        ("training loss", "train loss"),
        ("COMPLETED", "FAILED"),
        ("accuracy: 0.9219", "accuracy: nan"),
        ("INFO", "WARNING"),
        ("JobID           State    Elapsed", "State   JobID   Elapsed"),
        ("the weights", "terminate called without an active exception\nthe weights"),
    ],
)
def test_a_line_or_a_word_matters(old, new):
    assert changed(old, new)


def test_words_that_vary_may_change_places_only():
    table = "0 lr/0 pruned mlp\n1 lr/1 complete cnn\n2 lr/2 complete mlp\n"
    for other, same in [
        ("0 lr/0 complete mlp\n1 lr/1 complete mlp\n2 lr/2 pruned cnn\n", True),
        ("0 lr/0 complete mlp\n1 lr/1 pruned cnn\n", False),
        (table.replace("pruned", "failed"), False),
    ]:
        assert (outputs.shape(table, True) == outputs.shape(other, True)) is same


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """A repository with one lesson, and what outputs.py does to it."""
    folder = tmp_path / "lessons/03-small"
    folder.mkdir(parents=True)
    (tmp_path / "data").mkdir()
    monkeypatch.setattr(lesson, "REPOSITORY", tmp_path)
    monkeypatch.setattr(outputs, "LESSONS", tmp_path / "lessons")
    monkeypatch.setattr(outputs, "ROOT", tmp_path)

    def write(*arguments, lines="echo there are 23 lines; pwd > left", more="cat left", code=""):
        text = "Before.\n\n<!-- seen -->\n<!-- /seen -->\n"
        for mark, line in [("", lines), (code, more)]:
            text += f"\n<!-- output{mark}: {line} -->\n```\nthere are 1 lines\n```\n<!-- /output -->\n"
        (folder / "README.md").write_text(text)
        monkeypatch.setattr(sys, "argv", ["outputs.py", *arguments])
        with pytest.raises(SystemExit) as end:
            outputs.main()
        return end.value.code, text, (folder / "README.md").read_text()

    return write


def test_a_readme_gets_what_was_printed_and_with_what(repository):
    code, _, text = repository()
    assert code == 0
    assert "```\nthere are 23 lines\n```" in text
    assert "```\n/home/you/repository/lessons/03-small\n```" in text  # in the second block, what the first has left
    assert re.search(r"<!-- seen -->\nThe output shown here was printed on \d{4}-\d\d-\d\d with \d+ cores", text)
    assert re.search(r"<!-- /seen \w{12} -->", text)


@pytest.mark.parametrize(
    ("file", "old", "new", "same"),
    [
        ("lessons/03-small/main.py", "# before", "# after", True),
        ("lessons/03-small/main.py", '"""What."""', '"""That."""', True),
        ("lessons/03-small/README.md", "Before.", "After.", True),
        ("lessons/03-small/main.py", "hello", "goodbye", False),
        ("lessons/03-small/README.md", "there are 23 lines\n```", "there are 24 lines\n```", False),
        ("lessons/03-small/README.md", "cat left", "cat right", False),
    ],
)
def test_other_code_is_noticed(repository, tmp_path, file, old, new, same):
    """Of what decides what is printed; not comments, docstrings and the text around."""
    (tmp_path / "lessons/03-small/main.py").write_text('def main():\n    """What."""\n    print("hello")  # before\n')
    folder = tmp_path / "lessons/03-small"
    repository()
    assert outputs.printed_by_this_code(folder)
    text = (tmp_path / file).read_text()
    assert old in text
    (tmp_path / file).write_text(text.replace(old, new))
    assert outputs.printed_by_this_code(folder) is same


@pytest.mark.parametrize(("more", "code"), [("false", ""), ("false | cat", ""), ("true", " with exit code 1")])
def test_nothing_is_written_when_a_line_fails_or_does_not_fail_as_it_should(repository, capsys, more, code):
    ended, before, after = repository(more=more, code=code)
    assert ended == 1
    assert after == before
    assert f"of\n{more}" in capsys.readouterr().err


def test_check_names_the_block_and_writes_nothing(repository, capsys):
    assert repository("--check", more="echo there are 5 lines")[0] == 0
    assert capsys.readouterr().out == ""
    ended, before, after = repository("--check", "03", more="echo there are 5 wolves; exit 2", code=" with exit code 2")
    assert (ended, after) == (1, before)
    shown = capsys.readouterr().out
    assert "wolves; exit 2" in shown and "echo there are 23" not in shown  # of the two blocks the one that differs
    assert "-there are 0 lines\n+there are 0 wolves\n" in shown


def fences(text):
    """The language of each fenced block."""
    return re.findall(r"^```(\w*)\n.*?^```$", text, re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("readme", READMES, ids=lambda path: path.parent.name)
def test_what_looks_like_output_was_printed(readme):
    """Every block without a language is between the marks of a command or of a benchmark; drawings say `text`."""
    text = outputs.BLOCK.sub("", readme.read_text())
    assert "<!-- output" not in text and "<!-- /output" not in text
    text = re.sub(r"<!-- benchmark: \S+ -->\n.*?<!-- /benchmark -->", "", text, flags=re.DOTALL)
    assert set(fences(text)) <= {"bash", "diff", "python", "text", "yaml"}


@pytest.mark.parametrize("name", WITH_OUTPUT)
def test_the_page_says_when_and_with_what(name):
    text = (REPOSITORY / "lessons" / name / "README.md").read_text()
    [seen] = re.findall(r"^<!-- seen -->\n(.*?)<!-- /seen \w{12} -->\n", text, re.MULTILINE | re.DOTALL)
    assert re.search(r"printed on \d{4}-\d\d-\d\d with \d+ cores? of .* Python \d", " ".join(seen.split()))
    shown = "".join(block["shown"] for block in outputs.BLOCK.finditer(text))
    assert shown and not re.search(r"/tmp/|/root/|\x1b|\r", shown)


def test_lesson_1_comes_again(lesson_1):
    """Its ten epochs take minutes, so the training that other tests use is compared."""
    [block] = outputs.blocks_of(REPOSITORY / "lessons" / WITH_OUTPUT[1])
    assert block["lines"].endswith("bash ./run.sh")
    now = re.sub(r"/\S+(?=/data$)", "/home/you/repository", lesson_1.stdout, flags=re.MULTILINE)
    assert outputs.shape(now) == outputs.shape(block["shown"])


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in WITH_OUTPUT if not name.startswith("01")])
def test_it_comes_again(name):
    """If the lesson's code has changed since it was printed."""
    if not outputs.printed_by_this_code(REPOSITORY / "lessons" / name):
        comes_again(name)


@pytest.mark.campaign
@pytest.mark.parametrize("name", [name for name in WITH_OUTPUT if not name.startswith("01")])
def test_it_comes_again_with_the_packages_of_today(name):
    comes_again(name)


def comes_again(name):
    if "<!-- output on the cluster" in (REPOSITORY / "lessons" / name / "README.md").read_text() and unavailable():
        cannot_run(unavailable())
    done = subprocess.run([sys.executable, SCRIPT, "--check", name[:2]], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr

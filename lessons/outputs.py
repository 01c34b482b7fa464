"""Type, for real, the commands whose output the READMEs show, and write what they said into the READMEs.

python lessons/outputs.py            all lessons, about half an hour
python lessons/outputs.py 05 09      these
python lessons/outputs.py --check    write nothing; fail where a README shows other words or lines than come now

In a README, a block that is shown stands between two marks. The first has the lines of bash that are typed for it; what
they print, errors too, is shown:

    <!-- output: bash ./run.sh --max_epochs 2 -->
    ...
    <!-- /output -->

The lines of a README are typed in their order in one fresh copy of its lesson (from lesson 9 on: of the root). With
`output on the cluster:` they are typed on the login host of a practice cluster that the README has for itself. There
`ended` waits until no job waits or runs, and the accounting knows all. Before the colon may also stand `with exit code
1`, and at last `that varies`: then --check lets words change their places. Between <!-- seen --> and <!-- /seen ... -->
comes a sentence: when, with what. The letters in the second mark are a checksum of the code that printed it. If they
still fit, the test of each change does not print the page again; the tests before a release print every page. With
--check, which does not compare numbers, Lightning takes few batches of an epoch unless a program says how many.
"""

import argparse
import ast
import contextlib
import datetime
import difflib
import hashlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import textwrap
import time
from pathlib import Path

LESSONS = Path(__file__).resolve().parent
ROOT = LESSONS.parent
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests/benchmarks")]

from cluster import Cluster, unavailable  # noqa: E402
from lesson import Lesson, Root  # noqa: E402
from measure import machine  # noqa: E402

BLOCK = re.compile(
    r"(?P<mark><!-- output(?P<cluster> on the cluster)?( with exit code (?P<code>\d+))?(?P<varies> that varies)?: "
    r"(?P<lines>((?!-->).)+) -->\n)(?P<fence>```\w*\n)(?P<shown>.*?)(?P<end>```\n<!-- /output -->\n)",
    re.DOTALL,
)
SEEN = re.compile(r"(<!-- seen -->\n).*?<!-- /seen( \w+)? -->\n", re.DOTALL)
CODE = (".py", ".sh", ".yaml", ".def")
# Slurm's accounting may hear of a job some time after it has ended: `comm` names those that it does not know yet.
ENDED = """ended() {
    while { squeue -ho %T; sacct -nXo State; } | grep ING ||
        comm -23 <(squeue -ht all -o %A | sort) <(sacct -nXPo JobIDRaw | sort) | grep .
    do sleep 0.5; done >/dev/null
    sleep 2
}
"""
FEW = {f"PL_TRAINER_LIMIT_{part}_BATCHES": "20" for part in ("TRAIN", "VAL", "TEST")}  # Lightning reads these
BASH = ["timeout", "900", "bash", "-e", "-o", "pipefail", "-c"]


class Failed(Exception):
    """Why a README is left as it is, in words."""


def blocks_of(lesson):
    return list(BLOCK.finditer((lesson / "README.md").read_text()))


def digest(lesson, blocks):
    """A few letters for what decides the output: the lesson's code, the commands and the text shown."""
    folders = [lesson]
    if int(lesson.name[:2]) >= 9:
        folders += [ROOT / "src", ROOT / "run.py"]
    files = {path for folder in folders for path in [folder, *folder.rglob("*")] if path.suffix in CODE}
    parts = [block["mark"] + block["shown"] for block in blocks]
    for path in sorted(files):
        if not {"logs", "work", "lightning_logs"} & set(path.relative_to(ROOT).parts):
            text = path.read_text()
            parts += [str(path.relative_to(ROOT)), without_comments(text) if path.suffix == ".py" else text]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:12]


def without_comments(text):
    """Python code without comments, and without what functions and classes say about themselves."""
    tree = ast.parse(text)
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and ast.get_docstring(node, clean=False) is not None:
            del node.body[0]
    return ast.dump(tree)


def printed_by_this_code(lesson):
    seen = SEEN.search((lesson / "README.md").read_text())
    return seen is not None and seen[2] == f" {digest(lesson, blocks_of(lesson))}"


def capture(lesson, blocks, more):
    """Type the lines of all blocks of a README, in an environment with `more`; returns what they printed.

    Raises:
        Failed: one ended with another exit code than its mark says
    """
    if any(block["cluster"] for block in blocks) and unavailable():
        raise Failed(unavailable())
    printed = []
    with tempfile.TemporaryDirectory(prefix="outputs-") as home, contextlib.ExitStack() as stack:
        folder = copy(lesson, Path(home))
        cluster = Cluster()
        stack.callback(cluster.__exit__)
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        environment = os.environ | {"PATH": path, "PRACTICE_CLUSTER_DIR": str(cluster.dir)} | more
        for block in blocks:
            start, words = time.monotonic(), [*BASH, block["lines"]]
            if block["cluster"]:
                cluster.__enter__()  # if it is up, this does nothing
                on_head = [sys.executable, LESSONS / "00-practice-cluster/cluster.py", "exec", "head"]
                words = [*on_head, *BASH, ENDED + block["lines"]]
            streams = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
            done = subprocess.run(words, cwd=folder, env=environment, text=True, errors="replace", **streams)
            printed.append(clean(done.stdout, home, cluster.dir))
            if sys.stdout.isatty():
                print(f"{lesson.name[:2]}  {time.monotonic() - start:4.0f} s  {block['lines'].splitlines()[0][:100]}")
            if done.returncode != int(block["code"] or 0):
                raise Failed(f"exit code {done.returncode} of\n{block['lines']}\n{printed[-1]}")
    return printed


def copy(lesson, home):
    """Make the repository of somebody who lives in `home`. Returns the folder in which the README is typed."""
    if int(lesson.name[:2]) < 9:
        return Lesson(lesson.name, home / "repository").folder
    folder = Root(lesson.name, home).folder.rename(home / "repository")
    shutil.copytree(LESSONS / "00-practice-cluster", folder / "lessons/00-practice-cluster")
    return folder


def clean(text, home, state):
    """Without what is of this machine alone."""
    text = text.replace(home, "/home/you").replace(str(ROOT), "/home/you/repository")
    text = text.replace(str(state), "/var/lib/practice-cluster")
    text = text.replace(sys.executable, "/home/you/repository/env/bin/python")
    text = re.sub(rf"\b{re.escape(socket.gethostname())}\b", "localhost", text)
    return "".join(f"{line.rstrip()}\n" for line in text.splitlines())


def shape(text, varies=False):
    """What is the same in each run: words and lines; not digits, times, checksums, nor the widths of columns."""
    text = re.sub(r"\b[0-9a-f]{16}\b", "0", text)
    text = re.sub(r"[-+]?\d[\d.,:/-]*(e[-+]?\d+)?", "0", text)
    text = re.sub(r"([-=─])\1+", r"\1", text)
    lines = [" ".join(line.split()) for line in text.splitlines()]
    return [f"{len(lines)} lines with", *sorted(set(text.split()))] if varies else lines


def compare(lesson, blocks, printed):
    """Print how a README differs from what was printed now. Returns the number of blocks that do."""
    wrong = 0
    for block, now in zip(blocks, printed, strict=True):
        shapes = [shape(text, block["varies"]) for text in (block["shown"], now)]
        if lines := list(difflib.unified_diff(*shapes, "in the README", "now", n=0, lineterm="")):
            wrong += 1
            print(f"{lesson.name} shows another output of\n{block['lines']}", *lines, sep="\n")
    return wrong


def write(lesson, blocks, printed):
    """Put what was printed, and when and with what, into the README. What else has changed in it since is kept."""
    readme = lesson / "README.md"
    if [block["mark"] for block in blocks_of(lesson)] != [block["mark"] for block in blocks]:
        raise Failed("its marks were changed meanwhile")
    sentence = f"The output shown here was printed on {datetime.date.today()} with {machine()}"
    if any(block["cluster"] for block in blocks):
        asked = subprocess.run("PATH=$PATH:/usr/sbin slurmctld -V", shell=True, capture_output=True, text=True)
        sentence += f", Slurm {asked.stdout.split()[-1]} (the practice cluster)"
    answers = iter(printed)
    text = BLOCK.sub(lambda block: block["mark"] + block["fence"] + next(answers) + block["end"], readme.read_text())
    letters = digest(lesson, list(BLOCK.finditer(text)))
    text = SEEN.sub(lambda match: f"{match[1]}{textwrap.fill(sentence, 119)}.\n<!-- /seen {letters} -->\n", text)
    new = readme.with_suffix(".new")
    new.write_text(text)
    os.replace(new, readme)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("lesson", nargs="*", help="its number; without any: all")
    parser.add_argument("--check", action="store_true")
    args = parser.parse_args()
    lessons = {path.parent.name[:2]: path.parent for path in sorted(LESSONS.glob("[0-9]*/README.md"))}
    lessons = {number: lesson for number, lesson in lessons.items() if blocks_of(lesson)}
    if unknown := set(args.lesson) - set(lessons):
        parser.error(f"no outputs of {', '.join(sorted(unknown))}, but of {', '.join(lessons)}")

    wrong = 0
    for lesson in [lessons[number] for number in args.lesson or lessons]:
        blocks = blocks_of(lesson)
        try:
            printed = capture(lesson, blocks, FEW if args.check else {})
            wrong += (compare if args.check else write)(lesson, blocks, printed) or 0
        except Failed as reason:
            wrong += 1
            print(f"{lesson.name}: {reason}", file=sys.stderr)
    sys.exit(wrong > 0)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the copy and the cluster are removed then, too
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)

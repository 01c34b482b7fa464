"""Carry a correction made in one lesson forward, through the lessons after it to the root.

python lessons/carry.py 3       what you changed in lesson 3 since the last commit goes into 4, 5, ... and the root

Correct the earliest lesson that has the mistake, run this, look at `git diff`, then commit all of it. Each file is
merged as git merges a branch (git merge-file): what a later lesson has changed itself stays. Where both changed the
same lines you find git's conflict marks, and the exit status is 1. A file that you added or deleted is named only.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]


def git(*arguments):
    done = subprocess.run(["git", *arguments], cwd=REPOSITORY, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"git {arguments[0]}: {done.stderr.strip()}")
    return done.stdout


def merge(file, before, after):
    """Merge the step from the text `before` to the path `after` into `file`. Returns whether they agree."""
    with tempfile.NamedTemporaryFile("w") as base:
        base.write(before)
        base.flush()
        labels = ["-L", "here", "-L", "before", "-L", "carried"]
        return subprocess.run(["git", "merge-file", "-q", *labels, file, base.name, after]).returncode == 0


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("lesson", type=int, choices=range(1, 9), help="the number of the lesson you corrected")
    number = parser.parse_args().lesson

    lessons = sorted(REPOSITORY.glob("lessons/0[1-8]-*"))
    [source] = [lesson for lesson in lessons if lesson.name.startswith(f"0{number}-")]
    targets = [lesson for lesson in lessons if lesson > source] + [REPOSITORY]

    conflicts = False
    for line in git("diff", "--name-status", "--no-renames", "HEAD", "--", str(source)).splitlines():
        status, path = line.split("\t")
        name = (REPOSITORY / path).relative_to(source)
        if name.name == "README.md" or name.parts[0] == "exercises":  # of each lesson its own
            continue
        if status != "M":
            print(f"{name} was added or deleted: see yourself to the lessons after {source.name}")
            continue
        before = git("show", f"HEAD:{path}")
        for target in targets:
            if not (target / name).exists():
                continue
            agreed = merge(target / name, before, source / name)
            conflicts = conflicts or not agreed
            print(f"{'merged' if agreed else 'CONFLICT'}: {(target / name).relative_to(REPOSITORY)}")
    sys.exit(conflicts)


if __name__ == "__main__":
    main()

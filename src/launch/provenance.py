"""Which code was this? The commit and the difference to it, in the folder of each run."""

import re
import subprocess
from pathlib import Path

from src.launch.job import ROOT

# New files that git does not know yet are kept if they look like code: a list of passwords must not get into a log.
CODE = {".py", ".sh", ".yaml", ".yml", ".toml", ".cfg", ".md", ".c", ".cpp", ".cu", ".h"}
SECRET = re.compile(r"secret|token|passw|credential|private|api_?key", re.IGNORECASE)
LARGEST = 100_000  # bytes


def git(*arguments):
    """What git says; None without git, or where the code is not in one."""
    try:
        done = subprocess.run(["git", "-C", ROOT, *arguments], capture_output=True)
    except OSError:
        return None
    # git diff --no-index ends with 1 when there is a difference
    return None if done.returncode > 1 else done.stdout.decode(errors="replace")


def is_code(name):
    """Whether a new file is kept."""
    path = ROOT / name
    known = path.suffix in CODE and not SECRET.search(name) and not path.name.startswith(".")
    return known and path.is_file() and path.stat().st_size <= LARGEST


def store(folder, job_id=""):
    """Write git.txt and changes.patch into a run's folder. Without git: nothing.

    `git apply changes.patch` in the commit that git.txt names brings the code back.

    Args:
        job_id: of a run that goes on: the files get it in their names, those of its beginning stay
    """
    commit = git("rev-parse", "HEAD")
    if not commit:
        return
    end = f"-{job_id}" if job_id else ""
    patch = git("diff", "--relative", "HEAD") or ""
    left_out = []
    for name in (git("ls-files", "-z", "--others", "--exclude-standard") or "").split("\0"):
        if not name or Path(ROOT, name).is_relative_to(folder.parent):  # other runs
            continue
        if is_code(name):
            patch += git("diff", "--no-index", "--", "/dev/null", name) or ""
        else:
            left_out.append(name)
    lines = [
        f"commit: {commit.strip()}",
        f"branch: {(git('rev-parse', '--abbrev-ref', 'HEAD') or '').strip()}",
        f"changed since: {f'yes, see changes{end}.patch' if patch else 'no'}",
        *(f"new, but not kept: {name}" for name in left_out[:100]),
    ]
    (folder / f"git{end}.txt").write_text("\n".join(lines) + "\n")
    if patch:
        (folder / f"changes{end}.patch").write_text(patch)

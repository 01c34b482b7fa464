"""Which code was this? The commit and the difference to it, in the folder of each run."""

import subprocess

from src.launch.job import ROOT

LARGEST = 100_000  # bytes; a new file that is larger is named, not kept


def git(*arguments):
    """What git says; None without git, or where the code is not in one."""
    try:
        done = subprocess.run(["git", "-C", ROOT, *arguments], capture_output=True)
    except OSError:
        return None
    # git diff --no-index ends with 1 when there is a difference
    return None if done.returncode > 1 else done.stdout.decode(errors="replace")


def is_text(path):
    """Small and text: worth keeping."""
    return path.is_file() and path.stat().st_size <= LARGEST and b"\0" not in path.read_bytes()


def store(folder, job_id=""):
    """Write git.txt and changes.patch into a run's folder. Without git: nothing.

    Args:
        job_id: of a run that goes on: the files get it in their names, those of its beginning stay
    """
    commit = git("rev-parse", "HEAD")
    if not commit:
        return
    end = f"-{job_id}" if job_id else ""
    # Relative to the top of the repository, so that `git apply changes.patch` there brings the code back.
    patch = git("diff", "HEAD", "--", ".") or ""
    new = (git("ls-files", "--others", "--exclude-standard") or "").splitlines()
    left_out = []
    for name in new:
        if is_text(ROOT / name):
            patch += git("diff", "--no-index", "--", "/dev/null", name) or ""
        else:
            left_out.append(name)
    lines = [
        f"commit: {commit.strip()}",
        f"branch: {(git('rev-parse', '--abbrev-ref', 'HEAD') or '').strip()}",
        f"changed since: {'yes, see changes' + end + '.patch' if patch or left_out else 'no'}",
        *(f"new, not kept (large or no text): {name}" for name in left_out),
    ]
    (folder / f"git{end}.txt").write_text("\n".join(lines) + "\n")
    if patch:
        (folder / f"changes{end}.patch").write_text(patch)

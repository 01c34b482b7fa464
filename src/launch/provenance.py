"""Which code was this? The commit and the difference to it, and the versions of the packages, in each run's folder."""

import importlib.metadata
import os
import re
import subprocess
from pathlib import Path

from src.launch.job import ROOT

# New files that git does not know yet are kept if they look like code: a list of passwords must not get into a log.
CODE = {".py", ".sh", ".yaml", ".yml", ".toml", ".cfg", ".md", ".c", ".cpp", ".cu", ".h"}
SECRET_NAME = re.compile(
    r"secret|token(?!i[sz])|passw|credential|private|api_?key|(^|[/._-])(env|auth|keys?|pwd|netrc|wandb|aws|kaggle)([._-]|$)",
    re.IGNORECASE,
)
# A key or a password with its value in quotes, or without them as in YAML, an address with a password, a private key.
# A value that is an expression or a type, such as token = read() or token: Tensor, is none.
SECRET_LINE = re.compile(
    rb"""(password|passwd|pwd|secret|token|credential|(api|access|private|auth)[_-]?key|key_id)s?["']?\s*[:=]\s*"""
    rb"""("[^"\s]{6,}"|'[^'\s]{6,}'|(?!(Tensor|string|Optional|torch)\b)[^\s"'(){}\[\],.:]{6,}\s*$)"""
    rb"""|^.\s*(password|machine\s+\S+.*password)\s+\S"""
    rb"""|://[^/\s:@]+:[^/\s@{$]+@"""
    rb"""|-----BEGIN [A-Z ]*PRIVATE KEY|\b(AKIA[0-9A-Z]{16}|gh[pousr]_\w{30,}|hf_\w{30,})""",
    re.IGNORECASE | re.MULTILINE,
)
LARGEST = 100_000  # bytes of a new file
LARGEST_PATCH = 10_000_000  # bytes
# The form of a patch must not depend on the user's settings of git: otherwise git apply refuses it.
DIFF = [
    *("-c", "core.quotePath=true", "-c", "diff.noprefix=false", "-c", "diff.mnemonicPrefix=false", "diff"),
    *("--binary", "--no-ext-diff", "--no-textconv", "--no-color", "--no-renames", "--unified=3"),
    *("--submodule=short", "--src-prefix=a/", "--dst-prefix=b/"),
]


def git(*arguments, largest=None):
    """The bytes that git prints; None without git, or where the code is not in one.

    Args:
        largest: of more bytes than that, so many and one more
    """
    environment = {name: value for name, value in os.environ.items() if name != "GIT_DIFF_OPTS"}
    try:
        process = subprocess.Popen(
            ["git", "-C", ROOT, *arguments], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment
        )
    except OSError:
        return None
    with process:
        printed = process.stdout.read(-1 if largest is None else largest + 1)
        if largest is not None and len(printed) > largest:
            process.kill()
            return printed
    # git diff --no-index ends with 1 when there is a difference
    return None if process.returncode > 1 else printed


def names(*arguments):
    """The file names that git prints, separated by NUL."""
    return [os.fsdecode(name) for name in (git(*arguments) or b"").split(b"\0") if name]


def is_code(name):
    """Whether a new file is kept."""
    path = ROOT / name
    known = path.suffix in CODE and not SECRET_NAME.search(name) and not path.name.startswith(".")
    return known and path.is_file() and not path.is_symlink() and path.stat().st_size <= LARGEST


def in_a_run(name):
    """Whether a new file belongs to a run or a study."""
    return any((ROOT / parent / file).is_file() for parent in Path(name).parents for file in ("run.json", "study.yaml"))


def too_large(name):
    return os.path.lexists(ROOT / name) and (ROOT / name).lstat().st_size > LARGEST_PATCH // 2


def difference(folder):
    """The difference to the commit as a patch, and the names of files of which it holds nothing."""
    left_out = [name for name in names(*DIFF, "--name-only", "-z", "--relative", "HEAD")
                if SECRET_NAME.search(name) or too_large(name)]  # fmt: skip
    excluded = [f":(exclude,literal){name}" for name in left_out]
    printed = git(*DIFF, "--relative", "HEAD", "--", ".", *excluded, largest=LARGEST_PATCH) or b""
    parts = re.split(rb"(?m)^(?=diff --git )", printed)[1:]
    for name in names("ls-files", "-z", "--others", "--exclude-standard"):
        if Path(ROOT, name).is_relative_to(folder) or in_a_run(name):
            continue
        if is_code(name) and sum(map(len, parts)) <= LARGEST_PATCH:
            parts.append(git(*DIFF, "--no-index", "--", "/dev/null", name) or b"")
        else:
            left_out.append(name)
    kept = []
    for part in parts:
        if SECRET_LINE.search(part):
            left_out.append(part.splitlines()[0].decode(errors="replace").rpartition(" b/")[2].rstrip('"'))
        else:
            kept.append(part)
    patch = b"".join(kept)
    if len(patch) > LARGEST_PATCH:
        return b"The difference to the commit is larger than 10 MB, so it is not kept.\n", left_out
    return patch, left_out


def packages():
    """The packages of this Python and their versions, as pip freeze has them."""
    found = {f"{one.metadata['Name']}=={one.version}" for one in importlib.metadata.distributions()}
    return "".join(f"{line}\n" for line in sorted(found, key=str.lower))


def state(folder):
    """The content for the files of a run that describe the current code: {"packages": bytes, "changes": bytes, ...}."""
    found = {"packages": packages().encode()}
    if commit := git("rev-parse", "HEAD"):
        patch, left_out = difference(folder)
        lines = [
            f"commit: {commit.decode().strip()}",
            f"branch: {(git('rev-parse', '--abbrev-ref', 'HEAD') or b'').decode(errors='replace').strip()}",
            f"changed since: {'yes, see changes' if patch else 'no'}",
            *(f"changed or new, but not kept: {ascii(name)[1:-1]}" for name in left_out[:100]),
        ]
        found |= {"git": "\n".join(lines).encode() + b"\n", "changes": patch}
    return found


ENDS = {"packages": "txt", "git": "txt", "changes": "patch"}


def store(folder, job_id="", found=None, container=None):
    """Write packages.txt, git.txt and changes.patch into a run's folder; without git only the first.

    `git apply changes.patch` in the commit that git.txt names brings the code back.

    Args:
        job_id: of a run that goes on: the files get it in their names, those of its beginning stay
        found: what state() has said; None: ask it
        container: the image in which the job runs: its packages are not those of this Python
    """
    end = f"-{job_id}" if job_id else ""
    for name, content in (state(folder) if found is None else found).items():
        if name == "packages" and container:
            continue
        if name == "git":
            content = content.replace(b"yes, see changes", f"yes, see changes{end}.patch".encode(), 1)
        if content:
            (folder / f"{name}{end}.{ENDS[name]}").write_bytes(content)


def store_if_changed(folder, attempt):
    """At the beginning of an attempt: if the code is not that of the submission any more, store it again.

    Args:
        attempt: for the names of the files
    Returns:
        whether it has changed
    """
    stored = {
        name: sorted(folder.glob(f"{name}*.{ENDS[name]}"), key=lambda path: path.stat().st_mtime) for name in ENDS
    }
    found = state(folder)
    if not stored["packages"]:  # this is the Python of a container
        store(folder, found={"packages": found["packages"]})
    if not stored["git"] or "git" not in found:  # there is no git here, or there was none
        return False
    end = stored["git"][-1].stem.removeprefix("git")
    before = stored["git"][-1].read_bytes().replace(f"yes, see changes{end}.patch".encode(), b"yes, see changes", 1)
    patch = folder / f"changes{end}.patch"
    if before == found["git"] and (patch.read_bytes() if patch.exists() else b"") == found["changes"]:
        return False
    store(folder, attempt, found)
    return True

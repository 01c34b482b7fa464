"""How far a run has come, by notes in its folder. A run that comes no further is not requeued for ever."""

import contextlib
import json
import os
import re
from pathlib import Path

# The name of the newest checkpoint, or NONE_YET. By it we see later that checkpoints are missing.
NOTE, NONE_YET = ".last_checkpoint", "none yet"
ATTEMPTS = ".attempts"  # the step at the end of the last attempt, and how many in a row have made no step
NEWEST = ".newest_attempt"  # of a Slurm job: its id, and how often it was requeued before
TRIES = 3  # attempts without a step, after which the job is not requeued


def write_note(run_folder: Path, content: str, name: str = NOTE) -> None:
    """Write a note into the run's folder, all of it or nothing."""
    partial = run_folder / f"{name}.partial"
    with contextlib.suppress(OSError):  # a full disk: the note before it says as well that there was a checkpoint
        partial.write_text(f"{content}\n")
        os.replace(partial, run_folder / name)


def read_note(run_folder: Path, name: str = NOTE) -> str | None:
    """The text of a note; None if there is no note."""
    try:
        return (run_folder / name).read_text(errors="replace").strip()
    except OSError:
        return None


def this_attempt() -> tuple[str | None, int]:
    """The id of the Slurm job, and how often it was requeued; (None, 0) outside of one."""
    return os.environ.get("SLURM_JOB_ID"), int(os.environ.get("SLURM_RESTART_COUNT") or 0)


def note_attempt(run_folder: Path) -> None:
    """Note that this attempt of a Slurm job has begun."""
    job, restart = this_attempt()
    if job:
        write_note(run_folder, f"{job} {restart}", NEWEST)


def superseded(run_folder: Path) -> bool:
    """Whether Slurm has begun a later attempt of this job: it had given up a node of this one."""
    job, restart = this_attempt()
    noted = re.fullmatch(r"(\S+) (\d+)", read_note(run_folder, NEWEST) or "")
    return bool(noted) and noted[1] == job and int(noted[2]) > restart


def no_progress(run_folder: Path) -> str | None:
    """Called when an attempt ends and its job would be requeued: one sentence if that is of no use, else None."""
    found = re.search(r"step=(\d+)", read_note(run_folder) or "")
    step = int(found[1]) if found else 0
    try:
        before = json.loads(read_note(run_folder, ATTEMPTS) or "{}")
        attempts = 0 if step > before.get("step", 0) else before.get("attempts", 0) + 1
    except (ValueError, AttributeError, TypeError):  # a note that was torn, or edited
        attempts = 0
    if attempts < TRIES:
        write_note(run_folder, json.dumps({"step": step, "attempts": attempts}), ATTEMPTS)
        return None
    with contextlib.suppress(OSError):  # whoever resumes it has these attempts again
        (run_folder / ATTEMPTS).unlink()
    return f"the last {TRIES} attempts made no step beyond step {step}, so set a longer --time"

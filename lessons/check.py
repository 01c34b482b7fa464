"""Check your answers to the exercises of a lesson.

python lessons/check.py                   the lessons and their exercises
python lessons/check.py 05                are your files in lessons/05-*/exercises right? If not, a hint for each
python lessons/check.py 05 2              only the second
python lessons/check.py 05 --solutions    the same for the solutions

The checks of a lesson are functions in exercises/checks.py, each with the name of its exercise. It gets the exercise as
a module (a file that is not Python: its path) and returns nothing if all is right, else a hint. Your files are only
read; each runs in a process and an empty folder of its own, for at most a minute. The exit code is 0 if all are right.
"""

import argparse
import importlib
import multiprocessing
import os
import signal
import sys
import tempfile
import traceback
from pathlib import Path

LESSONS = Path(__file__).resolve().parent
SECONDS = 60
# A fork has what its parent has imported. Elsewhere than on Linux a fork may not use that, so a new process is started.
PROCESSES = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")


def exercises(lesson):
    """The lesson's exercises by number, as far as they can be checked."""
    return sorted(lesson.glob("exercises/[0-9]_*"))


def title(path):
    """The first line of what the program says about itself."""
    lines = path.read_text(errors="replace").splitlines()
    return next((line.strip('"# ') for line in lines if line.startswith(('"""', "# "))), "")


def describe(error, path):
    """What went wrong in the reader's file, in one sentence."""
    if isinstance(error, SyntaxError) and error.filename == str(path):
        return f"{path.name}, line {error.lineno}: {error.msg}"
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
    message = " ".join(str(error).split()) or "without a message"
    return f"{path.name}{f', line {lines[-1]}' if lines else ''}: {type(error).__name__}: {message}"


def judge(path, checks, folder, answer):
    """Send None for an answer that is right, else a hint. Runs in a process of its own."""
    os.setsid()  # so that all it starts can be ended with it
    os.chdir(folder)
    with open("output", "w") as output:  # what the program prints is for the one who runs it
        for stream in (1, 2):
            os.dup2(output.fileno(), stream)
    sys.path[:0] = [str(path.parent), str(checks.parent)]
    try:
        check = getattr(importlib.import_module(checks.stem), path.stem.partition("_")[2])
        answer.send(check(importlib.import_module(path.stem) if path.suffix == ".py" else path))
    except BaseException as error:  # SystemExit too
        answer.send(describe(error, path))
    sys.stdout.flush()
    os._exit(0)  # threads and processes that the exercise has left behind are not waited for


def hint_for(path, lesson):
    """None if the file is right, else a hint."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        answer, theirs = PROCESSES.Pipe(duplex=False)
        process = PROCESSES.Process(target=judge, args=(path, lesson / "exercises/checks.py", folder, theirs))
        process.start()
        theirs.close()
        try:
            if not answer.poll(SECONDS):
                return f"it still runs after {SECONDS} seconds. What does it wait for?"
            return answer.recv()
        except EOFError:
            process.join()
            return f"it has ended the process that checks it, with exit code {process.exitcode}"
        finally:
            try:
                os.killpg(process.pid, signal.SIGKILL)
            except ProcessLookupError:
                process.kill()
            process.join()


def parse_args(lessons):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("lesson", nargs="?", type=int, help="its number; without it all are listed")
    parser.add_argument("exercise", nargs="?", type=int, help="its number; without it all of the lesson")
    parser.add_argument("--solutions", action="store_true", help="check the solutions instead of your files")
    args = parser.parse_args()
    if args.lesson is not None and args.lesson not in lessons:
        parser.error(f"lesson {args.lesson} has no exercises; these have: {', '.join(map(str, lessons))}")
    numbers = [int(path.name[0]) for path in exercises(lessons[args.lesson])] if args.lesson is not None else []
    if args.exercise is not None and args.exercise not in numbers:
        parser.error(
            f"there is no exercise {args.exercise} in lesson {args.lesson}, only {numbers[0]} to {numbers[-1]}"
        )
    return args


def main():
    lessons = {int(path.name[:2]): path for path in sorted(LESSONS.glob("[0-9][0-9]-*")) if exercises(path)}
    args = parse_args(lessons)
    if args.lesson is None:
        for lesson in lessons.values():
            print(lesson.name)
            for path in exercises(lesson):
                print(f"    {path.name:24}  {title(path)}")
        return

    lesson = lessons[args.lesson]
    sys.dont_write_bytecode = True
    sys.path.insert(0, str(lesson / "exercises"))
    try:
        importlib.import_module("checks")
    except ModuleNotFoundError as error:
        sys.exit(f"{error.name} is not installed for this Python: activate the environment, as the README says")
    wrong = 0
    for path in exercises(lesson):
        if args.exercise is not None and not path.name.startswith(f"{args.exercise}_"):
            continue
        print(f"{path.name:24}  ", end="", flush=True)
        hint = hint_for(path.parent / "solutions" / path.name if args.solutions else path, lesson)
        wrong += hint is not None
        print("right" if hint is None else f"not yet: {hint}", flush=True)
    sys.exit(wrong > 0)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)

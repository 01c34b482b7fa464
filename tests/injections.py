"""Texts that a shell or a scheduler could take for something else, put into each flag of a job that takes a text.

A job's script is made for each scheduler, by the functions that make it when a job is submitted. What is refused is
refused with one sentence. What is not is run by bash, with functions in place of srun, mpirun and the like, which note
what they are called with. A script with a harmless text says what is expected: each word of a directive or a call that
holds it has to hold the odd text in its place, exactly, and there is nothing else.
"""

import contextlib
import copy
import csv
import functools
import io
import json
import os
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY))

from src.launch import checks, flags, qsub, submit  # noqa: E402
from src.launch.script import explained_script, python_command  # noqa: E402

HARMLESS = "plain"
RUN = "touch canary"  # what none of these may do
PAYLOADS = {
    "double quote": 'a"b',
    "single quote": "a'b",
    "both quotes": """a"b'c""",
    "newline": f"a\n{RUN}",
    "newline directive": "a\n#SBATCH --uid=0\n#PBS -u x\n#$ -u x",
    "carriage return": f"a\r{RUN}",
    "substitution": f"a$({RUN})",
    "backticks": f"a`{RUN}`",
    "variable": "a$HOME",
    "semicolon": f"a;{RUN}",
    "ampersand": f"a&{RUN}&",
    "pipe": f"a|{RUN}",
    "redirection": "a>canary",
    "comment": "#x",
    "comment behind": "a #x",
    "percent": "a%j",
    "blank": "a b",
    "option": "a --uid=0",
    "leading dash": "-x",
    "unicode": "ä☃",
    "escape": "a\x1b[2Jb",
    "backslash": "a\\b",
    "star": "a*",
    "tilde": "~a",
    "braces": "a{b,c}",
    "number": "007",
    "colon": "a: b",
    "comma": "a,b=c",
    "long": "x" * 300,
}
# Of each flag the value that holds the text: {} is where it goes.
FLAGS = {
    "name": "{}",
    "partition": "{}",
    "account": "{}",
    "qos": "{}",
    "constraint": "{}",
    "wckey": "{}",
    "parallel_environment": "{}",
    "modules": ["{}"],
    "container": "{}",
    "container_program": "{}",
    "container_binds": ["/{}"],
    "container_env": ["A={}"],
    "log_path": "{}",
    "data_dir": "{}",
    "mpirun": "mpirun {} -n {{processes}}",  # a command: the text is quoted as one word of it
    "setup": ["module {}"],  # likewise
    "directives": ["-l {}"],
}
COMMANDS = ("mpirun", "setup", "directives")
NEEDS_CONTAINER = ("container_program", "container_binds", "container_env", "data_dir")
# The flags that a scheduler's script depends on.
EVERYWHERE = ["container", *NEEDS_CONTAINER, "log_path"]
QUEUES = [*EVERYWHERE, "name", "partition", "account", "modules", "setup"]
CLUSTERS = {
    "slurm": [*QUEUES, "qos", "constraint", "wckey"],
    "pbs": [*QUEUES, "mpirun", "directives"],
    "sge": [*QUEUES, "mpirun", "directives", "parallel_environment"],
    "local": EVERYWHERE,
}

# What scripts call: each notes its name and its words. The last line runs the scripts of all cases.
STAND_INS = r"""
note() {
    printf '%s\0' "$@" >> "$CASE/calls"
    for variable in ${!APPTAINERENV_*}; do printf '%s=%s\0' "$variable" "${!variable}" >> "$CASE/calls"; done
    printf '\x1e\0' >> "$CASE/calls"
}
for name in srun mpirun timeout module python apptainer scontrol qsub; do
    eval "$name() { note $name \"\$@\"; }"
done
awk() { :; }
head() { echo node1; }
export PBS_JOBID=4711.server PBS_NODEFILE=/dev/null
export JOB_ID=4711 PE_HOSTFILE=/dev/null
export SLURM_JOB_ID=4711 SLURM_CPUS_PER_TASK=2
unset PYTHONPATH
for CASE in "$1"/*/; do
    CASE=${CASE%/}
    export PBS_O_WORKDIR=$CASE/here SGE_O_WORKDIR=$CASE/here TMPDIR=$CASE
    ( cd "$CASE/here" && . "$CASE/script" ) > "$CASE/out" 2> "$CASE/err" < /dev/null
done
"""


@dataclass
class Case:
    """A text in a flag, for a scheduler.

    Args:
        flag: its name
        payload: the name of the text
        cluster: the scheduler
        refused: the sentence with which it was refused
        script: that was made
        shown: what --dry_run shows
        error: a traceback's last line, where it was neither made nor refused
    """

    flag: str
    payload: str
    cluster: str
    refused: str = ""
    script: str = ""
    shown: str = ""
    error: str = ""

    @property
    def name(self) -> str:
        return f"{self.flag}, {self.payload}, {self.cluster}"


def value_of(flag: str, text: str) -> str:
    """The flag's value, as it is typed."""
    if flag in COMMANDS:
        text = shlex.quote(text)
    pattern = FLAGS[flag]
    if isinstance(pattern, list):
        return json.dumps([part.format(text) for part in pattern])
    return pattern.format(text.replace("{", "{{").replace("}", "}}") if flag == "mpirun" else text)


class Submitted(Exception):
    """Raised in place of a submission to Slurm: holds the script."""


def catch(executor, run):
    raise Submitted(executor._make_submission_file_text(executor._submitit_command_str, "uid"))


def make(flag: str, text: str, cluster: str, folder: Path) -> tuple[str, str]:
    """The script of a job with this text in this flag, and what --dry_run shows.

    Args:
        folder: that holds the runs, and is where the command is typed
    Raises:
        SystemExit: with the sentence that refuses it
    """
    words = [f"--cluster={cluster}", f"--{flag}={value_of(flag, text)}"]
    if flag != "name":
        words.append("--name=job")
    if flag != "log_path":
        words.append(f"--log_path={folder}")
    if flag in NEEDS_CONTAINER:
        words.append("--container=docker://image")
    if flag != "container_program":
        words.append("--container_program=apptainer")
    request = flags.parse(words)
    found = [check(request) for check in checks.CHECKS if check is not checks.check_git]
    errors = [sentence for level, sentence in found if level == checks.ERROR]
    if errors:
        raise SystemExit("\n".join(errors))
    job = request.job
    if cluster == "slurm":
        target = Path(job.log_path) / "%j"
        try:
            submit.submit_to_slurm("fit", "", request, None)
        except Submitted as script:
            return str(script), explained_script(job, target)
    if cluster == "local":  # submitit splits the command as a shell does
        return shlex.join(python_command(job)), shlex.join(python_command(job))
    target = Path(job.log_path) / "run"
    script = "".join(f"{line}\n" for _, line in qsub.script_lines(job, "fit", target))
    return script, qsub.explained_script(job, "fit", target)


def cases() -> list[Case]:
    return [
        Case(flag, payload, cluster) for cluster, names in CLUSTERS.items() for flag in names for payload in PAYLOADS
    ]


def prepare(case: Case, text: str, folder: Path) -> None:
    """Make the case's script in its folder."""
    (folder / "here").mkdir(parents=True)
    os.chdir(folder / "here")
    if case.flag == "container":
        with contextlib.suppress(OSError):  # a name that is too long
            Path(text).touch()  # the image
    try:
        case.script, case.shown = make(case.flag, text, case.cluster, folder / "here")
    except SystemExit as refusal:
        case.refused = str(refusal)
        shutil.rmtree(folder)
        return
    except Exception as error:
        case.error = f"{type(error).__name__}: {error}"
        shutil.rmtree(folder)
        return
    log_path = folder / "here" / text if case.flag == "log_path" else folder / "here"
    with contextlib.suppress(OSError):  # run.py makes it
        (log_path / "run").mkdir(parents=True)
    (folder / "script").write_text(case.script)


def directives(script: str) -> list[list[str]]:
    """The words of each directive of a script, as the scheduler finds them: above the first command."""
    found = []
    for line in script.split("\n"):
        if line.startswith(("#SBATCH", "#PBS", "#$ ")):
            try:
                found.append(shlex.split(line.partition(" ")[2], comments=True))
            except ValueError:  # a quote that is not closed
                found.append([line])
        elif line and not line.startswith("#"):
            break
    return found


def calls(folder: Path) -> list[list[str]]:
    """What the script has called: the words of each call."""
    path = folder / "calls"
    if not path.exists():
        return []
    return [call.split("\0")[:-1] for call in os.fsdecode(path.read_bytes()).split("\x1e\0") if call]


def parse_each_value_once() -> None:
    """jsonargparse takes ten milliseconds for a flag, and the same flags come again in most cases."""
    flags.make_parser = functools.cache(flags.make_parser)
    check_types = flags.check_types

    @functools.cache
    def check_type(name, value):
        return check_types({name: value})[name]

    def check_each(values, path=None):
        if path is not None:
            return check_types(values, path)
        return {name: copy.copy(check_type(name, value)) for name, value in values.items()}

    flags.check_types = check_each


def run_all(folder: Path) -> tuple[list[Case], int, list[str]]:
    """Make all scripts, run them, and compare.

    Returns:
        the cases, how many were executed, and what is wrong
    """
    parse_each_value_once()
    submit.Executor.submit = catch
    programs = folder / "bin"
    programs.mkdir()
    for name in ("srun", "sbatch", "qsub", "apptainer", HARMLESS):  # looked for, not called
        (programs / name).write_text("#!/bin/sh\nexit 1\n")
        (programs / name).chmod(0o755)
    os.environ["PATH"] = f"{programs}:{os.environ['PATH']}"
    all_cases = cases()
    usual = {(case.flag, case.cluster): Case(case.flag, HARMLESS, case.cluster) for case in all_cases}
    # Folders have the same length, so that one can be put in the place of another.
    places = {}
    for number, case in enumerate([*usual.values(), *all_cases]):
        places[id(case)] = folder / "cases" / f"{number:05}"
        text = HARMLESS if case.payload == HARMLESS else PAYLOADS[case.payload]
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            prepare(case, text, places[id(case)])
    os.chdir(folder)
    subprocess.run(["bash", "-c", STAND_INS, "bash", str(folder / "cases")], check=True)

    wrong = []
    executed = 0
    for case in all_cases:
        first = usual[case.flag, case.cluster]
        if first.refused or first.error:
            wrong.append(f"{case.name}: the harmless text is refused: {first.refused or first.error}")
            continue
        text = PAYLOADS[case.payload]
        place, place_of_first = places[id(case)], places[id(first)]
        if case.error:
            wrong.append(f"{case.name}: {case.error[:200]}")
        elif case.refused:
            named = f"--{case.flag}" in case.refused or text[:20] in case.refused
            if not named or "\n" in case.refused.strip() or len(case.refused) > 400:
                wrong.append(f"{case.name}: refused with more or less than a sentence: {case.refused[:200]!r}")
        else:
            executed += case.cluster != "local"
            wrong += [f"{case.name}: {fault}" for fault in compare(case, first, place, place_of_first, text)]
    return all_cases, executed, wrong


def compare(case, first, place, place_of_first, text):
    """What differs between a script and the one with a harmless text, other than the text."""

    def expected(rows):
        return [[word.replace(str(place_of_first), str(place)).replace(HARMLESS, text) for word in row] for row in rows]

    def differ(what, found, intended):
        """A list of one sentence, or of none."""
        if found == intended:
            return []
        more = [row for row in found if row not in intended][:2]
        less = [row for row in intended if row not in found][:2]
        return [f"{what} {more}, not {less}"]

    if case.cluster == "local":
        called, usual = [shlex.split(case.script)], [shlex.split(first.script)]
        yield from differ("the command is", called, expected(usual)) or torn(called, usual)
        return
    yield from differ("the directives are", directives(case.script), expected(directives(first.script)))
    called, usual = calls(place), calls(place_of_first)
    if not usual:
        yield f"nothing is called: {(place_of_first / 'err').read_text()[:200]}"
    yield from differ("the calls are", called, expected(usual)) or torn(called, usual)
    if found := [path for path in place.rglob("canary")]:
        yield f"has run: {found[0].relative_to(place)}"
    shown, made = (
        [line for line in text.split("\n") if line and not line.startswith("# ")] for text in (case.shown, case.script)
    )
    if shown != made:
        yield "the dry run does not show what is submitted"


def torn(rows, usual):
    """apptainer divides at commas what follows --bind, and what follows --env= if an equals sign is in the value."""

    def parts(row):
        binds = [following for word, following in zip(row, row[1:], strict=False) if word == "--bind"]
        variables = [word.removeprefix("--env=") for word in row if word.startswith("--env=")]
        texts = [variable.replace("\n", " ").replace("\r", " ") for variable in variables]
        fields = [len(next(csv.reader([text]))) if text.count("=") > 1 else 1 for text in texts]
        return [len(bind.split(",")) for bind in binds], fields

    if [parts(row) for row in rows] != [parts(row) for row in usual]:
        return [f"apptainer takes it for several: {[word for row in rows for word in row if ',' in word][:2]}"]
    return []


if __name__ == "__main__":
    import tempfile
    import time

    with tempfile.TemporaryDirectory(prefix="inject-") as name:
        began = time.monotonic()
        every, ran, faults = run_all(Path(name))
        refused = sum(bool(case.refused) for case in every)
        print("\n".join(faults))
        print(f"{len(every)} cases, {refused} refused, {ran} executed, {len(faults)} faults", end=", ")
        print(f"{time.monotonic() - began:.1f} s")

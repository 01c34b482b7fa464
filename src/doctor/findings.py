"""What a check has found, and the table of all that was found in all processes."""

import re
import threading
from dataclasses import dataclass

OK, WARNING, ERROR = "ok", "WARNING", "ERROR"
PAGE = "lessons/troubleshooting.md"


@dataclass
class Finding:
    """One line of the table.

    Args:
        check: its name
        level: OK, WARNING or ERROR
        text: what was found; for a warning or an error also what to do
        entry: the heading on the troubleshooting page that says more
        cost: of lines that are ok, the one with the highest cost stands for all processes: the slowest disk
    """

    check: str
    level: str
    text: str
    entry: str | None = None
    cost: float = 0.0


def anchor(heading):
    """The part of a link behind #, as GitHub makes it of a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def within(seconds, function, *arguments):
    """What function(*arguments) returns or raises, or a TimeoutError: a file system or a network that is lost hangs."""
    outcome = []

    def call():
        try:
            outcome.append((function(*arguments), None))
        except BaseException as error:  # it is raised below, where somebody waits for it
            outcome.append((None, error))

    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    thread.join(seconds)
    if not outcome:
        raise TimeoutError(f"no answer in {seconds:.0f} s")
    result, error = outcome[0]
    if error:
        raise error
    return result


def ranks_in_words(ranks, size):
    """0-3,7 for [0, 1, 2, 3, 7]; all for all of several."""
    if len(ranks) == size and size > 1:
        return "all"
    parts, ranks = [], sorted(ranks)
    for rank in ranks:
        if parts and rank == parts[-1][1] + 1:
            parts[-1][1] = rank
        else:
            parts.append([rank, rank])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in parts)


def rows(found, size):
    """The table: what several processes have found is one row.

    Args:
        found: rank -> its findings
        size: how many processes there are
    Returns:
        (level, ranks, text) of each row
    """
    groups = {}
    for rank, findings in sorted(found.items()):
        for finding in findings:
            text = None if finding.level == OK else finding.text
            groups.setdefault((finding.check, finding.level, text), []).append((rank, finding))
    order = list(dict.fromkeys(check for check, _, _ in groups))
    for (check, level, _), members in sorted(groups.items(), key=lambda item: order.index(item[0][0])):
        worst = max((finding for _, finding in members), key=lambda finding: finding.cost)
        see = f"; see {PAGE}#{anchor(worst.entry)}" if worst.entry and level != OK else ""
        yield level, ranks_in_words([rank for rank, _ in members], size), f"{check}: {worst.text}{see}"


def print_table(found, size):
    """Print it; returns the exit code: 1 if there is an error."""
    lines = list(rows(found, size))
    width = max(5, *(len(ranks) for _, ranks, _ in lines))
    for level, ranks, text in lines:
        print(f"{level:7}  {ranks:{width}}  {text}")
    errors, warnings = (sum(level == kind for level, _, _ in lines) for kind in (ERROR, WARNING))
    print(f"\ndoctor: {plural(errors, 'error')}, {plural(warnings, 'warning')}", flush=True)
    return 1 if errors else 0


def plural(number, word):
    return f"{number} {word}" if number == 1 else f"{number} {word}s"

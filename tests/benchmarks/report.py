"""How tables are shown, compared with the last time, and written into READMEs."""

import re
import statistics
import textwrap

from measure import ROOT, Printed, Table

LEAST = 0.02  # a smaller change is not worth a line


def number(value):
    """With as many digits as it deserves."""
    size = abs(value)
    digits = 0 if size >= 100 else 1 if size >= 10 else 2 if size >= 1 else 4
    return f"{value:,.{digits}f}"


def spread(values):
    """Standard deviation. Of one number nothing is known: a fifth of it."""
    return statistics.stdev(values) if len(values) > 1 else abs(values[0]) / 5


def cell(values):
    """mean ± standard deviation"""
    if not values:
        return ""
    mean = statistics.mean(values)
    if len(values) == 1:
        return number(mean)
    around = spread(values)
    return f"{number(mean)} ± {around:.1g}" if around < 10 else f"{number(mean)} ± {around:,.0f}"


def markdown(section):
    """A table as Markdown, with columns that are also straight in a terminal; or what a script printed."""
    if isinstance(section, Printed):
        return f"```\n{section.text.strip()}\n```"
    columns = list(dict.fromkeys(column for row in section.rows.values() for column in row))
    grid = [["", *columns]]
    grid += [[row, *(cell(values.get(column)) for column in columns)] for row, values in section.rows.items()]
    widths = [max(len(line[place]) for line in grid) for place in range(len(grid[0]))]
    text = []
    for place, line in enumerate(grid):
        first, *others = [word.ljust(width) if n == 0 else word.rjust(width)
                          for n, (word, width) in enumerate(zip(line, widths, strict=True))]  # fmt: skip
        text.append(f"| {' | '.join([first, *others])} |")
        if place == 0:
            text.append(f"|{'-' * (widths[0] + 2)}|{'|'.join('-' * (width + 1) + ':' for width in widths[1:])}|")
    return "\n".join(text)


def heading(section, result):
    """What stands above a table, here and in a README: what, when, where, how often."""
    words = [f"Measured on {result['date']} with {result['machine']}."]
    if isinstance(section, Table):
        words.insert(0, section.caption)
        repeats = max((len(values) for row in section.rows.values() for values in row.values()), default=0)
        words.append(f"Mean ± standard deviation of {repeats} rounds{section.seeds}." if repeats > 1 else "One round.")
    start, *others = result["load"]
    words.append(f"Load average: {start:.2f} at the start" + (f", later at most {max(others):.2f}." if others else "."))
    return textwrap.fill(" ".join(words), 120)


def changes(section, name, last):
    """Lines that say which numbers have changed by more than both spreads since the last result, as ratios."""
    if not isinstance(section, Table) or last is None or name not in last["sections"]:
        return []
    found, compared = [], 0
    for row, columns in section.rows.items():
        for column, values in columns.items():
            before = last["sections"][name].get("rows", {}).get(row, {}).get(column)
            if not before or not statistics.mean(before):
                continue
            compared += 1
            old, new = statistics.mean(before), statistics.mean(values)
            noise = sum(spread(numbers) for numbers in (before, values))
            if abs(new - old) > max(noise, LEAST * abs(old)):
                found.append(f"    {row}, {column}: {number(old)} -> {number(new)}, x {new / old:.2f}")
    others = f"    {compared - len(found)} of {compared} numbers are as they were, within the spread of both"
    return [f"Since {last['date']}, on {last['machine']}:", *found, others]


def write_into_readmes(name, section, result):
    """Replace what stands between the two marks of this section, in every README that has them. Returns the READMEs."""
    marks = re.compile(rf"(<!-- benchmark: {re.escape(name)} -->\n).*?(<!-- /benchmark -->)", re.DOTALL)
    text = f"{heading(section, result)}\n\n{markdown(section)}\n"
    written = []
    for readme in [ROOT / "README.md", *ROOT.glob("lessons/*/README.md"), *ROOT.glob("tests/**/README.md")]:
        before = readme.read_text()
        after = marks.sub(lambda match: match[1] + text + match[2], before)
        if after != before:
            readme.write_text(after)
            written.append(str(readme.relative_to(ROOT)))
    return written

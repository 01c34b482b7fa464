"""Write into each lesson's README what changed since the lesson before, as diffs made from the files.

python lessons/changes.py            writes the part of each README between <!-- changes --> and <!-- /changes -->
python lessons/changes.py --check    writes nothing; names the READMEs that are stale and fails if there are any
"""

import argparse
import difflib
import sys
from pathlib import Path

LESSONS = Path(__file__).resolve().parent
START, END = "<!-- changes -->\n", "<!-- /changes -->"


def program_files(lesson):
    """The lesson's programs by their path in its folder: run.sh or run.py, and everything in src/."""
    paths = [lesson / "run.sh", lesson / "run.py", *lesson.glob("*.py"), *lesson.glob("src/**/*.py")]
    return {str(path.relative_to(lesson)): path.read_text().splitlines() for path in paths if path.exists()}


def changes(before, after):
    """Markdown that shows how the folder `after` differs from the folder `before`."""
    old, new = program_files(before), program_files(after)
    parts = []
    for name in sorted(old | new):
        if name not in old:
            parts.append(f"`{name}` is new.\n")
        elif name not in new:
            parts.append(f"`{name}` is gone.\n")
        elif old[name] != new[name]:
            diff = list(difflib.unified_diff(old[name], new[name], n=2, lineterm=""))[2:]
            added, removed = (sum(line.startswith(sign) for line in diff) for sign in "+-")
            lines = "line" if added == 1 else "lines"
            parts.append(f"<details><summary><code>{name}</code>: {added} {lines} new, {removed} gone</summary>\n")
            parts.append("```diff\n" + "\n".join(diff) + "\n```\n\n</details>\n")
    return "\n".join(parts)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    args = parser.parse_args()

    stale = []
    lessons = sorted(LESSONS.glob("0[1-8]-*"))
    for before, after in zip(lessons, lessons[1:], strict=False):
        readme = after / "README.md"
        text = readme.read_text() if readme.exists() else ""
        head, start, rest = text.partition(START)
        _, end, tail = rest.partition(END)
        if not (start and end):
            sys.exit(f"{readme} needs the two lines {START.strip()} and {END}, between which its diff goes")
        updated = f"{head}{START}\n{changes(before, after)}\n{END}{tail}"
        if updated != text:
            stale.append(str(readme.relative_to(LESSONS.parent)))
            if not args.check:
                readme.write_text(updated)

    if args.check and stale:
        sys.exit(f"stale, run `python lessons/changes.py`: {', '.join(stale)}")
    print(f"{'stale' if args.check else 'written'}: {', '.join(stale) or 'none'}")


if __name__ == "__main__":
    main()

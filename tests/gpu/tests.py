"""Step tests: the tests marked gpu. Without a GPU they run on the CPU, as small as possible."""

import os
import sys

import pytest
from results import HERE, Results, arguments


class Outcomes:
    """Writes the outcome of each test as soon as it has ended."""

    def __init__(self, results):
        self.results = results

    def pytest_runtest_logreport(self, report):
        name = report.nodeid.split("::")[-1]
        if report.when == "call" and report.passed:
            self.results.add(name, seconds=report.duration)
        elif report.failed:
            print(f"\n{report.longreprtext}")  # at once, not at the end
            text = report.longreprtext.splitlines()
            reason = next((line for line in text if line.startswith("E ")), text[-1])[1:].strip()
            self.results.note(f"FAILED {name} ({report.when}, {report.duration:.0f} s): {reason[:300]}")
        elif report.skipped:
            self.results.note(f"SKIPPED {name}")


def main():
    args = arguments(__doc__)
    results = Results(args.out, "Tests that passed.")
    # Several trainings share the GPU. None of them is measured.
    workers = max(2, min(8, (os.cpu_count() or 1) // 2))
    options = ["-m", "gpu", "-n", str(workers), "--dist", "load", "-p", "no:cacheprovider", "--tb=short"]
    sys.exit(pytest.main([str(HERE), *options, f"--rootdir={HERE.parents[1]}"], plugins=[Outcomes(results)]))


if __name__ == "__main__":
    main()

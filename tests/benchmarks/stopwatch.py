"""Seconds that functions take, by part of the whole. What a clocked function takes within another counts once."""

import functools
import time
from collections import defaultdict


class Stopwatch:
    def __init__(self):
        self.seconds = defaultdict(float)  # of each part
        self.inner = []  # for each clocked function that we are in: seconds in clocked functions within it

    def clock(self, owner, name, part):
        """Count what this function of a module, class or object takes as part of that."""
        function = getattr(owner, name)

        @functools.wraps(function)
        def timed(*arguments, **more):
            start = time.perf_counter()
            self.inner.append(0.0)
            try:
                return function(*arguments, **more)
            finally:
                took = time.perf_counter() - start
                self.seconds[part] += took - self.inner.pop()
                if self.inner:
                    self.inner[-1] += took

        setattr(owner, name, timed)

"""tqdm, with a lock that belongs to this process alone.

tqdm's own lock is shared with forked processes. If one of them is killed while it holds the lock, all others wait
for it forever.
"""

import threading

from tqdm import tqdm

tqdm.set_lock(threading.RLock())

__all__ = ["tqdm"]

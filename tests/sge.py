"""A real Grid Engine with one node, of Debian's packages, in a host of its own as lesson 0 makes them.

with Sge(folder) as sge:
    done = sge.run("qhost", cwd=folder)
"""

import os
import subprocess
import time
from pathlib import Path

# The packages have set up a cluster without hosts. A copy of it is put in its place, in this host alone.
START = r"""
set -e
cd "$1"
hostname sge1
ip link set lo up
ip link add eth0 type veth peer name eth1
ip address add 10.88.0.1/24 dev eth0
ip link set eth0 up
ip link set eth1 up
printf '127.0.0.1 localhost\n10.88.0.1 sge1\n' > hosts
printf 'hosts: files\npasswd: files\ngroup: files\n' > nsswitch.conf
mount --bind hosts /etc/hosts
mount --bind nsswitch.conf /etc/nsswitch.conf
mkdir root spool
cp -a /var/lib/gridengine/. root
cp -a /var/spool/gridengine/. spool
mount --bind root /var/lib/gridengine
mount --bind spool /var/spool/gridengine
echo sge1 > /var/lib/gridengine/default/common/act_qmaster
sge_qmaster
until qconf -sh > /dev/null 2>&1; do sleep 0.1; done

qconf -sconf | sed 's/^min_uid .*/min_uid 0/; s/^min_gid .*/min_gid 0/' > global
qconf -Mconf global
qconf -as sge1
qconf -ssconf | sed 's/^schedule_interval .*/schedule_interval 0:0:1/' > scheduler
qconf -Msconf scheduler
for name in mpi smp; do
    printf '%s\n' "pe_name $name" 'slots 999' 'user_lists NONE' 'xuser_lists NONE' 'start_proc_args NONE' \
        'stop_proc_args NONE' 'allocation_rule $fill_up' 'control_slaves TRUE' 'job_is_first_task FALSE' \
        'urgency_slots min' 'accounting_summary FALSE' 'qsort_args NONE' > pe
    qconf -Ap pe
done
printf '%s\n' 'group_name @allhosts' 'hostlist sge1' > hosts_of_the_queue
qconf -Ahgrp hosts_of_the_queue
sge_execd
EDITOR=true qconf -aq all.q  # a queue as the packages think of it
qconf -sq all.q | sed 's/^hostlist .*/hostlist @allhosts/; s/^slots .*/slots 4/; s/^pe_list .*/pe_list mpi smp/
    s/^load_thresholds .*/load_thresholds NONE/; s/^rerun .*/rerun TRUE/' > queue
qconf -Mq queue
until qhost | grep -q 'sge1 .*lx-amd64'; do sleep 0.1; done
touch ready
exec sleep infinity
"""


class Sge:
    def __init__(self, folder):
        self.folder = Path(folder)
        self.folder.mkdir()
        self.environment = os.environ | {
            "PATH": f"{os.environ['PATH']}:/usr/sbin",
            "SGE_ROOT": "/var/lib/gridengine",
            "SGE_CELL": "default",
            "SGE_QMASTER_PORT": "6444",
            "SGE_EXECD_PORT": "6445",
        }

    def __enter__(self):
        host = ["unshare", "--net", "--uts", "--ipc", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
        with open(self.folder / "log", "w") as log:
            self.unshare = subprocess.Popen(
                [*host, "bash", "-c", START, "start", str(self.folder)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self.environment,
            )
        deadline = time.monotonic() + 300
        while not (self.folder / "ready").exists():
            if self.unshare.poll() is not None or time.monotonic() > deadline:
                self.__exit__()
                raise RuntimeError(f"SGE did not start:\n{(self.folder / 'log').read_text()}")
            time.sleep(0.1)
        return self

    def __exit__(self, *_):
        self.unshare.kill()  # and with it all that runs there
        self.unshare.wait()

    def run(self, command, cwd):
        """Run a bash line on the host."""
        inside = subprocess.run(["pgrep", "--parent", str(self.unshare.pid)], capture_output=True, text=True)
        enter = ["nsenter", f"--target={inside.stdout.strip()}", "--mount", "--uts", "--ipc", "--net", "--pid"]
        return subprocess.run(
            [*enter, f"--wdns={cwd}", "bash", "-c", command],
            env=self.environment,
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            timeout=300,
        )

"""A Slurm cluster of one node on this machine, from the Debian packages slurm-wlm and munge."""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "srun", "sbatch", "scancel", "scontrol")
CONFIGURATION = """
ClusterName=jora-test
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthInfo=socket={folder}/munge/socket
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
ReturnToService=2
KillWait=60
MpiDefault=none
SchedulerParameters=sched_interval=1,sched_min_interval=10000
# More processors than there are, so that a test does not wait for another's job on a small machine.
SlurmdParameters=config_overrides
NodeName={host} NodeAddr=127.0.0.1 CPUs=8 RealMemory=1000 State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


class CannotStart(RuntimeError):
    """Slurm is not installed here, or did not start."""


@contextmanager
def slurm_node(folder: Path) -> Iterator[dict[str, str]]:
    """Run munge and Slurm during the block; yield the variables of its clients.

    Raises:
        CannotStart: a program is missing, we are not root, or the node did not come up.
    """
    if missing := [name for name in PROGRAMS if not shutil.which(name)]:
        raise CannotStart(f"no {missing[0]} (Debian packages slurm-wlm and munge)")
    if os.geteuid() != 0:
        raise CannotStart("Slurm's daemons need root")
    # munge refuses a key or socket below a folder that others may write, and closed sockets.
    folder.chmod(0o755)
    for name in ("munge", "state", "spool"):
        (folder / name).mkdir(mode=0o755)
    key = folder / "munge" / "key"
    key.write_bytes(secrets.token_bytes(128))
    key.chmod(0o600)
    config = folder / "slurm.conf"
    config.write_text(CONFIGURATION.format(host=socket.gethostname(), folder=folder, ports=_free_ports(2)))
    environment = {"SLURM_CONF": str(config)}
    munge = {"key-file": key, "socket": folder / "munge" / "socket", "pid-file": folder / "munge" / "pid"}
    munge |= {"log-file": folder / "munge" / "log", "seed-file": folder / "munge" / "seed"}
    daemons = (
        ["munged", "--foreground", "--force", *(f"--{name}={value}" for name, value in munge.items())],
        ["slurmctld", "-D"],
        ["slurmd", "-D"],
    )
    with ExitStack() as running:
        for command in daemons:
            log = running.enter_context((folder / f"{command[0]}.log").open("wb"))
            process = subprocess.Popen(command, env={**os.environ, **environment}, stdout=log, stderr=log)
            running.callback(_end, process)
            time.sleep(0.5)
        _wait_for_node(folder, environment)
        yield environment


def _wait_for_node(folder: Path, environment: dict[str, str]) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        command = ["sinfo", "--noheader", "--format=%t"]
        state = subprocess.run(
            command, env={**os.environ, **environment}, capture_output=True, text=True, check=False
        )
        if state.stdout.strip() == "idle":
            return
        time.sleep(0.5)
    logs = "\n".join(path.read_text(errors="replace")[-1000:] for path in folder.glob("*.log"))
    raise CannotStart(f"the Slurm node did not come up: {logs}")


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _free_ports(count: int) -> list[int]:
    with ExitStack() as opened:
        probes = [opened.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]

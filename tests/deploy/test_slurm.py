"""deploy/slurm/apex.sbatch tried: a Slurm of this machine alone, with three nodes that are all this machine."""

from __future__ import annotations

import os
import re
import secrets
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from apex_zmq.rundir.checkpoint import load

from ..conftest import ROOT, Program

JOB = ROOT / "deploy" / "slurm" / "apex.sbatch"
DAEMONS = ("munged", "slurmctld", "slurmd")
PATH = f"{os.environ['PATH']}:/usr/sbin:/sbin"
NODES = ("n1", "n2", "n3")
STOP_S = 40.0
# A requeued job waits for its credential to expire; jobs of several components start from the backfill scheduler.
CONFIGURATION = """
ClusterName=apex
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
AuthType=auth/munge
AuthInfo=socket={directory}/munge.socket,cred_expire=5
SlurmUser=root
SlurmdUser=root
StateSaveLocation={directory}/state
SlurmdSpoolDir={directory}/%n
SlurmctldPidFile={directory}/slurmctld.pid
SlurmdPidFile={directory}/%n.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
MailProg=/bin/true
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SlurmdParameters=config_overrides
SchedulerParameters=batch_sched_delay=0,sched_min_interval=0,bf_interval=1
NodeName=n[1-3] NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]},{ports[2]},{ports[3]} CPUs=4 RealMemory=8000
PartitionName=main Nodes=ALL Default=YES State=UP
"""


class Cluster:
    """The daemons, and the commands of somebody who has logged in."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.daemons: list[Program] = []
        self.jobs: list[Program] = []

    def start(self) -> None:
        for name in ("state", *NODES):
            (self.directory / name).mkdir()
        key = self.directory / "munge.key"
        key.write_bytes(secrets.token_bytes(128))
        key.chmod(0o600)
        probes = [socket.socket() for _ in range(4)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        ports = [probe.getsockname()[1] for probe in probes]
        for probe in probes:
            probe.close()
        host = socket.gethostname().partition(".")[0]
        configuration = self.directory / "slurm.conf"
        configuration.write_text(CONFIGURATION.format(host=host, directory=self.directory, ports=ports))
        files = {"socket": "munge.socket", "pid-file": "munge.pid", "log-file": "munge.log", "seed-file": "munge.seed"}
        options = [f"--{name}={self.directory}/{file}" for name, file in files.items()]
        self._daemon("Created .* work threads", "munged", "--foreground", f"--key-file={key}", *options)
        self._daemon("Running as primary controller", "slurmctld", "-D", "-f", str(configuration))
        for node in NODES:
            self._daemon("slurmd started", "slurmd", "-D", "-N", node, "-f", str(configuration))

    def _daemon(self, ready: str, name: str, *arguments: str) -> None:
        self.daemons.append(Program.of([str(shutil.which(name, path=PATH)), *arguments], self.directory))
        self.daemons[-1].wait_for(ready)

    def ask(self, *command: str) -> str:
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout

    def submit(self, *words: str) -> Program:
        """What follows `sbatch` on the command line, up to where the job has ended."""
        self.jobs.append(Program.of(["sbatch", "--wait", "--parsable", *words], ROOT))
        return self.jobs[-1]

    def stop(self) -> None:
        """Cancel what is left, and wait until it has gone, before its daemons go."""
        if len(self.daemons) > 1:
            subprocess.run(["scancel", "--user=root"], check=False)
            give_up = time.monotonic() + STOP_S
            while self.ask("squeue", "--noheader") and time.monotonic() < give_up:
                time.sleep(0.5)
        for program in [*self.jobs, *reversed(self.daemons)]:
            program.end()


@pytest.fixture
def cluster(directory: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    if os.geteuid() != 0:
        pytest.skip("Slurm's daemons need root")
    missing = [name for name in (*DAEMONS, "sbatch") if shutil.which(name, path=PATH) is None]
    if missing:
        pytest.skip(f"{', '.join(missing)} not installed (Debian: apt-get install slurm-wlm munge)")
    for name in [name for name in os.environ if name.startswith(("APEX_", "SLURM_", "SBATCH_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("SLURM_CONF", str(directory / "slurm.conf"))
    monkeypatch.setenv("CONFIG", "configs/cartpole.yaml")
    monkeypatch.setenv("RUN", str(directory / "run"))
    directory.chmod(0o755)
    cluster = Cluster(directory)
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()


def wait_for(log: Path, pattern: str) -> None:
    """Follow a job's log until a line matches."""
    tail = Program.of(["tail", "--lines=+1", "--follow=name", "--retry", "--quiet", str(log)], log.parent)
    try:
        tail.wait_for(pattern)
    finally:
        tail.end()


@pytest.mark.long
@pytest.mark.timeout(900)
def test_requeued_run_resumes_from_checkpoint_and_snapshot(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    log, run, keys = (cluster.directory / name for name in ("job.log", "run", "keys"))
    cluster.ask(str(ROOT / "bin/apex-keys"), str(keys))
    cluster.ask(str(ROOT / "bin/apex-keys"), str(keys), "actors", "--role", "actor")
    monkeypatch.setenv("KEYS", str(keys))
    updates = 2000
    job = cluster.submit(
        "--ntasks=4", "--nodes=1", "--mem-per-cpu=1G", f"--output={log}", str(JOB), f"--set=run.max_updates={updates}"
    )
    number = job.wait_for(r"^\d+").strip()
    wait_for(log, r"updates [1-9]\d\d")
    cluster.ask("scontrol", "requeue", number)
    assert job.wait() == 0, log.read_text()

    text = log.read_text()
    assert int(re.findall(r"resuming \S+ at update (\d+)", text)[0]) >= 100
    assert text.count("playing 8 lanes") >= 4  # two actors, twice
    assert re.search(r"recovered [1-9]\d* transitions", text), "no experience came back"
    assert "Traceback" not in text
    assert load(run).counters["updates"] == updates
    assert "JobState=COMPLETED" in cluster.ask("scontrol", "show", "job", number)


@pytest.mark.long
@pytest.mark.timeout(900)
def test_components_run_on_nodes_of_their_own(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANKS", "2")
    log = cluster.directory / "job.log"
    memory = "--mem-per-cpu=1G"
    job = cluster.submit(
        *("-n1", "-c2", memory, f"--output={log}", ":", "-n1", "-c1", memory, ":", "-n2", "-c1", memory),
        *(str(JOB), "--set=run.max_updates=50", "--set=replay.min_size=200"),
    )
    number = job.wait_for(r"^\d+").strip()
    assert job.wait() == 0, log.read_text()
    assert load(cluster.directory / "run").counters["updates"] == 50
    nodes = re.findall(r"^ +NodeList=(\S+)", cluster.ask("scontrol", "show", "job", number), re.MULTILINE)
    assert sorted(nodes) == list(NODES)
    assert "learner-1 run" in log.read_text()  # the second rank


@pytest.mark.long
@pytest.mark.timeout(900)
def test_bad_input_ends_the_job(cluster: Cluster) -> None:
    log = cluster.directory / "job.log"
    job = cluster.submit(
        "--ntasks=3", "--nodes=1", "--mem-per-cpu=1G", f"--output={log}", str(JOB), "--set=learner.speed=5"
    )
    assert job.wait() == 2, log.read_text()
    assert "unknown" in log.read_text()

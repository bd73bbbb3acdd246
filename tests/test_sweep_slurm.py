"""The job array for a cluster: its text, its behaviour with plain processes, and, where Slurm is
installed, a real array on a Slurm of one node that is warned, preempted, requeued and finishes."""
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from sweep_fakes import environment, metrics, starts, statuses, sweep, workplace

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc, and at "
                                "signals that only Linux has")
SEEDS = {"train.seed": {"values": [0, 1]}, "model.n_embd": {"values": [16, 17]}}
PYTHON = f"{Path(sys.executable).parent}:{os.environ['PATH']}"


def wait_for(condition, what: str, seconds: float = 40) -> None:
    stop = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < stop, f"waited too long for {what}"
        time.sleep(0.05)


def options(script: str) -> list[str]:
    return [line.removeprefix("#SBATCH ") for line in script.splitlines() if "#SBATCH" in line]


def test_the_array_holds_the_points_that_can_be_trained(tmp_path):
    workplace(tmp_path, SEEDS)
    code, said = sweep(tmp_path, "slurm", "s.yaml", "--at-once", "2", "--gpus", "0",
                       "--sbatch=--partition=main", "--train.steps=9", "--out", "job.sh")
    script = (tmp_path / "job.sh").read_text()
    assert code == 0 and "sbatch job.sh" in said
    assert {"--array=1,3%2", "--requeue", "--signal=B:USR1@120", "--partition=main",
            "--open-mode=append"} <= set(options(script))
    assert not any("gres" in o for o in options(script))
    assert 'run s.yaml --point "$SLURM_ARRAY_TASK_ID" --train.steps=9 --slots 1 &' in script
    assert (tmp_path / "runs/s/logs").is_dir(), "where Slurm is to write"
    assert subprocess.run(["bash", "-n", "job.sh"], cwd=tmp_path).returncode == 0


def test_with_a_server_each_task_is_one_run_of_an_agent(tmp_path):
    workplace(tmp_path, SEEDS)
    code, _ = sweep(tmp_path, "slurm", "s.yaml", "--sweep", "me/slm/abc", "--gpus", "2")
    script = (tmp_path / "s.sbatch").read_text()
    assert code == 0 and "wandb agent --forward-signals --count 1 me/slm/abc &" in script
    assert {"--array=1-2", "--gres=gpu:2"} <= set(options(script))
    code, said = sweep(tmp_path, "slurm", "s.yaml", "--sweep", "abc")
    assert code == 2 and "ENTITY/PROJECT/ID" in said


def test_bayes_needs_a_server_on_a_cluster(tmp_path):
    workplace(tmp_path, SEEDS, method="bayes", run_cap=3, metric={"name": "val/loss"})
    code, said = sweep(tmp_path, "slurm", "s.yaml")
    assert code == 2 and "--sweep=ENTITY/PROJECT/ID" in said


def test_a_dropped_point_is_no_task(tmp_path):
    workplace(tmp_path, SEEDS)
    code, said = sweep(tmp_path, "run", "s.yaml", "--point", "2")
    assert code == 2 and "was dropped: model.n_embd = 17" in said


def run_task(folder: Path, point: int, **extra) -> subprocess.Popen:
    """The script as Slurm starts it, with a scontrol that only writes down what it is told."""
    tool = folder / "scontrol"
    tool.write_text(f"#!/bin/sh\necho \"$@\" >> {folder}/scontrol.txt\n")
    tool.chmod(0o755)
    env = environment(folder, PATH=f"{folder}:{PYTHON}", SLURM_ARRAY_TASK_ID=point,
                      SLURM_JOB_ID=70 + point, SLURM_SUBMIT_DIR=folder, **extra)
    return subprocess.Popen(["bash", str(folder / "s.sbatch")], cwd="/", env=env, text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def test_a_warned_task_saves_is_requeued_and_goes_on_without_a_gap(tmp_path):
    workplace(tmp_path, SEEDS, base={"train": {"steps": 40}})
    sweep(tmp_path, "slurm", "s.yaml", "--gpus", "0")
    task = run_task(tmp_path, 3, FAKE_STEP_SEC=0.05)
    wait_for(lambda: list(tmp_path.glob("runs/s/seed1*/metrics.jsonl")), "steps")
    task.send_signal(signal.SIGUSR1)                    # as --signal=B:USR1@120 does
    said, _ = task.communicate(timeout=30)
    assert task.returncode == 128 + signal.SIGUSR1 and "is requeued" in said
    assert (tmp_path / "scontrol.txt").read_text() == "requeue 73\n"
    assert set(statuses(tmp_path).values()) == {"preempted"}
    again = run_task(tmp_path, 3)
    assert again.communicate(timeout=30) and again.returncode == 0
    folder, = tmp_path.glob("runs/s/seed1*")
    assert [row["step"] for row in metrics(folder)] == list(range(1, 41))
    assert (tmp_path / "scontrol.txt").read_text() == "requeue 73\n", "not a second time"


# -- a real Slurm ------------------------------------------------------------------------------

CONF = """ClusterName=lab
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={d}/munge.socket,cred_expire=5
StateSaveLocation={d}/state
SlurmdSpoolDir={d}/spool
SlurmctldPidFile={d}/slurmctld.pid
SlurmdPidFile={d}/slurmd.pid
SlurmctldLogFile={d}/slurmctld.log
SlurmdLogFile={d}/slurmd.log
SlurmctldPort={port}
SlurmdPort={port2}
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=sched_interval=1,batch_sched_delay=0
ReturnToService=2
MpiDefault=none
JobRequeue=1
KillWait=10
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} State=UNKNOWN
PartitionName=main Nodes={host} Default=YES State=UP PriorityTier=1 PreemptMode=REQUEUE GraceTime=10
PartitionName=high Nodes={host} State=UP PriorityTier=10 PreemptMode=OFF
"""


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def left_by(folder: Path) -> list[int]:
    """Processes that hold a file under this folder open: steps that outlived their slurmd."""
    out = []
    for proc in Path("/proc").iterdir():
        try:
            if proc.name.isdigit() and int(proc.name) != os.getpid() and any(
                    os.readlink(fd).startswith(f"{folder}/") for fd in (proc / "fd").iterdir()):
                out.append(int(proc.name))
        except OSError:
            continue
    return out


@pytest.fixture
def slurm(tmp_path):
    """A Slurm of this one node, on loopback, without systemd. Gives its environment."""
    missing = [t for t in ("slurmctld", "slurmd", "sbatch", "munged") if not shutil.which(t)]
    if missing or os.geteuid() != 0:
        pytest.skip("needs Slurm and munge, and root to start them (apt-get install slurm-wlm "
                    f"munge): {'no ' + ', '.join(missing) if missing else 'not root'}")
    d = tmp_path / "slurm"
    (d / "state").mkdir(parents=True)
    (d / "spool").mkdir()
    (d / "munge.key").write_bytes(os.urandom(1024))
    (d / "munge.key").chmod(0o400)
    conf = CONF.format(d=d, host=socket.gethostname().split(".")[0], cpus=os.cpu_count(),
                       port=free_port(), port2=free_port())
    (d / "slurm.conf").write_text(conf)
    (d / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\n")
    env = environment(tmp_path, PATH=PYTHON, SLURM_CONF=d / "slurm.conf", FAKE_STEP_SEC=0.1)
    commands = [["munged", "--foreground", "--force", f"--socket={d}/munge.socket",
                 f"--key-file={d}/munge.key", f"--pid-file={d}/munged.pid",
                 f"--log-file={d}/munged.log", f"--seed-file={d}/munged.seed"],
                ["slurmctld", "-D", "-c", "-f", str(d / "slurm.conf")],
                ["slurmd", "-D", "-f", str(d / "slurm.conf")]]
    daemons = []
    try:
        for command in commands:
            with open(d / f"{command[0]}.out", "wb") as out:
                daemons.append(subprocess.Popen(command, env=env, stdout=out, stderr=out))
            time.sleep(0.5)

        def idle() -> bool:
            shown = subprocess.run(["sinfo", "-h", "-o", "%T", "-p", "main"], env=env, text=True,
                                   capture_output=True).stdout.strip()
            return shown == "idle"

        try:
            wait_for(idle, "an idle node", 20)
        except AssertionError:
            said = "".join(f.read_text(errors="replace")[-500:] for f in d.glob("*.out"))
            pytest.skip(f"Slurm does not start here: {said}")
        yield env
    finally:
        subprocess.run(["scancel", "--full", "--user=root"], env=env, capture_output=True)
        stop = time.monotonic() + 15
        while time.monotonic() < stop and subprocess.run(
                ["squeue", "-h"], env=env, capture_output=True, text=True).stdout.strip():
            time.sleep(0.2)
        for daemon in reversed(daemons):
            daemon.terminate()
            try:
                daemon.wait(timeout=10)
            except subprocess.TimeoutExpired:
                daemon.kill()
        for pid in left_by(d):
            os.kill(pid, signal.SIGKILL)


def test_a_real_array_is_warned_preempted_requeued_and_finishes_without_a_gap(tmp_path, slurm):
    workplace(tmp_path, {"train.seed": {"values": [0, 1]}}, base={"train": {"steps": 900}})
    sweep(tmp_path, "slurm", "s.yaml", "--gpus", "0", "--time", "00:10:00")

    def call(*command: str) -> str:
        done = subprocess.run(command, cwd=tmp_path, env=slurm, text=True, capture_output=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def steps(seed: int) -> list[int]:
        folders = list(tmp_path.glob(f"runs/s/seed{seed}-*/metrics.jsonl"))
        return [row["step"] for row in metrics(folders[0].parent)] if folders else []

    job = call("sbatch", "--parsable", "s.sbatch").strip()
    wait_for(lambda: len(steps(0)) > 3 and len(steps(1)) > 3, "both tasks\n" + call("squeue"))
    call("scancel", "--batch", "--signal=USR1", f"{job}_1")       # the warning before a time limit
    wait_for(lambda: "preempted" in statuses(tmp_path).values(), "the warned task to save")
    call("sbatch", "--partition=high", "--exclusive", "--output=high.txt", "--wrap=sleep 2")
    wait_for(lambda: call("squeue", "-h", "-t", "R", "-o", "%P").split() == ["high"],
             "the preemption")
    assert set(statuses(tmp_path).values()) == {"preempted"}
    (tmp_path / "hurry").touch()
    wait_for(lambda: list(statuses(tmp_path).values()) == ["finished"] * 2, "the end", 120)
    assert steps(0) == steps(1) == list(range(1, 901))
    for seed in (0, 1):
        assert sum(name.startswith(f"seed{seed}-") for name in starts(tmp_path)) >= 2
    wait_for(lambda: call("squeue", "-h") == "", "an empty queue")

"""Who is among the processes of a run: the roll call, SLURM's variables, idle GPUs."""

import os
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from reference.ports import free_port

from mechdiff.core import processes, rendezvous
from mechdiff.core.errors import ConfigError, MechdiffError
from mechdiff.core.rendezvous import Membership


@pytest.fixture
def port():
    return free_port()


LONG = 300  # seconds that nobody waits for, unless something is wrong


def called(port, process, processes, timeout=0.6):
    try:
        rendezvous.call_roll(Membership(f"127.0.0.1:{port}", processes, process), timeout)
    except ConfigError as error:
        return str(error)


def test_the_roll_is_complete_when_the_last_one_comes(port):
    with ThreadPoolExecutor() as pool:
        early = [pool.submit(called, port, process, 3, LONG) for process in (2, 0)]
        time.sleep(0.2)
        assert called(port, 1, 3, LONG) is None
        assert [answer.result() for answer in early] == [None, None]


def test_those_that_came_name_the_one_that_did_not(port):
    """Both have to come in time, on a busy machine too."""
    with ThreadPoolExecutor() as pool:
        answers = list(pool.map(lambda process: called(port, process, 4, 3.0), (0, 2)))
    for answer in answers:
        assert answer.startswith("processes 1, 3 of 4 did not join in 3 s;") and "--join_timeout" in answer


def test_without_the_first_process_the_others_say_so(port):
    assert called(port, 1, 2).startswith(
        f"process 1 of 2 did not reach process 0 at 127.0.0.1:{port} in 0.6 s"
    )


def say(port, line):
    """Says a line to process 0 as soon as it listens, and hangs up."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        try:
            with socket.create_connection(("127.0.0.1", port)) as stranger:
                return stranger.sendall(line)
        except ConnectionRefusedError:
            time.sleep(0.02)


@pytest.mark.parametrize(
    ("members", "line"),
    [
        ([(0, 3), (1, 3), (1, 3)], "two processes have --process_id=1; give each its own, from 0 to 2"),
        ([(0, 3), (2, 4)], "process 2 has --processes=4, process 0 has 3; give all the same"),
    ],
)
def test_processes_that_do_not_fit_together_all_say_why(port, members, line):
    with ThreadPoolExecutor() as pool:
        answers = list(pool.map(lambda member: called(port, *member, LONG), members))
    assert answers == [line] * len(members)


@pytest.mark.parametrize("order", [(1, 2), (2, 1)])
def test_one_that_is_started_again_while_the_others_wait_may_join(port, order):
    """The others go on neither with the one that left nor without the one that came again."""
    with ThreadPoolExecutor() as pool:
        first = pool.submit(called, port, 0, 3, LONG)
        say(port, b'{"process": 1, "of": 3}\n')
        rest = []
        for process in order:
            rest.append(pool.submit(called, port, process, 3, 60.0))
            time.sleep(0.2)
        assert [answer.result() for answer in (first, *rest)] == [None] * 3


def test_one_that_left_has_not_joined(port):
    with ThreadPoolExecutor() as pool:
        first = pool.submit(called, port, 0, 3, 1.0)
        say(port, b'{"process": 1, "of": 3}\n')
        assert first.result().startswith("processes 1, 2 of 3 did not join")


def test_a_fact_that_differs_between_processes_is_named():
    facts = {"train.steps": 4, "seed": 7}
    processes.check_alike(facts)
    processes.check_equal(facts, np.array([[1, 2], [1, 2]], np.uint32), 0)
    line = "seed=7 in process 2 is another value in process 0; start all processes with the same flags"
    with pytest.raises(ConfigError, match=line):
        processes.check_equal(facts, np.array([[1, 5], [1, 5], [1, 2]], np.uint32), 2)


def test_strangers_are_not_counted(port):
    with ThreadPoolExecutor() as pool:
        first = pool.submit(called, port, 0, 2, 1.0)
        for said in (b"GET / HTTP/1.1\n", b'{"process": 7, "of": 2}\n', b"[]\n"):
            say(port, said)
        assert first.result().startswith("process 1 of 2 did not join")


def test_one_process_alone_joins_nobody(monkeypatch):
    monkeypatch.setattr("jax.distributed.initialize", lambda *_, **__: pytest.fail("it would wait"))
    processes.join(Membership("nowhere.invalid:1", 1, 0), 1)
    with pytest.raises(ConfigError, match="is not HOST:PORT"):
        processes.join(Membership("nowhere", 1, 0), 1)


def test_outside_of_a_cluster_the_flags_are_named(monkeypatch):
    def finds_none(**_):
        raise ValueError("coordinator_address should be defined.")

    monkeypatch.setattr("jax.distributed.initialize", finds_none)
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    with pytest.raises(MechdiffError, match=r"finds no SLURM job step .* --coordinator=HOST:PORT, with"):
        processes.join(None, 1)


def test_a_port_in_use_is_named(port):
    with socket.create_server(("", port)):
        assert f"can't listen on port {port}" in called(port, 0, 2)


@pytest.mark.parametrize("coordinator", ["host", "host:", "host:http", ":5", "host:70000"])
def test_an_address_that_is_none_is_refused(coordinator):
    with pytest.raises(ConfigError, match="is not HOST:PORT"):
        rendezvous.call_roll(Membership(coordinator, 2, 1), 1)


STEP = {
    "SLURM_JOB_ID": "7",
    "SLURM_STEP_NODELIST": "gpu[03-04]",
    "SLURM_NTASKS": "2",
    "SLURM_PROCID": "1",
    "SLURM_LOCALID": "0",
    "SLURM_NODEID": "1",
    "SLURM_STEP_TASKS_PER_NODE": "1(x2)",
}


@pytest.mark.parametrize(
    ("changes", "devices"),
    [
        ({}, None),  # no GPUs there
        ({"SLURM_GPUS_ON_NODE": "8"}, tuple(range(8))),  # one task a node has them all
        ({"SLURM_GPUS_ON_NODE": "8", "SLURM_STEP_TASKS_PER_NODE": "1,2", "SLURM_LOCALID": "1"}, (4, 5, 6, 7)),
        ({"CUDA_VISIBLE_DEVICES": "0,1", "SLURM_STEP_TASKS_PER_NODE": "2(x2)", "SLURM_LOCALID": "1"}, (1,)),
        # bound by SLURM: a task sees its own alone
        (
            {
                "CUDA_VISIBLE_DEVICES": "2,3", "SLURM_GPUS_ON_NODE": "4",
                "SLURM_STEP_TASKS_PER_NODE": "2(x2)", "SLURM_LOCALID": "1",
            },
            (0, 1),
        ),
    ],
)  # fmt: skip
def test_slurm_tasks_share_the_gpus_of_their_node(changes, devices):
    assert rendezvous.slurm_membership(STEP | changes) == Membership("gpu03:61447", 2, 1, devices)


@pytest.mark.parametrize(
    ("nodes", "first"), [("a1", "a1"), ("a1,b2", "a1"), ("n[7,9-11],x", "n7"), ("n[2-3]", "n2")]
)
def test_the_first_host_of_a_list(nodes, first):
    assert rendezvous.slurm_membership(STEP | {"SLURM_STEP_NODELIST": nodes}).coordinator == f"{first}:61447"


def test_outside_of_slurm_there_is_no_membership():
    assert rendezvous.slurm_membership({"SLURM_JOB_ID": "7"}) is None


@pytest.mark.parametrize(
    ("platform", "used", "present", "warning"),
    [
        ("gpu", 8, 8, None),
        ("gpu", 1, 8, "7 of 8 GPUs are idle"),
        ("cpu", 2, 0, None),
        ("cpu", 2, 1, "1 GPUs are idle: JAX sees the CPU only"),
        ("tpu", 4, 0, None),
    ],
)
def test_idle_gpus_are_warned_of(platform, used, present, warning):
    text = processes.idle_gpus(platform, used, present)
    assert text is None if warning is None else text.startswith(warning)


def test_one_process_does_the_first_ones_work_itself():
    def fail():
        raise MechdiffError("full")

    assert processes.is_first() and processes.in_first(lambda: 5) == 5 and processes.from_first(3) == 3
    with pytest.raises(MechdiffError, match="full"):
        processes.in_first(fail)


# Arguments: the port, the process, folders. Prints for each whether the other process has it too. At SIGTERM
# it ends with code 7, at SIGUSR1 by an error that nobody catches, each without waiting long for the other.
JOINED = """
import signal, sys, time
from mechdiff.core import errors, processes
from mechdiff.storage import exchange
processes.LEAVE_SECONDS = 0.5
exchange.SEEN_SECONDS = 0.5
signal.signal(signal.SIGTERM, lambda *_: processes.abandon(7))
signal.signal(signal.SIGUSR1, lambda *_: int("nobody catches this"))
processes.join(processes.Membership(f"127.0.0.1:{sys.argv[1]}", 2, int(sys.argv[2])), 300)
for folder in sys.argv[3:]:
    try:
        exchange.check_shared(folder)
    except errors.ConfigError as error:
        print(error, flush=True)
    else:
        print("shared", flush=True)
while True:  # a signal that comes just before a long sleep would be handled after it
    time.sleep(0.1)
"""


def said(child):
    """The next line on its stdout that is not Gloo's."""
    return next(line.rstrip() for line in child.stdout if not line.startswith("[Gloo]"))


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 7), (signal.SIGUSR1, 1)])
def test_two_see_whether_they_share_a_folder_and_end_with_each_other(port, tmp_path, number, code):
    """JAX would catch SIGTERM and go on, and after an error wait for the other process for five minutes."""
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True, "env": environment}
    for name in ("shared", "0", "1"):
        (tmp_path / name).mkdir()
    commands = [
        [sys.executable, "-c", JOINED, str(port), str(process), tmp_path / "shared", tmp_path / str(process)]
        for process in (0, 1)
    ]
    with subprocess.Popen(commands[0], **pipes) as first, subprocess.Popen(commands[1], **pipes) as second:
        try:
            assert [said(child) for child in (first, second)] == ["shared"] * 2
            for process, child in enumerate((first, second)):
                line = f"process 1 does not see what process 0 writes to {tmp_path / str(process)}: these are"
                assert said(child).startswith(line)
            assert not list(tmp_path.glob("*/*"))
            first.send_signal(number)
            assert first.wait(60) == code
            assert second.wait(60) not in (0, code)
        finally:
            first.kill()
            second.kill()


def test_a_process_alone_is_not_ended_by_force():
    processes.abandon(7)

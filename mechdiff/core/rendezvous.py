"""How the processes of one run find each other before JAX joins them: a roll call, and SLURM's variables.

If a process never joins, JAX aborts the others with a stack trace. So process 0 first calls the roll itself,
and every process that answered can say in one line which ones did not.
"""

import contextlib
import json
import re
import socket
import time
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from mechdiff.core.errors import ConfigError

RETRY_SECONDS = 0.1  # between two tries to reach process 0
ANSWER = 4096  # bytes of a message, at most


class Membership(NamedTuple):
    """One process among those of a run.

    Attributes:
      coordinator: HOST:PORT of process 0.
      processes: how many there are.
      process_id: which one this is, from 0.
      local_devices: numbers of this machine's accelerators that belong to it; None: all that it sees.
    """

    coordinator: str
    processes: int
    process_id: int
    local_devices: tuple[int, ...] | None = None


def slurm_membership(environment: Mapping[str, str]) -> Membership | None:
    """This task's membership by SLURM's variables; None outside of a job step.

    A task gets all GPUs that it sees if it is alone on its node or if SLURM bound them to it; otherwise an
    even share. (JAX by itself gives every task one GPU: one task on a node of eight would leave seven idle.)

    Example:
      >>> step = {"SLURM_JOB_ID": "7", "SLURM_STEP_NODELIST": "n[03-04]", "SLURM_NTASKS": "2"}
      >>> step |= {"SLURM_PROCID": "1", "SLURM_LOCALID": "0", "SLURM_STEP_TASKS_PER_NODE": "1(x2)"}
      >>> slurm_membership(step | {"SLURM_GPUS_ON_NODE": "4", "SLURM_NODEID": "1"})
      Membership(coordinator='n03:61447', processes=2, process_id=1, local_devices=(0, 1, 2, 3))
    """
    needed = ("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_NTASKS", "SLURM_PROCID", "SLURM_LOCALID")
    if any(name not in environment for name in needed):
        return None
    port = 61440 + int(environment["SLURM_JOB_ID"]) % 4096  # among the highest ports; any free one will do
    coordinator = f"{_first_host(environment['SLURM_STEP_NODELIST'])}:{port}"
    return Membership(
        coordinator,
        int(environment["SLURM_NTASKS"]),
        int(environment["SLURM_PROCID"]),
        _own_gpus(environment),
    )


def visible_gpus(environment: Mapping[str, str]) -> int | None:
    """Number of GPUs that this process may use by its environment; None if the environment does not say."""
    if "CUDA_VISIBLE_DEVICES" in environment:
        return len([name for name in environment["CUDA_VISIBLE_DEVICES"].split(",") if name.strip()])
    on_node = environment.get("SLURM_GPUS_ON_NODE", "")
    return int(on_node) if on_node.isdecimal() else None


def _own_gpus(environment: Mapping[str, str]) -> tuple[int, ...] | None:
    visible, tasks = visible_gpus(environment), _tasks_here(environment)
    if not visible:
        return None
    on_node = environment.get("SLURM_GPUS_ON_NODE", "")
    bound = on_node.isdecimal() and visible < int(on_node)  # SLURM hides the GPUs of the other tasks
    if tasks == 1 or bound:
        return tuple(range(visible))
    share = visible // tasks
    first = int(environment["SLURM_LOCALID"]) * share
    return tuple(range(first, first + share)) or None


def _tasks_here(environment: Mapping[str, str]) -> int:
    """Tasks of this step on this node, from a text such as `2(x3),1`."""
    per_node: list[int] = []
    text = environment.get("SLURM_STEP_TASKS_PER_NODE") or environment.get("SLURM_NTASKS_PER_NODE", "1")
    for tasks, repeats in re.findall(r"(\d+)(?:\(x(\d+)\))?", text):
        per_node += [int(tasks)] * int(repeats or 1)
    node = int(environment.get("SLURM_NODEID", 0))
    return per_node[node] if node < len(per_node) else per_node[-1]


def _first_host(nodes: str) -> str:
    """The first host of SLURM's list, such as `node03` of `node[03-05,9],gate`."""
    match = re.match(r"([^,\[]+)(?:\[([^,\-\]]+))?", nodes)
    if match is None:
        raise ConfigError(f"SLURM_STEP_NODELIST={nodes!r} names no host; give --coordinator=HOST:PORT")
    return match[1] + (match[2] or "")


def call_roll(member: Membership, timeout: float) -> None:
    """Returns when all processes have answered.

    Raises:
      ConfigError: after `timeout` seconds, in every process that answered: it names those that did not, or
        says that process 0 could not be reached.
    """
    host, _, port = member.coordinator.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise ConfigError(f"--coordinator={member.coordinator!r} is not HOST:PORT, such as 10.0.0.1:12345")
    if member.processes == 1:
        return
    if member.process_id == 0:
        _call(int(port), member.processes, timeout)
    else:
        _answer(host.strip("[]"), int(port), member, timeout)


def _call(port: int, processes: int, timeout: float) -> None:
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(_listening(port))
        present: dict[int, socket.socket] = {}
        error, came = "", []
        for connection, process, expected in _callers(server, time.monotonic() + timeout, stack):
            came.append(connection)
            present = _waiting(present)  # one that was started again is to come again
            error = _wrong(process, expected, processes, present)
            if 0 < process < processes:
                present[process] = connection
            if error or len(present) == processes - 1:
                break
        else:
            present = _waiting(present)
        absent = sorted(set(range(1, processes)) - present.keys())
        if absent and not error:
            error = _missing(absent, processes, timeout)
        for connection in came:
            with contextlib.suppress(OSError):
                connection.sendall(json.dumps({"error": error}).encode() + b"\n")
        if error:
            raise ConfigError(error)


def _wrong(process: int, expected: int, processes: int, present: Mapping[int, socket.socket]) -> str:
    """What is wrong with a process that came, by how many it expects and who waits; empty: nothing."""
    if expected != processes:
        return f"process {process} has --processes={expected}, process 0 has {processes}; give all the same"
    if process in present:
        return f"two processes have --process_id={process}; give each its own, from 0 to {processes - 1}"
    return ""


def _waiting(present: Mapping[int, socket.socket]) -> dict[int, socket.socket]:
    """Those of `present` that still wait; one that ended or was started again has left its connection."""
    return {process: connection for process, connection in present.items() if _is_open(connection)}


def _is_open(connection: socket.socket) -> bool:
    connection.setblocking(False)
    try:
        return connection.recv(1, socket.MSG_PEEK) != b""
    except BlockingIOError:
        return True
    except OSError:
        return False
    finally:
        connection.setblocking(True)


def _listening(port: int) -> socket.socket:
    try:
        if socket.has_dualstack_ipv6():
            return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True)
        return socket.create_server(("", port))
    except OSError as error:
        raise ConfigError(
            f"process 0 can't listen on port {port} ({error.strerror}); choose another port in --coordinator"
        ) from error


def _callers(
    server: socket.socket, deadline: float, stack: contextlib.ExitStack
) -> Iterator[tuple[socket.socket, int, int]]:
    """Connections, each with the process's number and how many it expects; other messages are ignored."""
    while (left := deadline - time.monotonic()) > 0:
        server.settimeout(left)
        try:
            connection = stack.enter_context(server.accept()[0])
            connection.settimeout(min(left, 5.0))
            said = json.loads(connection.recv(ANSWER))
            yield connection, int(said["process"]), int(said["of"])
        except (OSError, ValueError, KeyError, TypeError):
            continue


def _answer(host: str, port: int, member: Membership, timeout: float) -> None:
    deadline = time.monotonic() + timeout
    while (left := deadline - time.monotonic()) > 0:
        try:
            with socket.create_connection((host, port), timeout=min(left, 5.0)) as connection:
                me = {"process": member.process_id, "of": member.processes}
                connection.sendall(json.dumps(me).encode() + b"\n")
                connection.settimeout(deadline + 5 - time.monotonic())  # process 0 may have begun a bit later
                error = json.loads(connection.makefile("rb").readline(ANSWER))["error"]
        except (OSError, ValueError, KeyError, TypeError):
            time.sleep(RETRY_SECONDS)
            continue
        if error:
            raise ConfigError(error)
        return
    raise ConfigError(
        f"process {member.process_id} of {member.processes} did not reach process 0 at {member.coordinator} "
        f"in {timeout:g} s; start process 0 too, or correct --coordinator"
    )


def _missing(absent: list[int], processes: int, timeout: float) -> str:
    shown = ", ".join(str(process) for process in absent[:20])
    shown += f" and {len(absent) - 20} more" if len(absent) > 20 else ""
    which = f"process {shown}" if len(absent) == 1 else f"processes {shown}"
    return (
        f"{which} of {processes} did not join in {timeout:g} s; start all of them (--process_id=0 to "
        f"{processes - 1}), or wait longer by --join_timeout"
    )

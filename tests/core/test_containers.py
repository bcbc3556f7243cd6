"""Limits of control groups of both versions, nested ones too, from files as the kernel writes them."""

import pytest

from mechdiff.core import containers


@pytest.fixture
def groups(tmp_path, monkeypatch):
    """`groups(membership, files)` writes a mounted tree; four cores are there."""
    monkeypatch.setattr(containers, "MOUNT", tmp_path / "mount")
    monkeypatch.setattr(containers, "MEMBERSHIP", tmp_path / "self")
    monkeypatch.setattr(containers.os, "sched_getaffinity", lambda _: {0, 1, 2, 3}, raising=False)
    monkeypatch.delenv("SLURM_CPUS_PER_TASK", raising=False)

    def write(membership, files):
        (tmp_path / "self").write_text(membership)
        for name, text in files.items():
            path = tmp_path / "mount" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"{text}\n")

    return write


@pytest.mark.parametrize(
    ("membership", "files", "cores"),
    [
        ("0::/\n", {"cpu.max": "max 100000"}, 4),
        ("0::/\n", {"cpu.max": "250000 100000"}, 2),  # docker --cpus=2.5
        ("0::/\n", {"cpu.max": "50000 100000"}, 1),  # half a core is one
        ("0::/a/b\n", {"a/cpu.max": "300000 100000", "a/b/cpu.max": "max 100000"}, 3),  # by the outer one
        ("0::/of/the/host\n", {"cpu.max": "200000 100000"}, 2),  # the container sees its own as the root
        ("4:cpu,cpuacct:/d\n", {"cpu,cpuacct/d/cpu.cfs_quota_us": 200000, **{}}, 4),  # no period: no limit
        (
            "4:cpu,cpuacct:/d\n",
            {"cpu,cpuacct/d/cpu.cfs_quota_us": 200000, "cpu,cpuacct/d/cpu.cfs_period_us": 100000},
            2,
        ),
        ("4:cpu:/\n", {"cpu/cpu.cfs_quota_us": -1, "cpu/cpu.cfs_period_us": 100000}, 4),
    ],
)
def test_cores_within_quotas(groups, membership, files, cores):
    groups(membership, files)
    assert containers.usable_cores() == cores


def test_slurm_counts_the_cores_of_a_task(groups, monkeypatch):
    groups("0::/\n", {"cpu.max": "max 100000"})
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "3")
    assert containers.usable_cores() == 3


@pytest.mark.parametrize(
    ("membership", "files", "left"),
    [
        ("0::/\n", {"memory.max": "max", "memory.current": 5}, containers.UNLIMITED),
        ("0::/\n", {"memory.max": 100, "memory.current": 30}, 70),
        (
            "0::/\n",
            {"memory.max": 100, "memory.current": 30, "memory.stat": "anon 10\ninactive_file 20"},
            90,
        ),
        (
            "0::/a/b\n",  # the outer group is nearly full
            {
                "a/memory.max": 100,
                "a/memory.current": 95,
                "a/b/memory.max": 50,
                "a/b/memory.current": 1,
            },
            5,
        ),
        ("0::/\n", {"memory.max": 100, "memory.current": 130}, 0),
        (
            "9:memory:/d\n",
            {"memory/d/memory.limit_in_bytes": 64, "memory/d/memory.usage_in_bytes": 4},
            60,
        ),
        (
            "9:memory:/\n",
            {"memory/memory.limit_in_bytes": 2**63 - 4096, "memory/memory.usage_in_bytes": 4},
            containers.UNLIMITED,
        ),
    ],
)
def test_memory_within_limits(groups, membership, files, left):
    groups(membership, files)
    assert containers.memory_left() == left


def test_a_system_without_control_groups_has_no_limits(groups):
    assert containers.memory_left() == containers.UNLIMITED and containers.usable_cores() == 4

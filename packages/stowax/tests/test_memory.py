"""What the system says of the memory that is left, of machine and container."""

import pytest

from stowax._memory import spare_memory_bytes

GIB = 1 << 30


@pytest.fixture
def system(tmp_path):
    """A made-up /proc and /sys/fs/cgroup."""
    proc, cgroups = tmp_path / "proc", tmp_path / "cgroup"
    (proc / "self").mkdir(parents=True)
    cgroups.mkdir()
    (proc / "meminfo").write_text("MemTotal: 9 kB\nMemAvailable: 8388608 kB\n")
    return proc, cgroups


def spare(system):
    """The answer for a made-up system."""
    proc, cgroups = system
    return spare_memory_bytes(proc=proc, cgroups=cgroups)


def group(directory, **files):
    """Makes a control group."""
    directory.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (directory / f"memory.{name}").write_text(str(text))


def test_a_machine_without_limits(system):
    """What the kernel calls available."""
    assert spare(system) == 8 * GIB


def test_a_container(system):
    """The limit of any level above counts, and cached files do not."""
    proc, cgroups = system
    (proc / "self/cgroup").write_text("0::/pod/job\n")
    group(cgroups / "pod/job", max="max", current=GIB)
    group(
        cgroups / "pod",
        max=4 * GIB,
        current=3 * GIB,
        stat=f"anon 5\ninactive_file {GIB // 2}\n",
    )

    assert spare(system) == GIB + GIB // 2


def test_an_older_kernel(system):
    """The first version of control groups has other names."""
    proc, cgroups = system
    (proc / "self/cgroup").write_text("5:cpu,memory:/docker/1f\n1:name=systemd:/\n")
    group(cgroups / "memory", limit_in_bytes=2 * GIB, usage_in_bytes=GIB)

    assert spare(system) == GIB


def test_more_in_use_than_allowed(system):
    """There is never less than nothing."""
    proc, cgroups = system
    (proc / "self/cgroup").write_text("0::/\n")
    group(cgroups, max=GIB, current=2 * GIB)

    assert spare(system) == 0


def test_a_system_that_tells_nothing(tmp_path):
    """Somewhere else something is assumed."""
    assert spare_memory_bytes(proc=tmp_path, cgroups=tmp_path) > 0


def test_this_machine():
    """Something is left here, and it is no fantasy."""
    assert 1 << 20 < spare_memory_bytes() < 1 << 50

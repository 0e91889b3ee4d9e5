"""Runs `emigm` as one or several real processes, each with fake devices of its own."""

import os
import socket
import subprocess
import sys
import time


def free_port():
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        return s.getsockname()[1]


def with_devices(count):
    """The environment of a process with so many fake devices; it compiles as this one does."""
    flags = [f for f in os.environ['XLA_FLAGS'].split() if 'device_count' not in f]
    flags.append(f'--xla_force_host_platform_device_count={count}')
    return {**os.environ, 'XLA_FLAGS': ' '.join(flags)}


class Run:
    """`count` processes of one run; their output goes to files next to `folder`."""

    def __init__(self, folder, arguments, count=1, devices=8):
        folder.parent.mkdir(parents=True, exist_ok=True)
        environment = with_devices(devices)
        port, command = free_port(), [sys.executable, '-m', 'emigm_jax.cli.main', *arguments]
        self.logs = [folder.with_name(f'{folder.name}.{i}.log') for i in range(count)]
        self.processes = []
        for i, log in enumerate(self.logs):
            joined = (
                [
                    '--coordinator',
                    f'127.0.0.1:{port}',
                    '--num-processes',
                    str(count),
                    '--process-id',
                    str(i),
                ]
                if count > 1
                else []
            )
            with log.open('w') as f:
                self.processes.append(
                    subprocess.Popen(
                        [*command, *joined], stdout=f, stderr=subprocess.STDOUT, env=environment
                    )
                )

    def output(self, i=0):
        return self.logs[i].read_text()

    def await_text(self, text, i=0, seconds=240):
        """Waits until process i has printed `text`; if not, ends all and shows their ends."""
        end = time.monotonic() + seconds
        while text not in self.output(i):
            if self.processes[i].poll() is not None or time.monotonic() > end:
                self.kill()
                raise AssertionError(
                    '\n'.join(self.output(j)[-2000:] for j in range(len(self.logs)))
                )
            time.sleep(0.1)

    def codes(self, seconds=300):
        """Exit codes of all; kills what does not end in time."""
        try:
            return [p.wait(seconds) for p in self.processes]
        finally:
            self.kill()

    def kill(self):
        for p in self.processes:
            p.kill()
            p.wait()

"""Processes that need no seconds to start: forked from one that has loaded the heavy libraries."""

import multiprocessing
import os
import sys

CONTEXT = multiprocessing.get_context("forkserver")
# fintune itself is not among them: a fork server has not pytest's `sys.path`, and might load another one.
HEAVY = ["torch", "transformers.models.llama.modeling_llama", "accelerate", "peft", "datasets"]
CONTEXT.set_forkserver_preload([*HEAVY, "pydantic", "fastapi", "sqlalchemy", "uvicorn"])


class Forked:
    """`function(*arguments)` in a process, with this one's folder and environment but for `environment`.

    It has its own signals, exit code and output, as a command's process has.
    """

    def __init__(self, function, *arguments, **environment):
        pipes = [CONTEXT.Pipe(duplex=False) for _ in range(2)]
        settings = ([end for _, end in pipes], os.getcwd(), {**os.environ, **environment})
        self._process = CONTEXT.Process(target=_run, args=(*settings, function, arguments), daemon=True)
        self._process.start()
        for _, end in pipes:
            end.close()
        self.stdout, self.stderr = (os.fdopen(os.dup(end.fileno()), encoding="utf-8") for end, _ in pipes)
        self.terminate, self.kill = self._process.terminate, self._process.kill

    def send_signal(self, number):
        os.kill(self._process.pid, number)

    def poll(self):
        return self._process.exitcode

    def wait(self, timeout=None):
        self._process.join(timeout)
        if self.poll() is None:
            raise TimeoutError(f"the process did not end in {timeout} seconds")
        return self.poll()


def fintune(arguments):
    """`fintune ARGUMENTS`, for a process of its own: a conftest's functions cannot be sent to one."""
    from fintune.cli import main

    return main(arguments)


def _run(ends, folder, environment, function, arguments):
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    for number, end in enumerate(ends, 1):
        os.dup2(end.fileno(), number)
        end.close()
    sys.exit(function(*arguments))

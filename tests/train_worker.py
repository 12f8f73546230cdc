"""Runs the training command in forked processes, for `test_train.py`.

PyTorch is imported once, so that runs which are killed and resumed often stay quick.
Each line on standard input is a request in JSON, each line on standard output its
answer: a process started gives its id, a process waited for its exit status.
"""

import faulthandler
import io
import json
import os
import resource
import signal
import sys
import time
import traceback
from pathlib import Path

import torch

from gpt2lib import train

HANGS = "hangs as asked"


def hang(output):
    """Say in the file `output` that the point is reached, then wait to be killed."""
    with open(output, "a") as file:
        file.write(HANGS + "\n")
    time.sleep(600)


def hang_at(output, moment, name, count):
    """Hang when the file `name` is moved into place for the `count`-th time.

    `moment` says when exactly: "half" of it written, "before" or "after" the move.
    """
    replace, save, seen = os.replace, torch.save, 0

    def replace_or_hang(source, target):
        nonlocal seen
        here = Path(target).name == name
        seen += here and moment != "half"
        if here and moment == "before" and seen == count:
            hang(output)
        replace(source, target)
        if here and moment == "after" and seen == count:
            hang(output)

    def save_or_hang(content, file):
        nonlocal seen
        seen += moment == "half"
        if moment == "half" and seen == count:
            whole = io.BytesIO()
            save(content, whole)
            file.write(whole.getvalue()[: whole.tell() // 2])
            file.flush()
            hang(output)
        save(content, file)

    os.replace, torch.save = replace_or_hang, save_or_hang


def run(arguments, output, environment, hangs, largest_file):
    """Do what `python -m gpt2lib.train` does with `arguments`; return its status."""
    file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(file, 1)
    os.dup2(file, 2)
    faulthandler.enable()  # says where a process was that is ended by SIGABRT
    os.environ.update(environment)
    if hangs:
        hang_at(output, *hangs)
    if largest_file:
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, largest_file))
    try:
        train._main(arguments)
    except SystemExit as error:
        if isinstance(error.code, str):
            print(error.code, file=sys.stderr)
            return 1
        return error.code or 0
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def start(children, **request):
    """Start a process that runs; return its id."""
    pid = os.fork()
    if pid == 0:
        status = run(**request)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    children.add(pid)
    return pid


def wait(children, pid, timeout):
    """Return the exit status of a process, minus its signal, None if it is late."""
    end = time.monotonic() + timeout
    while time.monotonic() < end:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            children.discard(pid)
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    return None


def main():
    import torch._dynamo  # takes seconds: an optimizer would, in every process anew

    torch.set_num_threads(1)
    children = set()
    print("ready", flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        answer = (wait if "pid" in request else start)(children, **request)
        print(json.dumps(answer), flush=True)
    for pid in children:
        os.kill(pid, signal.SIGKILL)


if __name__ == "__main__":
    main()

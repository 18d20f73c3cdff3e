"""The supervisor of one local pod: starts its command, forwards the stop signal, and leaves no process behind.

Run as a script by its path (stdlib only, so that it starts in about 30 ms):

    python -I -S supervise.py LOGFILE COMMAND [ARG ...]

It writes the line `pid N` to stdout once the command runs. It reads lines from stdin: `stop SECONDS` (SIGTERM to the
command, SIGKILL to the whole tree after SECONDS) and `kill`. At the end of stdin the parent has exited, and the whole
tree is killed. The exit code is the command's, or 128 + N for signal N, as in Kubernetes.

The supervisor is a child subreaper: an orphan below it becomes its child, also in a session of its own, as torchrun's
workers are. To kill the tree, it kills its children until none is left.
"""

import contextlib
import ctypes
import os
import select
import signal
import sys
import time

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
KILLED = 128 + signal.SIGKILL
NOT_STARTED = 127


def prctl(option: int, value: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(option, value, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), f"prctl({option}) failed")


def children_of(parent: int) -> list[int]:
    """Return the process ids whose parent is `parent`, from /proc."""
    found = []
    for entry in os.listdir("/proc"):
        if not entry.isdigit():
            continue
        try:
            with open(f"/proc/{entry}/stat", "rb") as file:
                stat = file.read()
        except OSError:
            continue
        # The command name is in parentheses and may contain any character; state and parent follow the last one.
        if int(stat[stat.rindex(b")") + 2 :].split()[1]) == parent:
            found.append(int(entry))
    return found


def kill_tree(patience: float = 10.0) -> None:
    """SIGKILL every child until none is left. The children of a killed child become ours and are killed next."""
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline:
        for pid in children_of(os.getpid()):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            return
        time.sleep(0.005)


def start(log: str, command: list[str]) -> int:
    """Fork the command into its own session, append its output to the log, and return its process id."""
    out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    null = os.open(os.devnull, os.O_RDONLY)
    supervisor = os.getpid()
    # Block SIGTERM until the child no longer ignores it; otherwise an immediate stop would be lost.
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
    pid = os.fork()
    if pid:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])
        os.close(out)
        os.close(null)
        return pid
    try:
        os.setsid()
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != supervisor:
            os._exit(KILLED)
        os.dup2(null, 0)
        os.dup2(out, 1)
        os.dup2(out, 2)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGPIPE, signal.SIGCHLD):
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])
        os.execvp(command[0], command)
    except OSError as error:
        os.write(2, f"cannot start {command[0]}: {error}\n".encode())
    finally:
        os._exit(NOT_STARTED)


def exit_code(status: int) -> int:
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code


def supervise(log: str, command: list[str]) -> int:
    prctl(PR_SET_CHILD_SUBREAPER, 1)
    # `hftitan run` handles signals; a Ctrl-C in the terminal must not stop the supervisor.
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM, signal.SIGPIPE):
        signal.signal(number, signal.SIG_IGN)
    wake_read, wake_write = os.pipe()
    os.set_blocking(wake_write, False)
    os.set_blocking(wake_read, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)

    main = start(log, command)
    with contextlib.suppress(OSError):  # The parent may have exited; the end of stdin is handled below.
        os.write(1, f"pid {main}\n".encode())

    deadline: float | None = None
    pending = b""
    while True:
        timeout = None if deadline is None else max(0.0, deadline - time.monotonic())
        readable, _, _ = select.select([0, wake_read], [], [], timeout)
        if wake_read in readable:
            os.read(wake_read, 4096)
            try:
                while True:
                    pid, status = os.waitpid(-1, os.WNOHANG)
                    if pid == 0:
                        break
                    if pid == main:
                        # As when process 1 of a container exits, the remaining processes are killed.
                        kill_tree()
                        return exit_code(status)
            except ChildProcessError:
                return KILLED
        if 0 in readable:
            data = os.read(0, 4096)
            if not data:
                kill_tree()
                return KILLED
            *lines, pending = (pending + data).split(b"\n")
            for line in lines:
                word, _, argument = line.partition(b" ")
                if word == b"stop":
                    if deadline is None:
                        # Only once: a second SIGTERM makes torchrun skip its graceful shutdown.
                        os.kill(main, signal.SIGTERM)
                    deadline = time.monotonic() + float(argument)
                elif word == b"kill":
                    kill_tree()
                    return KILLED
        if deadline is not None and time.monotonic() >= deadline:
            kill_tree()
            return KILLED


if __name__ == "__main__":
    os._exit(supervise(sys.argv[1], sys.argv[2:]))

"""This process as if it ran on macOS or Windows: what those systems lack is taken away, before anything of ours loads.

Libraries choose their code for the system when they are loaded, so those that were built for Linux are loaded first.
"""

import builtins
import importlib
import os
import pathlib
import signal
import socket
import sys

# Of Linux alone, by each system; then what Windows lacks as well.
LINUX_CALLS = ("sched_getaffinity", "sched_setaffinity", "pidfd_open", "memfd_create", "sched_yield")
POSIX_CALLS = (
    "fork", "forkpty", "setsid", "getuid", "geteuid", "getgid", "killpg", "getpgid", "mkfifo", "statvfs", "sysconf",
    "uname", "nice", "getloadavg", "chown", "fchmod", "pread", "pwrite", "register_at_fork", "wait", "wait3", "wait4",
)  # fmt: skip
POSIX_MODULES = ("resource", "fcntl", "pwd", "grp", "termios", "readline", "syslog")
POSIX_SIGNALS = ("SIGKILL", "SIGHUP", "SIGQUIT", "SIGSTOP", "SIGCONT", "SIGUSR1", "SIGUSR2", "SIGALRM", "SIGCHLD")
POSIX_SIGNAL_CALLS = ("pthread_sigmask", "pthread_kill", "alarm", "setitimer", "sigwait")
LOADED_BEFORE = (
    "asyncio", "ctypes", "getpass", "multiprocessing.util", "multiprocessing.reduction", "platform", "psutil", "rich",
    "rich.console", "subprocess", "tempfile", "typer", "typer.core", "numpy", "scipy.optimize",
)  # fmt: skip


def pretend(system: str, *libraries: str) -> None:
    """Become `system` ("darwin", "win32", or "linux" as it is), once libraries are loaded."""
    for name in (*LOADED_BEFORE, *libraries):
        importlib.import_module(name)
    if system == "linux":
        return
    _hide_kernel_files()
    _remove(os, LINUX_CALLS)
    if system == "win32":
        _remove(os, POSIX_CALLS)
        _remove(signal, (*POSIX_SIGNALS, *POSIX_SIGNAL_CALLS))
        _remove(socket, ("AF_UNIX", "send_fds", "recv_fds"))
        for name in POSIX_MODULES:
            sys.modules[name] = None
    sys.platform = system


def _remove(module, names):
    for name in names:
        if hasattr(module, name):
            delattr(module, name)


def _hide_kernel_files():
    """Let there be no /proc and no /sys."""
    opened, listed, is_folder, stat = builtins.open, os.listdir, pathlib.Path.is_dir, os.stat

    def is_hidden(path, caller=""):
        # psutil has code of its own for each system, of which Linux's was built.
        is_theirs = caller.startswith("psutil")
        return isinstance(path, str | pathlib.Path) and str(path).startswith(("/proc", "/sys")) and not is_theirs

    def guarded(call):
        def guard(path, *rest, **options):
            if is_hidden(path, sys._getframe(1).f_globals.get("__name__", "")):
                raise FileNotFoundError(2, "No such file or directory", str(path))
            return call(path, *rest, **options)

        return guard

    builtins.open = guarded(opened)
    pathlib.io.open = guarded(opened)
    os.listdir, os.stat = guarded(listed), guarded(stat)
    pathlib.Path.is_dir = lambda path: not is_hidden(path) and is_folder(path)

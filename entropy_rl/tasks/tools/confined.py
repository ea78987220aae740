"""The program in the sandbox: give up all rights, then run the code.

It is started as a script, with the standard library alone, by `entropy_rl.tasks.tools.sandbox`.
"""

from __future__ import annotations

import builtins
import contextlib
import ctypes
import json
import linecache
import os
import platform
import random
import resource
import struct
import sys
import traceback
import types

READY = b"+"  # the first byte of stdout if the code is run; else the reason is there

# Of linux/landlock.h. Rights of files that are refused unless a rule admits them, those of Linux
# 6.2; and those that rules admit.
_LANDLOCK_VERSION = 3
_ALL_RIGHTS = (1 << 15) - 1
_READ_FILE, _LIST = 1 << 2, 1 << 3  # list directories
_WRITE = 1 << 1 | 1 << 5 | 1 << 8 | 1 << 14  # files; remove, make and truncate them

# System calls of x86-64 that code may make; all others fail with EPERM. None of them opens a
# socket, starts a process, sends a signal, sleeps, or changes modes, owners or limits.
_ADMITTED = (
    # read write close stat fstat lstat poll lseek mmap mprotect munmap brk
    *(0, 1, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12),
    # rt_sigaction rt_sigprocmask rt_sigreturn pread64 pwrite64 readv writev access
    *(13, 14, 15, 17, 18, 19, 20, 21),
    # sched_yield mremap madvise dup dup2 getpid exit fsync ftruncate getcwd
    *(24, 25, 28, 32, 33, 39, 60, 74, 77, 79),
    # unlink gettimeofday getrlimit getrusage times getuid getgid geteuid getegid sigaltstack
    *(87, 96, 97, 98, 100, 102, 104, 107, 108, 131),
    # gettid futex sched_getaffinity getdents64 clock_gettime clock_getres
    *(186, 202, 204, 217, 228, 229),
    # exit_group openat newfstatat unlinkat faccessat set_robust_list dup3 getrandom statx rseq
    *(231, 257, 262, 263, 269, 273, 292, 318, 332, 334),
    439,  # faccessat2
)
# Those with a command as the second argument, of which some are admitted.
_COMMANDS = {
    72: (0, 1, 2, 3, 1030),  # fcntl: F_DUPFD F_GETFD F_SETFD F_GETFL F_DUPFD_CLOEXEC
    16: (0x5401, 0x5413, 0x5450, 0x5451),  # ioctl: TCGETS TIOCGWINSZ FIONCLEX FIOCLEX
}
_CLONE, _CLONE3, _CLONE_THREAD = 56, 435, 0x10000
_EPERM, _ENOSYS = 1, 38

_libc = ctypes.CDLL(None, use_errno=True)


def main() -> None:
    """Run the code on stdin, which follows a line with the settings as JSON."""
    # First of all: without it, this process would outlive a parent that is killed.
    _prctl(1, 9)  # PR_SET_PDEATHSIG: SIGKILL
    settings = json.loads(sys.stdin.buffer.readline())
    code = sys.stdin.buffer.read()
    if os.getppid() != settings["parent"] or len(code) != settings["size"]:
        return  # the parent died before that, and may not have written all of the code
    os.environ.clear()
    try:
        _limit(settings)
        if settings["isolate"]:
            _isolate(settings)
    except OSError as error:
        print(error)
        return
    os.write(1, READY)
    random.seed(settings["seed"])
    sys.argv[:] = [""]
    _run(code.decode())


def _limit(settings: dict) -> None:
    cpu_s, memory, file_size = settings["cpu_s"], settings["memory"], settings["file_size"]
    for which, value in (
        (resource.RLIMIT_CPU, cpu_s),  # as the hard limit: SIGXCPU could be ignored
        (resource.RLIMIT_AS, memory),
        (resource.RLIMIT_FSIZE, file_size),
        (resource.RLIMIT_NOFILE, 32),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(which, (value, value))


def _isolate(settings: dict) -> None:
    """Refuse all files but some, and all system calls but those listed.

    Raises:
      OSError: The kernel cannot do it; the message says what.
    """
    if platform.machine() != "x86_64":
        raise OSError(f"seccomp: the processor must be x86_64, got {platform.machine()}")
    version = _libc.syscall(444, None, 0, 1)
    if version < _LANDLOCK_VERSION:
        found = f"version {version}" if version > 0 else os.strerror(ctypes.get_errno())
        raise OSError(f"Landlock: must be of version {_LANDLOCK_VERSION} (Linux 6.2), got {found}")
    ruleset = _syscall("Landlock", 444, struct.pack("Q", _ALL_RIGHTS), 8, 0)
    rules = [(settings["folder"], _READ_FILE | _LIST | _WRITE)]
    rules += [(path, _LIST) for path in settings["listed"]]
    for path in settings["readable"]:
        rules.append((path, _READ_FILE | _LIST if os.path.isdir(path) else _READ_FILE))
    for path, rights in rules:
        fd = os.open(path, os.O_PATH)
        _syscall("Landlock", 445, ruleset, 1, struct.pack("=Qi", rights, fd), 0)
        os.close(fd)
    _prctl(38, 1)  # PR_SET_NO_NEW_PRIVS
    _syscall("Landlock", 446, ruleset, 0)
    os.close(ruleset)
    program = _filter()
    instructions = ctypes.create_string_buffer(program)
    header = struct.pack("HxxxxxxP", len(program) // 8, ctypes.addressof(instructions))
    _prctl(22, 2, header)  # PR_SET_SECCOMP, SECCOMP_MODE_FILTER


def _filter() -> bytes:
    """The program of seccomp: instructions of classic BPF over struct seccomp_data."""
    load, equal, at_least, bits, end = 0x20, 0x15, 0x35, 0x45, 0x06
    allow, kill, refuse = 0x7FFF0000, 0x80000000, 0x00050000
    program = [
        *((load, 0, 0, 4), (equal, 1, 0, 0xC000003E), (end, 0, 0, kill)),  # the architecture
        *((load, 0, 0, 0), (at_least, 0, 1, 0x40000000), (end, 0, 0, kill)),  # not x32
    ]
    for number in _ADMITTED:
        program += [(equal, 0, 1, number), (end, 0, 0, allow)]
    for number, commands in _COMMANDS.items():
        program += [(equal, 0, 2 * len(commands) + 2, number), (load, 0, 0, 24)]
        for command in commands:
            program += [(equal, 0, 1, command), (end, 0, 0, allow)]
        program.append((end, 0, 0, refuse | _EPERM))
    program += [
        # Threads, but no processes. The C library falls back from clone3, whose flags are in
        # memory, to clone.
        *((equal, 0, 1, _CLONE3), (end, 0, 0, refuse | _ENOSYS)),
        *((equal, 0, 3, _CLONE), (load, 0, 0, 16), (bits, 0, 1, _CLONE_THREAD)),
        *((end, 0, 0, allow), (end, 0, 0, refuse | _EPERM)),
    ]
    return b"".join(struct.pack("HBBI", *instruction) for instruction in program)


def _prctl(option: int, *values: int | bytes) -> None:
    arguments = [ctypes.c_ulong(v) if isinstance(v, int) else v for v in values]
    rest = [ctypes.c_ulong(0)] * (4 - len(values))
    if _libc.prctl(option, *arguments, *rest):
        raise OSError(f"prctl: {os.strerror(ctypes.get_errno())}")


def _syscall(what: str, number: int, *values: int | bytes) -> int:
    arguments = [ctypes.c_long(v) if isinstance(v, int) else v for v in values]
    result = _libc.syscall(ctypes.c_long(number), *arguments)
    if result < 0:
        raise OSError(f"{what}: {os.strerror(ctypes.get_errno())}")
    return result


def _run(code: str) -> None:
    """Run code as a script; an exception is shown with the lines of the code.

    What follows is the end of any script: threads are joined, and functions of atexit are called.
    """
    linecache.cache["<code>"] = (len(code), None, code.splitlines(keepends=True), "<code>")
    # The module in which unittest, doctest and pickle look names of the code up.
    module = sys.modules["__main__"] = types.ModuleType("__main__")
    module.__builtins__ = builtins
    try:
        exec(compile(code, "<code>", "exec"), module.__dict__)
    except SystemExit as error:
        if isinstance(error.code, str):
            print(error.code)
    except BaseException as error:
        with contextlib.suppress(BaseException):
            sys.stdout.flush()
            shown = traceback.TracebackException.from_exception(error)
            frames = [frame for frame in shown.stack if frame.filename == "<code>"]
            shown.stack = traceback.StackSummary.from_list(frames)
            sys.stdout.write("".join(shown.format(chain=False)))


if __name__ == "__main__":
    main()

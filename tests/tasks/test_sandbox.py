"""The sandbox: code computes, and can do nothing else. Each attack is run as it would be tried."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import docstring_parser
import pytest

from entropy_rl.tasks.tools import confined, sandbox
from entropy_rl.tasks.tools.sandbox import Sandbox

BOX = Sandbox(cpu_s=1, memory_mib=256, output=400)
try:
    BOX.check()
except RuntimeError as error:
    pytest.skip(f"the kernel cannot isolate a process: {error}", allow_module_level=True)


def test_code_computes_with_the_standard_library_and_files_of_its_own():
    code = """
import collections, decimal, fractions, itertools, json, math, re, statistics, threading
found = []
thread = threading.Thread(target=lambda: found.append(math.factorial(10)))
thread.start(); thread.join()
with open("notes", "w") as file:
    json.dump(found, file)
print(open("notes").read(), "é")
"""
    assert BOX.run(code) == "[3628800] é"
    assert BOX.run("import os; print(sorted(os.listdir('.')))") == "[]"  # another folder


def test_an_exception_is_shown_with_its_line():
    shown = BOX.run("x = 0\nprint('before')\nprint(1 / x)")
    assert shown.startswith("before\nTraceback") and shown.endswith("division by zero")
    assert 'File "<code>", line 3' in shown and "confined" not in shown
    assert "SyntaxError" in BOX.run("def f(:")
    assert BOX.run("print('a'); raise SystemExit(3)") == "a"
    assert BOX.run("exit = __import__('sys').exit; exit('no')") == "no"
    assert BOX.run("'\ud800'") == "" and BOX.run("print('\\ud800')") == "\\ud800"


@pytest.mark.parametrize(
    ("code", "shown"),
    [
        ("import unittest\nclass T(unittest.TestCase):\n  def test(self): pass\n"
         "unittest.main()", "Ran 1 test in"),
        ("def f():\n  \"\"\"\n  >>> f()\n  1\n  \"\"\"\n  return 1\nimport doctest\n"
         "print(doctest.testmod())", "TestResults(failed=0, attempted=1)"),
        ("import pickle\nclass A: x = 1\nprint(pickle.loads(pickle.dumps(A())).x)", "1"),
        ("import threading\nthreading.Thread(target=lambda: (sum(range(10**5)), print(1))).start()",
         "1"),
        ("from concurrent.futures import ThreadPoolExecutor as T\n"
         "T(1).submit(lambda: (sum(range(10**5)), print(1)))", "1"),
        ("import atexit; atexit.register(print, 1); raise SystemExit(2)", "1"),
    ],
    ids=["unittest", "doctest", "pickle", "threading", "futures", "atexit"],
)  # fmt: skip
def test_code_is_the_main_module_and_ends_like_a_script(code, shown):
    assert shown in BOX.run(code)


@pytest.mark.parametrize("change", [{"size": 100}, {"parent": 1}], ids=["size", "parent"])
def test_nothing_is_run_for_a_parent_that_has_died(change):
    first, code = BOX._request("/nonexistent", "print('done')", 0).split(b"\n", 1)
    settings = json.loads(first) | {"isolate": False}
    script = [sys.executable, confined.__file__]

    def output(settings):
        request = json.dumps(settings).encode() + b"\n" + code
        return subprocess.run(script, input=request, capture_output=True, check=True).stdout

    assert output(settings) == b"+done\n"
    assert output(settings | change) == b""


def test_the_output_is_the_same_in_every_process():
    code = "import random; print(random.random(), object(), {'a', 'b', 'c'}, hash('x'))"
    assert BOX.run(code, seed=3) == BOX.run(code, seed=3) != BOX.run(code, seed=4)


# Each prints "done" if it succeeds.
ATTACKS = {
    "read a file of the system": "open('/etc/passwd').read()",
    "read a file of the user": "open({home!r} + '/.bashrc').read()",
    "read this test": "open({file!r}).read()",
    "list the root": "import os; os.listdir('/')",
    "read memory": "open('/proc/self/mem', 'rb').read(1)",
    "read the parent's variables": "open(f'/proc/{parent}/environ').read()",
    "write outside": "open('/tmp/entropy_rl_was_here', 'w')",
    "write above": "open('../entropy_rl_was_here', 'w')",
    "write the library": "import json; open(json.__file__, 'a')",
    "truncate the library": "import os, json; os.open(json.__file__, os.O_TRUNC)",
    "remove the library": "import os, json; os.unlink(json.__file__)",
    "link a file": "import os; os.symlink('/etc/passwd', 'x'); open('x').read()",
    "change modes": "import os; os.chmod({file!r}, 0)",
    "connect by TCP": "import socket; socket.create_connection(('127.0.0.1', {port}), 1)",
    "send by UDP": "import socket; socket.socket(type=2).sendto(b'x', ('127.0.0.1', {port}))",
    "open a local socket": "import socket; socket.socketpair()",
    "fork": "import os; os.fork()",
    "start a program": "import subprocess; subprocess.run(['true'])",
    "replace the program": "import os; os.execv('/bin/true', ['true'])",
    "kill the parent": "import os; os.kill({parent}, 9)",
    "signal the parent by a file": (
        "import fcntl; fcntl.fcntl(1, fcntl.F_SETSIG, 9); "
        "fcntl.fcntl(1, fcntl.F_SETOWN, {parent}); fcntl.fcntl(1, fcntl.F_SETFL, 0o20000)"
    ),
    "lift a limit": "import resource; resource.setrlimit(resource.RLIMIT_CPU, (-1, -1))",
    "call fork directly": "import ctypes; assert ctypes.CDLL(None).syscall(57) >= 0",
    "open a ring": "import ctypes; assert ctypes.CDLL(None).syscall(425, 4, 0) >= 0",
    "sleep": "import time; time.sleep(3600)",
    "read a package": "open({package!r}).read()",
    "import a package": (
        "import os, sys; sys.path.append(os.path.dirname(os.path.dirname({package!r})))\n"
        "import docstring_parser"
    ),
    "change the signal of the parent's death": (
        "import ctypes; assert ctypes.CDLL(None).prctl(1, 0) == 0"
    ),
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_an_attack_is_refused(attack):
    with socket.create_server(("127.0.0.1", 0)) as server:
        names = {"home": str(Path.home()), "file": __file__, "parent": os.getpid()}
        names["package"] = docstring_parser.__file__
        code = ATTACKS[attack].format(port=server.getsockname()[1], **names)
        shown = BOX.run(f"{code}\nprint('done')")
    assert "done" not in shown.splitlines()
    refusals = ("PermissionError", "OSError", "ValueError: not allowed", "AssertionError")
    refusals += ("ModuleNotFoundError",)
    assert shown.splitlines()[-1].startswith(refusals)
    assert not Path("/tmp/entropy_rl_was_here").exists()


def test_packages_cannot_be_read():
    readable, listed = sandbox._readable()
    for name in ("site-packages", "dist-packages"):
        assert not any(name in path for path in [*readable, *listed])
        for folder in (*listed, "/usr/lib/python3", "/usr/local/lib/python3"):
            packages = Path(folder, name)
            assert not any(packages.is_relative_to(path) for path in readable)


@pytest.mark.parametrize(
    ("code", "end"),
    [
        ("while True: pass", "error: stopped at the limit of 1 CPU seconds"),
        ("x = bytearray(10 << 30)", "MemoryError"),
        (
            "while True: print('x' * 1000)",
            "error: stopped at the limit of 400 characters of output",
        ),
        ("import os\nwhile True: os.write(2, b'x' * 65536)", "400 characters of output"),
        ("open('a', 'wb').write(bytes(2 << 20))", "OSError: [Errno 27] File too large"),
        ("import ctypes; ctypes.string_at(0)", "error: ended by SIGSEGV"),
        ("import os; os._exit(7)", ""),
        ("import os; print(5, flush=True); os._exit(120)", "5"),
        (
            "import signal; signal.signal(signal.SIGXCPU, signal.SIG_IGN)\nwhile True: pass",
            "error: stopped at the limit of 1 CPU seconds",
        ),
        ("import os; os.close(1); os.close(2)\nwhile True: pass", "limit of 1 CPU seconds"),
        (
            "import threading\nthreading.stack_size(1 << 15)\nwait = threading.Event().wait\n"
            "while True: threading.Thread(target=wait).start()",
            "error: stopped at the limit of 64 threads",
        ),
    ],
)
def test_a_process_ends_at_its_limits(code, end):
    shown = BOX.run(code)
    assert len(shown) < 1000
    assert end is None or shown.endswith(end)


def test_many_files_are_stopped(monkeypatch):
    monkeypatch.setattr(sandbox, "_FOLDER_SIZE", 1 << 16)
    code = "import itertools\nfor i in itertools.count(): open(str(i), 'wb').write(bytes(1 << 12))"
    assert BOX.run(code).endswith("MiB of files")


def test_no_variable_and_no_file_handle_is_inherited(monkeypatch):
    monkeypatch.setenv("SECRET_FOR_TESTS", "42")
    with open(__file__) as file:
        code = f"""
import os
print(dict(os.environ), os.getenv("SECRET_FOR_TESTS"))
os.fstat({file.fileno()})
"""
        shown = BOX.run(code)
    assert shown.startswith("{} None") and "Bad file descriptor" in shown


def test_without_isolation_the_limits_hold_and_files_can_be_read():
    off = Sandbox(isolate=False, cpu_s=1, memory_mib=256, output=400)
    off.check()
    assert off.run("print(len(open('/proc/self/stat').read()) > 9)") == "True"
    assert off.run("while True: pass").endswith("1 CPU seconds")


def test_a_kernel_that_cannot_isolate_is_named(monkeypatch, tmp_path):
    # The same program, which asks for a version of Landlock that does not exist.
    text = Path(confined.__file__).read_text()
    script = tmp_path / "confined.py"
    script.write_text(text.replace("_LANDLOCK_VERSION = 3", "_LANDLOCK_VERSION = 99"))
    monkeypatch.setattr(confined, "__file__", str(script))
    with pytest.raises(RuntimeError, match=r"^Landlock: must be of version 99 .*, got version \d"):
        BOX.check()
    with pytest.raises(RuntimeError, match="Landlock"):
        BOX.run("print('done')")
    # One that isolates from files only is found out.
    script.write_text(text.replace("    _prctl(22, 2, header)", "    return"))
    with pytest.raises(RuntimeError, match="the process is not isolated"):
        BOX.check()

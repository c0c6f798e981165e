"""Programs that misbehave, as root and as an ordinary user. Each is bounded by itself, so that it is harmless anywhere."""

from __future__ import annotations

import ast
import gzip
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from evals.code.policy import MIB, Policy
from evals.code.program import Program
from evals.code.sandbox import Sandbox, check
from evals.errors import EvalError

ROOT = Path(__file__).resolve().parents[2]
WORKER = Path(__file__).parent / "sandbox_worker.py"
HUMANEVAL = ROOT.parent / "shared/data/humaneval.jsonl.gz"
NOBODY = 65534


class Judge:
    """A process that judges as some user."""

    def __init__(self, user: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, str(WORKER), user],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd="/",
            env={"PYTHONPATH": str(ROOT), "SECRET": "a secret", "HOME": str(Path.home())},
        )

    def judge(self, programs: list[dict[str, str]], **policy: Any) -> list[dict[str, Any]]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(json.dumps({"policy": policy, "programs": programs}), file=self.process.stdin, flush=True)
        return json.loads(self.process.stdout.readline())

    def verdict(self, source: str, test: str = "assert attack() == 1", **policy: Any) -> dict[str, Any]:
        return self.judge([{"source": source, "test": test, "entry_point": "attack"}], **policy)[0]

    def observe(self, source: str, *args: Any, **policy: Any) -> Any:
        """What `attack(*args)` returns inside."""
        verdict = self.verdict(source, f"raise ValueError(repr(attack(*{args!r})))", **policy)
        assert verdict["reason"] == "raised ValueError", verdict
        return ast.literal_eval(verdict["detail"].removeprefix("ValueError: "))


@pytest.fixture(scope="module", params=["me", "nobody"])
def inside(request: pytest.FixtureRequest) -> Iterator[Judge]:
    if request.param == "nobody" and os.getuid() != 0:
        pytest.skip("only root can become another user; the tests as oneself are the tests as an ordinary user")
    try:
        check(Policy())
    except EvalError as error:
        pytest.skip(str(error))
    judge = Judge(request.param)
    yield judge
    assert judge.process.stdin is not None
    assert judge.process.stdout is not None
    judge.process.stdin.close()
    judge.process.wait()
    judge.process.stdout.close()


@pytest.fixture
def bystander() -> Iterator[subprocess.Popen[bytes]]:
    """A process of the user that programs run as."""
    with subprocess.Popen(["sleep", "60"], user=NOBODY if os.getuid() == 0 else None) as process:
        yield process
        process.kill()


def outside(source: str, *args: Any) -> Any:
    """What `attack(*args)` returns without a sandbox."""
    code = f"{source}\nprint(repr(attack(*{args!r})))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return ast.literal_eval(done.stdout)


def test_a_good_program_passes_and_a_wrong_one_fails(inside: Judge) -> None:
    test = "def check(candidate):\n    assert candidate(2) == 4\n    assert candidate(-1) == 1"
    verdict = inside.verdict("def attack(x):\n    return x * x", test)
    assert (verdict["passed"], verdict["reason"], verdict["detail"]) == (True, "passed", "")
    verdict = inside.verdict("def attack(x):\n    return 2 * x", test)
    assert (verdict["passed"], verdict["reason"]) == (False, "failed assertion")
    verdict = inside.verdict("def attack(x):\n    return undefined", test)
    assert verdict["reason"] == "raised NameError"
    assert "undefined" in verdict["detail"]
    assert inside.verdict("def attack(x:", test)["reason"] == "raised SyntaxError"
    assert inside.verdict("x = 1", test)["reason"] == "raised NameError"


def test_a_program_may_use_its_scratch_directory(inside: Judge) -> None:
    source = """
import os, tempfile
def attack():
    before = os.listdir('.')
    with tempfile.NamedTemporaryFile('w', delete=False) as file:
        file.write('text')
    return before, open(file.name).read(), os.path.dirname(file.name) == os.getcwd() == os.environ['HOME']
"""
    assert inside.observe(source) == ([], "text", True)
    assert inside.observe(source) == ([], "text", True)  # nothing is left of the first


def test_files_outside_are_not_there(inside: Judge, tmp_path_factory: pytest.TempPathFactory) -> None:
    source = """
import os
def attack(*paths):
    seen = []
    for path in paths:
        for each in (path, '/proc/1/root' + path, '/proc/self/root' + path, '/scratch/../..' + path, '/old' + path):
            try:
                os.symlink(each, 'link')
                open('link', 'rb').read(1)
                seen.append(each)
            except OSError:
                pass
            finally:
                os.unlink('link')
    return seen
"""
    canary = Path("/tmp") / f"canary-{os.getpid()}"
    canary.write_text("canary")
    paths = [str(canary), str(ROOT / "README.md"), "/etc/passwd", "/proc/self/environ", "/dev/vda"]
    paths += [str(path) for path in sorted(Path.home().glob(".*rc"))[:1]]
    try:
        # The control: the path itself can be read where there is no sandbox.
        assert str(canary) in outside(source.replace("'link'", f"'{canary}-link'"), str(canary))
        assert inside.observe(source, *paths) == []
    finally:
        canary.unlink()
    source = """
import os
def attack():
    return sorted(os.listdir('/')), sorted(os.listdir('/dev')), os.listdir('/etc')
"""
    top, devices, etc = inside.observe(source)
    assert not {"proc", "sys", "home", "work", "tmp", "run", "var", "mnt", "old"} & set(top)
    assert devices == ["full", "null", "random", "urandom", "zero"]
    assert set(etc) <= {"ld.so.cache"}


def test_installed_packages_are_hidden(inside: Judge) -> None:
    source = """
import os, sys
def attack():
    library = os.path.dirname(os.__file__)
    packages = [os.path.join(library, name) for name in ('site-packages', 'dist-packages')]
    return [os.listdir(folder) for folder in packages if os.path.exists(folder)], [os.path.exists(path) for path in sys.path]
"""
    folders, paths = inside.observe(source)
    assert not any(folders)
    assert any(paths)


def test_nothing_outside_can_be_written_or_changed(inside: Judge, tmp_path: Path) -> None:
    source = """
import ctypes, os, sys
def attack(canary):
    done = []
    for folder in ('/', '/usr/lib', '/lib', '/etc', '/dev', '/empty', '/dev/shm', os.path.dirname(os.__file__), canary):
        for action in (lambda: open(folder + '/file', 'w'), lambda: os.mkdir(folder + '/x'), lambda: os.chmod(folder, 0o777),
                       lambda: os.open(folder, os.O_TMPFILE | os.O_WRONLY)):
            try:
                action()
                done.append(folder)
            except OSError:
                pass
    for action in (lambda: os.chmod(os.__file__, 0o777), lambda: os.utime(os.__file__), lambda: os.chroot('/scratch'),
                   lambda: os.setuid(0), lambda: os.setgroups([0]), lambda: os.mknod('node', 0o020666, os.makedev(254, 0))):
        try:
            action()
            done.append('changed')
        except OSError:
            pass
    libc = ctypes.CDLL(None, use_errno=True)
    for flags in (0x10000000, 0x00020000, 0x40000000, 0x20000000):
        if libc.unshare(flags) == 0:
            done.append('unshare %x' % flags)
    for arguments in ((b'none', b'/', b'tmpfs', 0, None), (b'none', b'/', None, 32 | 4096, None), (b'/lib', b'/scratch', None, 4096, None)):
        if libc.mount(*arguments) == 0:
            done.append('mount')
    for call in (lambda: libc.umount2(b'/scratch', 2), lambda: libc.umount2(b'/empty', 0), lambda: libc.ptrace(16, 2, 0, 0),
                 lambda: libc.sethostname(b'x', 1), lambda: libc.shmget(0, 4096, 0o1777), lambda: libc.memfd_create(b'x', 0)):
        if call() >= 0:
            done.append('call')
    return done
"""
    tmp_path.chmod(0o777)
    assert inside.observe(source, str(tmp_path)) == []
    assert list(tmp_path.iterdir()) == []


def test_no_network_and_no_sockets_of_others(inside: Judge, tmp_path: Path) -> None:
    source = """
import socket
def attack(port, name, path):
    reached = []
    for family, kind, address in ((2, 1, ('127.0.0.1', port)), (10, 1, ('::1', port)), (1, 1, name), (1, 1, path), (2, 2, ('8.8.8.8', 53))):
        try:
            with socket.socket(family, kind) as each:
                each.settimeout(2)
                each.connect(address)
                reached.append((family, kind))
        except OSError:
            pass
    for family in (40, 16, 17):
        try:
            socket.socket(family, socket.SOCK_RAW if family != 40 else 1).close()
            reached.append(family)
        except OSError:
            pass
    try:
        socket.getaddrinfo('example.org', 80)
        reached.append('resolver')
    except OSError:
        pass
    return reached
"""
    name, path = f"\0canary-{os.getpid()}", str(tmp_path / "socket")
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        socket.socket(socket.AF_UNIX) as abstract,
        socket.socket(socket.AF_UNIX) as named,
    ):
        abstract.bind(name)
        abstract.listen()
        named.bind(path)
        named.listen()
        port = listener.getsockname()[1]
        # The control: without a sandbox all three are reached.
        assert {(2, 1), (1, 1)} <= set(outside(source, port, name, path))
        listener.accept()[0].close()
        assert inside.observe(source, port, name, path) == []
        listener.settimeout(0.2)
        with pytest.raises(TimeoutError):
            listener.accept()


def test_signals_reach_nobody_outside(inside: Judge, bystander: subprocess.Popen[bytes]) -> None:
    source = """
import os
def attack(pid):
    sent = []
    for target in (os.getppid(), pid, -pid, -1, 0, 2, -2):
        try:
            os.kill(target, 9)
            sent.append(target)
        except OSError:
            pass
    return os.getpid(), os.getppid(), sent
"""
    own, parent, sent = inside.observe(source, bystander.pid)
    assert (own, parent) == (1, 0)
    assert bystander.pid not in sent
    assert -bystander.pid not in sent
    assert bystander.poll() is None
    assert inside.verdict("def attack(): return 1")["passed"]  # those that judge are alive, too
    group = """
import os, signal
signal.signal(signal.SIGINT, signal.SIG_IGN)
def attack():
    os.kill(0, signal.SIGINT)
    os.killpg(0, signal.SIGINT)
    return 1
"""
    assert inside.verdict(group)["passed"]  # the signal reached none of those that judge


def test_no_secrets_and_no_open_files_come_in(inside: Judge) -> None:
    source = """
import os, sys, fcntl
def attack():
    files = []
    for fd in range(1024):
        try:
            os.fstat(fd)
            files.append(fd)
        except OSError:
            pass
    return dict(os.environ), files, os.isatty(0), os.getuid(), os.geteuid(), os.getgid()
"""
    environment, files, is_terminal, *ids = inside.observe(source)
    assert set(environment) == {"HOME", "TMPDIR", "PATH", "LANG"}
    assert files == [0, 1, 2, 3, 4]  # the last two: its questions and its answers
    assert not is_terminal
    assert ids == [NOBODY, NOBODY, NOBODY]


def test_running_away_in_time(inside: Judge) -> None:
    loop = (
        "import time\ndef attack():\n    end = time.monotonic() + 20\n    while time.monotonic() < end:\n        pass"
    )
    verdict = inside.verdict(loop, cpu_seconds=1, wall_seconds=15)
    assert (verdict["reason"], "processor" in verdict["detail"]) == ("timed out", True)
    assert inside.verdict(loop, wall_seconds=0.5)["reason"] == "timed out"
    sleep = "import signal, time\nsignal.alarm(0)\ntime.sleep(20)\ndef attack(): return 1"
    verdict = inside.verdict(sleep, wall_seconds=0.5)
    assert verdict["reason"] == "timed out"
    assert verdict["seconds"] < 15
    verdict = inside.verdict("def attack(): return 1", "while attack(): pass", wall_seconds=0.5)
    assert verdict["reason"] == "timed out"


def test_running_away_in_memory(inside: Judge) -> None:
    steps = "def attack():\n    return [len(bytearray(2 ** 28)) for _ in range(1)] and len([bytearray(2 ** 28) for _ in range(32)])"
    verdict = inside.verdict(steps, memory_bytes=1024 * MIB)
    assert (verdict["passed"], verdict["reason"]) == (False, "out of memory")
    untouched = """
import mmap
def attack():
    blocks = []
    try:
        while len(blocks) < 32:
            blocks.append(mmap.mmap(-1, 2 ** 28))
    except OSError:
        pass
    return len(blocks)
"""
    assert 1 <= inside.observe(untouched, memory_bytes=1024 * MIB) <= 4
    # Four processes with 128 MiB each: none is over the limit, together they are.
    several = """
import os, time
def attack():
    for _ in range(4):
        if os.fork() == 0:
            block = b'x' * 2 ** 27
            time.sleep(10)
            os._exit(0)
    for _ in range(1000):
        os.write(1, b'x')  # the watch must not be distracted
        time.sleep(0.01)
"""
    verdict = inside.verdict(several, memory_bytes=400 * MIB, wall_seconds=20)
    assert verdict["reason"] == "out of memory"
    assert verdict["seconds"] < 15
    # The same, while threads come and go, and in processes whose first thread has ended.
    restless = several.replace(
        "    for _ in range(1000):",
        """
    def churn():
        end = time.monotonic() + 10
        while time.monotonic() < end:
            thread = threading.Thread(target=int)
            thread.start()
            thread.join()
    for _ in range(2):
        threading.Thread(target=churn, daemon=True).start()
    for _ in range(1000):""",
    ).replace("import os, time", "import os, threading, time")
    headless = """
import ctypes, os, threading, time
def block():
    time.sleep(0.2)
    data = b'x' * 2 ** 27
    time.sleep(10)
def attack():
    for _ in range(4):
        if os.fork() == 0:
            threading.Thread(target=block).start()
            ctypes.CDLL(None).syscall(60 if os.uname().machine == 'x86_64' else 93, 0)
    time.sleep(10)
"""
    for source in (restless, headless):
        verdict = inside.verdict(source, memory_bytes=400 * MIB, wall_seconds=20)
        assert verdict["reason"] == "out of memory", source
        assert verdict["seconds"] < 15


def test_running_away_in_processes(inside: Judge) -> None:
    source = """
import os, time
def attack():
    started = 0
    for _ in range(200):
        try:
            if os.fork() == 0:
                time.sleep(5)
                os._exit(0)
            started += 1
        except OSError:
            pass
    return started
"""
    assert 1 <= inside.observe(source, processes=32) <= 34


def test_running_away_in_output_and_files(inside: Judge) -> None:
    output = "import os\ndef attack():\n    for _ in range(128):\n        os.write({}, b'x' * 2 ** 16)\n    return 1"
    assert inside.verdict(output.format(1))["reason"] == "too much output"
    assert inside.verdict(output.format(2))["reason"] == "too much output"
    assert inside.verdict(output.format(1).replace("128", "2"))["passed"]
    reply = "def attack(): return b'x' * (65 * 2 ** 20)"
    assert inside.verdict(reply, "try:\n    attack()\nexcept Exception:\n    pass")["reason"] == "too much output"
    files = """
def attack():
    sizes = []
    for number in range(6):
        try:
            with open(str(number), 'wb', buffering=0) as file:
                sizes.append(sum(file.write(b'x' * 2 ** 20) for _ in range(20)))
        except OSError as error:
            sizes.append(file.tell() if not file.closed else error.errno)
    import os
    return max(os.stat(name).st_size for name in os.listdir('.')), sum(os.stat(name).st_size for name in os.listdir('.'))
"""
    largest, total = inside.observe(files, file_bytes=8 * MIB)
    assert largest == 8 * MIB
    assert 16 * MIB <= total <= 32 * MIB


def test_nothing_survives_the_verdict(inside: Judge) -> None:
    source = """
import ctypes, os, signal, time
def attack(name):
    read, write = os.pipe()
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            for number in range(1, 32):
                try:
                    signal.signal(number, signal.SIG_IGN)
                except OSError:
                    pass
            ctypes.CDLL(None).prctl(15, name.encode(), 0, 0, 0)
            os.closerange(5, 64) if False else os.write(write, b'1')
            time.sleep(30)
        os._exit(0)
    os.read(read, 1)
    return 1
"""
    name = f"left-{os.getpid()}"

    def processes() -> list[str]:
        found = []
        for path in Path("/proc").glob("[0-9]*/comm"):
            try:
                found.append(path.read_text().strip())
            except OSError:
                continue
        return found

    # While the tests go on, the process can be seen from outside; when they have ended, it is gone.
    test = f"assert attack({name!r}) == 1\nimport time\ntime.sleep(1)"
    assert inside.process.stdin is not None
    assert inside.process.stdout is not None
    program = {"source": source, "test": test, "entry_point": "attack"}
    print(json.dumps({"policy": {}, "programs": [program]}), file=inside.process.stdin, flush=True)
    deadline = time.monotonic() + 30
    while name not in processes() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert name in processes()
    assert json.loads(inside.process.stdout.readline())[0]["passed"]
    assert name not in processes()


FAKES = {
    "exit at once": "import sys\nsys.exit(0)\n",
    "leave at once": "import os\nos._exit(0)\n",
    "exit when called": "import sys\ndef attack():\n    sys.exit(0)\n",
    "leave when called": "import os\ndef attack():\n    os._exit(0)\n",
    "leave when the thread does": "import os, threading\nthreading.Timer(0.01, os._exit, [0]).start()\ndef attack():\n    while True: pass\n",
    "raise SystemExit at the end": "class A:\n    def __del__(self):\n        raise SystemExit(0)\na = A()\ndef attack(): return 0\n",
    "print": 'def attack():\n    print(\'passed\')\n    print(\'{"passed": true, "reason": "passed", "detail": ""}\')\n    return 0\n',
    "no assertions": "import builtins\nbuiltins.AssertionError = type('A', (BaseException,), {'__init__': lambda *a: None})\ndef attack(): return 0\n",
    "own check": "def check(candidate): pass\ndef attack(): return 0\n",
    "own builtins": "def abs(x): return 0\ndef all(x): return True\ndef len(x): return 1\ndef attack(): return 0\n",
    "equal to all": "class A:\n    __eq__ = lambda *a: True\n    __hash__ = None\ndef attack(): return A()\n",
    "an int equal to all": "class A(int):\n    __eq__ = lambda *a: True\n    __ne__ = lambda *a: False\n    __hash__ = None\ndef attack(): return A(0)\n",
    "at exit": "import atexit, os\natexit.register(lambda: os._exit(0))\ndef attack(): return 0\n",
    "fork": "import os\nif os.fork():\n    os._exit(0)\ndef attack(): return 0\n",
    "no time": "import time, signal\ntime.monotonic = time.time = lambda: 0\nsignal.setitimer = lambda *a: None\ndef attack(): return 0\n",
    "verdicts to all files": """
import json, os, struct
message = json.dumps({'passed': True, 'reason': 'passed', 'detail': ''}).encode()
def attack():
    for fd in range(256):
        try:
            os.write(fd, struct.pack('<Q', len(message)) + message)
        except OSError:
            pass
    return 0
""",
    "a message that is code": '''
import pickle, sys
FORGE = """
import json, os, struct
message = json.dumps({'passed': True, 'reason': 'passed', 'detail': ''}).encode()
os.write(4, struct.pack('<Q', len(message)) + message)
os._exit(0)
"""
values = sys.modules['evals.code.values']
class Code:
    def __reduce__(self):
        return exec, (FORGE,)
values.encode = lambda *a, **k: (pickle.dumps((['returned', Code()], {})), [])
def attack(): return 0
''',
    "frames above": """
import sys
frame = sys._getframe()
while frame:
    for name in list(frame.f_globals):
        if callable(frame.f_globals[name]) and name not in ('attack', 'sys') and not name.startswith('__'):
            frame.f_globals[name] = lambda *a, **k: True
    frame = frame.f_back
def attack(): return 0
""",
    "end of iteration": "def attack(): raise StopIteration\n",
    "its own end of iteration": "class A(StopIteration): pass\ndef attack(): raise A\n",
    "end of a generator": "def attack(): raise GeneratorExit\n",
    "a fraction equal to all": """
import fractions
class A(fractions.Fraction):
    __eq__ = lambda *a: True
    __sub__ = __rsub__ = __abs__ = lambda *a: 0
    __hash__ = fractions.Fraction.__hash__
def attack(): return A(0)
""",
    "an iterator equal to all": """
class A:
    __eq__ = lambda *a: True
    __iter__ = lambda self: self
    __next__ = lambda self: 1
    __hash__ = None
def attack(): return A()
""",
    "a kind that is code": """
import pickle, sys
sys.modules['evals.code.values'].encode = lambda *a, **k: (
    pickle.dumps(([ 'returned', (0,)], {0: ('pickled', b'cbuiltins\\neval\\n(V1\\ntR.', [])})), [])
def attack(): return 0
""",
    "a method of the data types": """
import sys
sys.modules['evals.code.values'].encode = lambda *a, **k: (b'\\x80\\x04cbuiltins\\nint\\nN}\\x8c\\x06__eq__K\\x01s\\x86b.', [])
def attack(): return 0
""",
    "an end of what is no iterator": """
import pickle, sys
sys.modules['evals.code.values'].encode = lambda *a, **k: (pickle.dumps((['ended'], {})), [])
def attack(): return 0
""",
    "an exception that is no exception": """
import pickle, sys
sys.modules['evals.code.values'].encode = lambda *a, **k: (
    pickle.dumps((['raised', 'exec', 'eval', (1,), 'x'], {1: ('tuple', None, ['1'])})), [])
def attack(): return 0
""",
}
TESTS = """
import math
def check(candidate):
    assert candidate() == 1
    assert abs(candidate() - 1) < 1e-6
    assert all(x == 1 for x in map(lambda _: candidate(), range(3)))
"""


@pytest.mark.parametrize("name", FAKES)
def test_a_fake_does_not_pass(inside: Judge, name: str) -> None:
    verdict = inside.verdict(FAKES[name], TESTS, wall_seconds=3)
    assert not verdict["passed"]
    assert verdict["reason"] != "passed"
    assert inside.verdict("def attack(): return 1", TESTS, wall_seconds=3)["passed"]


def test_a_stopped_iteration_does_not_end_the_tests(inside: Judge) -> None:
    verdict = inside.verdict("def attack(x): raise StopIteration", "assert all(map(attack, [1, 2]))\n")
    assert verdict["reason"] == "raised StopIteration"


def test_the_tests_have_their_own_builtins(inside: Judge) -> None:
    source = "def abs(x): return 0\ndef attack(): return abs(-5) + 5"
    assert inside.verdict(source, "assert abs(attack() - 5) < 1e-6")["passed"]
    assert not inside.verdict(source, "assert abs(attack() - 1) < 1e-6")["passed"]


def test_tests_that_expect_any_error_do_not_pass_a_program_that_left(inside: Judge) -> None:
    test = "try:\n    attack()\nexcept Exception:\n    pass"
    assert inside.verdict("def attack(): raise KeyError('x')", test)["passed"]
    assert inside.verdict("import os\ndef attack(): os._exit(0)", test)["reason"] == "ended early"
    assert (
        inside.verdict("import ctypes\ndef attack(): ctypes.string_at(0)", test)["reason"] == "killed by signal SIGSEGV"
    )


def test_a_program_does_not_find_the_tests_in_its_memory(inside: Judge) -> None:
    source = """
import gc, sys
OWN = ['found in the program']
def attack(*wanted):
    waiting, seen, found = [*gc.get_objects(), sys._getframe()], set(), {each: 0 for each in wanted}
    while waiting:
        value = waiting.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, (str, bytes)):
            text = value if isinstance(value, str) else value.decode('latin-1')
            for each in wanted:
                found[each] += each[::-1] in text
        else:
            waiting += gc.get_referents(value)
    return sorted(each for each in wanted if found[each])
"""
    marker, control = "# the answer is 918273", "found in the program"
    test = f"{marker}\nraise ValueError(repr(attack({marker[::-1]!r}, {control[::-1]!r})))"
    for _ in range(2):  # the second time, the same tests were in use before
        assert inside.verdict(source, test)["detail"] == f"ValueError: {[control[::-1]]!r}"


def test_arguments_that_are_changed_and_data_of_every_kind(inside: Judge) -> None:
    source = """
import collections, fractions
def attack(x):
    if isinstance(x, list):
        x.sort()
        return x
    if isinstance(x, dict):
        x['new'] = 1
        return collections.Counter(x)
    return fractions.Fraction(1, 2) if x is None else x
helper = lambda *, y: (y, {1, 2}, float('inf'), 1j, range(3), b'x', [None, True])
"""
    test = """
items, table = [3, 1, 2], {'a': 2}
assert attack(items) == [1, 2, 3] == items
assert attack(table) == {'a': 2, 'new': 1} == table
assert attack(None) == 0.5
assert helper(y=1) == (1, {1, 2}, float('inf'), 1j, range(3), b'x', [None, True])
assert attack(True) is True
try:
    attack([1, 'a'])
except TypeError:
    pass
else:
    assert False
"""
    verdict = inside.verdict(source, test)
    assert verdict["passed"], verdict


IN_ONE_INTERPRETER = {
    "generators, one-shot": (
        "def attack(n):\n    for i in range(n):\n        yield i * i",
        """
assert tuple(attack(4)) == (0, 1, 4, 9)
squares = attack(3)
assert squares != [0, 1, 4] and not isinstance(squares, list)
assert list(squares) == [0, 1, 4] and list(squares) == []
assert next(attack(1)) == 0 and next(attack(0), None) is None
""",
    ),
    "endless generators, lazily": (
        "def attack():\n    n = 0\n    while True:\n        if n == 3: yield 1 / 0\n        yield n\n        n += 1",
        """
import itertools
numbers = attack()
assert list(itertools.islice(numbers, 3)) == [0, 1, 2]
try:
    next(numbers)
except ZeroDivisionError:
    pass
else:
    assert False
""",
    ),
    "iterators of all kinds": (
        """
import itertools
def attack(x):
    return [map(str, x), zip(x, x), filter(None, x), reversed(x), enumerate(x), iter(x), itertools.count(5), map(list, [x])]
def again(iterator):
    return sum(iterator)
""",
        """
strings, pairs, true, backwards, numbered, plain, count, lists = attack([0, 1])
assert list(strings) == ['0', '1'] and dict(pairs) == {0: 0, 1: 1} and list(true) == [1] and list(backwards) == [1, 0]
assert dict(numbered) == {0: 0, 1: 1} and list(plain) == [0, 1] and next(count) == 5 and next(lists) == [0, 1]
assert again(attack([3, 4])[5]) == 7 and again(iter([1, 2])) == 3
""",
    ),
    "views": (
        "def attack(d): return d.keys(), d.values(), d.items()",
        """
keys, values, items = attack({'a': 1, 'b': 2})
assert keys == {'a', 'b'} and keys & {'a'} == {'a'} and list(values) == [1, 2] and ('a', 1) in items
assert keys != ['a', 'b'] and len(items) == 2 and list(reversed(keys)) == ['b', 'a']
""",
    ),
    "values of the standard library": (
        """
from collections import *
from datetime import *
from decimal import Decimal
from fractions import Fraction
def attack(x):
    table = defaultdict(list)
    table['a'].append(x)
    return (deque([x], 2), Fraction(x, 3), Decimal('1.10'), OrderedDict(a=x), table, Counter([x]), date(2024, 2, 29),
            datetime(2024, 1, 1, tzinfo=timezone.utc) + timedelta(1), slice(x), complex(x), bytearray([x]))
""",
        """
from collections import *
from datetime import *
from decimal import Decimal
from fractions import Fraction
queue, third, price, ordered, table, counts, day, moment, part, number, data = attack(1)
queue.append(2); queue.append(3)
assert queue == deque([2, 3]) and third + third == Fraction(2, 3) and third.denominator == 3 and str(price) == '1.10'
assert ordered == OrderedDict(a=1) and table['a'] == [1] and table['b'] == [] and counts.most_common(1) == [(1, 1)]
assert day == date(2024, 2, 29) and moment.day == 2 and moment.tzinfo is timezone.utc and part == slice(1)
assert number == 1 + 0j and data == b'\\x01' and queue != [2, 3] and attack(3)[1] == 1
""",
    ),
    "arguments changed, at any depth and by keyword": (
        """
def attack(rows, *, table=None, seen=()):
    rows[0].sort()
    rows[1]['x'] = rows[0]
    if table is not None:
        table.setdefault('a', []).append(1)
        seen.add(2)
    return rows[0]
def swap(pair): pair[0], pair[1] = pair[1], pair[0]
def fails(x):
    x.append(1)
    raise ValueError('after the change')
""",
        """
inner, table, seen = [3, 1, 2], {}, {1}
rows = [inner, {}]
first = attack(rows, table=table, seen=seen)
assert inner == [1, 2, 3] and rows[0] is inner and first is inner and rows[1]['x'] is inner
assert table == {'a': [1]} and seen == {1, 2}
pair = [inner, table]
swap(pair)
assert pair[0] is table and pair[1] is inner
shared = [1]
attack([shared, {}], table={'a': shared}, seen=set())
assert shared == [1, 1]
try:
    fails(shared)
except ValueError:
    assert shared == [1, 1, 1]
wrapped = ([2, 1], {})
attack(wrapped)
assert wrapped[0] == [1, 2]
""",
    ),
    "exceptions": (
        """
class Low(ValueError): pass
class Both(KeyError, AttributeError): pass
class Own(Exception):
    def __init__(self, code, why):
        super().__init__(code)
        self.why = why
    def __str__(self): return self.why
def attack(n):
    if n == 0: raise Low('too low', 7)
    if n == 1: raise Both('both')
    if n == 2: raise Own(3, 'because')
    if n == 3: return {}['gone']
    if n == 4: return open('/nowhere/at/all')
    if n == 5: return int('x')
    if n == 6: raise SystemExit(3)
    if n == 7: return b'\\xff'.decode()
    if n == 8: assert False, 'mine'
""",
        """
def raised(n, kind):
    try:
        attack(n)
    except kind as error:
        return error
    assert False, n
low = raised(0, ValueError)
assert low.args == ('too low', 7) and type(low).__name__ == 'Low' and not isinstance(low, TypeError)
assert isinstance(raised(1, KeyError), AttributeError) and isinstance(raised(1, LookupError), Exception)
assert str(raised(2, Exception)) == 'because'
assert str(raised(3, KeyError)) == "'gone'" and raised(3, LookupError).args == ('gone',)
assert 'nowhere' in str(raised(4, OSError)) and raised(4, FileNotFoundError).args[0] == 2
assert 'invalid literal' in str(raised(5, ValueError)) and raised(6, SystemExit).args == (3,)
assert 'utf-8' in str(raised(7, UnicodeDecodeError)) and str(raised(8, AssertionError)) == 'mine'
""",
    ),
}


@pytest.mark.parametrize("name", IN_ONE_INTERPRETER)
def test_what_passes_in_one_interpreter_passes_in_two(inside: Judge, name: str) -> None:
    source, test = IN_ONE_INTERPRETER[name]
    exec(compile(f"{source}\n{test}", name, "exec"), {"__name__": "one"})
    verdict = inside.verdict(source, test)
    assert verdict["passed"], verdict
    # The control: the tests ran.
    assert inside.verdict(source, f"{test}\nassert False")["reason"] == "failed assertion"


def test_an_endless_iterator_is_a_failure_that_says_so(inside: Judge) -> None:
    source = "import itertools\ndef attack(item=0): return itertools.repeat(item)"
    verdict = inside.verdict(source, "for each in attack(): pass", wall_seconds=100, cpu_seconds=100)
    assert verdict["reason"] == "too much output"
    assert verdict["detail"] == "an iterator of more than 100000 items"
    verdict = inside.verdict(source, "try:\n    list(attack('x' * 2 ** 20))\nexcept BaseException:\n    pass")
    assert verdict["reason"] == "too much output"
    assert verdict["detail"] == f"an iterator of more than {64 * MIB} bytes"
    test = "attack = attack()\nwhile True: next(attack)"
    assert inside.verdict(source, test, wall_seconds=0.5)["reason"] == "timed out"


def test_what_tests_cannot_see_is_named(inside: Judge) -> None:
    verdict = inside.verdict("class Own: pass\ndef attack(): return Own()")
    assert verdict["reason"] == "raised TypeError"
    assert "the program's Own is not plain data" in verdict["detail"]


def test_all_canonical_solutions_pass_and_all_empty_ones_fail(inside: Judge) -> None:
    if not HUMANEVAL.exists():
        pytest.skip(f"{HUMANEVAL} is not there")
    with gzip.open(HUMANEVAL, "rt") as file:
        problems = [json.loads(line) for line in file]
    assert len(problems) == 164
    programs = [
        {"source": problem["prompt"] + completion, "test": problem["test"], "entry_point": problem["entry_point"]}
        for completion_of in (lambda problem: problem["canonical_solution"], lambda problem: "")
        for problem in problems
        for completion in [completion_of(problem)]
    ]
    verdicts = inside.judge(programs)
    assert [verdict["passed"] for verdict in verdicts] == [True] * 164 + [False] * 164


def test_solutions_that_return_iterators_pass(inside: Judge) -> None:
    if not HUMANEVAL.exists():
        pytest.skip(f"{HUMANEVAL} is not there")
    with gzip.open(HUMANEVAL, "rt") as file:
        problems = {record["task_id"]: record for record in map(json.loads, file)}
    sources = {
        "HumanEval/33": "def {}(l):\n    thirds = iter(sorted(l[::3]))\n    for i, x in enumerate(l):\n        yield next(thirds) if i % 3 == 0 else x\n",
        "HumanEval/37": "def {}(l):\n    evens = iter(sorted(l[::2]))\n    return (x if i % 2 else next(evens) for i, x in enumerate(l))\n",
    }
    for task, source in sources.items():
        entry, test = problems[task]["entry_point"], problems[task]["test"]
        for text, is_right in ((source, True), (source.replace("sorted", "list"), False)):
            program = {"source": text.format(entry), "test": test, "entry_point": entry}
            verdict = inside.judge([program])[0]
            assert verdict["passed"] is is_right, verdict


FORBIDDEN = """
import os, sys
from evals.code import system_calls as linux
uid, gid = os.getuid(), os.getgid()
linux.unshare(linux.CLONE_NEWUSER, "a user namespace")
for path, text in (("setgroups", "deny"), ("uid_map", f"0 {uid} 1"), ("gid_map", f"0 {gid} 1")):
    open(f"/proc/self/{path}", "w").write(text)
open("/proc/sys/user/max_user_namespaces", "w").write("0")
from evals.code.policy import Policy
from evals.code.program import Program
from evals.code.sandbox import Sandbox, check
from evals.errors import EvalError
try:
    check(Policy())
except EvalError as error:
    print(error)
print(check(Policy(allow_unisolated=True)))
with Sandbox(Policy(allow_unisolated=True, wall_seconds=1)) as sandbox:
    for source in ("import os\\ndef f(): return sorted(os.environ)", "def f():\\n    while True: pass"):
        test = "assert f() == ['HOME', 'LANG', 'PATH', 'TMPDIR']"
        print(sandbox.run(Program(id="0", sample=0, source=source, test=test, entry_point="f")).reason)
"""


def test_without_user_namespaces_programs_are_refused_unless_the_user_insists() -> None:
    try:
        check(Policy())
    except EvalError as error:
        pytest.skip(str(error))
    environment = {"PYTHONPATH": str(ROOT), "SECRET": "a secret"}
    done = subprocess.run(
        [sys.executable, "-c", FORBIDDEN], env=environment, capture_output=True, text=True, check=True
    )
    refusal, statement, first, second = done.stdout.splitlines()
    assert "cannot be isolated on this machine" in refusal
    assert "making a user namespace" in refusal
    assert "allow_unisolated" in refusal
    assert statement.startswith("programs run without isolation: making a user namespace")
    assert (first, second) == ("passed", "timed out")


def test_a_helper_that_was_killed_is_an_error() -> None:
    program = Program(id="0", sample=0, source="def f(): return 1", test="assert f() == 1", entry_point="f")
    with Sandbox(Policy(allow_unisolated=True)) as sandbox:
        assert sandbox.run(program).passed
        sandbox.end()
        with pytest.raises(EvalError, match="helper process ended"):
            sandbox.run(program)

"""Windows and macOS, by reading: nothing that only POSIX has is used unless something asks for it first."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "cachedlrm"
FILES = sorted(PACKAGE.rglob("*.py"))

MODULES = "crypt curses fcntl grp nis posix pty pwd readline resource spwd syslog termios tty"
NAMES = {
    "os": """
        chown chroot confstr copy_file_range ctermid eventfd fchdir fchown fdatasync fork forkpty fpathconf fstatvfs
        getegid geteuid getgid getgroups getloadavg getpgid getpgrp getpriority getresuid getsid getuid initgroups
        killpg lchown lockf major makedev memfd_create minor mkfifo mknod nice openpty O_CLOEXEC O_DIRECT O_DIRECTORY
        O_NOFOLLOW O_NONBLOCK O_SYNC O_TMPFILE pathconf pidfd_open pipe2 posix_fadvise posix_fallocate posix_spawn
        pread preadv pwrite pwritev readv register_at_fork sched_getaffinity sched_setaffinity sched_yield sendfile
        setgid setpgid setpriority setsid setuid splice statvfs sync sysconf tcgetpgrp ttyname uname wait wait3 wait4
        waitid WEXITSTATUS WNOHANG writev
    """,
    "signal": """
        alarm getitimer ITIMER_REAL pause pthread_kill pthread_sigmask setitimer SIG_BLOCK SIG_UNBLOCK SIGALRM SIGBUS
        SIGCHLD SIGCONT SIGHUP siginterrupt SIGKILL sigpending SIGPIPE SIGQUIT SIGSTOP sigtimedwait SIGTSTP SIGUSR1
        SIGUSR2 sigwait sigwaitinfo SIGWINCH
    """,
    "mmap": """
        MADV_DONTNEED MADV_HUGEPAGE MADV_RANDOM MADV_SEQUENTIAL MADV_WILLNEED MAP_ANON MAP_PRIVATE MAP_SHARED PROT_READ
        PROT_WRITE
    """,
    "select": "epoll kqueue poll",
    "socket": "AF_UNIX",
    "time": "clock_gettime clock_gettime_ns CLOCK_MONOTONIC pthread_getcpuclockid tzset",
}
"""What Windows lacks, by module; from the Python documentation's notes on availability."""
ASKS = ("sys.platform", "os.name", "hasattr(")


def unguarded(source: str) -> list[str]:
    """Line and name of everything that only POSIX has, outside ``if`` and ``try`` that ask whether it is there.

    A statement that asks, and whose branch leaves the block, guards what comes after it in the block.
    """
    found: list[str] = []

    def asks(test: ast.AST) -> bool:
        return any(words in ast.unparse(test) for words in ASKS)

    def visit(node: ast.AST, guarded: bool) -> None:
        if isinstance(node, ast.If | ast.IfExp):
            guarded |= asks(node.test)
        elif isinstance(node, ast.BoolOp):
            guarded |= asks(node)
        elif isinstance(node, ast.Try):
            caught = " ".join(ast.unparse(handler.type) for handler in node.handlers if handler.type)
            guarded |= any(name in caught for name in ("ImportError", "AttributeError", "ModuleNotFoundError"))
        if not guarded and (name := needs_posix(node)):
            found.append(f"{getattr(node, 'lineno', 0)}: {name}")
        for _, value in ast.iter_fields(node):
            inside = guarded
            for child in value if isinstance(value, list) else [value]:
                if isinstance(child, ast.AST):
                    visit(child, inside)
                    leaves = isinstance(child, ast.If) and isinstance(child.body[-1], ast.Return | ast.Raise)
                    inside |= leaves and asks(child.test)

    visit(ast.parse(source), guarded=False)
    return found


def needs_posix(node: ast.AST) -> str | None:
    """What only POSIX has of what the node itself names."""
    if isinstance(node, ast.Import):
        return next((one.name for one in node.names if one.name in MODULES.split()), None)
    if isinstance(node, ast.ImportFrom):
        names = {one.name for one in node.names} & set(NAMES.get(node.module or "", "").split())
        return node.module if node.module in MODULES.split() else next(iter(names), None)
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
        return ast.unparse(node) if node.attr in NAMES.get(node.value.id, "").split() else None
    if isinstance(node, ast.Call):
        return call if (call := ast.unparse(node)) in ("ctypes.CDLL(None)", "get_context('fork')") else None
    if isinstance(node, ast.With):  # Windows syncs no file that is open for reading alone
        opened = " ".join(ast.unparse(item.context_expr) for item in node.items)
        return "os.fsync of a file read" if "open('rb')" in opened and "os.fsync" in ast.unparse(node) else None
    return None


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_nothing_that_only_posix_has_is_used_unasked(path):
    assert unguarded(path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_every_text_file_names_its_encoding(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "read_text":
            assert node.args or node.keywords, f"line {node.lineno}: {ast.unparse(node)}"


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("import fcntl", ["1: fcntl"]),
        ("from resource import getrusage", ["1: resource"]),
        ("from signal import SIGHUP, SIGINT", ["1: SIGHUP"]),
        ("import os\nx = os.getuid()", ["2: os.getuid"]),
        ("if hasattr(os, 'getuid'):\n    pass\nos.getuid()", ["3: os.getuid"]),
        ("def f():\n    if not ready:\n        return\n    os.fork()", ["4: os.fork"]),
        ("try:\n    os.nice(1)\nexcept OSError:\n    pass", ["2: os.nice"]),
        ("ctypes.CDLL(None).madvise", ["1: ctypes.CDLL(None)"]),
        ("with path.open('rb') as file:\n    os.fsync(file.fileno())", ["1: os.fsync of a file read"]),
        ("with path.open('r+b') as file:\n    os.fsync(file.fileno())", []),
        ("try:\n    import fcntl\nexcept ImportError:\n    pass", []),
        ("n = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else 1", []),
        ("def f():\n    if sys.platform == 'win32':\n        return\n    os.fork()", []),
        ("signal.SIGTERM, os.replace, mmap.PAGESIZE", []),
    ],
)
def test_the_check_sees_what_it_should(source, expected):
    assert unguarded(source) == expected

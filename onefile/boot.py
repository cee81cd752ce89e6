"""`__main__` of the one file `dist/lwsrun`: unpacks what this Python needs, once, and runs the launcher from there.

It is read by whatever Python the image has, so it must parse on old ones too, to tell them in words. Compiled parts
cannot be loaded from inside a zip file, hence the directory; it is named by content, so that it is never compared.
"""

import sys
import signal

# A blocked signal stays pending, also for PID 1: it must not be lost while we unpack (kernel/signal.c, sig_ignored).
if sys.version_info >= (3, 8):
    MASK = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())

import os
import stat
from importlib.machinery import EXTENSION_SUFFIXES, ExtensionFileLoader, FileFinder, SourceFileLoader

# build.py fills these two in.
DIGEST = ""
PARTS = {}  # for each Python and machine, such as cpython-312-x86_64-linux-gnu: the inner zip files that make it up

CONFIG = 78  # launcher/exits.py
SYSTEM = "/opt/lwsrun"  # where `lwsrun unpack` puts it for everybody, at image build
VARIABLE = "LWSRUN_EXTRACT_DIR"
MADE = "--unpacked-at="  # launcher/ourselves.py puts it before its -m
FILE = os.path.abspath(os.path.dirname(__file__))
TAG = EXTENSION_SUFFIXES[0].split(".")[1]  # .cpython-312-x86_64-linux-gnu.so
NAME = f"lwsrun-{DIGEST}-{TAG}"


class Unusable(Exception):
    """Why a place cannot be used."""


def main():
    if TAG not in PARTS:
        fail(
            f"this file holds compiled parts for {', '.join(sorted(PARTS))}; this Python is {TAG} ({sys.executable})",
            "put one of those Pythons first on PATH, or install the package with pip",
        )
    if sys.argv[1:2] == ["unpack"] and not [word for word in sys.argv[2:] if word.startswith("-")]:
        unpack(sys.argv[2:])
        return
    # From ourselves, who know where it lies; LWSRUN_EXTRACT_DIR may not be in the environment any more.
    directory = sys.argv.pop(1)[len(MADE) :] if sys.argv[1:2] and sys.argv[1].startswith(MADE) else find_or_make()
    sys.path[:] = [directory] + [entry for entry in sys.path if os.path.abspath(entry or ".") != FILE]
    if sys.dont_write_bytecode:
        keep_bytecode(directory)
    from launcher import ourselves

    ourselves.ONE_FILE = FILE
    ourselves.UNPACKED = MADE + directory
    if sys.argv[1:2] == ["-m"] and sys.argv[2:3] and sys.argv[2].split(".")[0] == "launcher":
        import runpy

        module = sys.argv[2]
        del sys.argv[1:3]
        if module != "launcher":  # not PID 1, and begun by us as it should be
            signal.pthread_sigmask(signal.SIG_SETMASK, MASK)
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    else:
        from launcher.__main__ import main as launch

        launch()


class Keeping(SourceFileLoader):
    """Keeps what it compiles, in spite of PYTHONDONTWRITEBYTECODE."""

    def get_code(self, fullname):
        before, sys.dont_write_bytecode = sys.dont_write_bytecode, False
        try:
            return super().get_code(fullname)
        finally:
            sys.dont_write_bytecode = before


def keep_bytecode(directory):
    """Many images forbid it for the sake of their layers; our directory is none, and every start would compile anew."""
    hook = FileFinder.path_hook((ExtensionFileLoader, EXTENSION_SUFFIXES), (Keeping, [".py"]))

    def ours(path):
        if path != directory and not path.startswith(directory + os.sep):
            raise ImportError(path)
        return hook(path)

    sys.path_hooks.insert(0, ours)


def find_or_make():
    """The directory that holds the program: the first place that has it or takes it."""
    reasons = []
    for parent, private, create in places():
        path = os.path.join(parent, NAME)
        try:
            if private:
                os.makedirs(os.path.dirname(parent), exist_ok=True)
                if not os.path.lexists(parent):
                    make_directory(parent)
                check(parent, private=True)
            if os.path.isdir(parent):
                check_executable(parent)
            if os.path.lexists(path):
                check(path)
                return path
            if create:
                os.makedirs(parent, exist_ok=True)
                check_executable(parent)
                extract(path, 0o700, compiled=False)
                return path
        except Unusable as error:
            reasons.append(str(error))
        except OSError as error:
            reasons.append(f"{parent}: {error.strerror or error}")
    return fail(
        "no place to unpack the program to: " + "; ".join(reasons),
        f"mount an emptyDir and set {VARIABLE} to it, or run `lwsrun unpack` when the image is built",
    )


def places():
    """(directory, whether it must be ours alone, whether to unpack there), in the order in which they are tried."""
    wanted = os.environ.get(VARIABLE)
    if wanted:
        yield os.path.abspath(wanted), False, True
    yield SYSTEM, False, False
    cache = os.environ.get("XDG_CACHE_HOME", "")
    if not os.path.isabs(cache):
        home = os.path.expanduser("~")  # stays "~" for a user whom /etc/passwd does not know and who has no HOME
        cache = os.path.join(home, ".cache") if os.path.isabs(home) else ""
    if cache:
        yield os.path.join(cache, "lwsrun"), True, True
    # Last what counts as memory, and is small in a container by default.
    for shared in ("/tmp", "/dev/shm"):
        yield os.path.join(shared, f"lwsrun-{os.geteuid()}"), True, True


def make_directory(path):
    try:
        os.mkdir(path, 0o700)
    except FileExistsError:
        pass  # another first start was quicker; it is checked in any case


def check(path, private=False):
    """Raise Unusable unless it is a directory that nobody but us, or root, can have made or can write to."""
    found = os.lstat(path)
    if not stat.S_ISDIR(found.st_mode):
        raise Unusable(f"{path} is not a directory")
    if found.st_uid != os.geteuid() and (private or found.st_uid != 0):
        raise Unusable(f"{path} belongs to user {found.st_uid}")
    if found.st_mode & 0o022:
        raise Unusable(f"{path} can be written to by others")


def check_executable(path):
    if os.statvfs(path).f_flag & os.ST_NOEXEC:
        raise Unusable(f"{path} is mounted noexec: compiled parts cannot be loaded from there")


def extract(path, mode, compiled):
    """Make the directory `path`, whole or not at all; first starts at the same time do not disturb each other."""
    import io
    import shutil
    import tempfile
    import zipfile

    parent = os.path.dirname(path)
    made = tempfile.mkdtemp(prefix=".lwsrun-", dir=parent)
    before = os.umask(0o022)
    try:
        with zipfile.ZipFile(FILE) as outer:
            for part in PARTS[TAG]:
                with zipfile.ZipFile(io.BytesIO(outer.read(part))) as inner:
                    inner.extractall(made)
        if compiled:
            compile_all(made, path)
        os.chmod(made, mode)
        try:
            os.rename(made, path)
        except OSError:
            if not os.path.lexists(path):
                raise
            check(path)  # another first start was quicker
    finally:
        os.umask(before)
        shutil.rmtree(made, ignore_errors=True)


def compile_all(made, path):
    """For users who cannot write there. By unchecked hash: image builders change the times of files, by which a .pyc
    file is otherwise compared with its source.
    """
    import compileall
    import py_compile

    mode = py_compile.PycInvalidationMode.UNCHECKED_HASH
    compileall.compile_dir(made, quiet=2, stripdir=made, prependdir=path, invalidation_mode=mode)


def unpack(arguments):
    """`lwsrun unpack [DIR]`."""
    parent = os.path.abspath(arguments[0] if arguments else SYSTEM)
    path = os.path.join(parent, NAME)
    os.umask(0o022)
    try:
        os.makedirs(parent, exist_ok=True)
        check_executable(parent)
        if os.path.lexists(path):
            check(path)
        else:
            extract(path, 0o755, compiled=True)
    except (OSError, Unusable) as error:
        fail(f"cannot unpack to {parent}: {getattr(error, 'strerror', None) or error}", "give another DIR")
    print(path)
    if parent != SYSTEM:
        print(f"set {VARIABLE}={parent} where lwsrun runs", file=sys.stderr)


def fail(what, remedy):
    """End with the configuration code; as PID 1 not at once, because LWS recreates a group with no backoff."""
    text = f"{what}; {remedy}"
    print(f"lwsrun: {text}", file=sys.stderr, flush=True)
    if sys.argv[1:2] == ["start"]:
        try:
            log = os.environ.get("LWSRUN_TERMINATION_LOG", "/dev/termination-log")
            with open(log, "r+" if os.path.exists(log) else "x") as file:
                file.write(f"stopped because of the configuration: {text}\n")
        except OSError:
            pass
        if os.getpid() == 1:
            signal.sigtimedwait((signal.SIGTERM, signal.SIGINT), 10)
    sys.exit(CONFIG)


if __name__ == "__main__":
    main()

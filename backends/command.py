"""Which engine a command starts, found in the argv list itself, through wrappers, never by parsing shell text."""

from __future__ import annotations

import os.path
import shlex
from collections.abc import Sequence
from dataclasses import dataclass

from backends.errors import ConfigError, Fault

SHELLS = frozenset({"sh", "bash", "dash", "ash", "zsh", "ksh"})
PYTHON_SWITCHES = frozenset("bBdEiIOPqsSuvx")  # they may stand before the m of -m, such as -um

# program -> sub-command that makes it the server (None: the program itself), by engine
PROGRAMS = {
    ("vllm", "serve"): "vllm",
    ("sglang", "serve"): "sglang",
    ("trtllm-serve", None): "tensorrt-llm",
    ("torchrun", None): "torchrun",
}
MODULES = {
    "vllm.entrypoints.openai.api_server": "vllm",
    "vllm.entrypoints.cli.main": "vllm",
    "dynamo.vllm": "vllm",
    "sglang.launch_server": "sglang",
    "dynamo.sglang": "sglang",
    "tensorrt_llm.commands.serve": "tensorrt-llm",
    "dynamo.trtllm": "tensorrt-llm",
    "torch.distributed.run": "torchrun",
    "torch.distributed.launch": "torchrun",
}
SCRIPTS = {
    "vllm/entrypoints/openai/api_server.py": "vllm",
    "sglang/launch_server.py": "sglang",
}


EXPANDED = "; Kubernetes itself expands $(NAME) in a container's command and args"


@dataclass(frozen=True)
class Command:
    """An argv and what it starts. argv[start:args] names the engine's program; argv[args:] are its arguments."""

    argv: tuple[str, ...]
    engine: str
    start: int
    args: int

    @property
    def arguments(self) -> tuple[str, ...]:
        return self.argv[self.args :]

    @property
    def entry(self) -> str:
        """The program, sub-command, script or module that the arguments stand behind."""
        token = self.argv[self.args - 1]
        return _module(token, None)[0] or token

    @property
    def is_dynamo(self) -> bool:
        """A worker behind Dynamo's own front end and with Dynamo's own drain."""
        return self.entry.startswith("dynamo.")

    @property
    def is_api_server_module(self) -> bool:
        """vLLM's older entry, which starts one API server and knows nothing else that `vllm serve` does."""
        script = "vllm/entrypoints/openai/api_server.py"
        return self.entry == "vllm.entrypoints.openai.api_server" or self.entry.endswith(script)

    def with_arguments(self, arguments: Sequence[str]) -> tuple[str, ...]:
        return (*self.argv[: self.args], *arguments)


def detect(argv: Sequence[str]) -> Command:
    """Find the engine. A command that starts none is `generic`.

    Raises ConfigError for an engine inside `sh -c`: nothing could be added to it without editing shell text.
    """
    argv = tuple(argv)
    if not argv:
        raise ConfigError(Fault("there is no command", "lwsrun start -- COMMAND [ARGUMENT ...]"))
    _refuse_shell(argv)
    for at, token in enumerate(argv):
        found = _entry(argv, at, token)
        if found is not None:
            engine, args = found
            return Command(argv, engine, at, args)
    return Command(argv, "generic", 0, 1)


def _entry(argv: tuple[str, ...], at: int, token: str) -> tuple[str, int] | None:
    following = argv[at + 1] if at + 1 < len(argv) else None
    module, width = _module(token, following)
    if module in MODULES and at > 0:
        args = at + width
        if module == "vllm.entrypoints.cli.main":
            if args >= len(argv) or argv[args] != "serve":
                return None
            args += 1
        return MODULES[module], args
    name = os.path.basename(token)
    if following is not None and (name, following) in PROGRAMS:
        return PROGRAMS[name, following], at + 2
    if (name, None) in PROGRAMS:
        engine = PROGRAMS[name, None]
        return engine, at + (2 if engine == "tensorrt-llm" and following == "serve" else 1)
    for suffix, engine in SCRIPTS.items():
        if token.endswith(suffix):
            return engine, at + 1
    return None


def _module(token: str, following: str | None) -> tuple[str | None, int]:
    """The module of Python's -m, and how many tokens name it: its value may be joined to it."""
    switches, m, joined = token.partition("m")
    if not m or switches[:1] != "-" or not PYTHON_SWITCHES.issuperset(switches[1:]):
        return None, 0
    return (joined, 1) if joined else (following, 2)


def _refuse_shell(argv: tuple[str, ...]) -> None:
    for at, token in enumerate(argv):
        if os.path.basename(token) not in SHELLS:
            continue
        script = _script(argv[at + 1 :])
        plain = None if script is None else _plain_form(script)
        if plain is not None:
            raise ConfigError(
                Fault(
                    f"the engine is inside a shell: {shlex.join(argv[at:])}",
                    "the plain form, as an argument list: flags cannot be added to shell text safely, and a shell as"
                    " parent swallows SIGTERM and exit codes",
                    f"write: lwsrun start -- {plain}{EXPANDED if '$(' in plain else ''}",
                )
            )


def _script(arguments: Sequence[str]) -> str | None:
    """What a shell with these arguments would run because of -c; None without one."""
    command, value_follows = False, False
    for token in arguments:
        if value_follows:
            value_follows = False
        elif token == "--":
            continue
        elif token[:1] in ("-", "+") and len(token) > 1:
            letters = "" if token.startswith("--") else token[1:]
            command = command or (token[0] == "-" and "c" in letters)
            value_follows = letters.endswith(("o", "O")) or token in ("--rcfile", "--init-file")
        else:
            return token if command else None
    return None


def _plain_form(script: str) -> str | None:
    """The engine's command out of a shell script, for showing; None when no engine is in it."""
    lexer = shlex.shlex(script.replace("\\\n", " "), posix=True, punctuation_chars=";&|()<>\n")
    lexer.whitespace, lexer.whitespace_split, lexer.commenters = " \t\r", True, ""
    try:
        tokens = list(lexer)
    except ValueError:
        tokens = script.split()
    words: list[str] = []
    target = False  # the next word is where a redirection goes
    for token in [*tokens, ";"]:
        if set(token) <= set(";&|()<>\n") and token:
            target = "<" in token or ">" in token
            if target and words and words[-1] in ("0", "1", "2"):
                words.pop()  # the descriptor of `2>`
            if target:
                continue
            while words and (words[0] == "exec" or ("=" in words[0] and words[0].split("=")[0].isidentifier())):
                words.pop(0)
            if any(_entry(tuple(words), at, word) for at, word in enumerate(words)):
                return shlex.join(map(_without_shell, words))
            words = []
        elif target:
            target = False
        else:
            words.append(token)
    return None


def _without_shell(word: str) -> str:
    """A word with the variables that a shell would expand, such as $PORT, in Kubernetes' form: $(PORT)."""
    first, *rest = word.split("$")
    return first + "".join(map(_variable, rest))


def _variable(text: str) -> str:
    """What followed a $, up to the next."""
    braced, closing, after = text[1:].partition("}") if text.startswith("{") else ("", "", "")
    if closing and braced.isidentifier():
        return f"$({braced}){after}"
    end = next((at for at, letter in enumerate(text) if not (letter.isalnum() or letter == "_")), len(text))
    return f"$({text[:end]}){text[end:]}" if text[:end].isidentifier() else f"${text}"

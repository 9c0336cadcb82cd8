"""The line that starts a model server, taken apart without a shell.

Registry entries hold the line exactly as a person typed it, so `nohup`, a trailing `&`,
redirections, leading `NAME=value` and variables are understood. They are not executed: whoever
starts the server decides on session, log and environment. What only a shell could do (pipes, lists,
substitutions, globs) is refused. Quoting follows POSIX, Shell Command Language, section 2.2.
"""

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import PurePath
from typing import Any

from phototagger.errors import UserError

PORT = ("port", "server-port")
HOST = ("host", "server-name")
SERVED = ("served-model-name", "alias", "model-name")  # vLLM and SGLang, llama.cpp, LMDeploy
SECRETS = ("api-key", "api-keys", "admin-api-key", "token", "hf-token", "hft", "password")
_SECRET_NAME = re.compile(r"(API_?KEY|TOKEN|PASSWORD|SECRET)$", re.I)
_CONTROL = re.compile(r"[\0-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")  # tab separates words
_SHORT = {"a": "alias", "m": "model"}  # llama.cpp's -a and -m
_PROGRAMS = {"llama-server", "lmdeploy", "ollama", "sglang", "transformers", "vllm"}
_OLLAMA_HOST = "OLLAMA_HOST"

_ASSIGNMENT = re.compile(r"[A-Za-z_][A-Za-z0-9_]*=")
_VARIABLE = re.compile(r"\$(?:([A-Za-z_][A-Za-z0-9_]*)|\{([A-Za-z_][A-Za-z0-9_]*)\})")
_BRACES = re.compile(r"\{[^{}]*(?:,|\.\.)[^{}]*\}")
_OPERATORS = re.compile(r"[0-9]*>>|[0-9]*>&|[0-9]*>\||[0-9]*>|&>>|&>|[0-9]*<<?|&&|\|\||[|;&()]")


@dataclass(frozen=True)
class Command:
    """A parsed line. `argv` and `env` are what a process is started with."""

    argv: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict)  # assigned in front of the command
    background: bool = False  # ended in &
    nohup: bool = False
    log: str | None = None  # where its output was sent
    stdin: str | None = None

    def options(self) -> dict[str, Any]:
        """The program's options by name without dashes, in order.

        Values: True for a switch, else number, JSON value or text; a list for several words. Of an
        option that is given twice the last one counts, as in the servers themselves.
        """
        found: dict[str, list[str]] = {}
        words = None
        for word in self.argv[self._start() :]:
            if _is_option(word):
                name, equals, value = word.lstrip("-").partition("=")
                if not word.startswith("--"):
                    name = _SHORT.get(name, name)
                words = found[name] = [value] if equals else []
            elif words is not None:
                words.append(word)
        return {name: _value(words) for name, words in found.items()}

    def port(self) -> int | None:
        """The port it listens on; None if it does not say."""
        if self._is_ollama():
            port = self.env.get(_OLLAMA_HOST, "").rpartition(":")[2]
            return int(port) if port.isdecimal() else None
        port = self._option(PORT)
        return port if isinstance(port, int) else None

    def host(self) -> str | None:
        """The address it binds to; None if it does not say."""
        if self._is_ollama():
            host = re.sub(r"^https?://|:[0-9]+$", "", self.env.get(_OLLAMA_HOST, ""))
            return host or None
        host = self._option(HOST)
        return None if host is None else str(host)

    def served_name(self) -> str | None:
        """The name under which it serves its model; None if the line does not tell (Ollama).

        Without an option for it, vLLM, SGLang and LMDeploy serve under the name or path of the
        model itself.
        """
        if self._is_ollama():
            return None
        told = self._option(SERVED)
        if told is None:
            told = self._option(("model", "model-path")) or self._positional()
        if isinstance(told, list):  # vLLM: the first one is what answers are signed with
            told = told[0]
        return None if told is None or told is True else str(told)

    def secrets(self) -> list[str]:
        """Options and variables that hold a key or password itself, not `$NAME` for it."""
        found = [
            name
            for name, value in self.env.items()
            if _SECRET_NAME.search(name) and _is_literal(value)
        ]
        option = None
        for word in self.argv:
            if _is_option(word):
                option, _, value = word.partition("=")
                name = option.lstrip("-").lower().replace("_", "-")
                option = option if name in SECRETS else None
            else:
                value = word
            if option and _is_literal(value):
                found.append(option)
        return list(dict.fromkeys(found))

    def _option(self, names: Sequence[str]) -> Any:
        options = self.options()
        return next((options[name] for name in names if name in options), None)

    def _start(self) -> int:
        """Index of the first word that is the server's own, behind `uv run` and `python -m x`."""
        for index, word in enumerate(self.argv):
            name = PurePath(word).name
            if name in _PROGRAMS:
                return index + 1
            if name.startswith("python") and self.argv[index + 1 : index + 2] == ("-m",):
                return index + 3
        return 1

    def _positional(self) -> str | None:
        """MODEL of `vllm serve MODEL`, `lmdeploy serve api_server MODEL`."""
        words = []
        for word in self.argv[self._start() :]:
            if _is_option(word):
                break
            words.append(word)
        words = [word for word in words if word not in ("serve", "api_server")]
        return words[0] if words else None

    def _is_ollama(self) -> bool:
        return any(PurePath(word).name == "ollama" for word in self.argv)


def parse(line: str, variables: Mapping[str, str] | None = None) -> Command:
    """Take a line apart.

    `~` and `$VAR` are replaced by what `variables` says (usually os.environ and
    PHOTO_TAGGER_MODELS); with None they stay as they are, so that the result is the same on every
    machine. A value is never split into words.

    Raises UserError for what needs a shell, for an open quote, for control characters and for a
    variable without a value.
    """
    tokens = _Lexer(line, variables).tokens()
    background = bool(tokens) and tokens[-1] == (True, "&")
    if background:
        tokens.pop()
    words, log, stdin = _redirections(tokens, line)
    env: dict[str, str] = {}
    while words and _ASSIGNMENT.match(words[0]):
        name, _, value = words.pop(0).partition("=")
        env[name] = value
    nohup = words[:1] == ["nohup"]
    if nohup:
        words.pop(0)
    if not words:
        raise UserError(f"command: {line!r} names no program; write the line that starts it")
    return Command(tuple(words), env, background, nohup, log, stdin)


def with_port(command: Command, port: int) -> Command:
    """The same command on another port."""
    if command._is_ollama():
        host = command.host() or "127.0.0.1"
        return replace(command, env={**command.env, _OLLAMA_HOST: f"{host}:{port}"})
    return _with_option(command, PORT, str(port))


def with_host(command: Command, host: str) -> Command:
    """The same command bound to another address."""
    if command._is_ollama():
        port = command.port() or 11434
        return replace(command, env={**command.env, _OLLAMA_HOST: f"{host}:{port}"})
    return _with_option(command, HOST, host)


def _with_option(command: Command, names: Sequence[str], value: str) -> Command:
    default = names[1] if "lmdeploy" in map(_base, command.argv) else names[0]
    argv: list[str] = []
    words = iter(command.argv)
    written = default
    for word in words:
        name = word.lstrip("-").partition("=")[0]
        if not word.startswith("--") or name not in names:
            argv.append(word)
            continue
        written = name
        if "=" not in word:
            next(words, None)
    return replace(command, argv=(*argv, f"--{written}", value))


def _base(word: str) -> str:
    return PurePath(word).name


def _is_option(word: str) -> bool:
    return len(word) > 1 and word[0] == "-" and not re.fullmatch(r"-[0-9.]+", word)


def _value(words: list[str]) -> Any:
    if not words:
        return True
    values = [_literal(word) for word in words]
    return values[0] if len(values) == 1 else values


def _literal(word: str) -> Any:
    try:
        value = json.loads(word)
    except ValueError:
        return word
    # NaN and 1e999 are names and words; as numbers they could not be written in JSON.
    return word if isinstance(value, float) and not math.isfinite(value) else value


def _is_literal(value: str) -> bool:
    return bool(value) and not _VARIABLE.fullmatch(value)


def _redirections(
    tokens: list[tuple[bool, str]], line: str
) -> tuple[list[str], str | None, str | None]:
    """Words, target of the output, source of the input."""
    words: list[str] = []
    log = stdin = None
    rest = iter(tokens)
    for is_operator, text in rest:
        if not is_operator:
            words.append(text)
            continue
        if ">" not in text and text.lstrip("0123456789") != "<":
            raise _needs_shell(text, line)
        _, target = next(rest, (True, ""))
        if not target or target in "&|;":
            raise UserError(f"command: nothing follows {text} in {line!r}; name a file")
        if "<" in text:
            stdin = target
        elif not (text.endswith(">&") and (target.isdecimal() or target == "-")):
            log = log or target  # standard output usually comes first; both end in one log
    return words, log, stdin


def _needs_shell(what: str, line: str) -> UserError:
    return UserError(
        f"command: {what} in {line!r} needs a shell, and none is used; "
        "write one program with its options (in quotes if the sign belongs to a value)"
    )


class _Lexer:
    """Words and operators of a line."""

    def __init__(self, line: str, variables: Mapping[str, str] | None):
        self.line = line
        self.variables = variables
        self.at = 0

    def tokens(self) -> list[tuple[bool, str]]:
        """Pairs of (is an operator, text)."""
        if "\n" in self.line or "\r" in self.line:
            raise UserError(f"command: {self.line!r} has several lines; write it on one")
        if control := _CONTROL.search(self.line):
            raise UserError(
                f"command: {self.line!r} has a control character ({control.group()!r}); remove it"
            )
        found = []
        while self.at < len(self.line):
            if self.line[self.at] in " \t":
                self.at += 1
            elif operator := _OPERATORS.match(self.line, self.at):
                self.at = operator.end()
                found.append((True, operator.group()))
            else:
                found.append((False, self._word()))
        return found

    def _word(self) -> str:
        start, text = self.at, []
        bare = []  # the word with quoted parts left out
        while self.at < len(self.line):
            char = self.line[self.at]
            if char in " \t|;&()<>":
                break
            if char == "'":
                text.append(self._until_quote())
            elif char == '"':
                text.append(self._double_quoted())
            elif char == "\\":
                text.append(self._escaped())
            elif char == "$":
                text.append(self._variable())
            elif char == "~" and self.at == start:
                text.append(self._home())
            else:
                if char in "`*?[" or (char == "#" and self.at == start):
                    raise _needs_shell(char, self.line)
                text.append(char)
                bare.append(char)
                self.at += 1
        if _BRACES.search("".join(bare)):
            raise _needs_shell("{ , }", self.line)
        return "".join(text)

    def _until_quote(self) -> str:
        end = self.line.find("'", self.at + 1)
        if end < 0:
            raise self._open("'")
        text = self.line[self.at + 1 : end]
        self.at = end + 1
        return text

    def _double_quoted(self) -> str:
        text = []
        self.at += 1
        while self.at < len(self.line):
            char = self.line[self.at]
            if char == '"':
                self.at += 1
                return "".join(text)
            if char == "`":
                raise _needs_shell(char, self.line)
            if char == "$":
                text.append(self._variable())
            elif char == "\\" and self.line[self.at + 1 : self.at + 2] in tuple('$`"\\'):
                text.append(self._escaped())
            else:
                text.append(char)
                self.at += 1
        raise self._open('"')

    def _escaped(self) -> str:
        if self.at + 1 == len(self.line):
            raise UserError(f"command: {self.line!r} ends in a backslash; write it on one line")
        self.at += 2
        return self.line[self.at - 1]

    def _variable(self) -> str:
        match = _VARIABLE.match(self.line, self.at)
        if not match:
            follows = self.line[self.at : self.at + 2]
            if follows in ("$", '$"', "$ ", "$/"):  # a dollar sign, as a shell would take it
                self.at += 1
                return "$"
            raise _needs_shell(follows, self.line)
        self.at = match.end()
        if self.variables is None:
            return match.group()
        return self._value_of(match.group(1) or match.group(2))

    def _home(self) -> str:
        self.at += 1
        follows = self.line[self.at : self.at + 1]
        if follows not in ("", "/", " ", "\t"):
            raise _needs_shell(f"~{follows}", self.line)
        return "~" if self.variables is None else self._value_of("HOME")

    def _value_of(self, name: str) -> str:
        value = self.variables.get(name)
        if value is None:
            raise UserError(f"command: {name} is not set, and {self.line!r} needs it; set {name}")
        return value

    def _open(self, quote: str) -> UserError:
        return UserError(f"command: {quote} is opened but not closed in {self.line!r}; close it")

import shlex
import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from phototagger import commandline
from phototagger.commandline import Command, parse
from phototagger.errors import UserError

OLD = (
    "nohup uv run vllm serve ~/weights/Q --served-model-name q --host 0.0.0.0 --port 24001 "
    "--trust-remote-code --max-model-len 4096 > vllm.log 2>&1 &"
)
PLAIN = st.text(st.characters(exclude_categories=["Cc", "Cs"]) | st.just("\t"), max_size=20)


def test_an_old_line_is_understood_and_not_executed():
    command = parse(OLD, {"HOME": "/home/me"})
    assert command.argv[:5] == ("uv", "run", "vllm", "serve", "/home/me/weights/Q")
    assert command.argv[-1] == "4096"
    assert (command.nohup, command.background, command.log) == (True, True, "vllm.log")
    assert (command.port(), command.host(), command.served_name()) == (24001, "0.0.0.0", "q")


@given(st.lists(PLAIN, max_size=6))
def test_quoted_words_come_back_as_they_were(words):
    assert parse(shlex.join(["serve", *words]), {}).argv == ("serve", *words)


@pytest.mark.parametrize(
    "words",
    [
        r"""a\ b 'c d'"e $X f"g \$X "\$X" "\n" '\n' "a\"b" '"' """,
        """~/x ~ a~b "~" $X/${X}y "$X y" '$X' x=1 --a=~ 5$ "$" """,
        """'{"image": 2}' {"a"} {} a}b '' "" 1 -5 2a""",
    ],
)
def test_quoting_is_that_of_a_shell(words):
    variables = {"HOME": "/home/me", "X": "some thing*"}
    script = f"set -f; IFS=; for word in {words}; do printf '%s\\0' \"$word\"; done"
    shell = subprocess.run(["bash", "-c", script], env=variables, capture_output=True, check=True)
    assert parse(f"serve {words}", variables).argv[1:] == tuple(
        shell.stdout.decode().split("\0")[:-1]
    )


def test_variables_are_left_alone_without_values_for_them():
    assert parse("serve ~/a $B/c").argv == ("serve", "~/a", "$B/c")


def test_leading_assignments_are_environment_and_later_ones_are_words():
    command = parse("A=1 B='x y' nohup serve C=3")
    assert command.env == {"A": "1", "B": "x y"}
    assert command.argv == ("serve", "C=3")


@pytest.mark.parametrize(
    ("redirection", "log", "stdin"),
    [
        ("> a.log", "a.log", None),
        (">>a.log", "a.log", None),
        ("> a.log 2>&1", "a.log", None),
        ("2>&1 >a.log", "a.log", None),
        ("&> a.log", "a.log", None),
        ("2> a.err", "a.err", None),
        ("< /dev/null > a.log 2> a.err", "a.log", "/dev/null"),
        ("2>&1", None, None),
    ],
)
def test_redirections(redirection, log, stdin):
    command = parse(f"serve --x 2 {redirection} --y &")
    assert command.argv == ("serve", "--x", "2", "--y")
    assert (command.log, command.stdin, command.background) == (log, stdin, True)


@pytest.mark.parametrize(
    ("line", "cause"),
    [
        ("serve | tee log", r"\|"),
        ("cd /x && serve", "&&"),
        ("serve || true", r"\|\|"),
        ("serve; rm -rf /", ";"),
        ("serve & rm -rf /", "&"),
        ("serve $(hostname)", r"\$\("),
        ('serve "$(hostname)"', r"\$\("),
        ("serve `hostname`", "`"),
        ('serve "`hostname`"', "`"),
        ("serve *.gguf", r"\*"),
        ("serve model?.gguf", r"\?"),
        ("serve [ab]", r"\["),
        ("serve {a,b}", "{"),
        ("serve {1..3}", "{"),
        ("(serve)", r"\("),
        ("serve <<EOF", "<<"),
        ("serve # comment", "#"),
        ("serve ${X:-1}", r"\$\{"),
        ("serve $1", r"\$1"),
        ("serve ~root/x", "~r"),
        ("serve\nrm", "several lines"),
        ("serve a\0b", "control character"),
        ("serve '\x1b[2J'", "control character"),
        ("serve \x85", "control character"),
        ("serve 'open", "not closed"),
        ('serve "open', "not closed"),
        ("serve >", "nothing follows"),
        ("serve > &", "nothing follows"),
        ("serve \\", "backslash"),
        ("A=1", "names no program"),
        ("nohup &", "names no program"),
        ("   ", "names no program"),
        ("serve $UNSET", "UNSET is not set"),
        ("serve ~/x", "HOME is not set"),
    ],
)
def test_what_needs_a_shell_or_is_not_whole_is_refused_in_one_line(line, cause):
    with pytest.raises(UserError, match=cause) as error:
        parse(line, {})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("line", "address", "name"),
    [
        ("vllm serve org/m --port=8001 --host 127.0.0.1", ("127.0.0.1", 8001), "org/m"),
        ("vllm serve org/m --port 1 --port 2", (None, 2), "org/m"),
        ("vllm serve m --served-model-name a b --port 9", (None, 9), "a"),
        ("python -m vllm.entrypoints.openai.api_server --model /m --port 9", (None, 9), "/m"),
        ("python3 -m sglang.launch_server --model-path m --port 9", (None, 9), "m"),
        ("llama-server -m x.gguf -a tiny -np 4 --port 9", (None, 9), "tiny"),
        (
            "lmdeploy serve api_server org/m --server-name ::1 --server-port 23333",
            ("::1", 23333),
            "org/m",
        ),
        (
            "lmdeploy serve api_server org/m --model-name n --server-port 23333",
            (None, 23333),
            "n",
        ),
        ("OLLAMA_HOST=127.0.0.1:11434 ollama serve", ("127.0.0.1", 11434), None),
        ("OLLAMA_HOST=http://127.0.0.1:80 ollama serve", ("127.0.0.1", 80), None),
        ("ollama serve", (None, None), None),
        ("uv run --python 3.12 vllm serve m", (None, None), "m"),
    ],
)
def test_address_and_served_name_of_every_backend(line, address, name):
    command = parse(line)
    assert (command.host(), command.port()) == address
    assert command.served_name() == name


@pytest.mark.parametrize(
    "line",
    [
        "vllm serve m --port 1 --host 0.0.0.0",
        "vllm serve m --port=1 --x",
        "vllm serve m",
        "llama-server --port 1 --port 2",
        "lmdeploy serve api_server m --server-port 1",
        "lmdeploy serve api_server m",
        "OLLAMA_HOST=0.0.0.0:11434 ollama serve",
        "ollama serve",
    ],
)
def test_port_and_host_can_be_replaced(line):
    command = commandline.with_host(commandline.with_port(parse(line), 4711), "127.0.0.1")
    assert (command.port(), command.host()) == (4711, "127.0.0.1")
    assert command.served_name() == parse(line).served_name()
    assert not [word for word in command.argv if word in ("1", "2", "0.0.0.0")]


def test_options_have_the_values_that_a_person_would_write_in_json():
    line = """vllm serve m --a 4096 --b --c '{"image": 2}' --d 0.5 --e x y -np -1 --f=8"""
    assert parse(line).options() == {
        "a": 4096,
        "b": True,
        "c": {"image": 2},
        "d": 0.5,
        "e": ["x", "y"],
        "np": -1,
        "f": 8,
    }


def test_numbers_that_json_does_not_have_are_words():
    assert parse("serve --a NaN --b 1e999 --c -Infinity").options() == {
        "a": "NaN",
        "b": "1e999",
        "c": True,
        "Infinity": True,
    }


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("vllm serve m --api-key sk-1", ["--api-key"]),
        ("vllm serve m --api_key=sk-1 --token 5", ["--api_key", "--token"]),
        ("vllm serve m --api-key $A sk-1 --port 1", ["--api-key"]),
        ("vllm serve m --api-key sk-1 --api-key $A", ["--api-key"]),
        ("uv run --token t vllm serve m", ["--token"]),
        ("HF_TOKEN=hf_1 VLLM_API_KEY='x y' vllm serve m", ["HF_TOKEN", "VLLM_API_KEY"]),
        ("HF_TOKEN=$T vllm serve m --api-key $A --hf-token=${B} --max-num-batched-tokens 9", []),
    ],
)
def test_secrets_in_a_command_are_found(line, found):
    assert parse(line).secrets() == found


def test_a_command_needs_no_more_than_its_words():
    assert Command(("serve",)).options() == {}

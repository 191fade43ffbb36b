"""What the server and the client promise, in the README's order; `pytest -v` lists it."""

import contextlib
import errno
import importlib
import io
import os
import re
import resource
import select
import signal
import socket
import struct
import subprocess
import sys
import termios
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))  # so that every import mode of pytest finds it
server_thread1 = importlib.import_module("server_thread1")
TIMEOUT = 30  # seconds until a wait fails, which only a broken pair lets happen
FILES = resource.getrlimit(resource.RLIMIT_NOFILE)[0]  # descriptors that this process may have
MANY = max(5, min(50, FILES // 3 - 15))  # clients at once
PROCESSING = "Processing the input received from client\n"
LONG = "message over 5120 bytes"
ODD = "'utf-8' codec can't decode byte 0xff in position 0: invalid start byte"
RESET = socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)  # for setsockopt()


class Server:
    """The server in a thread of this process, on a free port."""

    def __init__(self, host):
        self.threads = set(threading.enumerate())
        self.listener = server_thread1.open_listener(host, port=0)
        self.listener.settimeout(0.01)  # seconds, so that accept() sees a stop at once
        self.address = self.listener.getsockname()
        self.thread = threading.Thread(target=server_thread1.start_server, args=(self.listener,))
        self.thread.start()

    def connect(self):
        return socket.create_connection(self.address[:2], TIMEOUT)

    def send(self, *pieces):
        """Send pieces, a reply after each but the last, and leave. Return the replies."""
        with self.connect() as client, client.makefile("rb") as replies:
            received = b""
            for piece in pieces[:-1]:
                client.sendall(piece)
                received += replies.read(1)
            client.sendall(pieces[-1])
            client.shutdown(socket.SHUT_WR)
            return received + replies.read()

    def join_clients(self):
        """Wait until the threads of all clients have ended."""
        for thread in set(threading.enumerate()) - self.threads - {self.thread}:
            thread.join(TIMEOUT)
            assert not thread.is_alive()

    def stop(self):
        """Stop the server and return all that its console shows."""
        self.listener.close()
        self.thread.join(TIMEOUT)
        if self.thread.is_alive():
            pytest.exit("the server does not stop", returncode=1)
        return sys.stdout.getvalue()


@contextlib.contextmanager
def running(host="127.0.0.1"):
    """Run the server in a thread, and see that it leaves neither threads nor descriptors behind."""
    before = open_descriptors()
    with contextlib.redirect_stdout(io.StringIO()):
        server = Server(host)
        try:
            yield server
        finally:
            server.stop()
        server.join_clients()
    assert open_descriptors() <= before


def open_descriptors():
    numbers = set()
    for number in range(1024):
        with contextlib.suppress(OSError):
            os.fstat(number)
            numbers.add(number)
    return numbers


@contextlib.contextmanager
def run(*arguments, before=":", **streams):
    """Run Python as a user does, after a shell command; a stream that is not given is a pipe."""
    command = ["sh", "-c", f'{before}; exec "$@"', "sh", sys.executable, *map(str, arguments)]
    env = os.environ | {"TERM": "dumb", "INPUTRC": os.devnull, "PYTHONUNBUFFERED": ""}
    streams = dict.fromkeys(["stdin", "stdout", "stderr"], subprocess.PIPE) | streams
    with subprocess.Popen(command, bufsize=0, cwd=HERE, env=env, **streams) as process:
        try:
            yield process
        finally:
            process.kill()


@contextlib.contextmanager
def serve(before=":", **streams):
    """Run the server script on a free port, and connect to it once it listens."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        host, port = probe.getsockname()
    deadline = time.monotonic() + TIMEOUT
    with run("server_thread1.py", "--port", port, before=before, **streams) as process:
        while time.monotonic() < deadline:
            with contextlib.suppress(ConnectionRefusedError):
                with socket.create_connection((host, port), TIMEOUT) as client:
                    yield process, client
                return
            time.sleep(0.02)  # No event tells that another process listens.
        pytest.fail("the server does not listen")


def greet(client):
    """Send a message and see that it has its reply."""
    client.sendall(b"Zack\n")
    assert client.recv(1) == b"-"


def read_until(stream, text):
    """Return what a pipe or a terminal shows, up to a text."""
    shown = b""
    while not shown.endswith(text):
        assert select.select([stream], [], [], TIMEOUT)[0], f"no {text} after {shown}"
        shown += os.read(stream.fileno(), 1) or pytest.fail(f"no {text} after {shown}")
    return shown


def end(process, number):
    """Send a signal. Return the exit status and the error output, after three seconds at most."""
    start = time.monotonic()
    process.send_signal(number)
    status = process.wait(TIMEOUT)
    assert time.monotonic() < start + 5  # with room for a busy machine
    return status, process.stderr.read()


@pytest.fixture(autouse=True)
def patience():
    """Wait less after a test that waited in vain; and take Ctrl-C, which a shell may ignore."""
    handler, start = signal.signal(signal.SIGINT, signal.default_int_handler), time.monotonic()
    yield
    signal.signal(signal.SIGINT, handler)
    if time.monotonic() > start + TIMEOUT:
        globals()["TIMEOUT"] = 0.3


# The session


def test_clients_at_the_same_time_each_get_their_own_replies():
    def scripted_client(number):
        with server.connect() as client:
            client.sendall(f"first of {number}\n".encode())
            assert client.recv(1) == b"-"
            for byte in f"second of {number}\n--quit--\n".encode():
                client.sendall(bytes([byte]))
            assert client.makefile("rb").read() == b"-"

    with running() as server, ThreadPoolExecutor(MANY) as pool:
        list(pool.map(scripted_client, range(MANY)))  # list() raises what a client raised.
        pool.shutdown()
        server.join_clients()
        shown = server.stop()
    for number in range(MANY):
        for word in ("FIRST", "SECOND"):
            assert shown.count(f"{PROCESSING}Processed result: Hello {word} OF {number}\n") == 1
    assert shown.count(f"{PROCESSING}Client is requesting to quit\n") == MANY
    assert len(re.findall(r"(?m)^Connected with 127\.0\.0\.1:\d+$", shown)) == MANY
    assert len(re.findall(r"(?m)^Connection 127\.0\.0\.1:\d+ closed$", shown)) == MANY
    assert shown.count("\n") == 2 + 8 * MANY + 1


def test_three_clients_see_the_session_that_the_readme_shows():
    readme = (HERE / "README.md").read_text(encoding="utf-8")
    (_, session), *clients = re.findall(r"(?s)```console\n\$ python3 (\w+\.py)\n(.*?)```", readme)
    assert [script for script, _ in clients] == ["client_thread1.py"] * 3
    with run("server_thread1.py", "--port", 0) as server, contextlib.ExitStack() as stack:
        shown = read_until(server.stdout, b"listening on 127.0.0.1:")
        port = read_until(server.stdout, b"\n")
        shown += port
        for script, window in clients:
            client = stack.enter_context(run(script, "--port", int(port)))
            for typed in re.findall(r" -> (.+\n)", window):
                read_until(client.stdout, b" -> ")
                client.stdin.write(typed.encode())
                last = "closed\n" if typed == "quit\n" else f"Hello {typed.upper()}"
                shown += read_until(server.stdout, last.encode())
    assert re.sub(r":\d+", ":PORT", shown.decode()) == re.sub(r":\d+", ":PORT", session)


# On the wire


@pytest.mark.parametrize(
    ("sent", "replies", "shown"),
    [
        pytest.param(["Zack\nPython\n"], "--", ["ZACK", "PYTHON"], id="two lines"),
        pytest.param(["Zack \t\r\nx\r\n"], "--", ["ZACK", "X"], id="lines with CR LF"),
        pytest.param(["Zack\nPython"], "--", ["ZACK", "PYTHON"], id="a last line with no end"),
        pytest.param(["\n\n"], "--", ["", ""], id="empty lines"),
        pytest.param([""], "", [], id="nothing"),
        pytest.param(["Zack", "Python", "--quit--"], "--", ["ZACK", "PYTHON"], id="no newlines"),
        pytest.param(["a", "b\nc", "d\n"], "---", ["A", "B", "CD"], id="newlines after all"),
        pytest.param(["a--quit--\n --quit--\n"], "--", ["A--QUIT--", " --QUIT--"], id="no quit"),
        pytest.param(["Zack\n--Quit-- \r\nx\n"], "-", ["ZACK"], id="quit, and more"),
        pytest.param(["--qu\u0131t--\n"], "-", ["--QUIT--"], id="quit with a dotless i"),
        pytest.param(["a" * 5120 + "\r\n"], "-", ["A" * 5120], id="5120 bytes with CR LF"),
        pytest.param(["a" * 5120 + "\r"], "-", ["A" * 5120], id="5120 bytes with CR"),
        pytest.param(["a" * 5121 + "\nx\n"], f"!{LONG}\n", [LONG], id="5121 bytes"),
        pytest.param(["x\n" + "a" * 5_000_000], f"-!{LONG}\n", ["X", LONG], id="5 million bytes"),
        pytest.param(["\udcff\nx\n"], f"!{ODD}\n-", [ODD, "X"], id="not UTF-8"),
        pytest.param(["\u4f60\u3000\u597d\n"], "-", ["\u4f60\u3000\u597d"], id="Chinese"),
        pytest.param(["\xa0\u200d\U0001fae8\n"], "-", ["\xa0\u200d\U0001fae8"], id="new emoji"),
        pytest.param(["\x1b[2J\rA\tB\x7f\n"], "-", [r"\x1b[2J\rA\tB\x7f"], id="terminal codes"),
        pytest.param(["\x80\x9f\u2028\u2029.\n"], "-", [r"\x80\x9f\u2028\u2029."], id="C1, lines"),
        pytest.param(["\u202a\u202e\u2066\u2069\n"], "-", [r"\u202a\u202e\u2066\u2069"], id="bidi"),
    ],
)
def test_each_message_has_one_reply_and_is_shown_as_one_line(sent, replies, shown):
    with running() as server:
        pieces = [piece.encode(errors="surrogateescape") for piece in sent]
        assert server.send(*pieces) == replies.encode()
        results = r"(?:Processed result: Hello|refused\. Error :) (.*)"
        assert re.findall(results, server.stop()) == shown


@pytest.mark.parametrize(
    ("last", "more"),
    [
        pytest.param(b"--quit--\n", b"", id="quit and silent"),
        pytest.param(b"a" * 5121, b"a" * 10**6, id="too long and sending on"),
    ],
)
def test_a_client_that_has_quit_or_sent_too_much_is_closed_after_about_a_second(last, more):
    with running() as server, server.connect() as client, client.makefile("rb") as replies:
        client.sendall(last)
        assert replies.read() == (f"!{LONG}\n".encode() if more else b"")
        start = time.monotonic()
        with contextlib.suppress(ConnectionError):  # It is closed meanwhile.
            while more and time.monotonic() < start + TIMEOUT:
                client.sendall(more)
        server.join_clients()
        assert 0.5 < time.monotonic() - start < 4


# Many at once


def test_a_crowd_of_newcomers_is_served_at_once_and_their_lines_stay_whole():
    unbuffered = "export PYTHONUNBUFFERED=1"  # Then each write gives other threads a turn.
    with serve(before=unbuffered) as (server, first), contextlib.ExitStack() as stack:
        crowd = [socket.create_connection(first.getpeername(), TIMEOUT) for _ in range(3 * MANY)]
        start = time.monotonic()
        for client in crowd:
            stack.enter_context(client).sendall(b"Zack\n")
        assert [client.recv(1) for client in crowd] == [b"-"] * len(crowd)
        assert time.monotonic() < start + 10
        shown = os.read(server.stdout.fileno(), 65536).decode()
        assert shown.count(f"{PROCESSING}Processed result: Hello ZACK\n") == len(crowd)


def test_as_many_clients_as_the_system_allows_wait_to_be_accepted():
    with server_thread1.open_listener(port=0) as listener, contextlib.ExitStack() as stack:
        for _ in range(MANY):  # listen(6) would have the eighth wait for a second or more.
            stack.enter_context(socket.create_connection(listener.getsockname(), timeout=0.9))


@pytest.mark.skipif(MANY < 50, reason="too few descriptors are allowed")
def test_with_more_clients_threads_ask_less_often_for_the_gil_until_it_stops():
    interval = sys.getswitchinterval()
    with running() as server, contextlib.ExitStack() as stack:
        for _ in range(MANY):
            greet(stack.enter_context(server.connect()))
        assert sys.getswitchinterval() > interval
        server.stop()
        assert sys.getswitchinterval() == interval


def test_a_client_that_reads_no_replies_holds_up_no_other_and_no_stop(monkeypatch):
    monkeypatch.setattr(server_thread1, "STOP_TIMEOUT", 0.1)
    with running() as server, server.connect() as deaf:
        deaf.setblocking(False)
        while select.select([], [deaf], [], 0.3)[1]:  # until its replies have filled all buffers
            deaf.send(b"\xff\n" * 10_000)
        assert server.send(b"Zack\n") == b"-"
        assert server.stop().endswith("Server stopped\n")


# Faults


def test_what_was_received_is_served_although_the_client_left_without_reading():
    with running() as server:
        with server.connect() as client:
            client.sendall(b"a\n" * 2000 + b"--quit--\nb\n")
        server.send(b"")  # By now the client before it is accepted.
        server.join_clients()
        shown = server.stop()
    assert shown.count("Hello A\n") == 2000
    assert "Client is requesting to quit\nConnection " in shown
    assert "Hello B" not in shown


def test_a_reset_is_told_with_its_reason():
    with running() as server:
        with server.connect() as client:
            greet(client)
            client.setsockopt(*RESET)
        server.join_clients()
        assert re.search(r"(Connection .*) failed\. Error : .*reset.*\n\1 closed\n", server.stop())


def test_a_vanished_peer_is_found_out_and_no_reply_waits_for_the_one_before():
    with running() as server:
        before = open_descriptors()
        with server.connect() as client:
            greet(client)
            (number,) = open_descriptors() - before - {client.fileno()}
            with socket.socket(fileno=os.dup(number)) as servers_side:
                assert servers_side.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
                assert servers_side.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_process_input_may_refuse_a_message_and_another_error_ends_its_client_alone(monkeypatch):
    errors = []
    monkeypatch.setattr(threading, "excepthook", errors.append)
    monkeypatch.setattr(server_thread1, "process_input", lambda text: str(1 / int(text)))
    with running() as server:
        assert server.send(b"a\n1\n") == b"!invalid literal for int() with base 10: 'a'\n-"
        assert server.send(b"0\n1\n") == b""
    assert [error.exc_type for error in errors] == [ZeroDivisionError]


@pytest.mark.parametrize("name", ["ENONET", "EMFILE", "EPERM", "ECONNABORTED"])
def test_an_error_of_accept_ends_nothing_and_is_told_once(monkeypatch, name):
    accept, errors = socket.socket.accept, [OSError(getattr(errno, name), name)] * 3

    def accept_that_fails_first(listener):
        if errors:
            raise errors.pop()
        return accept(listener)[0], None  # macOS has no address of a client that has left.

    monkeypatch.setattr(server_thread1, "ACCEPT_TIMEOUT", 0.01)
    monkeypatch.setattr(socket.socket, "accept", accept_that_fails_first)
    with running() as server:
        assert server.send(b"Zack\n") == b"-"
        assert server.stop().count("clients have to wait") == (name != "ECONNABORTED")


def test_out_of_descriptors_it_says_so_and_serves_later():
    with serve(before="ulimit -n 20") as (server, first), contextlib.ExitStack() as stack:
        crowd = [socket.create_connection(first.getpeername(), TIMEOUT) for _ in range(20)]
        *others, last = [stack.enter_context(client) for client in crowd]
        read_until(server.stdout, b"New clients have to wait. Error : [Errno 24] ")
        for client in others:
            client.close()
        greet(last)


def test_a_thread_that_cannot_start_closes_its_client_alone(monkeypatch):
    def start_that_fails(_):
        raise RuntimeError("no more threads")

    with running() as server:
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", start_that_fails)
            with server.connect() as client:
                assert client.recv(1) == b""
        assert server.send(b"Zack\n") == b"-"
        shown = server.stop()
    assert re.search(r"not start\. Error : no more threads\nConnection .* closed\n", shown)


@pytest.mark.parametrize(
    ("console", "shown"),
    [
        pytest.param("exec >/dev/full", b"", id="full"),
        pytest.param("exec >&-", b"", id="closed"),
        pytest.param(":", b"", id="closed later"),
        pytest.param("exec 2>&-", "Hello ZO\u00cb".encode(), id="no error output"),
        pytest.param("exec <&-", "Hello ZO\u00cb".encode(), id="no input"),
        pytest.param("export PYTHONIOENCODING=ascii", rb"Hello ZO\xcb", id="lacks a letter"),
    ],
)
def test_no_console_costs_a_client_its_reply_or_changes_the_status(console, shown):
    with serve(before=console) as (server, client):
        if console == ":":
            server.stdout.close()
        client.sendall("Zo\u00eb\n".encode())
        assert client.recv(1) == b"-"
        assert end(server, signal.SIGTERM) == (0, b"")
        assert server.stdout.closed or shown in server.stdout.read()


def test_a_slow_console_is_waited_for_and_loses_nothing():
    ours, theirs = os.pipe()
    os.set_blocking(theirs, False)  # as a program that shares it may leave it
    with open(ours, "rb", 0) as reader, serve(stdout=theirs) as (_, client):
        os.close(theirs)
        client.sendall((b"a" * 5000 + b"\n") * 25 + b"--quit--\n")
        replies = client.recv(1)
        while select.select([client], [], [], 0.2)[0]:  # until the pipe is full
            replies += client.recv(5120) or pytest.fail("no reply waits for the console")
        shown = b""
        while b"requesting to quit\n" not in shown:
            assert select.select([reader], [], [], TIMEOUT)[0]
            shown += os.read(ours, 5120)
        assert len(replies) <= 65536 // 5000, "a reply came before its lines were written"
        assert replies + client.makefile("rb").read() == b"-" * 25
        assert shown.count(b"Processed result: Hello " + b"A" * 5000 + b"\n") == 25


# Stopping


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["Ctrl-C", "SIGTERM"])
def test_a_signal_or_two_stop_it_and_its_clients_are_told(number):
    with serve() as (server, client):
        greet(client)
        server.send_signal(number)
        assert end(server, number) == (0, b"")
        assert client.recv(1) == b""
        assert server.stdout.read().endswith(b" closed\nServer stopped\n")


def test_a_signal_that_is_ignored_from_the_start_stays_ignored():
    with serve(before="trap '' INT") as (server, client):
        server.send_signal(signal.SIGINT)
        with pytest.raises(subprocess.TimeoutExpired):
            server.wait(1)
        greet(client)
        assert end(server, signal.SIGTERM) == (0, b"")


def test_a_signal_stops_it_although_its_console_is_paused():
    ours, theirs = os.pipe()
    with (
        open(ours, "rb", 0) as reader,
        open(theirs, "wb", 0) as writer,
        serve(stdout=writer) as (server, client),
    ):
        read_until(reader, b"Connected with ")
        os.set_blocking(theirs, False)
        while writer.write(b"x"):  # until the pipe is full, like a terminal after Ctrl-S
            pass
        os.set_blocking(theirs, True)
        client.sendall(b"Zack\n")
        with serve(stdout=writer) as (paused_from_the_start, _):
            paused_from_the_start.send_signal(signal.SIGINT)
            assert end(server, signal.SIGTERM) == (0, b"")
            assert paused_from_the_start.wait(TIMEOUT) == 0


def test_it_ends_as_python_does_so_that_tools_which_wrap_it_work():
    code = "import atexit, server_thread1; atexit.register(print, 'bye'); server_thread1.main()"
    with run("-c", code, "--port", 0) as server:
        read_until(server.stdout, b"listening")
        assert end(server, signal.SIGINT) == (0, b"")
        assert server.stdout.read().endswith(b"Server stopped\nbye\n")


@pytest.mark.parametrize("behind", [b"two\n", b"two"], ids=["a line", "half a line"])
@pytest.mark.parametrize("patience", [TIMEOUT, 0.5], ids=["in time", "too late"])
def test_a_stop_waits_for_the_message_in_hand_alone(monkeypatch, behind, patience):
    begun, go_on, taken = threading.Event(), threading.Event(), []

    def process_input(text):
        taken.append(text)
        begun.set()
        return str(go_on.wait(TIMEOUT))

    monkeypatch.setattr(server_thread1, "STOP_TIMEOUT", patience)
    monkeypatch.setattr(server_thread1, "process_input", process_input)
    with running() as server, server.connect() as idle, server.connect() as client:
        client.sendall(b"one\n" + behind)
        assert begun.wait(TIMEOUT)
        server.listener.close()
        assert idle.recv(1) == b""
        if patience < 1:
            assert server.stop().endswith("Server stopped\n")
        go_on.set()
        assert client.makefile("rb").read() == (b"-" if patience > 1 else b"")
    assert taken == ["one"]


def test_it_can_be_started_again_at_once_on_the_same_port():
    with running() as server, server.connect() as client:
        client.sendall(b"--quit--\n")
        assert client.recv(1) == b""  # The server has closed first, so its side is in TIME_WAIT.
        server.stop()
        server_thread1.open_listener(port=server.address[1]).close()


def test_ipv6_is_served_and_shown_in_brackets():
    if not socket.has_dualstack_ipv6():
        pytest.skip("no IPv6 on this machine")
    with running("::1") as server:
        assert server.send(b"Zack\n") == b"-"
        address = f"[::1]:{server.address[1]}"
        assert f"listening on {address}\nConnected with [::1]:" in server.stop()


@pytest.mark.parametrize("host", ["", "localhost"])
def test_a_client_without_options_meets_a_server_on_all_addresses_and_on_localhost(host):
    with running(host) as server:
        server.address = "127.0.0.1", server.address[1]
        assert server.send(b"Zack\n") == b"-"


# The client


def accept(listener):
    """Return the connection of the next client, on which no wait is endless."""
    listener.settimeout(TIMEOUT)
    connection, _ = listener.accept()
    connection.settimeout(TIMEOUT)
    return connection


def talk(typed, replies=b"", gone=False, script=("client_thread1.py",), **how):
    """Run the client on typed text and a server's replies, after which the server may be gone.

    Return the exit status, what the client shows, its error output, and what it has sent.
    """
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        run(*script, "--port", listener.getsockname()[1], **how) as client,
    ):
        with contextlib.suppress(BrokenPipeError):  # It may have no input.
            client.stdin.write(typed.encode(errors="surrogateescape"))
        client.stdin.close()
        with accept(listener) as connection:
            connection.sendall(replies)
            if gone:
                connection.shutdown(socket.SHUT_WR)
            sent = connection.makefile("rb").read()
        status = client.wait(TIMEOUT)
        return status, client.stdout.read(), client.stderr.read().decode(), sent


@pytest.mark.parametrize(
    ("typed", "replies", "shown", "sent"),
    [
        pytest.param("Zack\n\nquit\nx\n", "--", " ->  ->  -> ", "Zack\n\n", id="quit"),
        pytest.param("a\nquit \n", "-", " ->  -> ", "a\n", id="quit and a blank"),
        pytest.param("Zack \n--Quit--\n", "-", " ->  -> ", "Zack\n", id="--quit--"),
        pytest.param("Zack", "-", " ->  -> \n", "Zack\n", id="the end of a pipe"),
        pytest.param("QUIT\n", "-", " ->  -> \n", "QUIT\n", id="no quit"),
        pytest.param("a\n", "!\x1b[2J\n", " -> Refused: \\x1b[2J\n -> \n", "a\n", id="refused"),
        pytest.param("a" * 5121, "", f" -> Not sent: {LONG}\n -> \n", "", id="too long"),
        pytest.param("a" * 5120, "-", " ->  -> \n", "a" * 5120 + "\n", id="not too long"),
        pytest.param("\udcff", f"!{ODD}\n", f" -> Refused: {ODD}\n -> \n", "\udcff\n", id="odd"),
    ],
)
def test_it_sends_each_line_waits_for_the_reply_and_says_good_bye(typed, replies, shown, sent):
    shown = f"Please enter 'quit' to exit\n{shown}".encode()
    sent = f"{sent}--quit--\n".encode(errors="surrogateescape")
    assert talk(typed, replies=replies.encode()) == (0, shown, "", sent)


@pytest.mark.parametrize(
    ("replies", "said"),
    [
        pytest.param(b"-", "the server closed the connection", id="closed"),
        pytest.param(b"-S", "no reply but b'S'", id="strange"),
        pytest.param(b"-!", "no reply but b'!'", id="cut off"),
    ],
)
def test_that_the_server_is_gone_is_said_with_the_next_line_typed(replies, said):
    status, _, errors, sent = talk("Zack\n" * 3, replies=replies, gone=True)
    assert (status, errors) == (1, f"Connection Error: {said}\n")
    assert sent == b"Zack\nZack\n--quit--\n"


def test_a_mute_server_is_given_up():
    code = "import client_thread1; client_thread1.TIMEOUT = 0.2; client_thread1.main()"
    status, _, errors, _ = talk("Zack\n", script=("-c", code))
    assert (status, errors) == (1, "Connection Error: timed out\n")


@pytest.mark.parametrize(
    ("console", "status", "said"),
    [
        pytest.param("exec <&-", 0, "", id="no input"),
        pytest.param("exec >&-", 0, "", id="no output"),
        pytest.param("exec 2>&-", 0, "", id="no error output"),
        pytest.param("exec >/dev/full", 1, "Console Error: [Errno 28] ", id="full"),
    ],
)
def test_a_console_that_fails_is_told_and_so_is_the_server(console, status, said):
    ended, _, errors, sent = talk("Zack\n", replies=b"-", before=console)
    assert (ended, errors.startswith(said), errors.count("\n")) == (status, True, status)
    assert sent.endswith(b"--quit--\n")


def test_it_ends_when_nobody_reads_what_it_shows():
    with (
        serve() as (_, other),
        run("client_thread1.py", "--port", other.getpeername()[1]) as client,
    ):
        read_until(client.stdout, b" -> ")
        client.stdout.close()
        with contextlib.suppress(BrokenPipeError):
            client.stdin.write(b"y\n" * 10_000)
        assert client.wait(TIMEOUT) == 1
        assert client.stderr.read() == b"Console Error: [Errno 32] Broken pipe\n"


@pytest.mark.skipif(FILES < 1200, reason="too few descriptors are allowed")
def test_it_runs_with_more_descriptors_than_select_takes():
    with contextlib.ExitStack() as stack:
        for _ in range(1100):
            stack.enter_context(open(os.devnull))
        low_numbers = open_descriptors() - {0, 1, 2}
        assert talk("Zack\nquit\n", replies=b"-", pass_fds=low_numbers)[0] == 0


@contextlib.contextmanager
def terminal(port):
    """Run the client in a terminal, and see that it ends in order and leaves it as it was."""
    keyboard, tty = os.openpty()
    modes = termios.tcgetattr(tty)
    with open(keyboard, "r+b", 0) as screen, open(tty, "r+b", 0) as window:
        script = ["client_thread1.py", "--port", port]
        with run(*script, stdin=window, stdout=window, stderr=window) as client:
            read_until(screen, b" -> ")
            yield client, screen
            assert client.wait(TIMEOUT) == 0
        assert termios.tcgetattr(tty) == modes
        os.set_blocking(keyboard, False)
        assert b"Traceback" not in (screen.read(5120) or b"")


def interrupt(client, keyboard, number):
    """Send a signal, and Enter, since CPython may miss a signal just before input() waits."""
    client.send_signal(number)
    keyboard.write(b"\n")


@pytest.mark.parametrize("way", [b"quit\r", b"\x04", "SIGINT", "SIGTERM", "SIGHUP"])
def test_every_way_out_tells_the_server_and_leaves_the_terminal_as_it_was(way):
    with running() as server:
        with terminal(server.address[1]) as (client, screen):
            screen.write(b"Zack\r")
            read_until(screen, b"\r\n -> ")
            if isinstance(way, bytes):
                screen.write(way)
            else:
                interrupt(client, screen, getattr(signal, way))
        server.join_clients()
        assert "Client is requesting to quit" in server.stop()


def test_keys_edit_the_line_and_a_newline_within_it_is_not_sent():
    if "GNU" not in (pytest.importorskip("readline").__doc__ or ""):
        pytest.skip("only GNU readline has these keys")
    with running() as server:
        with terminal(server.address[1]) as (_, screen):
            for keys, shown in [
                (b"Zack\r", b"\r\n -> "),
                (b"\x1b[A\x1b[D!\r", b"\r\n -> "),  # up, left
                (b"a\x16\n--quit--\r", b"Not sent: message over one line\r\n -> "),  # Ctrl-V Ctrl-J
                (b"\x04", b""),
            ]:
                screen.write(keys)
                read_until(screen, shown)
        assert "Hello ZAC!K\n" in server.stop()


@pytest.mark.parametrize("moment", ["close", "reset", "byte"])
def test_ctrl_c_is_no_error_whatever_the_server_does_at_the_moment(moment):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        with terminal(port) as (client, screen), accept(listener) as connection:
            interrupt(client, screen, signal.SIGINT)
            if moment == "byte":
                connection.sendall(b"-")
            elif moment == "reset":
                connection.setsockopt(*RESET)


def test_a_second_ctrl_c_ends_the_good_bye_with_status_130():
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        run("client_thread1.py", "--port", listener.getsockname()[1]) as client,
        accept(listener) as connection,
    ):
        read_until(client.stdout, b" -> ")
        interrupt(client, client.stdin, signal.SIGINT)
        assert connection.makefile("rb").readline() == b"--quit--\n"
        assert end(client, signal.SIGINT) == (130, b"")


# The command line


@pytest.mark.parametrize(
    ("script", "options", "status", "said"),
    [
        pytest.param("server", "--port TAKEN", 1, "^Bind failed. Error : .* in use", id="in use"),
        pytest.param("server", "--host x.invalid", 1, "^Bind failed. Error : ", id="no host"),
        pytest.param("server", "--host a..b", 1, "^Bind failed. Error : ", id="no host name"),
        pytest.param("server", "--port -1", 2, "argument --port: not in 0 to 65535", id="no port"),
        pytest.param("server", "--help", 0, r"(?s)127\.0\.0\.1.*8000", id="help of the server"),
        pytest.param("client", "--port 1", 1, "^Connection Error: .* refused\n$", id="no server"),
        pytest.param("client", "--host a..b", 1, "^Connection Error: ", id="not a host name"),
        pytest.param("client", "--port 65536", 2, "argument --port: not in 0 to", id="not a port"),
        pytest.param("client", "--help", 0, r"(?s)127\.0\.0\.1.*8000", id="help of the client"),
    ],
)
def test_what_is_wrong_is_told_in_a_line_with_its_status(script, options, status, said):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        with run(f"{script}_thread1.py", *options.replace("TAKEN", port).split()) as process:
            assert process.wait(TIMEOUT) == status
            assert re.search(said, (process.stdout.read() + process.stderr.read()).decode())

"""What the server and the client do, in the order of the README."""

import contextlib
import errno
import io
import os
import pty
import re
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import types
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import client_thread1
import server_thread1

pytestmark = pytest.mark.filterwarnings("error")  # an exception that ends a thread is a warning
HERE = Path(__file__).parent
DEADLINE = 10  # seconds that a wait may take before it fails with what it saw
PROCESSING = "Processing the input received from client\n"
RESULT = PROCESSING + "Processed result: Hello "
PORT = re.compile(r"(?<=127\.0\.0\.1:)\d+")


class Console(io.StringIO):
    """Collects what any thread writes, and can be waited on."""

    changed = threading.Condition()

    def write(self, text):
        for part in text.splitlines(keepends=True):  # apart: it is no safer than a TextIOWrapper
            os.sched_yield()
            with self.changed:
                super().write(part)
                self.changed.notify_all()

    def wait_for(self, text, times=1):
        with self.changed:
            self.changed.wait_for(lambda: self.getvalue().count(text) >= times, DEADLINE)
            shown = self.getvalue()
        assert shown.count(text) >= times, f"{text!r} is not {times} times in {shown!r}"
        return shown

    def follow(self, descriptor):
        with contextlib.suppress(OSError):  # EIO is how a terminal ends on Linux
            while data := os.read(descriptor, 4096):
                self.write(data.decode())


class Server:
    """A server in a thread: it listens before the thread starts, and is asked for its address."""

    def __init__(self, console, listener=None):
        self.console = console
        self.listener = listener or server_thread1.open_listener(port=0)
        self.address = self.listener.getsockname()[:2]
        self.pool = ThreadPoolExecutor(1)
        self.done = self.pool.submit(server_thread1.start_server, self.listener)

    def stop(self):
        server_thread1.stop_server(self.listener)
        self.done.result(DEADLINE)
        self.pool.shutdown()

    def connect(self):
        return socket.create_connection(self.address, DEADLINE)

    def exchange(self, *pieces):
        """Send the pieces, each but the first after a reply; return all replies, the console."""
        closed, replies = self.console.getvalue().count("closed\n"), b""
        with self.connect() as soc:
            for piece in pieces:
                replies += read(soc, 1) if piece is not pieces[0] else b""
                soc.sendall(piece)
            soc.shutdown(socket.SHUT_WR)
            replies += read(soc)
        return replies, self.console.wait_for("closed\n", closed + 1)


def read(soc, count=10**6):
    """Read as many bytes, or to the end."""
    data = b""
    while len(data) < count and (more := soc.recv(min(count - len(data), 65536))):
        data += more
    return data


def wait_until(condition):
    deadline = time.monotonic() + DEADLINE
    while not (seen := condition())[0]:
        assert time.monotonic() < deadline, seen
        os.sched_yield()


@pytest.fixture
def console(monkeypatch):
    """The server's console: a sys of its own, since pytest sets sys.stdout anew for each test."""
    console = Console()
    sys_with_console = types.SimpleNamespace(**vars(sys) | {"stdout": console})
    monkeypatch.setattr(server_thread1, "sys", sys_with_console)
    return console


@pytest.fixture
def server(console):
    """A running server, of which neither a thread nor a descriptor may be left in the end."""
    before = os.listdir("/dev/fd")
    server = Server(console)
    yield server
    server.stop()
    wait_until(lambda: (set(now := os.listdir("/dev/fd")) <= set(before), now))
    wait_until(lambda: ("client_thread" not in str(names := threading.enumerate()), names))


@pytest.fixture
def script():
    """Start a script as a user would, its output on a pipe or on the screen of a terminal."""
    with contextlib.ExitStack() as stack:

        def start(name, *args, screen=None, **streams):
            env = {k: v for k, v in os.environ.items() if k != "PYTHONUNBUFFERED"}
            env["TERM"] = "dumb"  # no codes around the prompt
            argv = [sys.executable, HERE / f"{name}_thread1.py", *map(str, args)]
            streams = dict.fromkeys(["stdin", "stdout", "stderr"], subprocess.PIPE) | streams
            process = stack.enter_context(subprocess.Popen(argv, env=env, **streams))
            process.console = Console()
            if screen:
                stack.callback(os.close, screen)
            if source := screen or (process.stdout and process.stdout.fileno()):
                reader = threading.Thread(target=process.console.follow, args=[source])
                reader.start()
                stack.callback(reader.join)
            stack.callback(process.kill)  # first of all
            return process

        yield start


def ends(process, status=0):
    """Wait for the end of a script and return what it said on stderr."""
    assert process.wait(DEADLINE) == status, process.stderr.read()
    return process.stderr.read().decode()


def port_of(console):
    return int(PORT.search(console.wait_for("\n", 2))[0])


@pytest.fixture
def type_in(monkeypatch):
    """Run the client on an input and a server's replies; return what it showed and sent."""

    def run(typed, replies, gone=False):
        ours, theirs = socket.socketpair()
        monkeypatch.setattr(socket, "create_connection", lambda *_: ours)
        monkeypatch.setattr(client_thread1, "GOODBYE", 0.01)
        ours.settimeout(0.1)
        monkeypatch.setattr(sys, "argv", ["client_thread1.py"])
        monkeypatch.setattr(sys, "stdin", typed)
        with theirs, contextlib.redirect_stdout(io.StringIO()) as shown:
            theirs.sendall(replies)
            if gone:
                theirs.shutdown(socket.SHUT_WR)
            client_thread1.main()
            return shown.getvalue(), read(theirs)

    return run


# Running the two scripts


def test_three_clients_see_the_session_that_the_readme_shows(script):
    shown = re.findall(r"(?s)```console\n\$ python (.*?)```", (HERE / "README.md").read_text())
    (first, expected), *windows = [window.partition("\n")[::2] for window in shown]
    server = script("server", "--port", 0)
    assert [first, *dict(windows)] == ["server_thread1.py", "client_thread1.py"]
    assert len(windows) == 3
    for _, window in windows:
        client = script("client", "--port", port_of(server.console))
        client.console.wait_for(" -> ")
        for number, line in enumerate(re.findall(r"(?m)^ -> (.+)$", window), 2):
            os.write(client.stdin.fileno(), f"{line}\n".encode())
            client.console.wait_for(" -> ", number) if line != "quit" else ends(client)
        server.console.wait_for("closed", window.count("quit\n"))
        # A terminal echoes what is typed, a pipe does not.
        assert client.console.getvalue().split() == re.sub(r"(?m)(?<= -> ).+$", "", window).split()
    shown = server.console.wait_for("ANOTHNY\n")
    assert PORT.sub("PORT", shown) == PORT.sub("PORT", expected)


@pytest.mark.parametrize("main", [server_thread1.main, client_thread1.main])
def test_help_tells_the_defaults_and_a_port_that_cannot_be_is_an_error(main, monkeypatch, capsys):
    for words, said in [
        ("--help", r"(?s)--host .*\(127\.0\.0\.1\).*--port .*\(8000\)"),
        ("--port -1", "error: argument --port: not in 0 to 65535"),
        ("--port 65536", "error: argument --port: not in 0 to 65535"),
        ("--port http", "error: argument --port: "),
    ]:
        monkeypatch.setattr(sys, "argv", ["script", *words.split()])
        with pytest.raises(SystemExit, match="0" if words == "--help" else "2"):
            main()
        assert re.search(said, "".join(capsys.readouterr()))


def test_both_are_for_127_0_0_1_port_8000_unless_told_otherwise(monkeypatch):
    asked = []

    def interrupt(host, port, *_, **__):
        asked.append((host, port))
        raise KeyboardInterrupt

    monkeypatch.setattr(socket, "getaddrinfo", interrupt)
    monkeypatch.setattr(sys, "argv", ["client_thread1.py"])
    with pytest.raises(KeyboardInterrupt):
        server_thread1.start_server()
    with pytest.raises(SystemExit, match="130"):
        client_thread1.main()
    assert asked == 2 * [("127.0.0.1", 8000)]


def test_ipv6_is_served_and_shown_in_brackets(console):
    server = Server(console, server_thread1.open_listener("::1", 0))
    shown = server.exchange(b"Zack\n")[1]
    assert f"listening on [::1]:{server.address[1]}\nConnected with [::1]:" in shown
    server.stop()


def test_what_keeps_the_server_from_listening_is_told_in_a_line(server, monkeypatch):
    def listen(_, backlog):
        assert backlog == socket.SOMAXCONN
        raise OSError(errno.EADDRINUSE, "taken between bind() and listen()")

    monkeypatch.setattr(socket.socket, "listen", listen)
    monkeypatch.setattr(server_thread1.sys, "stdout", io.TextIOWrapper(io.BytesIO(), "ascii"))
    for args, said in [
        ({"--host": "..", "--port": "0"}, "label"),
        ({"--port": "0"}, "between"),
        ({"--port": str(server.address[1])}, "in use"),
    ]:
        monkeypatch.setattr(sys, "argv", ["", *sum(args.items(), ())])
        with pytest.raises(SystemExit, match=rf"^Bind failed\. Error : .*{said}"):
            server_thread1.main()
    assert server_thread1.sys.stdout.errors == "backslashreplace"


@pytest.mark.parametrize(("system", "reuse", "poll"), [("posix", 1, None), ("nt", 0, 0.5)])
def test_only_posix_reuses_an_address_and_only_windows_polls(system, reuse, poll):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "name", system)
        listener = server_thread1.open_listener(port=0)
    with listener:
        assert listener.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR) == reuse
        assert listener.gettimeout() == poll


# What goes over the wire


def test_sixty_clients_at_once_get_their_replies_and_so_does_the_script(server, script):
    def talk(name):
        with server.connect() as soc:
            for number in range(4):
                soc.sendall(b"%s-%d\n" % (name, number))
                assert read(soc, 1) == b"-"
            soc.sendall(b"--quit--\n")
            return read(soc)

    real = script("client", "--port", server.address[1])
    names = [b"client%02d" % number for number in range(60)]
    with ThreadPoolExecutor(60) as pool:
        assert list(pool.map(talk, names)) == [b""] * 60
    real.communicate(b"Zack\n", DEADLINE)
    shown = server.console.wait_for("closed\n", 61)
    for name in [f"{name.decode().upper()}-{number}" for name in names for number in range(4)]:
        assert shown.count(f"{RESULT}{name}\n") == 1
    assert shown.count(f"{PROCESSING}Client is requesting to quit\n") == 61
    assert shown.count("\n") == 2 + 61 * 4 + (60 * 4 + 1) * 2


@pytest.mark.parametrize(
    ("pieces", "replies", "results"),
    [
        ([b"Zack\n"], b"-", ["ZACK"]),
        ([b"one\ntwo"], b"--", ["ONE", "TWO"]),
        ([b"one\r\ntwo \t\r\n"], b"--", ["ONE", "TWO"]),
        ([b"\n\n"], b"--", ["", ""]),
        ([b"hi"], b"-", ["HI"]),
        ([b""], b"", []),
        ([b"hello--quit--\n"], b"-", ["HELLO--QUIT--"]),
        ([b"please type --quit-- to leave\n"], b"-", ["PLEASE TYPE --QUIT-- TO LEAVE"]),
        (["--quıt--\n".encode()], b"-", ["--QUIT--"]),
        ([b"one\n--Quit-- \r\ntwo\n"], b"-", ["ONE"]),
        # The article's client, which sends no newlines, and what a newline changes.
        ([b"Zack", b"Python", b"--quit--"], b"--", ["ZACK", "PYTHON"]),
        ([b"world!", b"one\nAnoth", b"ny\n"], b"---", ["WORLD!", "ONE", "ANOTHNY"]),
    ],
)
def test_a_message_gets_one_reply_and_quit_gets_none(server, pieces, replies, results):
    got, shown = server.exchange(*pieces)
    assert got == replies
    assert re.findall(r"Processed result: Hello (.*)", shown) == results
    quits = len(re.findall(rb"(?im)^--quit--\s*$", b"\n".join(pieces)))
    assert shown.count("Client is requesting to quit\n") == quits
    assert "failed" not in shown


def test_a_message_in_pieces_is_one_message(server):
    with server.connect() as soc:
        soc.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        soc.sendall(b"first\n")
        assert read(soc, 1) == b"-"
        for byte in "zwölf\n".encode():
            soc.sendall(bytes([byte]))
        assert read(soc, 1) == b"-"
    server.console.wait_for(f"{RESULT}ZWÖLF\n")


@pytest.mark.parametrize("size", [5088, 5120])
def test_a_message_of_5120_bytes_is_taken_whatever_ends_its_line(server, size):
    text = "a" * size
    replies, shown = server.exchange(f"{text}\r\n{text}\n{text}\r".encode())
    assert replies == b"---"
    assert shown.count(f"{RESULT}{text.upper()}\n") == 3


@pytest.mark.parametrize("start", [b"", b"one\n"])
@pytest.mark.parametrize("rest", [b"", b"a\r\n", b"a" * 5_000_000])
def test_a_longer_message_is_refused_as_soon_as_that_is_known(server, start, rest):
    with server.connect() as soc:
        soc.sendall(start + b"a" * 5121 + rest)  # no end: it is not waited for
        assert read(soc) == b"-"[: len(start)] + b"!message over 5120 bytes\n"
        name = "{}:{}".format(*soc.getsockname())
    shown = server.console.wait_for("closed\n")
    assert f"\nMessage from {name} refused. Error : message over 5120 bytes\nConn" in shown


@pytest.mark.parametrize("drip", [b"", b"a"])
def test_a_refused_client_that_does_not_leave_is_left(server, monkeypatch, drip):
    def left():
        with contextlib.suppress(ConnectionError):
            soc.sendall(drip)
        return "closed\n" in server.console.getvalue(), None

    monkeypatch.setattr(server_thread1, "LINGER", 0.1)
    with server.connect() as soc:
        soc.sendall(b"a" * 5121)
        wait_until(left)


def test_bytes_that_are_not_utf8_are_refused_and_the_connection_goes_on(server):
    replies, shown = server.exchange(b"one\n\xff\n" + "Zoë\n".encode())
    assert re.fullmatch(rb"-!.* byte 0xff in position 0: .*\n-", replies)
    assert re.search(r"\nMessage from \S+ refused\. Error : .* byte 0xff .*\n", shown)
    assert f"{RESULT}ZOË\n" in shown


# The console


@pytest.mark.parametrize(
    ("sent", "shown"),
    [
        ("\x1b[2J \x9b3m \u2028\u202e", r"\x1b[2J \x9b3M \u2028\u202e"),
        ("a\rConnected with x", r"A\rCONNECTED WITH X"),
        ("grüß dich", "GRÜSS DICH"),
    ],
)
def test_a_client_can_neither_forge_a_line_nor_drive_the_terminal(server, sent, shown):
    assert f"{RESULT}{shown}\n" in server.exchange(sent.encode() + b"\nend\n")[1]


@pytest.mark.parametrize("crowd", [0, 1000])
def test_only_a_crowd_of_threads_waits_in_line_for_the_console(console, monkeypatch, crowd):
    monkeypatch.setattr(server_thread1, "CROWD", crowd)
    line = server_thread1.CONSOLE_LINE
    with ThreadPoolExecutor(20) as pool, server_thread1.in_turn(), server_thread1.CONSOLE:
        for number in range(20):
            pool.submit(server_thread1.show, str(number))
            wait_until(lambda count=number + 2: (crowd or len(line) == count, line))
        assert len(line) == (1 if crowd else 21)
    shown = console.getvalue().split()
    assert (sorted(shown, key=int) if crowd else shown) == [str(number) for number in range(20)]


@pytest.mark.parametrize("method", ["write", "flush"])
@pytest.mark.parametrize("error", [OSError("full"), ValueError("closed"), AttributeError("None")])
def test_a_console_that_takes_no_line_costs_no_client_its_reply(server, monkeypatch, method, error):
    def fail(*_):
        raise error

    server.console.wait_for("\n", 2)
    monkeypatch.setattr(server.console, method, fail)
    with server.connect() as soc:
        soc.sendall(b"one\ntwo\n")
        assert read(soc, 2) == b"--"


def test_nor_does_one_that_lacks_a_letter_or_goes_away(script, monkeypatch):
    monkeypatch.setenv("PYTHONIOENCODING", "ascii")
    reader, writer = os.pipe()
    server = script("server", "--port", 0, stdout=writer)
    os.close(writer)
    with open(reader, encoding="ascii") as window:
        port = int(PORT.search(window.readline() + window.readline())[0])
        soc = socket.create_connection(("127.0.0.1", port), DEADLINE)
        soc.sendall("Zoë\n".encode())
        assert [window.readline() for _ in range(3)][2] == "Processed result: Hello ZO\\xcb\n"
    with soc:
        soc.sendall(b"Zack\n--quit--\n")
        assert read(soc) == b"--"
    server.terminate()
    assert ends(server) == ""


# Clients that misbehave, and a system that is short of something


def test_a_reset_is_told_with_its_reason_and_the_connection_closed_once(server):
    with server.connect() as soc:
        server.console.wait_for("Connected")
        soc.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    shown = server.console.wait_for("closed\n")
    assert re.search(
        r"\nConnection (\S+) failed\. Error : .*reset.*\nConnection \1 closed\n", shown
    )


def test_a_connection_is_kept_alive(server, monkeypatch):
    kept = []

    def answer(connection, *_):
        kept.append(connection.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE))

    monkeypatch.setattr(server_thread1, "answer_messages", answer)
    server.exchange(b"")
    assert kept == [1]


class Troubled(socket.socket):
    """A listener whose accept() raises the given errors first."""

    def __init__(self, *errors):
        super().__init__(fileno=server_thread1.open_listener(port=0).detach())
        self.errors = list(errors)

    def accept(self):
        if self.errors:
            raise self.errors.pop(0)
        return super().accept()


LACK = [OSError(n, "lack") for n in (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS)]
PASSING = [ConnectionAbortedError(), TimeoutError()]


@pytest.mark.parametrize(("errors", "told"), [(LACK, 1), (PASSING, 0), (LACK + PASSING + LACK, 1)])
def test_what_can_pass_is_told_once_and_waited_out(console, monkeypatch, errors, told):
    pauses = []
    monkeypatch.setattr(server_thread1.time, "sleep", pauses.append)
    server = Server(console, Troubled(*errors))
    assert server.exchange(b"one\n")[0] == b"-"
    assert console.getvalue().count("New clients have to wait. Error : [Errno ") == told
    assert pauses == [0.1] * sum(error in LACK for error in errors)
    server.listener.errors += errors
    assert server.exchange(b"for this one, accept() was called before\n")[0] == b"-"
    assert server.exchange(b"two\n")[0] == b"-"
    assert console.getvalue().count("New clients have to wait") == told * 2
    server.stop()


def test_a_listener_that_is_gone_ends_the_server(console):
    server = Server(console, Troubled(OSError(errno.EBADF, "gone")))
    with pytest.raises(OSError, match="gone"):
        server.done.result(DEADLINE)
    assert server.listener.fileno() == -1


@pytest.mark.parametrize("error", [RuntimeError, MemoryError])
def test_a_thread_that_cannot_start_closes_its_client_alone(server, monkeypatch, error):
    def start(_):
        raise error("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", start)
        with server.connect() as soc:
            assert read(soc) == b""
        shown = server.console.wait_for("closed\n")
    assert re.search(r"not start. Error : can't .*\nConnection 127.0.0.1:\d+ closed\n", shown)
    assert server.exchange(b"Zack\n")[0] == b"-"


# The end of the server


@pytest.mark.parametrize("patience", [5, 0.01])
def test_a_stop_waits_a_while_for_the_message_in_hand_and_for_no_other(
    server, monkeypatch, patience
):
    monkeypatch.setattr(server_thread1, "STOP_STEPS", {socket.SHUT_RD: patience})
    begun, go_on = threading.Event(), threading.Event()

    def process_input(text):
        begun.set()
        assert go_on.wait(DEADLINE)
        return text

    monkeypatch.setattr(server_thread1, "process_input", process_input)
    with server.connect() as soc, server.connect(), ThreadPoolExecutor(1) as pool:
        soc.sendall(b"one\ntwo\n")
        assert begun.wait(DEADLINE)
        server.console.wait_for("Connected", 2)
        stopped = pool.submit(server.stop)
        server.console.wait_for("closed\n")  # the idle one, by the stop
        if patience < 1:
            stopped.result(DEADLINE)
            assert "Server stopped" not in server.console.getvalue()
        go_on.set()
        assert read(soc) == b"-"
        stopped.result(DEADLINE)
    assert "two" not in server.console.wait_for("Server stopped\n", patience > 1)


def test_a_stop_makes_no_message_of_a_line_that_has_not_ended(server):
    with server.connect() as soc:
        soc.sendall(b"one\ntwo")
        assert read(soc, 1) == b"-"
        server.stop()
        assert read(soc) == b""
    assert "TWO" not in server.console.getvalue()


def test_a_client_that_reads_no_replies_holds_up_neither_others_nor_the_stop(server, monkeypatch):
    monkeypatch.setattr(server_thread1, "STOP_STEPS", {socket.SHUT_RD: 0.1, socket.SHUT_RDWR: 5})
    server.listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)  # its clients inherit it
    progress = {}

    def is_stuck():  # no progress in a time in which others have made some
        assert server.exchange(b"Zack\n" * 20)[0] == b"-" * 20
        since = progress.setdefault(server.console.getvalue().count("refused"), time.monotonic())
        return time.monotonic() - since > 0.3, progress

    with server.connect() as deaf:
        deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        deaf.sendall(b"\xff\n" * 9000)
        wait_until(is_stuck)
        server.stop()
    assert re.search(r"failed\. Error : .*pipe", server.console.wait_for("Server stopped\n"))


@pytest.mark.parametrize("linux", [True, False])
def test_main_serves_until_a_signal_and_on_linux_on_one_cpu(console, monkeypatch, linux):
    handlers, cpus = {}, []
    monkeypatch.setattr(signal, "signal", handlers.__setitem__)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {8, 6, 7}, raising=False)
    monkeypatch.setattr(os, "sched_setaffinity", lambda *args: cpus.append(args), raising=False)
    if not linux:
        monkeypatch.delattr(os, "sched_setaffinity")
    monkeypatch.setattr(sys, "argv", ["server_thread1.py", "--port", "0"])
    with ThreadPoolExecutor(1) as pool:
        done = pool.submit(server_thread1.main)
        port = port_of(console)
        assert handlers.keys() == {signal.SIGINT, signal.SIGTERM}
        for number in (signal.SIGTERM, signal.SIGINT):  # twice does no harm
            handlers[number](number, None)
        done.result(DEADLINE)
    assert cpus == ([(0, {6 + port % 3})] if linux else [])
    console.wait_for("Server stopped\n")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_or_two_stop_the_script_with_fifty_idle_clients(script, number):
    server = script("server", "--port", 0)
    with contextlib.ExitStack() as stack:
        for _ in range(50):
            address = ("127.0.0.1", port_of(server.console))
            stack.enter_context(socket.create_connection(address, DEADLINE))
        server.console.wait_for("Connected", 50)
        server.send_signal(number)
        server.send_signal(number)
        assert ends(server) == ""
    assert server.console.wait_for("Server stopped\n").count("closed\n") == 50


# The client


@pytest.mark.parametrize("last", ["quit \n", "--Quit-- \n", ""])
def test_the_client_leaves_properly_on_quit_and_at_the_end(type_in, monkeypatch, last):
    if last:  # as on Windows
        monkeypatch.delattr(signal, "SIGIO")
    lines = iter(["Zack\n", "\n", "two\nlines\n", last, "never\n"])
    shown, sent = type_in(types.SimpleNamespace(readline=lines.__next__), b"----")
    assert shown.rstrip("\n") == "Please enter 'quit' to exit" + "\n" + " -> " * 4
    assert sent == b"Zack\n\ntwo\nlines\n--quit--\n"


def test_a_refusal_and_what_is_not_sent_are_told_and_the_prompt_comes_back(type_in):
    lines = b"\n".join([b"one", b"a" * 5121, b"\xff", b"b" * 5120, "é".encode()])
    typed = io.TextIOWrapper(io.BytesIO(lines), "utf-8")
    shown, sent = type_in(typed, b"!too \x1b[2J rude\n--")
    told = shown.split(" -> ")[1:]
    assert told[:2] == ["Refused: too \\x1b[2J rude\n", "Not sent: message over 5120 bytes\n"]
    assert told[2].startswith("Not sent: 'utf-8' codec can't decode byte 0xff")
    assert told[3:] == ["", "", "\n"]
    assert sent == b"one\n" + b"b" * 5120 + "\né\n--quit--\n".encode()


@pytest.mark.parametrize(
    ("replies", "gone", "reason"),
    [
        (b"-", False, "timed out"),
        (b"SSH-2.0", False, "no reply but b'S'"),
        (b"+OK", False, r"no reply but b'\+'"),
        (b"--", True, "the server closed the connection"),
        (b"!why", True, "the server closed the connection"),
    ],
)
def test_a_server_that_is_mute_strange_or_gone_exits_1(type_in, replies, gone, reason):
    with pytest.raises(SystemExit, match=f"^Connection Error: {reason}$"):
        type_in(io.StringIO("Zack\n" * 3), replies, gone)


def test_a_server_that_is_not_there_exits_1(script):
    said = ends(script("client", "--port", 0), 1)  # where nobody can be
    assert re.fullmatch("Connection Error: .*refused\n", said)


@pytest.mark.parametrize("end", ["Ctrl-D", "Ctrl-C", "stop"])
def test_in_a_terminal_arrow_keys_work_and_every_end_is_orderly(server, script, end):
    keyboard, terminal = pty.openpty()
    words = ("client", "--port", server.address[1])
    client = script(*words, screen=keyboard, stdin=terminal, stdout=terminal)
    os.close(terminal)
    for number, line in enumerate([b"", b"Zack\r", b"\x1b[A\x1b[D\x1b[D!\r"], 1):
        os.write(keyboard, line)
        client.console.wait_for("\n -> ", number)  # on a new line: not one that is drawn again
    server.console.wait_for("Hello ZA!CK\n")
    if end == "stop":
        server.stop()
        assert ends(client, 1) == "Connection Error: the server closed the connection\n"
    else:
        os.write(keyboard, b"\x04") if end == "Ctrl-D" else client.send_signal(signal.SIGINT)
        assert ends(client) == ""
        server.console.wait_for("Client is requesting to quit\n")

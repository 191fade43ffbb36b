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
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock, call

import pytest

import client_thread1
import server_thread1

pytestmark = pytest.mark.filterwarnings("error")  # an exception that ends a thread is a warning
README = Path(__file__).with_name("README.md")
DEADLINE = 10  # seconds that a wait may take before it fails with what it saw
PROCESSING = "Processing the input received from client\n"
GONE = "the server closed the connection"
LONG = "message over 5120 bytes"
ODD = "'utf-8' codec can't decode byte 0xff in position 0: invalid start byte"


class Console(io.StringIO):
    """Collects what any thread writes, and can be waited on."""

    changed = threading.Condition()

    def write(self, text):
        for part in text.splitlines(keepends=True):  # apart: it is no safer than a TextIOWrapper
            os.sched_yield()
            with self.changed:
                super().write(part)
                self.changed.notify_all()

    def follow(self, source):
        with contextlib.suppress(OSError):  # EIO is how a terminal ends on Linux
            while data := source.read(4096):
                self.write(data.decode())

    def wait_for(self, text, times=1):
        with self.changed:
            seen = self.changed.wait_for(lambda: self.getvalue().count(text) >= times, DEADLINE)
        assert seen, f"{text!r} is not {times} times in {self.getvalue()!r}"
        return self.getvalue()

    def port(self):
        return int(re.search(r"listening on .*:(\d+)", self.wait_for("\n", 2))[1])


class Server:
    """Runs main() in a thread, where signal handlers can't be set: stop() calls them."""

    def __init__(self, monkeypatch, host):
        self.console, self.handlers, self.error = Console(), {}, None
        self.pin = Mock(side_effect=OSError("not permitted"))
        monkeypatch.setattr(server_thread1, "sys", Mock(stdout=self.console, exit=sys.exit))
        monkeypatch.setattr(signal, "signal", self.handlers.__setitem__)
        monkeypatch.setattr(os, "sched_getaffinity", lambda _: {8, 6, 7}, raising=False)
        monkeypatch.setattr(os, "sched_setaffinity", self.pin, raising=False)
        monkeypatch.setattr(sys, "argv", ["server_thread1.py", "--port", "0", "--host", host])
        self.done = ThreadPoolExecutor(1).submit(server_thread1.main)
        self.address = host, self.console.port()

    def stop(self):
        for number in (signal.SIGTERM, signal.SIGINT):  # twice does no harm
            self.handlers[number](number, None)
        assert self.done.exception(DEADLINE) is self.error

    def connect(self):
        return socket.create_connection(self.address, DEADLINE)

    def exchange(self, first, *others):
        """Send the first piece, each other after a reply; return all replies, the console."""
        with self.connect() as soc:
            port, replies = soc.getsockname()[1], b""
            soc.sendall(first)
            for piece in others:
                replies += soc.recv(1)
                soc.sendall(piece)
            soc.shutdown(socket.SHUT_WR)
            return replies + read(soc), self.console.wait_for(f":{port} closed\n")


def read(soc):
    """Read to the end."""
    with soc.makefile("rb") as stream:
        return stream.read()


@pytest.fixture
def server(request, monkeypatch):
    """A running server, of which no descriptor may be left in the end."""
    before = os.listdir("/dev/fd")
    server = Server(monkeypatch, getattr(request, "param", "127.0.0.1"))
    yield server
    server.stop()
    assert set(os.listdir("/dev/fd")) <= set(before)


@pytest.fixture
def script(monkeypatch):
    """Start a script as a user would; its console is a pipe, or the screen that is given."""
    monkeypatch.delenv("PYTHONUNBUFFERED", raising=False)
    monkeypatch.setenv("PYTHONIOENCODING", "ascii")
    monkeypatch.setenv("TERM", "dumb")  # no codes around the prompt
    with contextlib.ExitStack() as stack:

        def start(name, port, screen=None, **streams):
            argv = [sys.executable, README.with_name(name), "--port", str(port)]
            streams = dict.fromkeys(["stdin", "stdout", "stderr"], subprocess.PIPE) | streams
            process = stack.enter_context(subprocess.Popen(argv, 0, **streams))
            process.console = Console()
            reader = stack.enter_context(ThreadPoolExecutor(1))
            reader.submit(process.console.follow, screen or process.stdout)
            stack.callback(process.kill)
            return process

        yield start


@pytest.fixture
def client(monkeypatch):
    """Run the client on an input and a server's replies; return what it showed and sent."""

    def run(typed, replies, gone=False):
        ours, theirs = socket.socketpair()
        ours.settimeout(0.1)
        given = {(("127.0.0.1", 8000), 10): ours}
        monkeypatch.setattr(socket, "create_connection", lambda *asked: given[asked])
        monkeypatch.setattr(client_thread1, "GOODBYE", 0.01)
        monkeypatch.setattr(sys, "argv", ["client_thread1.py"])
        monkeypatch.setattr(sys, "stdin", typed)
        with theirs, contextlib.redirect_stdout(io.StringIO()) as shown:
            theirs.sendall(replies)
            if gone:
                theirs.shutdown(socket.SHUT_WR)
            client_thread1.main()
            return shown.getvalue(), read(theirs)

    return run


class TestRunning:
    def test_three_clients_see_the_session_that_the_readme_shows(self, script):
        sessions = re.findall(r"(?s)```console\n\$ python (.*?)\n(.*?)```", README.read_text())
        server = script(sessions[0][0], 0)
        for name, window in sessions[1:]:
            client = script(name, server.console.port())
            typed = re.findall(r"(?m)^ -> (.+\n)", window)
            client.stdin.write("".join(typed).encode())
            shown = client.console.wait_for(" -> ", window.count(" -> "))
            server.console.wait_for("closed", window.count("quit\n"))
            # A terminal echoes what is typed, a pipe does not.
            assert shown.split() == re.sub(r"(?m)(?<= -> ).+$", "", window).split()
        shown = server.console.wait_for("ANOTHNY\n")
        assert re.sub(r":\d+", ":PORT", shown) == re.sub(r":\d+", ":PORT", sessions[0][1])

    @pytest.mark.parametrize("main", [server_thread1.main, client_thread1.main])
    def test_both_use_127_0_0_1_port_8000_unless_told_otherwise(self, monkeypatch, capsys, main):
        def getaddrinfo(host, port, *_, **__):
            raise (UnicodeError if host == ".." else OSError)(f"asked for {host}, {port}")

        monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
        for words, said in {
            "": "Error ?: asked for 127.0.0.1, 8000",
            "--port 0": "Error ?: asked for 127.0.0.1, 0",
            "--host .. --port 65535": "Error ?: asked for .., 65535",
            "--port -1": "^2 .*error: argument --port: not in 0 to 65535",
            "--port 65536": "^2 .*error: argument --port: not in 0 to 65535",
            "--help": r"^0 .*--host .*\(127\.0\.0\.1\).*--port .*\(8000\)",
        }.items():
            monkeypatch.setattr(sys, "argv", ["script", *words.split()])
            with pytest.raises(SystemExit) as end:
                main()
            assert re.search(said, f"{end.value} {capsys.readouterr()}")
        with pytest.raises(OSError, match="127.0.0.1, 8000"):
            server_thread1.start_server()

    def test_what_keeps_the_server_from_listening_is_told_in_a_line(self, server, monkeypatch):
        server_thread1.sys.stdout = io.TextIOWrapper(io.BytesIO(), "ascii")
        monkeypatch.setattr(socket.socket, "listen", Mock(side_effect=OSError("after bind")))
        for port, said in {server.address[1]: "in use", 0: "after bind"}.items():
            monkeypatch.setattr(sys, "argv", ["server_thread1.py", "--port", str(port)])
            with pytest.raises(SystemExit, match=rf"^Bind failed\. Error : .*{said}"):
                server_thread1.main()
        socket.socket.listen.assert_called_once_with(socket.SOMAXCONN)
        assert server_thread1.sys.stdout.errors == "backslashreplace"

    @pytest.mark.parametrize("server", ["::1"], indirect=True)
    def test_ipv6_is_served_too_and_on_one_cpu_that_the_port_picks(self, server):
        shown, port = server.exchange(b"Zack\n")[1], server.address[1]
        assert f"listening on [::1]:{port}\nConnected with [::1]:" in shown
        server.pin.assert_called_once_with(0, {6 + port % 3})
        server_thread1.sys.setswitchinterval.assert_called_once_with(0.5)

    @pytest.mark.parametrize(("system", "reuse", "poll"), [("posix", 1, None), ("nt", 0, 0.5)])
    def test_only_posix_reuses_an_address_and_only_windows_polls(
        self, monkeypatch, system, reuse, poll
    ):
        monkeypatch.setattr(server_thread1, "os", SimpleNamespace(name=system))
        with server_thread1.open_listener(port=0) as listener:
            assert listener.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR) == reuse
            assert listener.gettimeout() == poll


class TestOnTheWire:
    SESSIONS = {  # what a client sends, the replies, what the console shows after Hello or Error
        "a line": ([b"Zack\n"], b"-", ["ZACK"]),
        "two lines, the last without an end": ([b"one\ntwo"], b"--", ["ONE", "TWO"]),
        "CRLF, blanks at the end": ([b"one\r\ntwo \t\r\n"], b"--", ["ONE", "TWO"]),
        "empty lines": ([b"\n\n"], b"--", ["", ""]),
        "no newline": ([b"hi"], b"-", ["HI"]),
        "nothing": ([b""], b"", []),
        "quit in a longer line": ([b"a--quit--\n--quit-- b\n"], b"--", ["A--QUIT--", "--QUIT-- B"]),
        "quit in capitals": ([b"one\n--Quit-- \r\nno\n"], b"-", ["ONE"]),
        "quit with a dotless i": (["--quıt--\n".encode()], b"-", ["--QUIT--"]),
        "the article's client": ([b"Zack", b"Python", b"--quit--"], b"--", ["ZACK", "PYTHON"]),
        "newlines after all": ([b"a!", b"b\nAnoth", b"ny\n"], b"---", ["A!", "B", "ANOTHNY"]),
        "5088 bytes": ([b"a" * 5088 + b"\n"], b"-", ["A" * 5088]),
        "5120 bytes": ([b"a" * 5120 + b"\r\n" + b"b" * 5120], b"--", ["A" * 5120, "B" * 5120]),
        "5120 bytes, CR": ([b"a" * 5120 + b"\r"], b"-", ["A" * 5120]),
        "5121 bytes": ([b"a" * 5121 + b"\r\nno\n"], f"!{LONG}\n".encode(), [LONG]),
        "not UTF-8": ([b"one\n\xff\n\xc3\xb6\n"], f"-!{ODD}\n-".encode(), ["ONE", ODD, "Ö"]),
        "terminal codes": (["\x1b[2J\x9b\ra\u2028b".encode()], b"-", [r"\x1b[2J\x9b\rA\u2028B"]),
    }

    @pytest.mark.parametrize(("sent", "replies", "told"), SESSIONS.values(), ids=SESSIONS)
    def test_each_message_gets_one_reply_and_quit_gets_none(self, server, sent, replies, told):
        got, shown = server.exchange(*sent)
        assert got == replies
        assert re.findall(r"(?:Processed result: Hello|refused\. Error :) (.*)", shown) == told
        quits = len(re.findall(rb"(?im)^--quit--\s*$", b"\n".join(sent)))
        assert shown.count(PROCESSING + "Client is requesting to quit\n") == quits
        assert "failed" not in shown

    def test_sixty_clients_talk_at_once_byte_by_byte(self, server):
        def talk(number):
            with server.connect() as soc:
                soc.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                soc.sendall(b"%d\n" % number)
                for byte in f"zwölf {number}\n--quit--\n".encode():
                    soc.sendall(bytes([byte]))
                return read(soc)

        with ThreadPoolExecutor(60) as pool:
            assert list(pool.map(talk, range(60))) == [b"--"] * 60
        shown = server.console.wait_for("closed\n", 60)
        for text in [*range(60), *(f"ZWÖLF {number}" for number in range(60))]:
            assert shown.count(f"{PROCESSING}Processed result: Hello {text}\n") == 1
        assert shown.count("\n") == 2 + 60 * 8  # no line is torn

    @pytest.mark.parametrize("lines", [0, 1])
    @pytest.mark.parametrize("size", [5121, 5_000_000])
    def test_a_longer_message_is_refused_before_its_end(self, server, lines, size):
        with server.connect() as soc:
            soc.sendall(b"one\n" * lines + b"a" * size)
            assert read(soc) == b"-" * lines + f"!{LONG}\n".encode()
            name = "{}:{}".format(*soc.getsockname())
        shown = server.console.wait_for("closed\n")
        assert f"\nMessage from {name} refused. Error : {LONG}\nConnection {name} closed\n" in shown

    def test_a_refused_client_that_does_not_leave_is_left(self, server, monkeypatch):
        monkeypatch.setattr(server_thread1, "LINGER", 0.1)
        with server.connect() as silent, server.connect() as busy:
            silent.sendall(b"a" * 5121)
            busy.sendall(b"a" * 5121)
            with pytest.raises(ConnectionError):  # it is closed
                any(map(busy.sendall, [b"a"] * 10**6))
            server.console.wait_for("closed\n", 2)


class TestUnderLoadAndFaults:
    def test_a_crowd_of_threads_waits_in_line_for_the_console(self, server, monkeypatch):
        monkeypatch.setattr(server_thread1, "CROWD", 0)
        with ThreadPoolExecutor(20) as pool, server_thread1.in_turn():
            for number in range(20):
                pool.submit(server_thread1.show, f"number {number}")
                deadline = time.monotonic() + DEADLINE
                while len(server_thread1.CONSOLE_LINE) < number + 2:
                    assert time.monotonic() < deadline, server_thread1.CONSOLE_LINE
        shown = re.findall(r"number (\d+)\n", server.console.getvalue())
        assert shown == [str(number) for number in range(20)]

    @pytest.mark.parametrize("method", ["write", "flush"])
    @pytest.mark.parametrize("error", [OSError, ValueError, AttributeError])
    def test_a_console_gone_or_full_costs_no_client_its_reply(self, server, method, error):
        setattr(server.console, method, Mock(side_effect=error))
        with server.connect() as soc:
            soc.sendall(b"one\n--quit--\n")
            assert read(soc) == b"-"

    def test_a_reset_is_told_with_its_reason_and_the_connection_closed_once(self, server):
        with server.connect() as soc:
            server.console.wait_for("Connected")
            soc.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        shown = server.console.wait_for("closed\n")
        assert re.search(r"(Connection .+) failed. Error : .*reset.*\n\1 closed\n$", shown)

    def test_a_connection_is_kept_alive(self, server, monkeypatch):
        monkeypatch.setattr(socket.socket, "setsockopt", Mock())
        server.exchange(b"")
        socket.socket.setsockopt.assert_called_once_with(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)

    def test_what_can_pass_is_waited_out_and_a_lack_told_once(self, server, monkeypatch):
        def accept(listener, accept=socket.socket.accept):
            if errors:
                raise errors.pop(0)
            return accept(listener)

        numbers = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS)
        lack, left = [OSError(n, "") for n in numbers], [ConnectionAbortedError(), TimeoutError()]
        told, gone, pauses, errors = "New clients have to wait. Error : [E", OSError("gone"), [], []
        monkeypatch.setattr(server_thread1.time, "sleep", pauses.append)
        monkeypatch.setattr(socket.socket, "accept", accept)
        for times, more in enumerate([left, lack, left + lack + left + lack]):
            errors += more
            assert server.exchange(b"for this one, accept() was called before\n")[0] == b"-"
            assert server.exchange(b"Zack\n")[0] == b"-"
            assert server.console.getvalue().count(told) == times
        assert pauses == [0.1] * 12
        errors, server.error = [gone], gone
        with contextlib.suppress(ConnectionError):  # if accept() had not been called before
            server.exchange(b"")
        assert server.done.exception(DEADLINE) is gone

    @pytest.mark.parametrize("error", [RuntimeError, MemoryError])
    def test_a_thread_that_cannot_start_closes_its_client_alone(self, server, monkeypatch, error):
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", Mock(side_effect=error("no more")))
            shown = server.exchange(b"")[1]
        assert re.search(r"not start. Error : no more\nConnection .+ closed\n$", shown)
        assert server.exchange(b"Zack\n")[0] == b"-"


class TestStop:
    @pytest.mark.parametrize(("patience", "two"), [(5, b"two\n"), (5, b"two"), (0.01, b"two\n")])
    def test_a_stop_waits_for_the_message_in_hand_alone(self, server, monkeypatch, patience, two):
        begun, go_on = threading.Event(), threading.Event()
        process_input = Mock(side_effect=lambda _: begun.set() or str(go_on.wait(DEADLINE)))
        monkeypatch.setattr(server_thread1, "process_input", process_input)
        monkeypatch.setattr(server_thread1, "STOP_STEPS", {socket.SHUT_RD: patience})
        with server.connect() as soc, server.connect():
            soc.sendall(b"one\n" + two)
            assert begun.wait(DEADLINE)
            server.console.wait_for("Connected", 2)
            server.handlers[signal.SIGTERM]()
            server.console.wait_for("closed\n")  # the idle one, by the stop
            if patience < 1:
                server.stop()
            go_on.set()
            assert read(soc) == b"-"
        server.stop()
        assert ("Server stopped\n" in server.console.wait_for("closed\n", 2)) == (patience > 1)
        process_input.assert_called_once_with("one")

    def test_it_leaves_two_seconds_for_that_and_half_a_one_for_replies(self, monkeypatch):
        clock = Mock(side_effect=[100, 101.5, 103, 200, 200.25, 300])
        monkeypatch.setattr(server_thread1, "time", Mock(monotonic=clock))
        soc, thread = Mock(), Mock()
        server_thread1.end_clients({soc: thread, Mock(): thread})
        assert soc.shutdown.mock_calls == [call(socket.SHUT_RD), call(socket.SHUT_RDWR)]
        assert thread.join.mock_calls == [call(0.5), call(0), call(0.25), call(0)]

    def test_a_client_that_reads_no_replies_holds_up_nobody(self, server, monkeypatch):
        monkeypatch.setattr(server_thread1, "STOP_STEPS", {socket.SHUT_RD: 0, socket.SHUT_RDWR: 5})
        monkeypatch.setattr(server_thread1, "refuse", lambda soc, *_: soc.sendall(bytes(10**8)))
        with server.connect() as deaf:
            deaf.sendall(b"\xff\n")
            assert deaf.recv(1) == b"\0"  # of a reply that fits into no buffer
            assert server.exchange(b"Zack\n" * 20)[0] == b"-" * 20
            server.stop()
        assert re.search(r"failed\. Error : .*pipe", server.console.wait_for("Server stopped\n"))

    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
    @pytest.mark.parametrize("gone", [False, True], ids=["console", "no console"])
    def test_a_signal_or_two_stop_the_script_with_fifty_clients(self, script, number, gone):
        ours, theirs = socket.socketpair()
        with ours, theirs, ours.makefile("rb", 0) as screen, contextlib.ExitStack() as stack:
            server = script("server_thread1.py", 0, screen, stdout=theirs)
            address = ("127.0.0.1", server.console.port())
            for _ in range(50):
                soc = stack.enter_context(socket.create_connection(address, DEADLINE))
            server.console.wait_for("Connected", 50)
            ours.shutdown(socket.SHUT_RDWR if gone else socket.SHUT_WR)
            soc.sendall("Zoë\n".encode())
            assert soc.recv(1) == b"-"
            server.send_signal(number)
            server.send_signal(number)
            assert (server.wait(DEADLINE), server.stderr.read()) == (0, b"")
            shown = server.console.wait_for("\n" if gone else "Server stopped\n")
        assert gone or (shown.count("Hello ZO\\xcb\n"), shown.count("closed\n")) == (1, 50)


class TestClient:
    @pytest.mark.parametrize("last", [b"quit \n", b"--Quit-- \n", b""])
    def test_it_tells_what_is_refused_or_not_sent_and_leaves(self, client, monkeypatch, last):
        if last:  # as on Windows
            monkeypatch.delattr(signal, "SIGIO")
        taken, never = b"\nno\n" + b"b" * 5120 + b"\n", b"never\n" if last else b""
        typed = io.BytesIO(taken + b"a" * 5121 + b"\n\xff\n\xc3\xb6\n" + last + never)
        shown, sent = client(io.TextIOWrapper(typed, "utf-8"), b"-!too \x1b[2J rude\n--")
        told = f"Refused: too \\x1b[2J rude\n ->  -> Not sent: {LONG}\n -> Not sent: {ODD}\n"
        assert shown.rstrip("\n") == f"Please enter 'quit' to exit\n ->  -> {told} ->  -> "
        assert sent == taken + b"\xc3\xb6\n--quit--\n"

    @pytest.mark.parametrize("reply", [b"-", b" ", b"S", b"--", b"!why"])
    def test_a_server_that_is_mute_strange_or_gone_exits_1(self, client, reply):
        said = {b"-": "timed out", b"--": GONE, b"!why": GONE}.get(reply, f"no reply but {reply!r}")
        with pytest.raises(SystemExit, match=f"^Connection Error: {re.escape(said)}$"):
            client(io.StringIO("Zack\n" * 3), reply, gone=said == GONE)

    def test_ctrl_c_while_the_client_connects_exits_130(self, monkeypatch):
        monkeypatch.setattr(sys, "argv", ["client_thread1.py"])
        monkeypatch.setattr(socket, "create_connection", Mock(side_effect=KeyboardInterrupt))
        with pytest.raises(SystemExit, match="130"):
            client_thread1.main()

    @pytest.mark.parametrize("end", ["Ctrl-D", "Ctrl-C", "stop"])
    def test_in_a_terminal_arrow_keys_work_and_every_end_is_orderly(self, server, script, end):
        keyboard, terminal = pty.openpty()
        with open(keyboard, "r+b", 0) as screen:
            client = script(
                "client_thread1.py", server.address[1], screen, stdin=terminal, stdout=terminal
            )
            os.close(terminal)
            for number, keys in enumerate([b"", b"Zack\r", b"\x1b[A\x1b[D!\x16\n\r"], 1):
                screen.write(keys)
                client.console.wait_for("\n -> ", number)  # on a line of its own: not drawn again
            assert "Hello ZAC!\n" in server.console.wait_for("Hello K\n")
            if end == "stop":
                server.stop()
                said = f"Connection Error: {GONE}\n".encode()
                assert (client.wait(DEADLINE), client.stderr.read()) == (1, said)
            else:
                screen.write(b"\x04") if end == "Ctrl-D" else client.send_signal(signal.SIGINT)
                assert (client.wait(DEADLINE), client.stderr.read()) == (0, b"")
                server.console.wait_for("Client is requesting to quit\n")

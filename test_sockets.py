"""What the server and the client do, in the order of the README."""

import contextlib
import errno
import io
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from unittest.mock import Mock, call

import pytest

import client_thread1
import server_thread1

pytestmark = pytest.mark.filterwarnings("error")  # an exception that ends a thread is a warning
README = Path(__file__).with_name("README.md").read_text(encoding="utf-8")
DEADLINE = 10  # seconds that a wait may take before it fails with what it saw
PROCESSING = "Processing the input received from client\n"
QUITS = PROCESSING + "Client is requesting to quit\n"
GONE = "the server closed the connection"
LONG = "message over 5120 bytes"
CHANGED = threading.Condition()  # of any console
ODD = "'utf-8' codec can't decode byte 0xff in position 0: invalid start byte"


class Console(io.StringIO):
    """Collects what any thread writes, and can be waited on."""

    def write(self, text):
        for part in text.splitlines(keepends=True):  # in parts, as a TextIOWrapper may
            os.sched_yield()
            with CHANGED:
                super().write(part)
                CHANGED.notify_all()

    def follow(self, source):
        while data := source.read(4096):  # or OSError (EIO), as a terminal ends on Linux
            self.write(data.decode())

    def wait_for(self, text, times=1):
        with CHANGED:
            seen = CHANGED.wait_for(lambda: self.getvalue().count(text) >= times, DEADLINE)
        assert seen, f"{text!r} is not {times} times in {self.getvalue()!r}"
        return self.getvalue()

    def port(self):
        return int(re.search(r"listening on .*:(\d+)", self.wait_for("\n", 2))[1])


class Server:
    """Runs main() in a thread, where signal handlers can't be set: stop() calls them."""

    def __init__(self, monkeypatch, host):
        self.console, self.handlers, self.pin = Console(), {}, Mock(side_effect=OSError("denied"))
        monkeypatch.setattr(server_thread1, "sys", Mock(stdout=self.console, exit=sys.exit))
        monkeypatch.setattr(server_thread1, "LINGER", 2 * DEADLINE)
        monkeypatch.setattr(signal, "signal", self.handlers.__setitem__)
        monkeypatch.setattr(os, "sched_getaffinity", {0: {8, 6, 7}}.get, raising=False)
        monkeypatch.setattr(os, "sched_setaffinity", self.pin, raising=False)
        monkeypatch.setattr(sys, "argv", ["server_thread1.py", "--port", "0", "--host", host])
        self.thread = threading.Thread(target=server_thread1.main, daemon=True)
        self.thread.start()
        self.address = host, self.console.port()

    def stop(self):
        for number in (signal.SIGTERM, signal.SIGINT):  # twice does no harm
            self.handlers[number](number, None)
        self.thread.join(DEADLINE)

    def connect(self):
        return socket.create_connection(self.address, DEADLINE)

    def exchange(self, *pieces):
        """Send the pieces, a reply between each two; return all replies, the console."""
        with self.connect() as soc:
            closed, replies = f":{soc.getsockname()[1]} closed\n", b""
            for number, piece in enumerate(pieces):
                replies += soc.recv(min(number, 1))
                soc.sendall(piece)
            soc.shutdown(socket.SHUT_WR)
            replies += soc.makefile("rb").read()
        return replies, self.console.wait_for(closed)


@pytest.fixture
def server(request, monkeypatch):
    """A running server, of which no thread and no descriptor may be left in the end."""
    host = getattr(request, "param", "127.0.0.1")
    try:
        socket.create_server((host, 0), family=socket.getaddrinfo(host, 0)[0][0]).close()
    except OSError:
        pytest.skip(f"no {host} on this machine")
    before = os.listdir("/dev/fd")
    server = Server(monkeypatch, host)
    yield server
    server.stop()
    threads = [thread for thread in threading.enumerate() if thread.daemon]
    assert not [thread for thread in threads if thread.join(DEADLINE) or thread.is_alive()]
    assert set(os.listdir("/dev/fd")) <= set(before)


@pytest.fixture
def script():
    """Start a script as a user would; its console is a pipe, or the screen that is given."""
    env = os.environ | {"PYTHONIOENCODING": "ascii", "PYTHONUNBUFFERED": ""}
    env |= {"TERM": "dumb", "INPUTRC": os.devnull}  # no codes around the prompt
    with contextlib.ExitStack() as stack:

        def start(name, port, screen=None, **streams):
            argv = [sys.executable, Path(__file__).with_name(name), "--port", str(port)]
            streams = dict.fromkeys(["stdin", "stdout", "stderr"], subprocess.PIPE) | streams
            process = stack.enter_context(subprocess.Popen(argv, 0, env=env, **streams))
            process.console = Console()
            reader = stack.enter_context(ThreadPoolExecutor(1))
            reader.submit(process.console.follow, screen or process.stdout)
            stack.callback(process.kill)
            return process

        yield start


def talk(monkeypatch, typed, replies, gone=False):
    """Run the client on an input and a server's replies; return what it showed and sent."""
    ours, theirs = socket.socketpair()
    ours.settimeout(0.1)
    given = {(("127.0.0.1", 8000), 10): ours}  # a KeyError, if it asks for anything else
    monkeypatch.setattr(socket, "create_connection", lambda *asked: given[asked])
    monkeypatch.setattr(client_thread1, "GOODBYE", 0.01)
    monkeypatch.setattr(sys, "argv", ["client_thread1.py"])
    monkeypatch.setattr(sys, "stdin", typed)
    with theirs, contextlib.redirect_stdout(io.StringIO()) as shown:
        theirs.sendall(replies)
        if gone:
            theirs.shutdown(socket.SHUT_WR)
        client_thread1.main()
        return shown.getvalue(), theirs.makefile("rb").read()


class TestRunning:
    def test_three_clients_see_the_session_that_the_readme_shows(self, script):
        (name, session), *others = re.findall(r"(?s)```console\n\$ python (.*?)\n(.*?)```", README)
        server = script(name, 0)
        for name, window in others:
            client = script(name, server.console.port())
            client.stdin.write("".join(re.findall(r"(?m)^ -> (.+\n)", window)).encode())
            shown = client.console.wait_for(" -> ", window.count(" -> "))
            server.console.wait_for("closed", window.count("quit\n"))
            # A terminal echoes what is typed, a pipe does not.
            assert shown == re.sub(r"(?m)^ -> .*\n", " -> ", window)
        shown = server.console.wait_for("ANOTHNY\n")
        assert re.sub(r":\d+", ":PORT", shown) == re.sub(r":\d+", ":PORT", session)
        for line in re.findall(r"->>C: (?:Processing … )?(.*\n)", README):  # the diagram
            assert line in session

    @pytest.mark.parametrize("script", [server_thread1, client_thread1], ids=["server", "client"])
    def test_both_use_127_0_0_1_port_8000_unless_told_otherwise(self, monkeypatch, capsys, script):
        def getaddrinfo(host, port, *_, **__):
            raise {"..": UnicodeError, "^C": KeyboardInterrupt}.get(host, OSError)(f"{host} {port}")

        monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
        for words, said in {
            "": "Error ?: 127.0.0.1 8000",
            "--port 0": "Error ?: 127.0.0.1 0",
            "--host .. --port 65535": "Error ?: .. 65535",
            "--host ^C": "^130 ",
            "--port -1": "^2 .*error: argument --port: not in 0 to 65535",
            "--port 65536": "^2 .*error: argument --port: not in 0 to 65535",
            "--help": r"^0 .*--host .*\(127\.0\.0\.1\).*--port .*\(8000\)",
        }.items():
            monkeypatch.setattr(sys, "argv", ["script", *words.split()])
            with pytest.raises(SystemExit) as end:
                script.main()
            assert re.search(said, f"{end.value} {capsys.readouterr()}")
        with pytest.raises(OSError, match="127.0.0.1 8000"):
            server_thread1.start_server()

    def test_what_keeps_the_server_from_listening_is_told_in_a_line(self, server, monkeypatch):
        server_thread1.sys.stdout = io.TextIOWrapper(io.BytesIO(), "ascii")
        monkeypatch.setattr(socket.socket, "listen", Mock(side_effect=OSError("after bind")))
        for port, said in {server.address[1]: "in use", 0: "after bind"}.items():
            monkeypatch.setattr(sys, "argv", ["server_thread1.py", "--port", str(port)])
            with pytest.raises(SystemExit, match=rf"^Bind failed\. Error : .*{said}"):
                server_thread1.main()
        assert server_thread1.sys.stdout.errors == "backslashreplace"

    @pytest.mark.parametrize("server", ["::1"], indirect=True)
    def test_ipv6_is_served_too(self, server):
        shown = server.exchange(b"Zack\n")[1]
        assert f"listening on [::1]:{server.address[1]}\nConnected with [::1]:" in shown
        assert server_thread1.host_and_port(None) == "?"  # it was gone before it was accepted

    @pytest.mark.parametrize(("system", "reuse"), [("posix", 1), ("nt", 0)])
    def test_it_reuses_its_port_on_posix_and_queues_all_it_may(self, monkeypatch, system, reuse):
        monkeypatch.setattr(server_thread1, "os", type("os", (), {"name": system}))
        monkeypatch.setattr(socket.socket, "listen", listen := Mock())
        with server_thread1.open_listener(port=0) as listener:
            assert listener.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR) == reuse
        listen.assert_called_once_with(socket.SOMAXCONN)

    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["Ctrl-C", "SIGTERM"])
    @pytest.mark.parametrize("gone", [False, True], ids=["console", "no console"])
    def test_a_signal_or_two_stop_the_script_with_fifty_clients(self, script, number, gone):
        ours, theirs = socket.socketpair()
        with ours, theirs, ours.makefile("rb", 0) as screen, contextlib.ExitStack() as stack:
            server = script("server_thread1.py", 0, screen, stdout=theirs)
            address, pid = ("127.0.0.1", server.console.port()), server.pid
            fifty = [socket.create_connection(address, DEADLINE) for _ in range(50)]
            soc, *_ = map(stack.enter_context, fifty)
            server.console.wait_for("Connected", 50)
            if gone:
                ours.shutdown(socket.SHUT_RDWR)
                tasks = Path(f"/proc/{pid}/task").glob("*")  # Linux only
                pid = max([pid, *(int(task.name) for task in tasks)])  # the thread of a client
            soc.sendall("Zoë\n".encode())
            assert soc.recv(1) == b"-"
            os.kill(pid, number)
            os.kill(pid, number)
            assert (server.wait(3), server.stderr.read()) == (0, b"")
            if not gone:
                shown = server.console.wait_for("closed\nServer stopped\n")
                assert (shown.count("Hello ZO\\xcb\n"), shown.count("closed\n")) == (1, 50)

    @pytest.mark.parametrize("behind", [b"two\n", b"two"], ids=["a line", "half a line"])
    @pytest.mark.parametrize("patience", [5, 0.01], ids=["in time", "too late"])
    def test_it_waits_for_the_message_in_hand_alone(self, server, monkeypatch, patience, behind):
        begun, go_on = threading.Event(), threading.Event()
        process_input = Mock(side_effect=lambda _: begun.set() or str(go_on.wait(DEADLINE)))
        monkeypatch.setattr(server_thread1, "process_input", process_input)
        monkeypatch.setattr(server_thread1, "STOP_STEPS", {socket.SHUT_RD: patience})
        with server.connect() as soc, server.connect():
            soc.sendall(b"one\n" + behind)
            assert begun.wait(DEADLINE)
            server.console.wait_for("Connected", 2)
            server.handlers[signal.SIGTERM]()
            server.console.wait_for("closed\n")  # the idle one, by the stop
            if patience < 1:
                server.stop()
            go_on.set()
            assert soc.makefile("rb").read() == b"-"
        server.stop()
        assert ("Server stopped\n" in server.console.wait_for("closed\n", 2)) == (patience > 1)
        process_input.assert_called_once_with("one")

    def test_it_leaves_2_seconds_to_messages_and_half_a_one_to_replies(self, monkeypatch):
        clock = Mock(side_effect=[100, 101.5, 103, 200, 200.25, 300])  # each step: start, 2 joins
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


class TestClient:
    @pytest.mark.parametrize("last", [b"quit \nx", b"--Quit-- \nx", b""], ids=ascii)
    @pytest.mark.parametrize("missing", ["nothing", "SIGIO"])
    def test_it_tells_what_is_refused_or_not_sent(self, monkeypatch, missing, last):
        monkeypatch.delattr(signal, missing, raising=False)  # SIGIO: on Windows
        taken = b"\nno\n" + b"b" * 5120 + b"\n"
        typed = io.BytesIO(taken + b"a" * 5121 + b"\n\xff\n\xc3\xb6\n" + last)
        typed = io.TextIOWrapper(typed, "utf-8")
        shown, sent = talk(monkeypatch, typed, b"-!too \x1b[2J rude\n--")
        told = f"Refused: too \\x1b[2J rude\n ->  -> Not sent: {LONG}\n -> Not sent: {ODD}\n"
        assert shown == f"Please enter 'quit' to exit\n ->  -> {told} ->  -> " + "\n" * (not last)
        assert sent == taken + b"\xc3\xb6\n--quit--\n"

    @pytest.mark.parametrize("replies", [b"-", b" ", b"S", b"--", b"!why", b""], ids=ascii)
    def test_a_mute_strange_or_gone_server_exits_1(self, monkeypatch, replies):
        said = {b"-": "timed out", b" ": "no reply but b' '", b"S": "no reply but b'S'"}
        if not replies:  # it goes between the check and the reply
            monkeypatch.setattr(client_thread1, "check", Mock())
        typed = io.StringIO("Zack\n" * 3)
        with pytest.raises(SystemExit, match=f"^Connection Error: {said.get(replies, GONE)}$"):
            talk(monkeypatch, typed, replies, gone=replies not in said)
        assert typed.read() == "Zack\n" * (1 if replies == b"-" else 2)

    @pytest.mark.parametrize(("end", "status"), [("Ctrl-D", 0), ("Ctrl-C", 0), ("stop", 1)])
    def test_in_a_terminal_keys_work_and_every_end_is_orderly(self, server, script, end, status):
        keyboard, terminal = os.openpty()
        with open(keyboard, "r+b", 0) as screen, open(terminal, "r+b", 0) as tty:
            client = script("client_thread1.py", server.address[1], screen, stdin=tty, stdout=tty)
            tty.close()
            # Up, left, !, then Ctrl-V Ctrl-J for a newline within the line: two messages
            for number, keys in enumerate([b"", b"Zack\r", b"\x1b[A\x1b[D!\x16\n\r"], 1):
                screen.write(keys)
                client.console.wait_for("\n -> ", number)  # on a line of its own: not drawn again
            assert "Hello ZAC!\n" in server.console.wait_for("Hello K\n")
            if end == "stop":
                server.stop()
            else:
                screen.write(b"\x04") if end == "Ctrl-D" else client.send_signal(signal.SIGINT)
                server.console.wait_for(QUITS)
            said = f"Connection Error: {GONE}\n".encode() * status
            assert (client.wait(DEADLINE), client.stderr.read()) == (status, said)
            client.console.wait_for("\n -> \r\n")  # what comes next stands on a line of its own


class TestOnTheWire:
    SESSIONS = {  # what a client sends, the replies, what the console shows after Hello or Error
        "lines, the last without an end": ([b"1\r\ntwo \t\nthree"], b"---", ["1", "TWO", "THREE"]),
        "empty lines": ([b"\n\n"], b"--", ["", ""]),
        "nothing": ([b""], b"", []),
        "quit amid text": ([b"--quit-- b\n --quit--\n"], b"--", ["--QUIT-- B", " --QUIT--"]),
        "quit in capitals": ([b"one\n--Quit-- \r\nno\n"], b"-", ["ONE"]),
        "quit with a dotless i": (["--quıt--\n".encode()], b"-", ["--QUIT--"]),
        "the article's client": ([b"Zack", b"Python", b"--quit--"], b"--", ["ZACK", "PYTHON"]),
        "newlines after all": ([b"a!", b"b\nAnoth", b"ny\n"], b"---", ["A!", "B", "ANOTHNY"]),
        "5120 bytes": ([b"a" * 5120 + b"\r\n" + b"b" * 5120], b"--", ["A" * 5120, "B" * 5120]),
        "5120 bytes, CR": ([b"a" * 5120 + b"\r"], b"-", ["A" * 5120]),
        "5121 bytes": ([b"a" * 5120 + b" \r\nno\n"], f"!{LONG}\n".encode(), [LONG]),
        "5 million": ([b"one\n" + b"a" * 5_000_000], f"-!{LONG}\n".encode(), ["ONE", LONG]),
        "not UTF-8": ([b"one\n\xff\n\xc3\xb6\n"], f"-!{ODD}\n-".encode(), ["ONE", ODD, "Ö"]),
        "terminal codes": ([b"\x1b[2J\ra\n\xc2\x9b"], b"--", [r"\x1b[2J\rA", r"\x9b"]),
    }

    @pytest.mark.parametrize(("sent", "replies", "told"), SESSIONS.values(), ids=SESSIONS)
    def test_each_message_gets_one_reply_and_quit_gets_none(self, server, sent, replies, told):
        got, shown = server.exchange(*sent)
        assert got == replies
        assert re.findall(r"(?:Processed result: Hello|refused\. Error :) (.*)", shown) == told
        assert shown.count(QUITS) == len(re.findall(rb"(?im)^--quit--\s*$", b"\n".join(sent)))
        assert "failed" not in shown

    def test_fifty_clients_talk_at_once_byte_by_byte(self, server):
        def talk(number):
            with server.connect() as soc:
                soc.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                soc.sendall(b"%d\n" % number)
                reply = soc.recv(1)
                assert f"Hello {number}\n" in server.console.getvalue()  # before its reply
                for byte in f"zwölf {number}\n--quit--\n".encode():
                    soc.sendall(bytes([byte]))
                return reply + soc.makefile("rb").read()

        with ThreadPoolExecutor(50) as pool:
            assert list(pool.map(talk, range(50))) == [b"--"] * 50
        shown = server.console.wait_for("closed\n", 50)
        for text in [*range(50), *(f"ZWÖLF {number}" for number in range(50))]:
            assert shown.count(f"{PROCESSING}Processed result: Hello {text}\n") == 1
        assert (shown.count(QUITS), shown.count("\n")) == (50, 2 + 50 * 8)

    def test_it_does_not_wait_for_the_end_of_a_longer_message(self, server, monkeypatch):
        monkeypatch.setattr(server_thread1, "LINGER", 0.1)
        with server.connect() as silent, server.connect() as busy:
            silent.sendall(b"a" * 5121)
            busy.sendall(b"a" * 5121)
            with pytest.raises(ConnectionError):  # it is closed
                any(map(busy.sendall, [b"a"] * 10**6))
            shown = server.console.wait_for("closed\n", 2)
        assert len(re.findall(rf"Message from [\d.]+:\d+ refused\. Error : {LONG}\n", shown)) == 2


class TestUnderLoadAndFaults:
    def test_it_keeps_to_one_cpu_and_many_threads_ask_less_for_the_gil(self, server, monkeypatch):
        monkeypatch.setattr(server_thread1, "GIL_WAIT", 0.004)
        with server.connect(), server.connect():
            server.console.wait_for("Connected", 2)
        server.pin.assert_called_once_with(0, {6 + server.address[1] % 3})
        assert server_thread1.sys.setswitchinterval.mock_calls == [call(0.005), call(0.008)]

    def test_a_crowd_of_threads_queues_for_the_console(self, server, monkeypatch):
        waiting = threading.Semaphore(0)

        def turn():
            come = threading.Event()
            return Mock(get=lambda: waiting.release() or come.wait(), put=lambda _: come.set())

        monkeypatch.setattr(server_thread1, "queue", Mock(SimpleQueue=turn))
        monkeypatch.setattr(server_thread1, "CROWD", threading.active_count())
        with ThreadPoolExecutor(20) as pool, server_thread1.queued():
            server_thread1.CONSOLE.release()  # free, and yet nobody overtakes
            for number in range(20):
                pool.submit(server_thread1.show, f"number {number}")
                assert waiting.acquire(timeout=DEADLINE), number
            server_thread1.CONSOLE.acquire()
        assert re.findall(r"number (\d+)", server.console.getvalue()) == list(map(str, range(20)))

    @pytest.mark.parametrize("error", [OSError, ValueError, AttributeError])
    @pytest.mark.parametrize("method", ["write", "flush"])
    def test_a_console_gone_or_full_costs_no_client_its_reply(self, server, method, error):
        setattr(server.console, method, Mock(side_effect=error))
        with server.connect() as soc:
            soc.sendall(b"one\n--quit--\n")
            assert soc.makefile("rb").read() == b"-"

    def test_a_reset_is_told_with_its_reason(self, server):
        with server.connect() as soc:
            server.console.wait_for("Connected")
            soc.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, bytes([1, *[0] * 7]))
        shown = server.console.wait_for("closed\n")
        assert re.search(r"(Connection .+) failed\. Error : .*reset.*\n\1 closed\n$", shown)

    def test_a_vanished_peer_is_found_out_and_no_reply_delayed(self, server, monkeypatch):
        vanished = Mock(side_effect=TimeoutError("nobody there"))
        monkeypatch.setattr(server_thread1, "answer_messages", vanished)
        monkeypatch.setattr(socket.socket, "setsockopt", setsockopt := Mock())
        assert "failed. Error : nobody there\n" in server.exchange(b"")[1]
        setsockopt.assert_any_call(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        setsockopt.assert_any_call(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def test_a_shortage_is_waited_out_and_told_every_ten_seconds(self, server, monkeypatch):
        def accept(listener, accept=socket.socket.accept):
            if errors:
                raise errors.pop(0)
            return accept(listener)

        names = "EMFILE ENFILE ENOMEM ENOBUFS "  # a shortage; the others are the network's
        names += "EPROTO ENETDOWN ENETUNREACH EHOSTUNREACH EHOSTDOWN ENOPROTOOPT EPERM"
        pauses, errors = [], []
        monkeypatch.setattr(server_thread1, "time", clock := Mock(sleep=pauses.append))
        monkeypatch.setattr(socket.socket, "accept", accept)
        for now, times in {100: 1, 109.9: 1, 110: 2}.items():
            clock.monotonic.return_value = now
            errors += [OSError(getattr(errno, name), name) for name in names.split()]
            errors += [ConnectionAbortedError(), ConnectionResetError(), TimeoutError()]
            server.exchange(b"")  # for this one, accept() was called before
            assert server.exchange(b"Zack\n")[0] == b"-"
            told = re.findall(r"New clients have to wait. Error : (.*)", server.console.getvalue())
            assert told == [f"[Errno {errno.EMFILE}] EMFILE"] * times
        assert pauses == [0.1] * 3 * len(names.split())

    def test_any_other_error_of_accept_ends_the_server(self, monkeypatch):
        monkeypatch.setattr(socket.socket, "accept", Mock(side_effect=OSError("gone")))
        with pytest.raises(OSError, match="gone"):
            server_thread1.start_server(server_thread1.open_listener(port=0))

    @pytest.mark.parametrize("error", [RuntimeError, MemoryError])
    def test_a_thread_that_cannot_start_closes_its_client_alone(self, server, monkeypatch, error):
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", Mock(side_effect=error("no more")))
            shown = server.exchange(b"")[1]
        assert re.search(r"not start. Error : no more\nConnection .+ closed\n$", shown)
        assert server.exchange(b"Zack\n")[0] == b"-"

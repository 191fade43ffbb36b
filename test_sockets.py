"""What the server and the client promise; `pytest -v` lists it."""

import contextlib
import gc
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
import sysconfig
import tempfile
import termios
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))  # Not every import mode of pytest does it.
server_thread1 = importlib.import_module("server_thread1")
server_thread1.LINGER = server_thread1.STOP_TIMEOUT = (
    1000  # A test that waits for them is given up.
)
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
    if signal.getsignal(number) == signal.SIG_IGN:  # as in a background job, or under nohup
        signal.signal(number, lambda *_: None)  # The scripts would inherit that it is ignored.
# seconds until a test is given up; a free-threaded Python takes long to start on a busy machine
TIMEOUT = 150 if sysconfig.get_config_var("Py_GIL_DISABLED") else 20
FILES = resource.getrlimit(resource.RLIMIT_NOFILE)[0]  # descriptors that this process may have
MANY = max(5, min(150, FILES // 3 - 15))  # clients at once
OPENED = contextlib.ExitStack()  # It closes at the end of a test what the test has opened.
LONG = "message over 5120 bytes"
ODD = "'utf-8' codec can't decode byte 0xff in position 0: invalid start byte"
RESET = socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)  # It makes close() a reset.


@pytest.fixture(autouse=True)
def clean_up_in_time(request):
    """Close what a test opens. If it waits in vain, it fails with what it saw and ends the run."""

    def give_up(_, frame):
        request.session.shouldfail = "a test waited in vain"
        while frame.f_code.co_filename != __file__ and frame.f_back:
            frame = frame.f_back  # What the test knows says more than what the library does.
        pytest.fail(f"{frame.f_code.co_name}() waits in vain, with {frame.f_locals}")

    sockets = open_sockets()
    signal.signal(signal.SIGALRM, give_up)
    signal.setitimer(signal.ITIMER_REAL, TIMEOUT, 5)  # It comes again if the cleaning up hangs.
    try:
        with OPENED:
            yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    assert open_sockets() <= sockets


def open_sockets():
    """Return the sockets of this process that are not closed."""
    return {s for s in gc.get_objects() if type(s) is socket.socket and s.fileno() != -1}


@contextlib.contextmanager
def running(host="127.0.0.1"):
    """Run the server in a thread, and see that its threads end and its switch interval, too.

    Give its address, and a function that stops it and returns what its console shows.
    """
    threads, interval = set(threading.enumerate()), sys.getswitchinterval()
    listener = server_thread1.open_listener(host, port=0)
    listener.settimeout(0.01)  # seconds, so that accept() sees a stop at once
    address = listener.getsockname()[:2]
    server = threading.Thread(target=server_thread1.start_server, args=[listener], daemon=True)

    def stop():
        listener.close()
        for thread in set(threading.enumerate()) - threads:
            thread.join()
        file.seek(0)
        return file.read().decode()

    with (
        tempfile.TemporaryFile(buffering=0) as file,  # Each write to it gives other threads a turn.
        io.TextIOWrapper(file, "utf-8", "backslashreplace", write_through=True) as console,
        contextlib.redirect_stdout(console),
    ):
        server.start()
        try:
            yield address, stop
        finally:
            stop()
    assert sys.getswitchinterval() == interval


def run(*arguments, before=":", **streams):
    """Run Python as a user does, after a shell command; a stream that is not given is a pipe."""
    command = ["sh", "-c", f'{before}; exec "$@"', "sh", sys.executable, *map(str, arguments)]
    env = {"TERM": "dumb", "INPUTRC": os.devnull}
    env |= {"PYTHONIOENCODING": "utf-8", "PYTHONUNBUFFERED": ""}
    streams = dict.fromkeys(["stdin", "stdout", "stderr"], subprocess.PIPE) | streams
    process = subprocess.Popen(command, bufsize=0, cwd=HERE, env=os.environ | env, **streams)
    OPENED.enter_context(process)
    OPENED.callback(process.kill)
    return process


def serve(change="", before=":"):
    """Run the server on a free port, with a change to it. Return its process and a client."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        address = probe.getsockname()
    changed = ["-c", f"import server_thread1 as s; s.ACCEPT_TIMEOUT = 0.01; {change}; s.main()"]
    script = changed if change else ["server_thread1.py"]
    server = run(*script, "--port", address[1], before=before)
    while True:
        assert server.poll() is None, server.stderr.read()
        with contextlib.suppress(ConnectionRefusedError):
            return server, connect(address)
        time.sleep(0.01)  # No event tells that another process listens.


def connect(address):
    return OPENED.enter_context(socket.create_connection(address, TIMEOUT))


def send(client, *pieces):
    """Send pieces, wait for a reply between two, leave, and return all replies."""
    replies = b""
    for piece in pieces[:-1]:
        client.sendall(piece)
        replies += client.recv(1)
    client.sendall(pieces[-1])
    client.shutdown(socket.SHUT_WR)
    return replies + client.makefile("rb").read()


def read_until(stream, text):
    """Return what a pipe or a terminal shows, up to a text."""
    shown = bytearray()
    while not shown.endswith(text):
        shown += os.read(stream.fileno(), 1) or pytest.fail(f"no {text} but {shown}")
    return bytes(shown)


# The session
def test_clients_at_the_same_time_get_all_replies_and_lines_stay_whole():
    def scripted_client(number):
        with socket.create_connection(address, TIMEOUT) as client:
            client.sendall(f"first of {number}\n".encode())
            assert client.recv(1) == b"-"
            all_answered.wait(TIMEOUT / 2)  # No client leaves before each has its first reply.
            for byte in f"second of {number}\n--quit--\n".encode():
                client.sendall(bytes([byte]))
            assert client.makefile("rb").read() == b"-"

    all_answered = threading.Barrier(MANY)
    with running() as (address, stop):
        with ThreadPoolExecutor(MANY) as pool:
            list(pool.map(scripted_client, range(MANY)))  # list() raises what a client raised.
        shown = stop()
    processing = "Processing the input received from client\n"
    for number in range(MANY):
        for word in ("FIRST", "SECOND"):
            assert shown.count(f"{processing}Processed result: Hello {word} OF {number}\n") == 1
    assert shown.count(f"{processing}Client is requesting to quit\n") == MANY
    assert len(re.findall(r"(?m)^Connected with 127\.0\.0\.1:\d+$", shown)) == MANY
    assert len(re.findall(r"(?m)^Connection 127\.0\.0\.1:\d+ closed$", shown)) == MANY
    assert shown.count("\n") == 2 + 8 * MANY + 1


def test_with_three_clients_the_server_shows_the_session_of_the_readme():
    readme = (HERE / "README.md").read_text(encoding="utf-8")
    (_, session), *windows = re.findall(r"(?s)```console\n\$ python3 (\w+\.py)\n(.*?)```", readme)
    server = run("server_thread1.py", "--port", 0)
    shown = read_until(server.stdout, b"listening on 127.0.0.1:")
    port = read_until(server.stdout, b"\n")
    shown += port
    for script, window in windows:
        client = run(script, "--port", int(port))
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
        pytest.param(["a--quit--\n --quit--\n"], "--", ["A--QUIT--", " --QUIT--"], id="not quit"),
        pytest.param(["Zack\n--Quit-- \r\nx\n"], "-", ["ZACK"], id="quit, and more"),
        pytest.param(["--qu\u0131t--\n"], "-", ["--QUIT--"], id="quit with a dotless i"),
        pytest.param(["a" * 5120 + "\r\n"], "-", ["A" * 5120], id="5120 bytes with CR LF"),
        pytest.param(["a" * 5120 + "\r"], "-", ["A" * 5120], id="5120 bytes with CR"),
        pytest.param(["\n" + "a" * 5120 + "\r\n"], "--", ["", "A" * 5120], id="CR and LF apart"),
        pytest.param(["a" * 5121 + "\nx\n"], f"!{LONG}\n", [LONG], id="5121 bytes"),
        pytest.param(["x\n" + "a" * 5_000_000], f"-!{LONG}\n", ["X", LONG], id="5 million bytes"),
        pytest.param(["x\n", "a" * 5122, ""], f"-!{LONG}\n", ["X", LONG], id="5122 without an end"),
        pytest.param(["\udcff\nx\n"], f"!{ODD}\n-", [ODD, "X"], id="not UTF-8"),
        pytest.param(["\u4f60\u3000\xa0.\n"], "-", ["\u4f60\u3000\xa0."], id="Chinese"),
        pytest.param(["\u200d\U0001fae8\n"], "-", ["\u200d\U0001fae8"], id="new emoji"),
        pytest.param(["\0\x1b[2J\r\x1f.\n"], "-", [r"\x00\x1b[2J\r\x1f."], id="terminal codes"),
        pytest.param(["\x7f\x9f\u2028\u2069.\n"], "-", [r"\x7f\x9f\u2028\u2069."], id="C1, bidi"),
    ],
)
def test_each_message_is_answered_and_shown_once(sent, replies, shown):
    with running() as (address, stop):
        pieces = [piece.encode(errors="surrogateescape") for piece in sent]
        assert send(connect(address), *pieces) == replies.encode()
        assert re.findall(r"(?:result: Hello|refused\. Error :) (.*)", stop()) == shown


def test_a_client_that_does_not_close_is_closed_after_a_while():
    server, silent = serve("s.LINGER = 0.2")
    flooding = connect(silent.getpeername())
    start = time.monotonic()
    silent.sendall(b"--quit--\n")
    flooding.sendall(b"a" * 5121)
    with contextlib.suppress(ConnectionError):  # It is closed meanwhile.
        while True:
            flooding.sendall(b"a" * 100_000)
    read_until(server.stdout, b" closed\n")
    read_until(server.stdout, b" closed\n")
    assert time.monotonic() > start + 0.2


# Many at once
def test_more_than_six_clients_can_wait_to_be_accepted():
    listener = OPENED.enter_context(server_thread1.open_listener(port=0))
    for _ in range(15):  # listen(6) would have the eighth wait for a second or more.
        OPENED.enter_context(socket.create_connection(listener.getsockname(), timeout=0.9))


@pytest.mark.skipif(MANY < 50, reason="too few descriptors are allowed")
def test_while_there_are_many_clients_threads_hold_the_gil_longer():
    interval = sys.getswitchinterval()
    with running() as (address, _):
        for client in [connect(address) for _ in range(MANY)]:
            client.sendall(b"Zack\n")
            assert client.recv(1) == b"-"
        assert sys.getswitchinterval() > interval
        OPENED.close()  # Its clients leave.
        while sys.getswitchinterval() > interval:  # until the server has forgotten them
            send(connect(address), b"")


def test_a_client_that_reads_no_replies_delays_no_other_and_no_stop(tmp_path):
    console, size = tmp_path / "console", 0
    server, deaf = serve("s.STOP_TIMEOUT = 0", before=f"exec >'{console}'")
    deaf.sendall(b"\xff\n" * 100_000)
    while size < console.stat().st_size:  # until its replies fill all buffers
        size = console.stat().st_size
        time.sleep(0.2)
    assert send(connect(deaf.getpeername()), b"Zack\n") == b"-"
    server.send_signal(signal.SIGTERM)
    assert server.wait(5) == 0
    assert console.read_text().count(" closed\n") == 2


# Faults
def test_what_was_received_is_served_although_the_client_left_without_reading():
    server, client = serve()
    client.sendall(b"a\n" * 500 + b"--quit--\nb\n")
    client.close()
    shown = read_until(server.stdout, b" closed\n")
    assert shown.count(b"Hello A\n") == 500
    assert b"Client is requesting to quit\nConnection " in shown
    assert b"Hello B" not in shown


def test_a_client_that_is_gone_is_noticed_and_replies_are_sent_at_once():
    with running() as (address, stop):
        before = open_sockets()
        client = connect(address)
        client.sendall(b"Zack\n")
        assert client.recv(1) == b"-"
        (servers_side,) = open_sockets() - before - {client}
        assert servers_side.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        assert servers_side.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        client.setsockopt(*RESET)
        client.close()
        shown = stop()
    assert re.search(r"(Connection .*) failed\. Error : .*reset.*\n\1 closed\n", shown)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_process_input_may_refuse_a_message_and_other_errors_end_only_its_client(monkeypatch):
    def process_input(text):
        if text == "bug":
            raise ZeroDivisionError
        raise ValueError("not\x1b\n\udcff")

    monkeypatch.setattr(server_thread1, "process_input", process_input)
    with running() as (address, stop):
        assert send(connect(address), b"bug\na\n") == b""
        assert send(connect(address), b"a\nb\n") == (rb"!not\x1b\n\udcff" + b"\n") * 2
        assert stop().count(r"refused. Error : not\x1b\n") == 2


def test_an_error_of_accept_ends_nothing_and_is_shown_once(monkeypatch):
    accept = socket.socket.accept
    errors = [OSError("odd")] * 3 + [ConnectionAbortedError()]

    def accept_that_fails_first(listener):
        if errors:
            raise errors.pop()
        return accept(listener)[0], None  # macOS has no address of a client that has left.

    monkeypatch.setattr(server_thread1, "ACCEPT_TIMEOUT", 0.05)
    monkeypatch.setattr(socket.socket, "accept", accept_that_fails_first)
    start = time.monotonic()
    with running() as (address, stop):
        assert send(connect(address), b"Zack\n") == b"-"
        assert time.monotonic() - start > 0.12  # It does not try again at once.
        assert re.findall("Error : (.*)", stop()) == ["odd"]


def test_out_of_descriptors_the_server_says_so_and_serves_later():
    server, first = serve(before="ulimit -n 20")
    *others, last = [connect(first.getpeername()) for _ in range(20)]
    read_until(server.stdout, b"New clients have to wait. Error : [Errno 24] ")
    for client in others:
        client.close()
    assert send(last, b"Zack\n") == b"-"


def test_a_thread_that_cannot_start_costs_only_its_client(monkeypatch):
    def start_that_fails(_):
        raise RuntimeError("no more threads")

    with running() as (address, stop):
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", start_that_fails)
            assert connect(address).recv(1) == b""
        assert send(connect(address), b"Zack\n") == b"-"
        shown = stop()
    assert re.search(r"Error : no more threads\nConnection .* closed\nConnected", shown)
    assert shown.endswith("Server stopped\n")


# The console and the stop
@pytest.mark.parametrize(
    ("before", "number", "shown"),
    [
        pytest.param(":", signal.SIGINT, "Hello ZO\u00cb", id="Ctrl-C"),
        pytest.param("exec >/dev/full", signal.SIGTERM, "", id="SIGTERM, full"),
        pytest.param("exec >&-", signal.SIGTERM, "", id="SIGTERM, closed"),
        pytest.param("export PYTHONIOENCODING=ascii", signal.SIGTERM, r"Hello ZO\xcb", id="ASCII"),
    ],
)
def test_two_signals_stop_the_server_and_no_console_costs_a_reply(before, number, shown):
    server, client = serve(before=before)
    client.sendall("Zo\u00eb\n".encode())
    assert client.recv(1) == b"-"
    server.send_signal(number)
    server.send_signal(number)
    assert server.wait(5) == 0  # seconds: the promised three, with room for a busy machine
    assert client.recv(1) == b""
    assert server.stderr.read() == b""
    assert shown in server.stdout.read().decode()


def test_a_signal_stops_the_server_while_its_console_is_paused():
    server, client = serve(before="head -c 65000 /dev/zero")  # of the 65536 bytes of a pipe
    client.sendall(b"Zack\n" * 20)
    client.recv(1)
    while select.select([client], [], [], 0.2)[0]:  # until the pipe is full, as after Ctrl-S
        client.recv(1)
    server.send_signal(signal.SIGTERM)
    assert server.wait(5) == 0


def test_a_slow_console_is_waited_for_and_loses_nothing():
    before = f"'{sys.executable}' -c 'import os; os.set_blocking(1, False)'"  # as others may
    server, client = serve(before=before)
    client.sendall((b"a" * 5000 + b"\n") * 25 + b"--quit--\n")
    replies = client.recv(1)
    while select.select([client], [], [], 0.2)[0]:  # until the pipe is full
        replies += client.recv(5120) or pytest.fail("no reply waits for the console")
    assert len(replies) <= 65536 // 5000, "a reply came before its lines were written"
    shown = read_until(server.stdout, b"requesting to quit\n")
    assert shown.count(b"Processed result: Hello " + b"A" * 5000 + b"\n") == 25
    assert replies + client.makefile("rb").read() == b"-" * 25


def test_a_signal_that_is_ignored_from_the_start_stays_ignored():
    server, client = serve(before="trap '' INT")
    server.send_signal(signal.SIGINT)
    assert not select.select([client], [], [], 0.4)[0], "a stop has closed the connection"


def test_a_stop_lets_python_run_its_exit_functions():
    server, client = serve("import atexit; atexit.register(print, 'bye')")
    assert send(client, b"Zack\n") == b"-"  # By now the server minds signals.
    server.send_signal(signal.SIGINT)
    assert server.stdout.read().endswith(b"Server stopped\nbye\n")


def test_a_stop_waits_only_for_the_message_in_hand():
    server, idle = serve("s.process_input = lambda text: text + input('?')")
    client = connect(idle.getpeername())
    client.sendall(b"one\ntwo\nthree")
    read_until(server.stdout, b"?")
    server.send_signal(signal.SIGINT)
    assert idle.recv(1) == b""
    server.stdin.write(b"!\n" * 3)
    assert client.makefile("rb").read() == b"-"
    assert re.findall(b"result: (.*)", server.stdout.read()) == [b"one!"]


def test_a_stop_gives_up_a_message_that_takes_too_long():
    change = "s.STOP_TIMEOUT = 0.1; s.process_input = lambda text: s.time.sleep(int(text)) or text"
    server, client = serve(change)
    client.sendall(b"0\n60\n")
    assert client.recv(1) == b"-"
    server.send_signal(signal.SIGTERM)
    assert server.stdout.read().endswith(b"Server stopped\n")
    assert server.wait() == 0


@pytest.mark.parametrize(
    ("host", "address", "shown"),
    [
        pytest.param("", "127.0.0.1", "0.0.0.0", id="all addresses"),
        pytest.param("localhost", "127.0.0.1", "127.0.0.1", id="localhost"),
        pytest.param("::1", "::1", "[::1]", id="IPv6"),
    ],
)
def test_the_server_listens_on_its_host_and_can_restart_at_once(host, address, shown):
    if host == "::1":
        try:
            socket.create_server((host, 0), family=socket.AF_INET6).close()
        except OSError:
            pytest.skip("no IPv6 on this machine")
    with running(host) as ((_, port), stop):
        client = connect((address, port))
        client.sendall(b"--quit--\n")
        assert client.recv(1) == b""
        assert f"listening on {shown}:{port}\nConnected" in stop()
        server_thread1.open_listener(host, port).close()


# The client
def meet(*script, **how):
    """Run the client. Return its process, and the server's end of its connection."""
    listener = OPENED.enter_context(socket.create_server(("127.0.0.1", 0)))
    client = run(*script or ["client_thread1.py"], "--port", listener.getsockname()[1], **how)
    return client, OPENED.enter_context(listener.accept()[0])


def received(connection):
    """Return all that the client sends, and close the connection."""
    with connection:
        return connection.makefile("rb").read()


def talk(typed, replies, **how):
    """Run the client on typed text, with a server that gives its replies at once and no more.

    Return the exit status, what the client shows, its error output, and what it has sent.
    """
    client, connection = meet(**how)
    connection.sendall(replies.encode())
    connection.shutdown(socket.SHUT_WR)
    shown, told = client.communicate(typed.encode(errors="surrogateescape"))
    return client.returncode, shown, told.decode(), received(connection)


@pytest.mark.parametrize(
    ("typed", "replies", "shown", "sent"),
    [
        pytest.param("Zack\n\nquit\nx\n", "--", " ->  ->  -> ", "Zack\n\n", id="quit"),
        pytest.param("a\nquit \n", "-", " ->  -> ", "a\n", id="quit and a blank"),
        pytest.param("Zack \n--Quit--\n", "-", " ->  -> ", "Zack\n", id="--quit--"),
        pytest.param("Zack", "-", " ->  -> \n", "Zack\n", id="the end of a pipe"),
        pytest.param("QUIT\n", "-", " ->  -> \n", "QUIT\n", id="QUIT"),
        pytest.param("a\n", "!\x1b[2J\n", " -> Refused: \\x1b[2J\n -> \n", "a\n", id="refused"),
        pytest.param("a" * 5121, "", f" -> Not sent: {LONG}\n -> \n", "", id="too long"),
        pytest.param("a" * 5120, "-", " ->  -> \n", "a" * 5120 + "\n", id="not too long"),
        pytest.param("\udcff", f"!{ODD}\n", f" -> Refused: {ODD}\n -> \n", "\udcff\n", id="odd"),
    ],
)
def test_the_client_sends_each_line_shows_refusals_and_says_good_bye(typed, replies, shown, sent):
    shown = f"Please enter 'quit' to exit\n{shown}".encode()
    sent = f"{sent}--quit--\n".encode(errors="surrogateescape")
    assert talk(typed, replies) == (0, shown, "", sent)


@pytest.mark.parametrize(
    ("before", "replies", "status", "said"),
    [
        pytest.param(":", "-", 1, "Connection Error: the server closed the connection", id="gone"),
        pytest.param(":", "-S", 1, "Connection Error: no reply but b'S'", id="a strange server"),
        pytest.param(":", "-!", 1, "Connection Error: no reply but b'!'", id="cut off"),
        pytest.param("exec >/dev/full", "--", 1, "Console Error: [Errno 28] ", id="full console"),
        pytest.param("exec <&-", "--", 0, "", id="no input"),
        pytest.param("exec >&-", "--", 0, "", id="no output"),
        pytest.param("exec 2>&-", "--", 0, "", id="no error output"),
    ],
)
def test_a_client_in_trouble_says_so_in_a_line_and_says_good_bye(before, replies, status, said):
    ended, _, told, sent = talk("Zack\nZack\n", replies, before=before)
    assert (ended, told[: len(said)], told.count("\n")) == (status, said, status)
    assert sent.endswith(b"--quit--\n")


def test_the_client_gives_up_a_server_that_does_not_reply():
    client, connection = meet("-c", "import client_thread1 as c; c.TIMEOUT = 0.1; c.main()")
    client.stdin.write(b"Zack\n")
    assert received(connection) == b"Zack\n--quit--\n"
    assert client.communicate()[1] == b"Connection Error: timed out\n"


def test_the_client_ends_when_nobody_reads_what_it_shows():
    client, connection = meet()
    read_until(client.stdout, b" -> ")
    client.stdout.close()
    client.stdin.write(b"Zack\n")
    connection.sendall(b"-")
    assert received(connection) == b"Zack\n--quit--\n"
    assert client.stderr.read() == b"Console Error: [Errno 32] Broken pipe\n"


@pytest.mark.skipif(FILES < 1200, reason="too few descriptors are allowed")
def test_the_client_runs_with_more_descriptors_than_select_takes():
    for _ in range(1100):
        OPENED.enter_context(socket.socket())
    assert talk("Zack\nquit\n", "-", pass_fds=range(3, 1100))[0] == 0


def open_terminal():
    """Return a terminal's two ends: the keyboard with the screen, and what a program has of it."""
    return (OPENED.enter_context(open(end, "r+b", 0)) for end in os.openpty())


@pytest.mark.parametrize("gone", [False, True], ids=["server there", "server gone"])
@pytest.mark.parametrize("way", ["quit", "\4", "SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT"])
def test_every_way_out_says_good_bye_and_restores_the_terminal(way, gone):
    keyboard, tty = open_terminal()
    modes = termios.tcgetattr(tty)
    client, connection = meet(stdin=tty, stdout=tty, stderr=tty)
    read_until(keyboard, b" -> ")
    if gone:
        connection.setsockopt(*RESET)
        connection.close()
    if way.startswith("SIG"):
        client.send_signal(getattr(signal, way))
    else:
        keyboard.write(way.encode())
    keyboard.write(b"\n")  # It ends the line, or wakes input(), which may have missed the signal.
    assert gone or received(connection) == b"--quit--\n"
    assert client.wait() == 0
    assert termios.tcgetattr(tty) == modes


def test_keys_edit_the_line_and_one_with_a_newline_is_not_sent():
    if "GNU" not in (pytest.importorskip("readline").__doc__ or ""):
        pytest.skip("only GNU readline has these keys")
    keyboard, tty = open_terminal()
    _, connection = meet(stdin=tty, stdout=tty, stderr=tty)
    connection.sendall(b"--")
    for shown, keys in [
        (b" -> ", b"Zack\r"),
        (b"\r\n -> ", b"\x1b[A\x1b[D!\r"),  # up, left
        (b"\r\n -> ", b"a\x16\n--quit--\r"),  # Ctrl-V Ctrl-J
        (b"Not sent: message over one line\r\n -> ", b"\4"),
    ]:
        read_until(keyboard, shown)
        keyboard.write(keys)
    assert received(connection) == b"Zack\nZac!k\n--quit--\n"


def test_a_second_ctrl_c_ends_the_good_bye_with_status_130():
    client, connection = meet()
    read_until(client.stdout, b" -> ")
    client.send_signal(signal.SIGINT)
    client.stdin.write(b"\n")  # It wakes input(), which may have missed the signal.
    assert connection.recv(5120) == b"--quit--\n"
    client.send_signal(signal.SIGINT)
    assert (client.wait(), client.stderr.read()) == (130, b"")


# The command line
@pytest.mark.parametrize(
    ("script", "options", "status", "said"),
    [
        pytest.param("server", "--port TAKEN", 1, "^Bind failed. Error : .* in use", id="in use"),
        pytest.param("server", "--host a..b", 1, "^Bind failed. Error : ", id="no host name"),
        pytest.param("server", "--port -1", 2, "argument --port: not in 0 to 65535", id="no port"),
        pytest.param("server", "--port 65536", 2, "argument --port: not in 0 to", id="too high"),
        pytest.param("server", "--help", 0, r"(?s)127\.0\.0\.1.*8000", id="help of the server"),
        pytest.param(
            "client", "--port 65535", 1, "^Connection Error: .* refused\n$", id="no server"
        ),
        pytest.param("client", "--host a..b --port 0", 1, "^Connection Error: ", id="no name"),
        pytest.param("client", "--port 65536", 2, "argument --port: not in 0 to", id="not a port"),
        pytest.param("client", "--port -1", 2, "argument --port: not in 0 to", id="too low"),
        pytest.param("client", "--help", 0, r"(?s)127\.0\.0\.1.*8000", id="help of the client"),
    ],
)
def test_options_lead_to_the_right_message_and_exit_status(script, options, status, said):
    taken = OPENED.enter_context(socket.create_server(("127.0.0.1", 0)))
    options = options.replace("TAKEN", str(taken.getsockname()[1]))
    process = run(f"{script}_thread1.py", *options.split())
    shown, told = process.communicate()
    assert process.returncode == status
    assert re.search(said, (shown + told).decode())

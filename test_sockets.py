"""Each test is one promise of the server or the client; `pytest -v` lists them."""

import contextlib
import gc
import os
import re
import resource
import signal
import socket
import subprocess
import sys
import termios
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # Not every import mode of pytest does it.
import server_thread1

HERE = Path(__file__).parent
server_thread1.ACCEPT_TIMEOUT = 0.02  # seconds; a server in a thread sees a stop at once.
server_thread1.LINGER = server_thread1.STOP_TIMEOUT = 1000  # A test that waits for them fails.
for number in (signal.SIGINT, signal.SIGHUP, signal.SIGQUIT):  # A script or nohup may ignore some.
    signal.signal(number, signal.default_int_handler)
pytestmark = pytest.mark.filterwarnings("error")  # Python warns of a socket that is not closed.
# seconds until a test is given up; a free-threaded Python takes long to start on a busy machine
TIMEOUT = 300 if "free-threading" in sys.version else 20
FILES, FILES_AT_MOST = resource.getrlimit(resource.RLIMIT_NOFILE)  # descriptors
MANY = max(5, min(100, FILES // 3 - 15))  # clients at once
OPENED = contextlib.ExitStack()  # It closes at the end of a test what the test has opened.
case = pytest.param
LONG = "\xf6\\" * 5000
OVER = "message over 5120 bytes"
NOT_SENT = "Not sent: over 5120 bytes or more than one line\n -> \n"
UNCHANGED = "\u4f60\u3000\xa0\u200d\u2027\u202f\u2065\u206a\U0001fae8"  # These stay as they are.
PROMPT = "Please enter 'quit' to exit\n -> "  # The client's cases begin after it.
ERROR = "Connection Error: "
BAD_PORT = "argument --port: not in 0 to 65535"
MANY_FILES = {"before": "ulimit -n 1200", "change": "import os; [os.dup(0) for _ in range(1100)]"}
FEW = pytest.mark.skipif(0 < FILES_AT_MOST < 1200, reason="too few descriptors are allowed")
# The server script gives a stop up after STOP_TIMEOUT and 0.6 seconds, so here after 0.1.
QUICK = {"change": "script.ACCEPT_TIMEOUT = 0.02; script.STOP_TIMEOUT = -0.5"}
IMPATIENT = {"change": "script.TIMEOUT = 0.1"}
PATIENT = {"change": "script.TIMEOUT = 1000"}
AT_EXIT = {"change": "import atexit; atexit.register(print, 'bye')"}
# A message is a Python expression here, and its value is shown.
EVAL = {"change": "script.process_input = eval; script.ACCEPT_TIMEOUT = script.STOP_TIMEOUT = 0.1"}
# This message leaves a thread of its own, and something to do at Python's own exit.
TIMER = "str((__import__('threading').Timer(9, int).start(), __import__('atexit').register(print)))"
OWN_STDIN = {"change": "import io; script.sys.stdin = io.StringIO('a')"}
NO_READLINE = {"change": "script.sys.modules['readline'] = None"}  # import raises ImportError.
ASCII = {"before": "PYTHONIOENCODING=ascii"}
NO_STDERR = {"before": "exec 2>&-; INPUTRC=README.md"}  # readline complains of it.
DISK_FULL = "Console Error: [Errno 28] No space left on device\n"
ODD = "'utf-8' codec can't decode byte 0xff in position 0: invalid start byte"


@pytest.fixture(autouse=True)
def clean_up_in_time(request):
    """Close what a test opens. A test that takes too long fails, and pytest ends the run."""

    def give_up(*_):
        request.session.shouldfail = "a test waited in vain"
        pytest.fail(f"{TIMEOUT} seconds have passed")

    request.config.option.showlocals = True  # A failure shows what each function knew.
    signal.signal(signal.SIGALRM, give_up)
    signal.alarm(TIMEOUT)
    with OPENED:
        OPENED.callback(signal.alarm, 0)  # This comes last, even if another callback fails.
        yield
        signal.alarm(TIMEOUT)  # The cleaning up may hang, too.


@contextlib.contextmanager
def running(host="127.0.0.1"):
    """Run the server in a thread, until the block ends. A test reads its console with capfd."""
    threads = set(threading.enumerate())
    listener = OPENED.enter_context(server_thread1.open_listener(host, port=0))
    address = listener.getsockname()[:2]
    threading.Thread(target=server_thread1.start_server, args=[listener], daemon=True).start()
    yield address
    listener.close()
    for thread in set(threading.enumerate()) - threads:
        thread.join()  # If one is left, the test waits in vain.
    server_thread1.open_listener(*address).close()  # A new server can take the port at once.


def run(script, *options, change="", before=":", stream=subprocess.PIPE):
    """Run a script as a user does: the shell runs `before`, and Python `change`, then main()."""
    changed = ["-c", f"import {script} as script; {change}; script.main()"]
    python = [sys.executable, *(changed if change else [f"{script}.py"]), *map(str, options)]
    argv = ["sh", "-c", f'{before}; exec "$@"', "sh", *python]  # "$@" is python; "sh" is $0.
    env = os.environ | {"PYTHONIOENCODING": "utf-8", "PYTHONUNBUFFERED": "", "PYTHONSAFEPATH": ""}
    env |= {"TERM": "dumb", "INPUTRC": os.devnull, "PYTHONWARNINGS": "default"}
    streams = dict.fromkeys(["stdin", "stdout", "stderr"], stream)
    process = OPENED.enter_context(subprocess.Popen(argv, bufsize=0, cwd=HERE, env=env, **streams))
    OPENED.callback(process.kill)
    return process


def serve(**how):
    """Run the server script on a free port. Return its process, and a client of it."""
    placeholder = OPENED.enter_context(socket.socket())
    placeholder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # The server binds it, too.
    placeholder.bind(("127.0.0.1", 0))  # Nobody else gets the port while the server starts.
    address = placeholder.getsockname()
    server = run("server_thread1", "--port", address[1], **how)
    while True:
        assert server.poll() is None, server.stderr.read()
        with contextlib.suppress(ConnectionRefusedError):
            return server, connect(address)
        time.sleep(0.01)  # "listening" would tell, but some tests close the console.


def connect(address):
    return OPENED.enter_context(socket.create_connection(address, TIMEOUT))


def ask(client, *pieces):
    """Send texts, wait for one byte after each, send no more, and return all that comes."""
    replies = b""
    for piece in pieces:
        client.sendall(piece.encode(errors="surrogateescape"))  # \udcff becomes the byte 0xff.
        replies += client.recv(1)
    client.shutdown(socket.SHUT_WR)
    return (replies + client.makefile("rb").read()).decode()


def read_until(stream, text):
    """Return what a pipe or a terminal shows, up to a text."""
    shown = bytearray()
    while not shown.endswith(text):
        shown += os.read(stream.fileno(), 1) or pytest.fail(f"no {text} but {shown}")
    return bytes(shown)


# The session
def test_clients_at_the_same_time_get_all_replies_and_all_lines_are_shown(capfd):
    def scripted_client(number):
        with socket.create_connection(address, TIMEOUT) as client:
            client.sendall(f"first of {number}\n".encode())
            assert client.recv(1) == b"-"
            all_answered.wait(TIMEOUT / 2)  # No client leaves before each has its first reply.
            for byte in f"second of {number}\n--quit--\n".encode():  # A line may come in pieces.
                client.sendall(bytes([byte]))
            assert client.makefile("rb").read() == b"-"

    all_answered = threading.Barrier(MANY)
    with running() as address, ThreadPoolExecutor(MANY) as pool:
        list(pool.map(scripted_client, range(MANY)))  # list() raises what a client raised.
    shown, processing = capfd.readouterr().out, "Processing the input received from client\n"
    for number in range(MANY):
        assert shown.count(f"{processing}Processed result: Hello FIRST OF {number}\n") == 1
        assert shown.count(f"{processing}Processed result: Hello SECOND OF {number}\n") == 1
    assert shown.count(f"{processing}Client is requesting to quit\n") == MANY
    assert len(re.findall(r"(?m)^Connected with 127\.0\.0\.1:\d+$", shown)) == MANY
    assert len(re.findall(r"(?m)^Connection 127\.0\.0\.1:\d+ closed$", shown)) == MANY
    assert shown.count("\n") == 3 + 8 * MANY  # The server has three lines, a client eight.


def test_with_three_clients_the_server_shows_the_session_of_the_readme():
    readme = (HERE / "README.md").read_text(encoding="utf-8")
    (_, session), *windows = re.findall(r"(?s)```console\n\$ python3 (\w+)\.py\n(.*?)```", readme)
    server = run("server_thread1", "--port", 0)
    shown = read_until(server.stdout, b"listening on ") + read_until(server.stdout, b"\n")
    port = int(shown.split(b":")[1])
    for script, window in windows:
        client = run(script, "--port", port)
        for typed in re.findall(r" -> (.+\n)", window):
            assert read_until(client.stdout, b" -> ").decode() in window
            client.stdin.write(typed.encode())
            last = "closed\n" if typed == "quit\n" else f"Hello {typed.upper()}"
            shown += read_until(server.stdout, last.encode())
    assert re.sub(r":\d+", ":PORT", shown.decode()) == re.sub(r":\d+", ":PORT", session)


# On the wire
@pytest.mark.parametrize(
    ("sent", "replies", "shown"),
    [
        case(["Zack\nPython\nx"], "---", ["ZACK", "PYTHON", "X"], id="lines"),
        case(["Zack \t\r\nx\r\n"], "--", ["ZACK", "X"], id="lines with CR LF"),
        case(["\n\n\r\n"], "---", ["", "", ""], id="empty lines"),
        case([], "", [], id="nothing"),
        case(["Zack", "Python", "--quit--"], "--", ["ZACK", "PYTHON"], id="no newlines"),
        case(["a", "b\nc", "d\n"], "---", ["A", "B", "CD"], id="newlines after all"),
        case(["a--quit--\n --quit--\n"], "--", ["A--QUIT--", " --QUIT--"], id="more than quit"),
        case(["--quit--a\n"], "-", ["--QUIT--A"], id="text behind quit"),
        case(["Zack\n--Quit-- \r\nx\n"], "-", ["ZACK"], id="quit, and more"),
        case(["--qu\u0131t--\n"], "-", ["--QUIT--"], id="dotless i: not quit"),
        case(["a" * 5120 + "\r\nx\n"], "--", ["A" * 5120, "X"], id="5120 bytes with CR LF"),
        case(["a" * 5120 + "\r"], "-", ["A" * 5120], id="5120 bytes with CR"),
        case(["\n" + "a" * 5120 + "\r"], "--", ["", "A" * 5120], id="CR at the end, after a line"),
        case(["\n" + "a" * 5120 + "\r\n"], "--", ["", "A" * 5120], id="CR and LF apart"),
        case(["a" * 5121 + "\nx\n"], f"!{OVER}\n", [OVER], id="5121 bytes"),
        case(["\n" + "a" * 5120 + "\r\r\nx\n"], f"-!{OVER}\n", ["", OVER], id="5121 with CR LF"),
        case(["x\nx", "\udcff" * 5_000_000], f"-!{OVER}\n", ["X", OVER], id="5 MB, not UTF-8"),
        case(["\n", "\xe9" * 2561], f"-!{OVER}\n", ["", OVER], id="5122 bytes in 2561 letters"),
        case(["\udcff\nx\n"], f"!{ODD}\n-", [ODD, "X"], id="not UTF-8"),
        case([UNCHANGED], "-", [UNCHANGED], id="other text"),
        case(["\0\x1b[J\r\x1f\x7f\x9f."], "-", [r"\x00\x1b[J\r\x1f\x7f\x9f."], id="control codes"),
        case(["\u2028\u202e\u2066\u2069"], "-", [r"\u2028\u202e\u2066\u2069"], id="text direction"),
    ],
)
def test_each_message_is_answered_and_shown_once(sent, replies, shown, capfd):
    with running() as address:
        assert ask(connect(address), *sent) == replies
    assert re.findall(r"(?:result: Hello|refused\. Error :) (.*)", capfd.readouterr().out) == shown


def test_a_client_that_does_not_close_after_its_last_message_is_closed():
    server, silent = serve(change="script.LINGER = 0.1")
    silent.sendall(b"--quit--\n")
    assert b"failed" not in read_until(server.stdout, b" closed\n")
    flooding = connect(silent.getpeername())
    with contextlib.suppress(ConnectionError):  # The server closes it.
        while True:
            flooding.sendall(b"a" * 100_000)  # The first is too long, so it is the last message.
    read_until(server.stdout, b" closed\n")
    server.terminate()
    assert server.stderr.read() == b""  # No thread died of an error.


# Many clients, and what goes wrong with them
def test_more_than_six_clients_can_wait_to_be_accepted():
    listener = OPENED.enter_context(server_thread1.open_listener(port=0))
    for _ in range(15):  # listen(6) would have the eighth wait for a second or more.
        OPENED.enter_context(socket.create_connection(listener.getsockname(), timeout=0.9))


def test_a_client_that_reads_no_replies_delays_no_other_and_no_stop(monkeypatch, capfd):
    monkeypatch.setattr(server_thread1, "process_input", exec)  # Messages are Python now.
    monkeypatch.setattr(server_thread1, "STOP_TIMEOUT", 0.1)
    with running() as address:
        deaf = connect(address)
        deaf.sendall(b"raise ValueError('x' * 10_000_000)\n")  # Unread, it fits no buffer.
        assert deaf.recv(1) == b"!"  # The server is sending now, and cannot finish.
        assert ask(connect(address), "raise ValueError\n") == "!\n"
    assert b"\n" not in deaf.makefile("rb").read()  # The stop has cut the reply off.
    assert capfd.readouterr().out.count(" closed\n") == 2


def test_what_was_received_is_served_although_the_client_left_without_reading():
    server, first = serve()
    second = connect(first.getpeername())
    first.sendall(b"a\n" * 500)
    first.close()
    second.sendall(b"b\n" * 500)
    second.recv(1, socket.MSG_PEEK)  # A reply stays unread, so close() resets the connection.
    second.close()
    shown = read_until(server.stdout, b" closed\n") + read_until(server.stdout, b" closed\n")
    assert (shown.count(b"Hello A\n"), shown.count(b"Hello B\n")) == (500, 500)


def test_a_reset_ends_a_client_and_its_connection_has_keepalive_and_nodelay(capfd):
    with running() as address:
        client = connect(address)
        client.sendall(b"Zack\n")
        client.recv(1, socket.MSG_PEEK)  # The reply is there, and stays unread.
        peer = f"raddr={client.getsockname()}"  # The server's end is in this process, too.
        ends = [s for s in gc.get_objects() if type(s) is socket.socket and peer in repr(s)]
        assert ends[0].getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        assert ends[0].getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        client.close()  # With bytes unread, this resets the connection.
    shown = capfd.readouterr().out
    assert re.search(r"(Connection .*) failed\. Error : .*reset.*\n\1 closed\n", shown)


def test_process_input_may_refuse_a_message_and_another_error_ends_only_its_client():
    server, client = serve(change="script.process_input = exec")  # Messages are Python now.
    other, third = connect(client.getpeername()), connect(client.getpeername())
    # exec() makes characters of these escapes; the server spells them out again.
    assert ask(client, "raise ValueError('\\x1b\\n\\udcff')\n1 / 0\n") == "!\\x1b\\n\\udcff\n"
    read_until(server.stdout, b" refused. Error : \\x1b\\n\\udcff\n")
    read_until(server.stderr, b"ZeroDivisionError: division by zero\n")
    read_until(server.stdout, b" closed\n")
    assert ask(other, "raise ValueError\nopen('')\n") == "!\n"
    read_until(server.stdout, b" failed. Error : [Errno 2] ")
    assert ask(third, "raise OSError('\\x1b')\n") == ""
    read_until(server.stdout, b" failed. Error : \\x1b\n")


def test_an_error_of_accept_ends_nothing_and_is_shown_once_until_a_client_comes(monkeypatch, capfd):
    accept = socket.socket.accept
    errors = [ConnectionAbortedError("gone"), *[OSError(1, "odd")] * 4]

    def accept_that_fails_first(listener):
        if errors:
            raise errors.pop(0)
        return accept(listener)[0], None  # macOS has no address of a client that has left.

    monkeypatch.setattr(socket.socket, "accept", accept_that_fails_first)
    start = time.monotonic()
    with running() as address:
        assert ask(connect(address), "Zack\n") == "-"
        assert time.monotonic() - start > 4 * server_thread1.ACCEPT_TIMEOUT  # It pauses each time.
        errors.append(OSError(1, "odd"))
        while errors:  # The accept() of now may last until its timeout.
            time.sleep(0.01)
        assert ask(connect(address), "Zack\n") == "-"
    assert re.findall("Error : (.*)", capfd.readouterr().out) == ["[Errno 1] odd"] * 2


def test_out_of_descriptors_the_server_says_so_and_serves_later():
    server, first = serve(before="ulimit -n 20")
    *others, last = [connect(first.getpeername()) for _ in range(20)]
    read_until(server.stdout, b"New clients have to wait. Error : [Errno 24] ")
    for client in others:
        client.close()
    assert ask(last, "Zack\n") == "-"


def test_the_switch_interval_is_longer_while_many_clients_are_connected():
    interval = sys.getswitchinterval()
    with running() as address:
        for _ in range(MANY):
            ask(connect(address))
        assert sys.getswitchinterval() == interval  # Those who have left do not count.
        crowd = [connect(address) for _ in range(MANY)]
        ask(crowd[-1], "Zack\n")
        assert interval < sys.getswitchinterval() < 1 or MANY < 50  # The 41st client raises it.
        for client in crowd:
            client.close()
        while sys.getswitchinterval() != interval:  # It falls again.
            time.sleep(0.01)
        ask([connect(address) for _ in range(MANY)][-1], "Zack\n")  # A stop finds a crowd.
    assert sys.getswitchinterval() == interval


def test_a_thread_that_cannot_start_costs_only_its_client(capfd):
    OPENED.callback(threading.stack_size, 0)
    with running() as address:
        threading.stack_size(2**60)  # No thread can have such a stack.
        assert connect(address).recv(1) == b""
        threading.stack_size(0)
        assert ask(connect(address), "Zack\n") == "-"
    assert re.search("Error : .*\nConnection .* closed\nConnected", capfd.readouterr().out)


# The console and the stop
@pytest.mark.parametrize(
    ("how", "sent", "shown"),
    [
        case({"change": "print(1)"}, "Zo\xeb\n", "(?s)^1\n.*Hello ZO\xcb\n", id="a print, UTF-8"),
        case(ASCII, "Zo\xeb\n", r"Hello ZO\\xcb\n", id="ASCII"),
        case({"before": "exec >/dev/full", **QUICK}, "Zack\n", "", id="full"),
        case({"before": "exec >&-", **QUICK}, "Zack\n", "", id="closed"),
        case(EVAL, "str(__import__('sys').stdout.close())\n", "", id="closed by process_input"),
        case(AT_EXIT, "Zack\n", "bye\n$", id="Python's own exit"),
        case(EVAL, f"{TIMER}\n", "stopped\n\n", id="a thread of process_input"),
        case(EVAL, "'a'\n__import__('time').sleep(60)\n", "Server stopped\n$", id="long work"),
    ],
)
def test_replies_come_and_a_stop_ends_whatever_the_console_and_the_threads_do(how, sent, shown):
    server, client = serve(**how)
    for each in [client, *(connect(client.getpeername()) for _ in range(9))]:  # All stop at once.
        each.sendall(sent.encode())
        assert each.recv(1) == b"-"
    server.send_signal(signal.SIGINT)
    server.send_signal(signal.SIGTERM)  # A second signal changes nothing.
    assert server.wait(4) == 0  # The promise is three seconds, but the machine may be busy.
    assert client.recv(1) == b""
    assert server.stderr.read() == b""
    assert re.search(shown, server.stdout.read().decode())


def test_a_slow_non_blocking_console_shows_all_lines_whole_through_ctrl_z():
    before = f"'{sys.executable}' -c 'import os; os.set_blocking(1, False)'"  # The pipe is shared.
    server, first = serve(before=f"{before}; export PYTHONUNBUFFERED=1")  # This is python3 -u.
    for client in [first, *(connect(first.getpeername()) for _ in range(9))]:
        client.sendall((b"a" * 5000 + b"\n") * 10)
    for _ in range(100):
        server.send_signal(signal.SIGSTOP)  # This is Ctrl-Z. It cuts off a write that waits.
        server.send_signal(signal.SIGCONT)
        read_until(server.stdout, b"\nProcessed result: Hello " + b"A" * 5000 + b"\n")
    assert first.makefile("rb").read(10) == b"-" * 10


def test_a_message_stays_whole_on_a_console_that_takes_it_line_by_line():
    write = "[(os.write(1, f'> {line}'.encode()), time.sleep(0)) for line in text.splitlines(True)]"
    stdout = "sys.stdout = io.TextIOBase(); sys.stdout.write = lambda text:"  # It is like IDLE's.
    server, first = serve(change=f"import io, os, sys, time; {stdout} {write}")
    for client in [first, *(connect(first.getpeername()) for _ in range(9))]:
        client.sendall(b"Zack\n" * 100)
    for _ in range(1000):
        read_until(server.stdout, b" client\n> Processed result: Hello ZACK\n")


def test_replies_wait_for_a_paused_console_but_a_stop_does_not():
    server, client = serve(**QUICK)
    client.sendall((b"a" * 5000 + b"\n") * 50)
    replies = len(client.recv(1))  # The first may take longer than the others.
    client.settimeout(0.3)
    with contextlib.suppress(TimeoutError):  # The console's pipe is full.
        while client.recv(1):
            replies += 1
    server.send_signal(signal.SIGTERM)
    assert server.wait(4) == 0
    assert server.stdout.read().count(b"A\n") >= replies  # No reply came before its lines.


def test_a_paused_console_that_a_traceback_waits_for_does_not_hold_up_a_stop():
    server, client = serve(change="script.process_input = exec")
    client.sendall(b"raise RuntimeError('x' * 99_999)\n")  # No pipe takes so much.
    read_until(server.stderr, b"\nRuntimeError: ")
    server.send_signal(signal.SIGTERM)
    assert server.wait(4) == 0


def test_a_terminal_that_ctrl_s_has_paused_does_not_hold_up_a_stop():
    terminal, tty = (OPENED.enter_context(os.fdopen(end, "r+b", 0)) for end in os.openpty())
    server = run("server_thread1", "--port", 0, stream=tty, **QUICK)
    read_until(terminal, b"listening on ")
    termios.tcflow(tty, termios.TCOOFF)  # This is Ctrl-S.
    server.send_signal(signal.SIGTERM)
    assert server.wait(4) == 0


def test_a_signal_that_is_ignored_from_the_start_stays_ignored():
    server, waiting = serve(before="trap '' INT TERM", **QUICK)
    client = run("client_thread1", "--port", waiting.getpeername()[1], before="trap '' INT TERM")
    read_until(client.stdout, b" -> ")
    for process in (client, server):
        process.send_signal(signal.SIGINT)
        process.send_signal(signal.SIGTERM)
    waiting.settimeout(0.2)
    with pytest.raises(TimeoutError):  # A stop would close the connection.
        waiting.recv(1)
    client.stdin.write(b"Zack\n")
    read_until(server.stdout, b"Hello ZACK\n")


def test_a_stop_waits_only_for_the_message_in_hand():
    server, idle = serve(change="script.process_input = input; script.STOP_TIMEOUT = 9")
    client = connect(idle.getpeername())
    client.sendall(b"one\ntwo\nthree")
    read_until(server.stdout, b"one")  # input() shows its message as a prompt.
    server.send_signal(signal.SIGINT)
    assert idle.recv(1) == b""
    with pytest.raises(subprocess.TimeoutExpired):  # It waits for the answer.
        server.wait(0.2)
    server.stdin.write(b"!\n" * 3)
    assert client.makefile("rb").read() == b"-"
    assert re.findall(b"result: (.*)", server.stdout.read()) == [b"!"]


def test_a_stop_takes_no_half_of_a_line_for_a_message(capfd):
    with running() as address:
        for client in [connect(address) for _ in range(MANY)]:
            client.sendall(b"Zack\nhalf of a line")
            assert client.recv(1) == b"-"
    assert "HALF" not in capfd.readouterr().out


@pytest.mark.parametrize(
    ("host", "shown", "client"),
    [
        case("", "0.0.0.0", "127.0.0.1", id="all of IPv4"),
        case("localhost", "127.0.0.1", "127.0.0.1", id="localhost"),
        case("::1", "[::1]", "[::1]", id="IPv6"),
    ],
)
def test_the_server_listens_on_its_host_and_prefers_ipv4(host, shown, client, monkeypatch, capfd):
    def ipv6_first(name, *rest, **options):
        return look_up("::1", *rest, **options) + look_up(name, *rest, **options)

    look_up = socket.getaddrinfo
    monkeypatch.setattr(socket, "getaddrinfo", ipv6_first)  # Some machines do so for localhost.
    if host == "::1" and " lo" not in subprocess.getoutput("cat /proc/net/if_inet6"):
        pytest.skip("no IPv6 on this machine")
    with running(host) as address:
        assert ask(connect(address), "Zack\n") == "-"
    told = f"listening on {shown}:{address[1]}\nConnected with {client}:"
    assert told in capfd.readouterr().out


def test_start_server_without_a_listener_calls_open_listener(monkeypatch, capfd):
    listener = server_thread1.open_listener(port=0)
    listener.close()  # It is closed from the start, so the server stops at once.
    monkeypatch.setattr(server_thread1, "open_listener", lambda: listener)
    server_thread1.start_server()
    assert capfd.readouterr().out == "Server stopped\n"


# The client
def meet(**how):
    """Run the client. Return its process, and the server's end of its connection."""
    listener = OPENED.enter_context(socket.create_server(("127.0.0.1", 0)))
    client = run("client_thread1", "--port", listener.getsockname()[1], **how)
    return client, OPENED.enter_context(listener.accept()[0])


@pytest.mark.parametrize(
    ("how", "typed", "replies", "status", "shown", "sent"),
    [
        case({}, "Zack\n\nquit \nx\n", "--", 0, " ->  -> ", "Zack\n\n", id="quit"),
        case({}, "Zack \n--Quit--\n", "-", 0, " -> ", "Zack\n", id="--quit--"),
        case({}, "QUIT", "-", 0, " -> \n", "QUIT\n", id="QUIT, and the end of a pipe"),
        case({}, "a", "!\x1b\udcff", 0, "Refused: \\x1b\ufffd\n -> \n", "a\n", id="refused"),
        case(ASCII, "a", "!\xf6", 0, "Refused: \\xf6\n -> \n", "a\n", id="refused, ASCII"),
        case({}, "a", "!" + LONG, 0, f"Refused: {LONG}\n -> \n", "a\n", id="refused at length"),
        case({}, "\udcff", f"!{ODD}\n", 0, f"Refused: {ODD}\n -> \n", "\udcff\n", id="not UTF-8"),
        case({}, "\xe9" * 2560 + "a", "", 0, NOT_SENT, "", id="too long"),
        case({}, "a" * 5120, "-", 0, " -> \n", "a" * 5120 + "\n", id="not too long"),
        case({}, "a\nb\n", " x", 1, f"{ERROR}unexpected reply b' '\n", "a\n", id="a blank"),
        case({}, "a\nb\n", "Hi\n", 1, f"{ERROR}unexpected reply b'H'\n", "a\n", id="a text"),
        case({}, "a\nb\n", "!", 1, f"{ERROR}unexpected reply b'!'\n", "a\n", id="no reason"),
        case({}, "a", "", 1, f"{ERROR}the server closed the connection\n", "a\n", id="server gone"),
        case(IMPATIENT, "a\n", None, 1, f"{ERROR}timed out\n", "a\n", id="silent server"),
        case(PATIENT, "quit\n", None, 0, "", "", id="a server that does not close"),
        case({"before": "exec <&-"}, "a\n", "-", 0, "\n", "", id="no stdin"),
        case({"before": "exec >&-"}, "a\nquit\n", "-", 0, "", "a\n", id="no stdout"),
        case(NO_STDERR, "a\nquit\n", "-", 0, " -> ", "a\n", id="no stderr"),
        case({"change": "script.sys.stdout = None"}, "a\n", "-", 0, "", "a\n", id="own stdout"),
        case(OWN_STDIN, "", "-", 0, " -> \n", "a\n", id="own stdin"),
        case({"before": "exec >/dev/full"}, "a\n", "-", 1, DISK_FULL, "", id="disk full"),
        case(MANY_FILES, "a\n", "-", 0, " -> \n", "a\n", id="a descriptor over 1023", marks=FEW),
    ],
)
def test_the_client_sends_each_line_and_shows_what_fails(how, typed, replies, status, shown, sent):
    client, connection = meet(**how)
    if replies is not None:  # None is a server that says nothing.
        connection.sendall(replies.encode(errors="surrogateescape"))
        connection.shutdown(socket.SHUT_WR)
    typed = typed.encode(errors="surrogateescape")
    told = b"".join(client.communicate(typed, TIMEOUT / 3)).decode()  # A good-bye takes a second.
    received = connection.makefile(encoding="utf-8", errors="surrogateescape").read()
    assert (client.returncode, told.removeprefix(PROMPT)) == (status, shown)
    assert received == f"{sent}--quit--\n"


def test_a_good_bye_to_a_server_that_is_gone_is_no_error():
    client, connection = meet()
    read_until(client.stdout, b" -> ")
    connection.close()
    assert client.communicate(b"quit\n") == (b"", b"")
    assert client.returncode == 0


@pytest.mark.parametrize(
    ("how", "actions", "sent"),
    [
        case({}, ["quit\r"], "", id="quit"),
        case({}, ["\4"], "", id="Ctrl-D"),
        case({}, [signal.SIGINT], "", id="Ctrl-C"),
        case({}, [signal.SIGTERM], "", id="SIGTERM"),
        case(NO_READLINE, [signal.SIGTERM], "", id="SIGTERM without readline"),
        case({}, [signal.SIGHUP], "", id="SIGHUP"),
        case({}, [signal.SIGQUIT], "", id="SIGQUIT"),
        case({}, ["Zack\r", "\x1b[A\x1b[D!\r", "\4"], "Zack\nZac!k\n", id="up, left"),
        case({}, ["a\x16\n--quit--\r", "\4"], "", id="no newline by Ctrl-V Ctrl-J"),
        case({"before": "exec 2>&-"}, ["\x7fa\r", "\4"], "a\n", id="no stderr for a bell"),
    ],
)
def test_on_a_terminal_keys_edit_the_line_and_every_way_out_says_good_bye(how, actions, sent):
    if len(actions) > 1 and "GNU" not in (pytest.importorskip("readline").__doc__ or ""):
        pytest.skip("only GNU readline has these keys")
    terminal, tty = (OPENED.enter_context(os.fdopen(end, "r+b", 0)) for end in os.openpty())
    modes = termios.tcgetattr(tty)
    client, connection = meet(stream=tty, **how)
    connection.sendall(b"--")
    for action in actions:
        read_until(terminal, b"\n -> ")
        if isinstance(action, signal.Signals):
            client.send_signal(action)
            action = "\n"  # It wakes input(), which may have missed the signal.
        terminal.write(action.encode())
    assert ask(connection) == f"{sent}--quit--\n"
    assert client.wait() == 0
    assert termios.tcgetattr(tty) == modes


def test_a_second_ctrl_c_ends_the_good_bye_with_status_130():
    client, connection = meet()
    read_until(client.stdout, b" -> ")
    client.send_signal(signal.SIGINT)
    client.stdin.write(b"\n")  # It wakes input(), which may have missed the signal.
    assert connection.makefile("rb").read() == b"--quit--\n"  # The client has shut down its end.
    client.send_signal(signal.SIGINT)
    assert (client.wait(), client.stderr.read()) == (130, b"")


# The command line
@pytest.mark.parametrize(
    ("script", "options", "status", "said"),
    [
        case("server", "--port TAKEN", 1, r"^Bind failed. Error : \[.* in use", id="port in use"),
        case("server", "--host a..b --port 65535", 1, "^Bind failed. Error : ", id="bad host"),
        case("server", "--port -1", 2, BAD_PORT, id="server: port below 0"),
        case("server", "--port 65536", 2, BAD_PORT, id="server: port over 65535"),
        case("server", "--help", 0, r"(?s)127\.0\.0\.1.*8000", id="server: help"),
        case("client", "--port TAKEN", 1, r"^Connection Error: \[.* refused", id="no server"),
        case("client", "--host a..b --port 0", 1, f"^{ERROR}", id="client: bad host, port 0"),
        case("client", "--host a..b --port 65535", 1, f"^{ERROR}", id="client: bad host, 65535"),
        case("client", "--port -1", 2, BAD_PORT, id="client: port below 0"),
        case("client", "--port 65536", 2, BAD_PORT, id="client: port over 65535"),
        case("client", "--help", 0, r"(?s)127\.0\.0\.1.*8000", id="client: help"),
    ],
)
def test_options_lead_to_the_right_message_and_exit_status(script, options, status, said):
    taken = OPENED.enter_context(socket.socket())
    taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)  # A server must not share it.
    taken.bind(("127.0.0.1", 0))  # It does not listen, so no client can connect.
    port = str(taken.getsockname()[1])
    process = run(f"{script}_thread1", *options.replace("TAKEN", port).split())
    assert re.search(said, b"".join(process.communicate()).decode())
    assert process.returncode == status

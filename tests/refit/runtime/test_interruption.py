"""Signals are sent to processes of their own."""

import signal
import subprocess
import sys

import pytest

PRELUDE = """
import os, signal, sys, threading, time
from refit.runtime.interruption import deliver_signal, holding_signals, is_signal_held

def say(word):
    print(word, flush=True)

def send(signum=signal.SIGTERM):
    os.kill(os.getpid(), signum)

def leave(signum, _):
    raise SystemExit(100 + signum)

def hold_until_told():
    say("holding")
    sys.stdin.readline()
"""


@pytest.fixture
def run():
    """Run a script to its end: exit code, and the words that it said."""

    def run(script: str) -> tuple[int, list[str]]:
        finished = subprocess.run([sys.executable, "-c", PRELUDE + script], capture_output=True, text=True, timeout=30)
        return finished.returncode, finished.stdout.split() + [word for word in ("Traceback",) if word in finished.stderr]

    return run


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_held_until_the_block_ends(run, signum):
    script = f"""
signal.signal({signum:d}, leave)
with holding_signals():
    say(is_signal_held())
    send({signum:d})
    time.sleep(0.05)
    say(is_signal_held())
    say("done")
say("never")
"""
    assert run(script) == (100 + signum, ["False", "True", "done"])


def test_a_signal_of_another_process_is_held_too():
    script = """
with holding_signals():
    hold_until_told()
    say("done")
say("never")
"""
    command = [sys.executable, "-c", PRELUDE + script]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "holding\n"
        process.terminate()
        said, _ = process.communicate("go on\n", timeout=30)
    assert (process.returncode, said) == (-signal.SIGTERM, "done\n")


def test_without_a_handler_of_its_own_ctrl_c_is_a_keyboard_interrupt_after_the_block(run):
    script = """
try:
    with holding_signals():
        send(signal.SIGINT)
        say("done")
except KeyboardInterrupt:
    say("interrupted")
"""
    assert run(script) == (0, ["done", "interrupted"])


def test_a_held_signal_is_delivered_where_it_is_asked_for(run):
    script = """
signal.signal(signal.SIGTERM, leave)
try:
    with holding_signals():
        send()
        say("saved")
        deliver_signal()
        say("never")
except SystemExit as left:
    say(left.code)
    say(is_signal_held())
"""
    assert run(script) == (0, ["saved", "115", "False"])


def test_with_no_signal_held_delivery_does_nothing(run):
    script = """
deliver_signal()
with holding_signals():
    deliver_signal()
say("done")
"""
    assert run(script) == (0, ["done"])


def test_a_second_signal_has_its_effect_at_once(run):
    script = """
signal.signal(signal.SIGTERM, leave)
signal.signal(signal.SIGINT, leave)
try:
    with holding_signals():
        send(signal.SIGTERM)
        say("held")
        send(signal.SIGINT)
        say("never")
except SystemExit as left:
    say(left.code)
    say(is_signal_held())
    say(signal.getsignal(signal.SIGTERM) is leave and signal.getsignal(signal.SIGINT) is leave)
"""
    assert run(script) == (0, ["held", "115", "False", "True"])


def test_a_second_signal_kills_a_process_that_has_no_handler(run):
    script = """
with holding_signals():
    send()
    say("held")
    send()
    say("never")
"""
    assert run(script) == (-signal.SIGTERM, ["held"])


def test_the_handlers_of_before_are_back_after_the_block_however_it_ends(run):
    script = """
signal.signal(signal.SIGTERM, leave)
before = [signal.getsignal(signum) for signum in (signal.SIGTERM, signal.SIGINT)]
with holding_signals():
    say([signal.getsignal(signum) for signum in (signal.SIGTERM, signal.SIGINT)] == before)
say([signal.getsignal(signum) for signum in (signal.SIGTERM, signal.SIGINT)] == before)
try:
    with holding_signals():
        raise ValueError
except ValueError:
    say([signal.getsignal(signum) for signum in (signal.SIGTERM, signal.SIGINT)] == before)
"""
    assert run(script) == (0, ["False", "True", "True"])


def test_blocks_hold_one_after_the_other(run):
    script = """
def note(signum, _):
    say("noted")
signal.signal(signal.SIGTERM, note)
for _ in range(2):
    with holding_signals():
        send()
        say("done")
send()
"""
    assert run(script) == (0, ["done", "noted", "done", "noted", "noted"])


def test_in_another_thread_nothing_is_held(run):
    """Python hands signals to the main thread, whose handler has its effect there, at once."""
    script = """
signal.signal(signal.SIGTERM, leave)
inside, release = threading.Event(), threading.Event()
def work():
    with holding_signals():
        say(signal.getsignal(signal.SIGTERM) is leave)
        inside.set()
        release.wait()
    say("ended")
thread = threading.Thread(target=work)
thread.start()
inside.wait()
try:
    send()
    say("never")
except SystemExit as left:
    say(left.code)
release.set()
thread.join()
"""
    assert run(script) == (0, ["True", "115", "ended"])


def test_a_block_of_another_thread_ends_well_while_the_main_thread_holds(run):
    """And what the main thread holds stays held."""
    script = """
signal.signal(signal.SIGTERM, leave)
def work():
    with holding_signals():
        pass
    say("ended")
with holding_signals():
    send()
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    say(is_signal_held())
    say("done")
say("never")
"""
    assert run(script) == (115, ["ended", "True", "done"])

import contextlib
import io
import logging
import os
import pickle
import pty
import select
import signal
import subprocess
import sys
import threading
import time

import pytest
from rich.console import Console

from archsearch.study import Study, StudyError
from archsearch.ui import live as live_module
from archsearch.ui.live import LiveDashboard, PlainReporter, open_reporter, watch

from . import fakes

ENTER, LEAVE, SHOW_CURSOR = "\x1b[?1049h", "\x1b[?1049l", "\x1b[?25h"


def terminal(width=80, height=24):
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=True, color_system="truecolor", width=width, height=height)
    return console, stream


def after(text, marker):
    return text.rsplit(marker, 1)[1]


def test_the_screen_is_restored_and_the_last_frame_stays(live):
    console, stream = terminal()
    with LiveDashboard(Study.read(live.run_dir), console) as dashboard:
        assert ENTER in stream.getvalue()
        dashboard.update()
    told = stream.getvalue()
    assert SHOW_CURSOR in told
    assert "recall-vs-perplexity" in after(told, LEAVE)
    dashboard.close()
    assert stream.getvalue() == told


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_the_screen_is_restored_after_an_error(live, error):
    console, stream = terminal()
    out, err = sys.stdout, sys.stderr
    with pytest.raises(error), LiveDashboard(Study.read(live.run_dir), console):
        raise error
    assert LEAVE in stream.getvalue()
    assert SHOW_CURSOR in stream.getvalue()
    assert (sys.stdout, sys.stderr) == (out, err)


def test_redraws_wait_for_news_or_the_clock_but_not_after_a_resize(live, monkeypatch):
    clock = [100.0]
    monkeypatch.setattr(live_module.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(live_module.time, "thread_time", lambda: 0.0)
    console, stream = terminal()
    with LiveDashboard(Study.read(live.run_dir), console) as dashboard:
        drawn = stream.tell()
        dashboard.update()
        assert stream.tell() == drawn
        console.width = 100
        dashboard.update()
        resized = stream.tell()
        assert resized > drawn
        clock[0] += 0.26
        dashboard.update()
        assert stream.tell() == resized
        live.log.note("info", "something new")
        dashboard.update()
        assert stream.tell() == resized
        clock[0] += 0.26
        dashboard.update()
        told = stream.tell()
        assert "something new" in stream.getvalue()[resized:]
        clock[0] += 1.01
        dashboard.update()
        assert stream.tell() > told


def test_stray_output_goes_to_the_log_panel(live):
    console, stream = terminal(width=120, height=40)
    with LiveDashboard(Study.read(live.run_dir), console) as dashboard:
        print("printed somewhere")
        print("to stderr", file=sys.stderr)
        logging.getLogger("elsewhere").addHandler(handler := logging.StreamHandler())
        logging.getLogger("elsewhere").warning("careful")
        logging.getLogger("elsewhere").removeHandler(handler)
        dashboard.update(force=True)
        said = [line for _, line in dashboard.said]
    assert said == ["printed somewhere", "to stderr", "careful"]
    assert "printed somewhere" in after(stream.getvalue(), LEAVE)


def test_a_pickled_dashboard_is_silent(live):
    console, stream = terminal()
    with LiveDashboard(Study.read(live.run_dir), console) as dashboard:
        copy = pickle.loads(pickle.dumps(dashboard))
        before = stream.tell()
        with copy:
            copy.update(force=True)
            copy.log("x")
        assert stream.tell() == before
    assert copy.study.run_dir == live.run_dir
    plain = pickle.loads(pickle.dumps(PlainReporter(Study.read(live.run_dir), io.StringIO())))
    assert plain.study.run_dir == live.run_dir


def test_plain_lines_tell_every_event_without_codes(live):
    stream = io.StringIO()
    with open_reporter(Study.read(live.run_dir), Console(file=stream)) as reporter:
        assert isinstance(reporter, PlainReporter)
        live.end("0018", "complete", values={"recall": 0.999, "perplexity": 4.0}, seconds=31.0)
        reporter.update()
        reporter.log("a line\x1b[2J")
    told = stream.getvalue()
    assert "\x1b" not in told
    for words in (
        "▸ 0000 training",
        "✗ 0005 non-finite loss at step 120: loss became nan",
        "⊘ 0008 breaks params <= 150k by 16%",
        "= 0013 same as 0002",
        "★ 0018 recall↑ 0.999  perplexity↓ 4.00  in 31s",
        "trial 0011 ran out of memory",
        "a line",
        "front of 1",
    ):
        assert words in told
    assert told.count("hypervolume") >= 2
    assert told.rstrip().rsplit("\n", 1)[1].startswith("recall-vs-perplexity after")


def test_plain_lines_are_not_repeated(live):
    stream = io.StringIO()
    reporter = PlainReporter(Study.read(live.run_dir), stream)
    reporter.update()
    told = stream.getvalue()
    reporter.update()
    assert stream.getvalue() == told
    assert told.count("▸ 0003 training") == 1


@pytest.mark.parametrize(("force", "kind"), [(True, LiveDashboard), (False, PlainReporter)])
def test_the_terminal_decides(live, force, kind, monkeypatch):
    monkeypatch.setenv("TERM", "xterm-256color")
    study = Study.read(live.run_dir)
    assert type(open_reporter(study, Console(file=io.StringIO(), force_terminal=force))) is kind
    assert (
        type(open_reporter(study, Console(file=io.StringIO(), force_terminal=force), plain=True))
        is PlainReporter
    )
    monkeypatch.setenv("TERM", "dumb")
    assert type(open_reporter(study, Console(file=io.StringIO(), force_terminal=force))) is PlainReporter


def test_watching_a_finished_run_draws_once(finished):
    console, stream = terminal()
    assert watch(finished, console=console).status == "finished"
    assert ENTER not in stream.getvalue()
    assert stream.getvalue().count("archsearch ") == 1
    plain = io.StringIO()
    watch(finished, console=Console(file=plain))
    assert "finished" in plain.getvalue()


def test_watching_follows_until_the_writer_leaves(live):
    console, stream = terminal()
    ending = threading.Timer(0.3, live.finish)
    ending.start()
    study = watch(live.run_dir, interval=0.02, console=console)
    ending.join()
    assert study.status == "finished"
    assert "finished" in after(stream.getvalue(), LEAVE)


def test_watching_something_else_is_refused(tmp_path):
    with pytest.raises(StudyError, match="not a run folder"):
        watch(tmp_path)


def read_until(fd, words, seconds=20.0):
    seen = b""
    deadline = time.monotonic() + seconds
    while words not in seen and time.monotonic() < deadline:
        if select.select([fd], [], [], 0.1)[0]:
            with contextlib.suppress(OSError):
                seen += os.read(fd, 65536)
    return seen


def test_ctrl_c_leaves_a_real_terminal_clean(tmp_path):
    run = fakes.midway(tmp_path / "run")
    leader, follower = pty.openpty()
    # A shell without job control starts its children with SIGINT ignored, and Python keeps it so.
    script = (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        f"from archsearch.ui.live import watch; watch({str(run.run_dir)!r}, interval=0.05)"
    )
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "80", "LINES": "24"}
    watcher = subprocess.Popen(
        [sys.executable, "-c", script], stdin=follower, stdout=follower, stderr=follower, env=environment
    )
    os.close(follower)
    try:
        seen = read_until(leader, b"0018")
        assert ENTER.encode() in seen
        watcher.send_signal(signal.SIGINT)
        rest = read_until(leader, LEAVE.encode())
        assert LEAVE.encode() in rest
        rest += read_until(leader, b"\x00", seconds=1.0)
        assert watcher.wait(timeout=20) == 0
        assert b"Traceback" not in rest
        assert b"recall-vs-perplexity" in rest.rsplit(LEAVE.encode(), 1)[1]
    finally:
        watcher.kill()
        os.close(leader)
        run.close()

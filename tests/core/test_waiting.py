"""Waiting for a server: it can be stopped, loses no error, and knows when to come again."""

import threading
import time
from email.utils import formatdate

import pytest

from seed_core.waiting import after, attended, seconds_asked


def test_the_result_comes_back_and_whoever_waits_is_told_at_the_end():
    told = []
    assert attended(lambda stopped: 7, lambda: told.append(1)) == 7
    assert told


def test_an_error_of_the_work_is_raised_where_it_is_waited_for():
    class Odd(BaseException):
        pass

    def work(stopped):
        raise Odd

    with pytest.raises(Odd):
        attended(work, lambda: None)


def test_what_the_listener_raises_leaves_the_work_alone_with_a_sign():
    seen = threading.Event()

    def work(stopped):
        if stopped.wait(30):
            seen.set()

    def tell():
        raise InterruptedError

    with pytest.raises(InterruptedError):
        attended(work, tell)
    assert seen.wait(30)


def test_news_is_told_at_once():
    """Each step waits to be told of the one before; waking up by time alone takes twenty times as long."""
    news, told = threading.Event(), threading.Semaphore(0)

    def work(stopped):
        for _ in range(500):
            news.set()
            assert told.acquire(timeout=30)

    attended(work, told.release, news)


@pytest.mark.parametrize(
    ("told", "seconds"),
    [("30", 30), (" 0 ", 0), ("", None), ("soon", None), ("-5", None), ("9" * 400, None)],
)
def test_a_number_of_seconds_is_understood(told, seconds):
    assert seconds_asked(told) == seconds


def test_a_time_is_understood_and_one_that_is_past_is_now():
    assert 50 < seconds_asked(formatdate(time.time() + 60, usegmt=True)) <= 60
    assert seconds_asked(formatdate(0, usegmt=True)) == 0


@pytest.mark.parametrize("zone", ["GMT", "-0000", "+2359"])
@pytest.mark.parametrize("day", ["Mon, 01 Jan 0001", "Mon, 01 Jan 99999"])
def test_a_time_outside_every_calendar_is_no_reason_to_wait(zone, day):
    assert not seconds_asked(f"{day} 00:00:00 {zone}")


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0.2, "after 1 seconds"), (45, "after 45 seconds"), (600, "after 10 minutes")],
)
def test_when_to_come_again_is_said_in_words(seconds, said):
    assert after(seconds) == said

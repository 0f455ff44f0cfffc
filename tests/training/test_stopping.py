"""Signals: the first asks for a clean end, a repetition at once changes nothing, one later ends the process."""

import signal

import pytest

from hcnn.training import stopping


def test_a_signal_that_comes_twice_at_once_stops_cleanly():
    with stopping.stop_on_signals() as stop:
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)
        assert stop.reason() == "signal SIGTERM"


def test_a_later_signal_acts_as_it_did_before(monkeypatch):
    monkeypatch.setattr(stopping, "REPEAT_SECONDS", 0)
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), stopping.stop_on_signals():
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


def test_a_deadline_is_a_reason_to_stop():
    with stopping.stop_on_signals(deadline=0) as stop:
        with pytest.raises(stopping.Stopped):
            stop.check()
        stop.check_signal()

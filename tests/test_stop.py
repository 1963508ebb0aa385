import os
import signal
import threading

import pytest

from mcbeit.stop import StopRequest


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_stop_request__the_first_signal_asks_and_the_second_ends(number: signal.Signals, capfd) -> None:
    before = signal.getsignal(number)
    stop = StopRequest()
    with stop.listening():
        assert not stop()
        os.kill(os.getpid(), number)
        assert stop()
        assert stop.signal == number
        with pytest.raises(KeyboardInterrupt if number == signal.SIGINT else SystemExit) as ended:
            os.kill(os.getpid(), number)
    if number == signal.SIGTERM:
        assert ended.value.code == 143
    assert signal.getsignal(number) is before
    assert capfd.readouterr().err == "stopping: the next step is saved; a second signal does not wait for it\n"


def test_stop_request__says_what_it_promises(capfd) -> None:
    stop = StopRequest("what is done is kept")
    with stop.listening():
        os.kill(os.getpid(), signal.SIGTERM)
    assert stop()
    assert capfd.readouterr().err == "stopping: what is done is kept\n"


def test_stop_request__leaves_signals_alone_in_other_threads() -> None:
    found = []

    def listen() -> None:
        with StopRequest().listening():
            found.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=listen)
    thread.start()
    thread.join()
    assert found == [signal.getsignal(signal.SIGINT)]

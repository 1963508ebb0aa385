from mcbeit.board import MAX_STARTS, Board, DriverDisplay


def test_board__tells_each_note_once_and_the_last_state() -> None:
    board = Board()
    board.show("pretrain", 10, 0, None)
    board.note("24 images")
    board.show("pretrain", 10, 3, "loss 2")
    board.show("pretrain", 10, 4, None)
    view = board.look()
    assert (view.title, view.total, view.done, view.status, view.notes) == ("pretrain", 10, 4, "loss 2", ["24 images"])
    assert board.look().notes == []


def test_board__restarts_are_free_while_there_is_progress() -> None:
    board = Board()
    for step in range(0, 200, 10):
        assert board.enter() == (True, step > 0)
        board.begin(step)
    assert board.outcome() is None


def test_board__gives_up_on_a_step_that_nobody_gets_past() -> None:
    board = Board()
    for _ in range(MAX_STARTS):
        assert board.enter()[0]
        board.begin(30)
        board.fail("MemoryError")
    assert not board.enter()[0]
    kind, message = board.outcome()
    assert kind == "failed"
    assert "was started 4 times at step 30" in message
    assert "MemoryError" in message


def test_board__the_first_end_counts() -> None:
    board = Board()
    board.end(("complete", {"loss": 1.0}))
    board.end(("failed", "late"))
    assert board.outcome() == ("complete", {"loss": 1.0})
    assert not board.enter()[0]


def test_board__hands_on_a_request_to_stop() -> None:
    board = Board()
    assert not board.wants_stop()
    board.ask_to_stop()
    assert board.wants_stop()


def test_driver_display__shows_one_job_after_the_other(capsys) -> None:
    board, display = Board(), DriverDisplay()
    display.show(board.look())  # nothing yet
    board.show("tokenizer", 2, 0, None)
    board.note("16 codes")
    board.show("tokenizer", 2, 2, "loss 1")
    display.show(board.look())
    board.show("pretrain", 4, 0, None)
    display.show(board.look())
    board.show("pretrain", 4, 4, "loss 3")
    display.show(board.look())
    display.close()
    lines = capsys.readouterr().err.splitlines()
    assert lines == ["tokenizer: 16 codes", "pretrain 4/4  loss 3"]

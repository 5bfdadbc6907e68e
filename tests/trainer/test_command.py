"""What a command of the trainer ends with."""

from bitnet_trainer.command import INTERRUPTED, run_command


def test_ctrl_c_is_an_exit_code_and_no_traceback() -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    assert run_command(interrupted) == INTERRUPTED

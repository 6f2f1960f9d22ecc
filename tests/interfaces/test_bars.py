"""What the terminal shows meanwhile: stages, the time, and the best value so far."""

import io
import re
import time

from repairopt.interfaces.commandline import bars
from repairopt.interfaces.commandline.runs.told_rounds import ToldRounds
from repairopt.verify import Round


class Terminal(io.StringIO):
    """Standard error as a terminal has it."""

    def isatty(self):
        return True


def shown(monkeypatch, run, screen, **options):
    """What stands on a screen after a run with bars; in the test itself, as pytest sets stderr anew before it."""
    monkeypatch.setattr("sys.stderr", screen)
    monkeypatch.setattr(bars, "TICK", 0.02)
    run(bars.Bars(**options))
    return screen.getvalue()


def drawing(told):
    with told.stage("drawing the report"):
        time.sleep(1.1)


def repairing(told):
    with told.stage("repairing", 10) as step:
        time.sleep(1.1)  # below a second no time is estimated
        step("bound 1 of 2, best 0.3", 0.5)


def test_a_stage_of_unknown_length_shows_the_time_that_has_gone(monkeypatch):
    text = shown(monkeypatch, drawing, Terminal())
    assert re.search(r"drawing the report +1 s", text)


def test_a_stage_of_known_steps_shows_how_far_it_is_and_the_time_left(monkeypatch):
    text = shown(monkeypatch, repairing, Terminal())
    assert re.search(r"repairing +bound 1 of 2, best 0.3 .* 50%  00:00:0\d", text)
    assert "100%" in text


def test_quiet_and_what_is_no_terminal_show_nothing(monkeypatch):
    assert shown(monkeypatch, drawing, Terminal(), quiet=True) == ""
    assert shown(monkeypatch, drawing, io.StringIO()) == ""


def test_the_best_value_is_that_of_a_point_where_all_constraints_hold():
    told = ToldRounds(lambda value: -value)  # of a statement that asks for more, not less
    rounds = [
        Round("step 1", "optimal"),
        Round("step 2", "optimal", goal=-0.9, broken=3),
        Round("step 3", "optimal", goal=-0.7, broken=0),
        Round("step 4", "optimal", goal=-0.6, broken=0),
    ]
    assert [told(entry) for entry in rounds] == [
        "step 1",
        "step 2, goal 0.9",
        "step 3, goal 0.7, best 0.7",
        "step 4, goal 0.6, best 0.7",
    ]

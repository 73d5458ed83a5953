"""What is said while a network is prepared."""

from types import SimpleNamespace

import pytest

from amed_env.commands.output import Output
from amed_env.commands.progress import prepare


class Learning:
    def prepare(self, report, seconds, precisions):
        for done in range(1, 5):
            report(done, 4)


@pytest.mark.parametrize(("as_json", "lines"), [(False, 1), (True, 0)])
def test_without_a_terminal_a_line_a_minute_says_how_far_learning_is(as_json, lines, capsys):
    said = []
    with Output(as_json) as output:
        prepare(SimpleNamespace(evaluator=Learning(), network="mine", precisions=()), output, said.append, None)
    assert len(said) == 4 and said[-1].startswith("learning the rounding of mine, once: 100 %")
    noted = capsys.readouterr().err.splitlines()
    assert len(noted) == lines and all(line.startswith("learning the rounding of mine, once: 25 %") for line in noted)

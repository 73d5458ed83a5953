"""What a submission says of its agent, suite and recipe is the truth, or refused with the reason."""

import json
import sys

import pytest
from bench_suite import SUITE, reasons, write

from amed_env.bench.contender import Contender, recipe_digest
from amed_env.bench.execution import Job, run_all
from amed_env.bench.validation import validate
from amed_env.errors import AgentError, RunFolderError


def test_what_the_agent_says_of_itself_cannot_be_edited(edited):
    assert "family is claimed to be 'learner', the agent says 'search'" in reasons(
        edited(lambda header, runs: header.update(family="learner"))
    )
    found = reasons(edited(lambda header, runs: header.update(saw=["nothing of importance"])))
    assert "saw is claimed to be ('nothing of importance',), the agent says ()" in found


def test_the_description_is_the_agents_own(edited):
    """One of an older version does no harm, as it is shown nowhere."""
    verdict = validate(edited(lambda header, runs: header.update(description="the champion of the world")), 0)
    assert verdict.valid and "'the champion of the world'" in verdict.remarks[0]
    assert verdict.result.header.description == "random allocations that meet the budget"


@pytest.mark.parametrize(
    ("spec", "options"),
    [
        ("os:sep.x", {}),
        ("os:environ", {}),
        ("random", {"spec": "greedy"}),
        ("random", {"self": 1}),
        ("control/greedy-inverted", {"spec": "x"}),
        ("control/-inverted", {}),
        ("..:x", {}),
        ("missing.yaml", {}),
    ],
)
def test_what_makes_no_agent_is_named_and_breaks_nothing(edited, monkeypatch, spec, options):
    monkeypatch.setenv("SECRET_OF_THIS_TEST", "do-not-publish")

    def change(header, runs):
        name = "recipe/missing" if spec == "missing.yaml" else spec
        header.update(spec=spec, agent=name, options=options)

    verdict = validate(edited(change))
    assert verdict.word == "not validated" and "cannot be made here" in verdict.unchecked[0]
    assert "do-not-publish" not in verdict.unchecked[0]


def test_a_suite_whose_tasks_are_not_here_needs_runs_as_well(edited, monkeypatch):
    monkeypatch.setattr("amed_env.bench.validation.missing_task", lambda name: "it is somewhere else")

    def change(header, runs):
        header["tables"] = {}
        return []

    assert "has no runs on tabular/digits-cnn" in reasons(edited(change))


RECIPE = """
format: amed-agent/1
description: |
  annealing,
  but warmer
algorithm: annealing
hyperparameters: {{first_temperature: {temperature}}}
tuned_on: []
"""


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / "warm.yaml"
    path.write_text(RECIPE.format(temperature=2.0))
    return path


def test_a_recipe_that_was_changed_is_named_and_not_mixed(recipe, tmp_path):
    path = write(tmp_path, str(recipe), evaluations=3)
    lines = path.read_text().splitlines(keepends=True)
    assert json.loads(lines[0])["description"] == "annealing, but warmer"
    assert validate(path).valid
    recipe.write_text("# the same in other words" + RECIPE.format(temperature="2.0 "))
    assert validate(path, 1).valid

    recipe.write_text(RECIPE.format(temperature=1.0))
    verdict = validate(path)
    assert verdict.word == "not validated" and "warm.yaml has other contents" in verdict.unchecked[0]
    path.write_text("".join(lines[:-1]))
    with pytest.raises(RunFolderError, match=r"the contents of .*warm.yaml have changed since"):
        write(tmp_path, str(recipe), evaluations=3)


def test_a_recipe_that_changes_while_it_runs_ends_the_benchmark(recipe):
    contender = Contender(str(recipe), recipe=recipe_digest(str(recipe)))
    jobs = [Job(contender, SUITE.cells()[0], seed, 3) for seed in range(2)]
    runs = run_all(jobs)
    assert next(runs)[1].note is None
    recipe.write_text(RECIPE.format(temperature=1.0))
    with pytest.raises(AgentError, match="other contents than when the runs began"):
        next(runs)


def test_a_class_that_was_changed_is_named_and_not_mixed(tmp_path, monkeypatch, request):
    monkeypatch.syspath_prepend(tmp_path)
    request.addfinalizer(lambda: sys.modules.pop("changing_agent", None))
    module = tmp_path / "changing_agent.py"
    text = "from amed_env import Agent\n\nclass Fixed(Agent):\n    def explore(self, session):\n"
    module.write_text(text + "        session.evaluate(session.task.uniform(2))\n")
    path = write(tmp_path / "results", "changing_agent:Fixed", evaluations=3)
    assert validate(path).valid
    lines = path.read_text().splitlines(keepends=True)
    module.write_text(text + "        session.evaluate(session.task.uniform(3))\n")
    verdict = validate(path, 0)
    assert verdict.word == "not validated" and "changing_agent:Fixed has other contents" in verdict.unchecked[0]
    path.write_text("".join(lines[:-1]))
    with pytest.raises(RunFolderError, match="the contents of changing_agent:Fixed have changed since"):
        write(tmp_path / "results", "changing_agent:Fixed", evaluations=3)


def test_files_from_before_recipes_were_kept_are_still_good(recipe, tmp_path):
    path = write(tmp_path, str(recipe), evaluations=3)
    header, *runs = [json.loads(line) for line in path.read_text().splitlines()]
    assert len(header.pop("recipe")) == 64
    path.write_text("".join(json.dumps(line) + "\n" for line in [header, *runs[:-1]]))
    write(tmp_path, str(recipe), evaluations=3)  # which resumes
    verdict = validate(path)
    assert verdict.valid and "has no digest of" in verdict.remarks[0]

import pickle
import sys

import pytest

from amed_env.errors import InputError, PluginError, UnknownNameError
from amed_env.support.registry import Registry, call_into_plugin, import_object


@pytest.fixture
def registry():
    found = Registry("thing")
    found.register("alpha", 1)
    return found


def test_register_get_and_forget(registry):
    assert registry.get("alpha") == 1
    assert registry.names() == ["alpha"]
    assert "alpha" in registry and "beta" not in registry
    registry.unregister("alpha")
    registry.unregister("alpha")
    assert registry.names() == []


def test_as_a_decorator(registry):
    @registry.register("beta")
    class Beta:
        pass

    assert registry.get("beta") is Beta
    assert registry.names() == ["alpha", "beta"]


def test_a_name_is_given_once(registry):
    with pytest.raises(InputError, match=r"thing named 'alpha' is registered already"):
        registry.register("alpha", 2)
    assert registry.get("alpha") == 1


def test_a_reloaded_class_replaces_itself(registry):
    def make():
        class Gamma:
            pass

        return Gamma

    registry.register("gamma", make())
    newer = make()
    registry.register("gamma", newer)
    assert registry.get("gamma") is newer


def test_a_class_of_the_same_name_in_another_module_is_another(registry):
    first, second = type("Delta", (), {"__module__": "one"}), type("Delta", (), {"__module__": "two"})
    registry.register("delta", first)
    with pytest.raises(InputError, match="registered already"):
        registry.register("delta", second)
    assert registry.get("delta") is first


@pytest.mark.parametrize("name", ["alpa", "ALPHA", "aplha"])
def test_a_typo_gets_the_nearest_name(registry, name):
    with pytest.raises(UnknownNameError, match=r"unknown thing .*alpha") as caught:
        registry.get(name)
    assert caught.value.exit_code == 2


def test_an_unknown_name_gets_all_names_and_survives_a_process_boundary(registry):
    with pytest.raises(UnknownNameError, match=r"known: alpha\.") as caught:
        registry.get("zzz")
    copy = pickle.loads(pickle.dumps(caught.value))
    assert isinstance(copy, UnknownNameError)
    assert str(copy) == str(caught.value)


def test_a_hint_survives_a_process_boundary():
    error = UnknownNameError("thing", "x", ["a"], hint="Look below the mat.")
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


@pytest.fixture
def module(tmp_path, monkeypatch):
    """A module in the current directory, as a user has it."""

    def write(name, text):
        (tmp_path / f"{name}.py").write_text(text)
        return name

    monkeypatch.chdir(tmp_path)
    before, path = set(sys.modules), list(sys.path)
    yield write
    sys.path[:] = path
    for name in set(sys.modules) - before:
        del sys.modules[name]


def test_import_from_the_current_directory(module):
    module("registry_sample_good", "class Outer:\n    class Inner:\n        pass\n")
    found = import_object("registry_sample_good:Outer.Inner", "agent class")
    assert found.__qualname__ == "Outer.Inner"


@pytest.mark.parametrize("path", ["", ":", "module", "module:", ":Class"])
def test_malformed_import_paths(path):
    with pytest.raises(InputError, match=r"write it as package\.module:name"):
        import_object(path, "agent class")


def test_a_missing_module_and_a_missing_attribute(module):
    with pytest.raises(InputError, match=r"registry_sample_nowhere.*ModuleNotFoundError"):
        import_object("registry_sample_nowhere:Agent", "agent class")
    module("registry_sample_typo", "class MyAgent: pass\n")
    with pytest.raises(UnknownNameError, match=r"agent class in registry_sample_typo 'MyAgnt'; did you mean 'MyAgent'"):
        import_object("registry_sample_typo:MyAgnt", "agent class")


@pytest.mark.parametrize("text", ["import registry_sample_absent", "1 / 0", "def broken(:", "raise SystemExit(3)"])
def test_a_module_that_fails_is_named_with_its_error(module, text):
    name = module("registry_sample_bad", text + "\n")
    with pytest.raises(InputError, match=name):
        import_object(f"{name}:Agent", "agent class")


def test_a_failing_plugin_is_named():
    with pytest.raises(PluginError, match=r"creating it failed: ZeroDivisionError"):
        call_into_plugin("creating it", lambda: 1 / 0)
    assert call_into_plugin("creating it", lambda: 5) == 5


def test_attributes_of_what_has_no_dictionary_are_looked_for_too():
    with pytest.raises(UnknownNameError, match=r"agent class in os"):
        import_object("os:sep.x", "agent class")


def test_an_attribute_that_fails_is_named_with_its_error(module):
    module("registry_sample_lazy", "def __getattr__(name):\n    raise ImportError('no torch')\n")
    with pytest.raises(InputError, match="cannot be got: ImportError: no torch"):
        import_object("registry_sample_lazy:Agent", "agent class")


def test_a_file_is_told_how_python_imports_it():
    with pytest.raises(InputError, match=r"names a file; write it as docs\.examples\.segmenter:build"):
        import_object("./docs/examples/segmenter.py:build", "network function")

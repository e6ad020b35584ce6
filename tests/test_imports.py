"""The package gives its names when they are asked for, and imports little that Lightning does not."""

import ast
import inspect
import json
import pickle
import pydoc
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

import lcw_lightning
from lcw_lightning import checkpoint_io, checkpoints

PACKAGE = Path(lcw_lightning.__file__).parent
WINGS = sorted(path.parent.name for path in PACKAGE.glob("*/__init__.py"))

# What all public names need beyond what `import lightning.pytorch` brings, from other packages.
NEEDED = {
    "jsonargparse": "ImageClassifier's arguments have LightningCLI's types, so that a config can name an optimizer",
    "docstring_parser": "by jsonargparse",
    "typeshed_client": "by jsonargparse",
    "safetensors": "one of the formats of checkpoints.export",
}


IMPORTS = """
import json, logging, random, sys
def modules():
    return sorted({name.partition(".")[0] for name in sys.modules})
found = {"nothing": modules()}
import lcw_lightning
found["package"] = modules()
import torch, lightning.pytorch
from torch.optim.optimizer import _global_optimizer_post_hooks
def state():
    return (torch.get_rng_state().tolist(), random.getstate(), str(torch.get_default_dtype()), torch.is_grad_enabled(),
            torch.get_num_threads(), len(logging.getLogger().handlers), len(_global_optimizer_post_hooks))
found |= {"lightning": modules(), "before": state()}
from lcw_lightning import *
found |= {"names": modules(), "after": state(), "handlers": len(logging.getLogger("lcw_lightning").handlers)}
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def imported(run_fresh):
    """Top-level modules and states of a process that imports the package, Lightning, and then all public names."""
    return json.loads(run_fresh(IMPORTS))


def others(modules):
    return {*modules} - {*sys.stdlib_module_names, "lcw_lightning"}


def test_importing_the_package_imports_no_other(imported):
    assert others(imported["package"]) == others(imported["nothing"])
    assert "torch" in others(imported["lightning"])


def test_all_public_names_import_few_packages_that_lightning_does_not(imported):
    assert others(imported["names"]) - others(imported["lightning"]) <= {*NEEDED}


def test_importing_changes_no_state_of_torch_or_logging(imported):
    assert imported["after"] == imported["before"]
    assert imported["handlers"] == 0


def test_constraints_need_no_lightning(run_fresh):
    modules = run_fresh("import sys; from lcw_lightning import constrain, fold; print(*sys.modules)").split()
    assert "torch" in modules
    assert "lightning" not in modules


@pytest.mark.parametrize("name", lcw_lightning.__all__)
def test_a_public_name_is_documented_and_pickled_by_where_it_is_defined(name):
    value = getattr(lcw_lightning, name)
    assert value.__doc__
    assert value.__module__ == f"lcw_lightning.{lcw_lightning._MODULES[name]}"
    assert pickle.loads(pickle.dumps(value)) is value


def test_type_checkers_find_each_public_name_where_python_does():
    (choice,) = (node for node in ast.parse((PACKAGE / "__init__.py").read_text()).body if isinstance(node, ast.If))
    imports = [node for node in choice.body if isinstance(node, ast.ImportFrom)]
    seen = {(alias.name, alias.asname): node.module for node in imports for alias in node.names}
    assert seen == {(name, name): f"lcw_lightning.{module}" for name, module in lcw_lightning._MODULES.items()}


def test_a_star_import_gives_the_public_names_alone():
    names = {}
    exec("from lcw_lightning import *", names)
    assert names.keys() - {"__builtins__"} == {*lcw_lightning.__all__}


@pytest.mark.parametrize("name", [*WINGS, "activations", "classifier", "files"])
def test_wings_and_files_are_attributes_of_the_package(name, monkeypatch):
    monkeypatch.delitem(vars(lcw_lightning), name, raising=False)  # as before anything has imported it
    assert getattr(lcw_lightning, name) is sys.modules[f"lcw_lightning.{name}"]
    assert name not in lcw_lightning.__all__


def test_dir_and_help_show_all_names():
    assert {*lcw_lightning.__all__, *WINGS, "__version__", "__doc__"} <= {*dir(lcw_lightning)}
    assert dict(inspect.getmembers(lcw_lightning))["MLP"] is lcw_lightning.MLP
    text = pydoc.render_doc(lcw_lightning, renderer=pydoc.plaintext)
    assert all(name in text for name in [*lcw_lightning.__all__, *WINGS])


def test_the_version_is_that_of_the_installed_package():
    assert lcw_lightning.__version__ == version("lcw_lightning")


@pytest.mark.parametrize("name", ["constrian", "__wrapped__", "constraints.fold"])
def test_other_names_are_an_error(name):
    with pytest.raises(AttributeError, match=f"module 'lcw_lightning' has no attribute '{name}'"):
        getattr(lcw_lightning, name)


def test_the_path_of_version_0_1_gives_the_checkpoint_plugin():
    assert checkpoint_io.AtomicCheckpointIO is checkpoints.AtomicCheckpointIO

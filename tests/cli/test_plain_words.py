"""What jsonargparse says in a dozen lines becomes one sentence, which names the flag and what is near."""

import lightning.pytorch.callbacks  # noqa: F401  # a near name is looked for in what is imported
import pytest

from lcw_lightning.cli.plain_words import in_one_sentence

FLAGS = ["--config", "--constraint.kind", "--constraint.include", "--trainer.max_epochs", "--trainer.max_steps"]

UNION = """Parser key "model":
  Does not validate against any of the Union subtypes
  Errors:
    - Problem with given class_path 'a.Net':
        {}
    - Expected a <class 'NoneType'>
  Given value type: <class 'jsonargparse._util.NestedArg'>
  Given value: NestedArg(key='x', val='{}')"""
RATE = """Parser key "optimizer":
          Type typing.Callable[[a], b] expects a function or a callable class: Parser key "lr":

            - Expected a path but fast either not accessible or invalid
            - Does not validate against any of the Union subtypes
            Errors:
              - Expected a <class 'float'>
              - Expected a dot import path string: fast
            Given value: fast. Got value: Namespace(class_path='torch.optim.SGD', init_args=Namespace(lr='fast'))"""
SCHEDULE = """Parser key "lr_scheduler":
          Type Callable[[a], b] expects a function or a callable class: the following arguments are required: n"""
CALLBACKS = """Parser key "trainer.callbacks":

  - Expected a path but EarlyStoping either not accessible or invalid
  - Does not validate against any of the Union subtypes
  Errors:
    - Expected a <class 'list'>
    - Expected a dot import path string: EarlyStoping
  Given value: EarlyStoping"""

GROUP = """Parser key "constraint":
Unable to load config '[a]'
  - Parser key "constraint": Unable to load config '[a]'"""

SENTENCES = {
    "abbreviated flag": (
        "unrecognized arguments: --constraint.kin=cwn",
        "unrecognized arguments: --constraint.kin=cwn; near it is --constraint.kind",
    ),
    "flag without its group": (
        "unrecognized arguments: --max_epochs 3",
        "unrecognized arguments: --max_epochs 3; near it is --trainer.max_epochs",
    ),
    "flag near none": (
        "unrecognized arguments: --lr 0.1",
        "unrecognized arguments: --lr 0.1; settings of the model begin with --model., of the data with --data., of the "
        "Trainer with --trainer.",
    ),
    "misspelt flags": (
        "unrecognized arguments: --trainer.max_epoch 3 --constraint.knd lcw --zzz 1",
        "unrecognized arguments: --trainer.max_epoch 3 --constraint.knd lcw --zzz 1; near --trainer.max_epoch is "
        "--trainer.max_epochs, near --constraint.knd is --constraint.kind",
    ),
    "config without a flag": (
        "unrecognized arguments: digits.yaml",
        "unrecognized arguments: digits.yaml; settings are given by flags, and a config by --config=FILE",
    ),
    "setting of a config": (
        "Subcommand 'fit' does not accept option 'max_epochs'",
        "the config has 'max_epochs', which is no setting of lcw fit; near it is 'trainer.max_epochs'",
    ),
    "no value": ("argument -c/--config: expected one argument", "--config needs a value"),
    "no command": (
        'expected "subcommand" to be one of {fit,test, ...}, but it was not provided.',
        "name a command: lcw fit, lcw validate, lcw test, lcw predict, lcw export, lcw analyze",
    ),
    "misspelt command": (
        "argument subcommand: invalid choice: 'fitt' (choose from 'fit', 'test')",
        "there is no command 'fitt', near it is 'fit'; there are fit, validate, test, predict, export, analyze",
    ),
    "number or one of several words": (
        UNION.format("Expected a <class 'int'>", "") + "\n    - Expected a typing.Literal['16-true', '32-true']",
        "--model: expected an int or one of '16-true', '32-true'",
    ),
    "word for a number": (UNION.format(RATE, "fast"), "--model.optimizer.lr: expected a float; got 'fast'"),
    "argument of a function": (
        UNION.format(SCHEDULE, "StepLR").replace("val='StepLR'", "val=Namespace(n=None)"),
        "--model.lr_scheduler: the following arguments are required: n",
    ),
    "class among lists": (
        CALLBACKS,
        "--trainer.callbacks: there is no class EarlyStoping, near it is lightning.pytorch.callbacks.EarlyStopping",
    ),
    "value for a group": (
        GROUP,
        "--constraint: '[a]' is no config; the settings of a group have flags of their own, which --help lists",
    ),
    "limit": (
        'Parser key "batch_size":\n  Not of type PositiveInt: 0 does not conform to restriction v>0',
        "--batch_size: expected a number >0; got '0'",
    ),
    "indentation": (
        UNION.format("Option 'init_args.depth' is not accepted", "").replace("NestedArg(key='x', val='')", "{'a': 1}"),
        "--model: Option 'init_args.depth' is not accepted; in a config it is indented too little, or too far",
    ),
}


@pytest.mark.parametrize(("message", "sentence"), SENTENCES.values(), ids=SENTENCES)
def test_a_mistake_is_said_in_one_sentence(message, sentence):
    assert in_one_sentence(message, FLAGS) == sentence


def test_a_message_of_another_kind_stays_as_it_is():
    assert in_one_sentence("this and\n  that", FLAGS) == "this and that"


def test_what_is_said_of_a_list_is_no_complaint_about_its_type():
    said = UNION.format("cannot assign 'list' as child module 'network'", "")
    assert in_one_sentence(said, FLAGS) == "--model: cannot assign 'list' as child module 'network'"

from importlib.metadata import version

import pytest
import yaml

from lcw_lightning.cli import app, main


def test_the_version_is_said_without_waiting_for_torch(run_fresh):
    said = run_fresh("""
import sys
from lcw_lightning.cli import main
sys.argv = ["lcw", "--version"]
main()
assert not {"torch", "lightning", "jsonargparse"} & sys.modules.keys()
""")
    assert said == f"lcw {version('lcw_lightning')}\n"


@pytest.mark.parametrize("args", [["fit"], ["analyze", "--network=torch.nn.Identity"]], ids=["fit", "network"])
def test_ctrl_c_while_torch_is_imported_is_one_message(run_fresh, args):
    said = run_fresh(f"""
import signal, sys
from lcw_lightning.cli import main

class Interrupts:
    def find_spec(self, name, *_):
        if name == "torch":
            signal.raise_signal(signal.SIGINT)

sys.meta_path.insert(0, Interrupts())
sys.stderr = sys.stdout
try:
    main({args})
except SystemExit as end:
    print(end.code)
""")
    assert said == "lcw: ended by Ctrl-C\n130\n"


def test_the_version_is_what_the_whole_parser_says(capsys):
    main(["--version"])
    said = capsys.readouterr()
    with pytest.raises(SystemExit) as exit_:
        app.main(["--version"])
    assert exit_.value.code == 0
    assert capsys.readouterr() == said


def test_flags_and_configs_name_public_classes_by_their_short_paths(run_fresh):
    network = ["--model.network=VGG19", "--model.network.num_classes=10", "--model.optimizer=SGD"]
    flags = ["--model=ImageClassifier", *network, "--data=Digits", "--trainer.callbacks+=MinibatchInitCallback"]
    code = f"from lcw_lightning.cli import main; main(['fit', *{flags}, '--print_config'])"
    config = yaml.safe_load(run_fresh(code))
    assert config["model"]["class_path"] == "lcw_lightning.ImageClassifier"
    assert config["model"]["init_args"]["network"]["class_path"] == "lcw_lightning.VGG19"
    assert config["data"]["class_path"] == "lcw_lightning.Digits"
    assert config["trainer"]["callbacks"][0]["class_path"] == "lcw_lightning.MinibatchInitCallback"

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import lcw_lightning
from lcw_lightning import ShiftMonitor
from lcw_lightning.constraints.constrain import constrained_weights

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
PAGES = {
    str(path.relative_to(ROOT)): path.read_text()
    for path in [ROOT / "README.md", *sorted(ROOT.glob("docs/*.md")), *sorted(ROOT.glob("results/*.md"))]
}
TEXT = "".join(PAGES.values())
# Every block of Python, and the block of text behind it, which says what it prints.
BLOCK = re.compile(r"```python\n(.*?)```(?:\n\n```text\n(.*?)```)?", flags=re.DOTALL)
BLOCKS = [
    pytest.param(*block, id=f"{page}-{n}") for page in PAGES for n, block in enumerate(BLOCK.findall(PAGES[page]))
]
SNIPPETS = [code for code, _ in BLOCK.findall(TEXT)]
COMMANDS = re.findall(r"```bash\n(.*?)```", TEXT, flags=re.DOTALL)
NUMBER = re.compile(r"(?<![\w.])\d+(?:\.\d+)?(?:e[+-]?\d+)?(?![\w.]\w)")


@pytest.mark.parametrize(("snippet", "printed"), BLOCKS)
@pytest.mark.filterwarnings("ignore:.*does not have many workers", "ignore:The number of training batches")
def test_every_python_snippet_runs_and_prints_what_the_page_says(snippet, printed, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    exec(snippet, {})
    if printed:
        said = capsys.readouterr().out
        assert NUMBER.sub("#", said).split() == NUMBER.sub("#", printed).split()
        assert numbers(said) == pytest.approx(numbers(printed), rel=0.05)  # rounding differs between machines


def numbers(text):
    return [float(number) for number in NUMBER.findall(text)]


def test_numbers_are_compared_and_the_words_around_them():
    assert numbers("hidden.0.linear 2.03 8.66e-09 0% 1.89e+05 times, 5.0 decades; 5 of 9.") == [
        *(2.03, 8.66e-9, 0, 1.89e5, 5, 5, 9)
    ]


def test_a_page_shows_what_a_snippet_prints():
    assert any(printed for _, printed in BLOCK.findall(README))


@pytest.mark.filterwarnings("ignore:.*does not have many workers", "ignore:The number of training batches")
def test_the_project_of_the_example_trains_as_it_says(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(next(snippet for snippet in SNIPPETS if "class Regressor" in snippet), names)
    trained, plain, inputs = names["trained"], names["plain"], names["inputs"]
    assert len(constrained_weights(trained)) == 31
    assert constrained_weights(plain) == {}
    assert torch.equal(plain.network(inputs), trained.network(inputs))
    gradients = gradient_stds(tmp_path)
    assert 0.1 < gradients["network.0"] / gradients["network.60"] < 10
    names["before"].callbacks.append(ShiftMonitor())  # the same project without the constraint, for comparison
    names["before"].fit(names["Regressor"](), names["loader"])
    gradients = gradient_stds(tmp_path)
    assert gradients["network.0"] / gradients["network.60"] < 1e-6


ON_TWO_PROCESSES = " --trainer.accelerator cpu --trainer.devices 2 --trainer.strategy ddp"


@pytest.mark.parametrize(
    "more", ["", pytest.param(ON_TWO_PROCESSES, marks=pytest.mark.slow)], ids=["one-process", "two-processes"]
)
def test_the_project_of_two_files_trains_in_its_folder(more, tmp_path):
    (commands,) = [block.strip() for block in COMMANDS if "cat > " in block]
    scripts = Path(sys.executable).parent  # where lcw is installed
    settings = {"cwd": tmp_path, "env": {**os.environ, "PATH": f"{scripts}:{os.environ['PATH']}"}, "timeout": 240}
    subprocess.run(["bash", "-euc", commands + more], check=True, **settings)
    (path,) = tmp_path.glob("lightning_logs/version_0/checkpoints/*.ckpt")
    assert len(torch.load(path)["lcw_lightning"]["constraints"]) == 21
    # A control: to a script that lies elsewhere Python shows no module of the working directory.
    (tmp_path / "scripts").mkdir()
    (tmp_path / "scripts/other.py").write_text("import mymodel")
    other = subprocess.run([sys.executable, "scripts/other.py"], capture_output=True, check=False, **settings)
    assert b"No module named 'mymodel'" in other.stderr


def gradient_stds(folder):
    """What the newest run logged at its first step, by layer."""
    newest = max(folder.glob("lightning_logs/version_*"), key=lambda path: int(path.name.split("_")[1]))
    events = EventAccumulator(str(newest))
    events.Reload()
    tags = [tag for tag in events.Tags()["scalars"] if tag.startswith("gradient_std/")]
    return {tag.removeprefix("gradient_std/"): events.Scalars(tag)[0].value for tag in tags}


@pytest.mark.parametrize("name", lcw_lightning.__all__)
def test_every_public_name_is_mentioned_and_in_the_reference(name):
    assert f"::: lcw_lightning.{name}\n" in PAGES["docs/api.md"]
    assert name in "".join(text for page, text in PAGES.items() if page != "docs/api.md")


@pytest.mark.parametrize("path", sorted(ROOT.glob("configs/*.yaml")), ids=lambda path: path.stem)
def test_every_config_is_mentioned(path):
    assert f"configs/{path.name}" in TEXT


def test_the_readme_is_short():
    assert len(README.splitlines()) <= 180


def test_every_page_is_in_the_navigation():
    navigation = (ROOT / "mkdocs.yml").read_text().partition("nav:")[2]
    assert set(PAGES) <= set(re.findall(r"- (\S+\.md)$", navigation, re.MULTILINE))


@pytest.mark.parametrize("document", [*PAGES, "CONTRIBUTING.md", "CHANGELOG.md"])
def test_every_linked_file_and_section_exists(document):
    for link in re.findall(r"\]\(([^)]+)\)", (ROOT / document).read_text()):
        if not link.startswith("http"):
            path, _, section = link.partition("#")
            target = (ROOT / document).parent / path if path else ROOT / document
            assert target.exists(), link
            assert not section or section in sections(target), link


def sections(path):
    """Return the anchors of a page's headings, as mkdocs and GitHub make them."""
    titles = re.findall(r"^#+ (.+)$", path.read_text(), re.MULTILINE)
    return [re.sub(r"[^\w -]", "", title).lower().replace(" ", "-") for title in titles]


def test_its_test_command_is_the_one_that_ci_runs():
    assert README.count("tools/check\n") == 1
    assert "tools/check$" in (ROOT / ".ci" / "run").read_text()


def test_the_examples_for_contributors_are_lines_of_the_code():
    files = [*Path(lcw_lightning.__file__).parent.rglob("*.py"), *ROOT.glob("tests/**/*.py")]
    lines = {line.strip() for path in files for line in path.read_text().splitlines()}
    examples = re.findall(r"```python\n(.*?)```", (ROOT / "CONTRIBUTING.md").read_text(), flags=re.DOTALL)
    assert examples
    for line in "".join(examples).splitlines():
        assert line.strip() in lines

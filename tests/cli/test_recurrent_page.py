"""The page on recurrent networks shows what `lcw analyze` says."""

import re
from pathlib import Path

import pytest

from lcw_lightning.cli import main

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "recurrent.md").read_text()
NUMBER = re.compile(r"(?<![\w.])\d+(?:\.\d+)?(?![\w])")


@pytest.mark.slow
def test_the_page_shows_the_verdict_as_it_is_printed(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    (command,) = re.findall(r"^lcw (analyze --config .*)$", PAGE, re.MULTILINE)
    monkeypatch.setattr("sys.argv", ["lcw", *command.replace("configs/", f"{ROOT}/configs/").split()])
    main()
    (shown,) = re.findall(r"<!-- over time: .*? -->\n```text\n(.*?)```", PAGE, re.DOTALL)
    said = capsys.readouterr().out
    said = said[said.index("none: from the last step") : said.index("written to")]
    assert NUMBER.sub("#", said).split() == NUMBER.sub("#", shown).split()
    numbers = [[float(number) for number in NUMBER.findall(text)] for text in (said, shown)]
    assert numbers[0] == pytest.approx(numbers[1], rel=0.05)  # rounding differs between machines
    assert Path("analysis/gradient_over_time.png").exists()

import pytest

from tools.reproduce import __main__ as reproduce


@pytest.mark.parametrize("text", ["0/3", "4/3", "3", "a/b", "-1/3"])
def test_a_wrong_shard_is_one_message(text, capsys):
    with pytest.raises(SystemExit):
        reproduce.parse(["fig5", f"--shard={text}"])
    assert f"{text} is not i/n with i from 1 to n" in capsys.readouterr().err

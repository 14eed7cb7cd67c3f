import pytest

from zoo_builder.progress import progress_bar


@pytest.mark.parametrize("show", [True, False])
def test_notes_are_lines_where_there_is_no_terminal_unless_nothing_is_to_be_shown(show, capsys):
    with progress_bar("work", 3, done=1, show=show) as bar:
        bar.advance()
        bar.note("half")
    assert capsys.readouterr() == ("", "work: 2/3 half\n" if show else "")

"""Which code made a result."""

from switchlora.training.source import source_hash


def test_it_is_one_number_until_a_file_of_ones_own_changes(tmp_path):
    assert source_hash("full") == source_hash("switchlora")
    assert len(source_hash("full")) == 12
    own = tmp_path / "idea.py"
    own.write_text("METHOD = 1\n")
    before = source_hash(str(own))
    assert before not in ("", source_hash("full")) and before == source_hash(str(own))
    own.write_text("METHOD = 2\n")
    assert source_hash(str(own)) != before

"""Data sets in pieces: what comes out is what went in, and what is missing or damaged is named."""

import pytest

from hcnn.data.cifar import SOURCES
from hcnn.data.pieces import main, pack, unpack


@pytest.fixture
def folder(tmp_path):
    """Two files, one longer than a piece, of numbers that do not compress to nothing."""
    source = tmp_path / "data" / "some"
    source.mkdir(parents=True)
    (source / "long").write_bytes(bytes(i * i * i % 251 for i in range(5000)))
    (source / "short").write_bytes(b"abc")
    return source


def test_files_come_out_as_they_went_in(folder, tmp_path):
    pieces = pack(folder, tmp_path / "pieces", limit=300)
    assert len(pieces) > 1 and all(0 < piece.stat().st_size <= 300 for piece in pieces)
    unpack(tmp_path / "pieces", tmp_path / "there" / "some")
    assert {path.name: path.read_bytes() for path in (tmp_path / "there" / "some").iterdir()} == {
        path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_piece_that_is_missing_or_damaged_is_named_and_nothing_is_written(folder, tmp_path):
    pieces, there = pack(folder, tmp_path / "pieces", limit=300), tmp_path / "there" / "some"
    whole = pieces[1].read_bytes()
    pieces[1].write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(ValueError, match="some.01 is damaged"):
        unpack(tmp_path / "pieces", there)
    pieces[1].unlink()
    with pytest.raises(FileNotFoundError, match="some.01 is missing"):
        unpack(tmp_path / "pieces", there)
    assert not there.exists()


def test_the_command_says_what_is_not_there(tmp_path, capsys):
    for what in ("pack", "unpack"):
        assert main([what, "cifar10", str(tmp_path / "pieces"), "--dataset-root", str(tmp_path)]) == 1
        assert "error: " in capsys.readouterr().err


@pytest.mark.cifar
@pytest.mark.full
@pytest.mark.parametrize("name", SOURCES)
def test_cifar_in_pieces_below_64_mb_keeps_its_checksums(name, tmp_path, capsys):
    assert main(["pack", name, str(tmp_path / "pieces")]) == 0
    assert max(piece.stat().st_size for piece in (tmp_path / "pieces").iterdir()) < 64e6
    assert main(["unpack", name, str(tmp_path / "pieces"), "--dataset-root", str(tmp_path)]) == 0
    assert capsys.readouterr().out.rstrip().endswith("verified")
